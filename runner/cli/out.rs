//! The only way to the terminal: results on stdout, everything for people alone on stderr.
//!
//! Text from a job is written by whoever wrote its dataset or model. Every line is therefore cleaned of control
//! characters here, however it was made; styles are added afterwards.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use super::error::CliError;
use super::text::{clean, clean_json};

/// Where output goes, and in what form.
pub(super) struct Out {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    /// Results are JSON.
    pub(super) json: bool,
    /// stderr is a terminal that bars can be drawn on.
    pub(super) live: bool,
    /// stdout is a terminal: tables may fill its width.
    wide: bool,
    colours: bool,
}

impl Out {
    pub(super) fn of_process(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let wide = io::stdout().is_terminal();
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            json,
            live: io::stderr().is_terminal() && !dumb,
            wide,
            colours: wide && !plain && !dumb,
        }
    }

    /// A line of the result; line breaks in it stay.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        self.raw(format!("{}\n", clean(text.as_ref())).as_bytes())
    }

    /// The result as it is.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        let written = self.stdout.write_all(bytes).and_then(|()| self.stdout.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::OutputClosed,
            _ => CliError::Io { what: "stdout".into(), error },
        })
    }

    /// The result as one JSON document.
    pub(super) fn document(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        self.json_text(serde_json::to_string_pretty(value))
    }

    /// One JSON object of a stream.
    pub(super) fn json_line(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        self.json_text(serde_json::to_string(value))
    }

    fn json_text(&mut self, text: serde_json::Result<String>) -> Result<(), CliError> {
        let text = text.map_err(|error| CliError::Io { what: "stdout".into(), error: error.into() })?;
        self.raw(format!("{}\n", clean_json(&text)).as_bytes())
    }

    /// A word to the person in front of the terminal.
    pub(super) fn note(&mut self, text: impl AsRef<str>) {
        // Whoever closed stderr does not want to know; the result on stdout is what counts.
        let _ = writeln!(self.stderr, "{}", clean(text.as_ref()));
    }

    /// Says why the command could not do its work.
    pub(super) fn failed(&mut self, error: &CliError) {
        if matches!(error, CliError::OutputClosed) {
            return;
        }
        let view = error.view();
        if self.json {
            // There is no other place left to say that this could not be written.
            let _ = self.document(&view);
        }
        self.note(format!("error: {}", view.error.message));
        for option in &view.error.options {
            let said = option.to_string();
            if !view.error.message.contains(&said) {
                self.note(format!("  {said}"));
            }
        }
        if let Some(hint) = view.error.hint {
            self.note(format!("hint: {hint}"));
        }
    }

    /// A table. Cells are cleaned; the column called STATE is coloured where colours are wanted.
    pub(super) fn table<const N: usize>(&mut self, header: [&str; N], rows: Vec<[String; N]>) -> Result<(), CliError> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.iter().map(|name| {
            let cell = Cell::new(name);
            if self.colours { cell.add_attribute(Attribute::Bold) } else { cell }
        }));
        if self.wide {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        for row in rows {
            table.add_row(row.iter().zip(header).map(|(text, column)| {
                let cell = Cell::new(clean(text).replace('\n', " "));
                match state_colour(text) {
                    Some(colour) if self.colours && column == "STATE" => cell.fg(colour),
                    _ => cell,
                }
            }));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            // Names and ids are there to be copied: a narrow terminal wraps other columns.
            if index == 0 {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        let text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        self.raw(text.as_bytes())
    }
}

fn state_colour(state: &str) -> Option<Color> {
    match state {
        "succeeded" | "ok" => Some(Color::Green),
        "failed" | "problem" => Some(Color::Red),
        "running" => Some(Color::Cyan),
        "stopping" | "cancelled" | "warn" => Some(Color::Yellow),
        _ => None,
    }
}
