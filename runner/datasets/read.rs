//! Reading rows: one at a time, so that a dataset may be larger than memory, and with every complaint placed.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use drydock_spec::dataset::{Columns, Example, Format, Role, squad};
use drydock_spec::lengths::Lengths;
use serde_json::Value;

use super::sniff::{self, Kind};
use super::{BadRow, DatasetError};

/// Longest row. What is longer is no row but a document, or broken; a model would see a fraction of it anyway.
const LONGEST_LINE: u64 = 4 << 20;
/// Largest document: it is held in memory, several times its size. SQuAD's whole training set has 30 MB.
const LARGEST_DOCUMENT: u64 = 64 << 20;
/// Rows that a preview shows.
const FIRST: usize = 3;

/// Where in a file something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Line and byte count from 1, the offset in the file from 0.
    Line { line: u64, byte: u64, offset: u64 },
    /// Row of a list, from 0.
    Element(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line, byte, offset } => write!(f, "line {line}, byte {byte} (offset {offset} in the file)"),
            Self::Element(index) => write!(f, "row [{index}]"),
        }
    }
}

/// What the rows that were read so far come to.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    columns: &'a Columns,
    pub(super) format: Option<Format>,
    pub(super) rows: u64,
    pub(super) blank: u64,
    pub(super) text_bytes: u64,
    pub(super) most_tokens: u64,
    pub(super) lengths: Lengths,
    pub(super) first: Vec<Example>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(columns: &'a Columns) -> Self {
        Self {
            columns,
            format: None,
            rows: 0,
            blank: 0,
            text_bytes: 0,
            most_tokens: 0,
            lengths: Lengths::default(),
            first: Vec::new(),
        }
    }

    /// Reads all rows of a file; `file` is its name.
    pub(super) fn read(&mut self, file: &str, source: &mut (impl Read + Seek)) -> Result<(), DatasetError> {
        let mut begin = Vec::new();
        source
            .take(sniff::LOOK as u64)
            .read_to_end(&mut begin)
            .and_then(|_| source.rewind())
            .map_err(|error| unreadable(file, &error))?;
        match sniff::kind(file, &begin)? {
            Kind::Lines => self.lines(file, source),
            Kind::Document => self.document(file, source),
            Kind::Text => self.text(file, source),
        }
    }

    /// The form of the rows, if there is anything to learn from; `origin` is what they are called all together.
    pub(super) fn usable_format(&self, origin: &str) -> Result<Format, DatasetError> {
        let refused = |problem: String, next: &str| {
            Err(DatasetError::File { file: origin.to_owned(), problem, next: next.to_owned() })
        };
        match self.format {
            None => refused("no rows".into(), "give at least one .jsonl, .json or .txt file with rows in it"),
            Some(_) if self.rows == 0 => {
                let problem = format!("nothing to learn from: all {} rows have a blank answer or text", self.blank);
                refused(problem, "check which columns hold the answers, and name them with `columns`")
            }
            Some(format) => Ok(format),
        }
    }

    fn lines(&mut self, file: &str, source: &mut (impl Read + Seek)) -> Result<(), DatasetError> {
        let mut reader = BufReader::with_capacity(1 << 18, source);
        let mut line = Vec::new();
        let (mut number, mut offset) = (0, 0);
        loop {
            line.clear();
            let read = reader
                .by_ref()
                .take(LONGEST_LINE + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| unreadable(file, &error))? as u64;
            if read == 0 {
                return Ok(());
            }
            number += 1;
            // A byte order mark is no part of the first row, but counts in its place.
            let text = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
            let mark = (line.len() - text.len()) as u64;
            if read > LONGEST_LINE {
                let place = Place::Line { line: number, byte: LONGEST_LINE, offset: offset + LONGEST_LINE };
                let problem = format!("the line is longer than {LONGEST_LINE} bytes");
                return Err(row_error(
                    file,
                    place,
                    problem,
                    &excerpt(text, 0),
                    "split the row, or check the line ends",
                ));
            }
            if !text.trim_ascii().is_empty() {
                self.line(text).map_err(|(at, problem, next)| {
                    let at = mark + at as u64;
                    let place = Place::Line { line: number, byte: at + 1, offset: offset + at };
                    row_error(file, place, problem, &excerpt(&line, at as usize), next)
                })?;
            }
            offset += read;
        }
    }

    /// A row on a line of its own; otherwise at which byte what is wrong, and what to do.
    fn line(&mut self, text: &[u8]) -> Result<(), (usize, String, &'static str)> {
        let row: Value = serde_json::from_slice(text).map_err(|error| {
            // The parser counts columns in bytes, from 1, and names the one where it stopped.
            let at = error.column().saturating_sub(1).min(text.trim_ascii_end().len());
            (at, format!("not JSON: {}", without_place(&error)), "mend the line: each is one JSON object")
        })?;
        self.row(&row).map_err(|problem| (0, problem, ""))
    }

    fn document(&mut self, file: &str, source: &mut (impl Read + Seek)) -> Result<(), DatasetError> {
        let refused = |problem: String, next: &str| {
            Err(DatasetError::File { file: file.to_owned(), problem, next: next.to_owned() })
        };
        let size = source
            .seek(SeekFrom::End(0))
            .and_then(|size| source.rewind().map(|()| size))
            .map_err(|error| unreadable(file, &error))?;
        if size > LARGEST_DOCUMENT {
            let problem = format!("a document of {size} bytes, {LARGEST_DOCUMENT} at most are read");
            return refused(problem, "write the rows as JSON lines (.jsonl), which may be of any length");
        }
        let mut text = Vec::new();
        source.take(LARGEST_DOCUMENT).read_to_end(&mut text).map_err(|error| unreadable(file, &error))?;
        let mark = if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let document: Value =
            serde_json::from_slice(&text[mark..]).map_err(|error| broken_document(file, &text, mark, &error))?;
        match &document {
            Value::Array(rows) => rows.iter().enumerate().try_for_each(|(index, row)| {
                self.row(row).map_err(|problem| {
                    let shown = row.to_string();
                    row_error(file, Place::Element(index), problem, &excerpt(shown.as_bytes(), 0), "")
                })
            }),
            Value::Object(_) => match self.columns.detect(&document) {
                Ok(Format::Squad) => self.squad(file, &document),
                Ok(_) => refused("a single row".into(), "rename the file to .jsonl, with a row a line"),
                Err(_) => {
                    let problem = "neither a list of rows nor SQuAD's document, which has its articles under `data`";
                    refused(problem.into(), "write the rows as JSON lines (.jsonl), or as one list")
                }
            },
            _ => refused("neither a list nor an object".into(), "write the rows as JSON lines (.jsonl)"),
        }
    }

    fn squad(&mut self, file: &str, document: &Value) -> Result<(), DatasetError> {
        let refused = |problem: String, next: &str| {
            Err(DatasetError::File { file: file.to_owned(), problem, next: next.to_owned() })
        };
        if self.format.is_some_and(|format| format != Format::Squad) {
            return refused("SQuAD's form among files of another form".into(), "load them as datasets of their own");
        }
        match squad(document) {
            Ok(questions) => {
                self.format = Some(Format::Squad);
                questions.iter().for_each(|question| self.count(question.example()));
                Ok(())
            }
            Err(error) => refused(error.to_string(), "mend it, or write the rows as JSON lines (.jsonl)"),
        }
    }

    fn row(&mut self, row: &Value) -> Result<(), String> {
        let format = match self.format {
            Some(format) => format,
            None => match self.columns.detect(row).map_err(|error| error.to_string())? {
                Format::Squad => return Err("SQuAD's document on a line; name the file .json".into()),
                format => format,
            },
        };
        let example = self.columns.example(format, row).map_err(|error| error.to_string())?;
        self.format = Some(format);
        self.count(example);
        Ok(())
    }

    fn count(&mut self, example: Example) {
        if is_blank(&example) {
            self.blank += 1;
            return;
        }
        self.rows += 1;
        self.text_bytes += texts(&example).iter().map(|text| text.len() as u64).sum::<u64>();
        self.measure(most_tokens(&example));
        self.show(example);
    }

    /// Takes the length of a row into account.
    pub(super) fn measure(&mut self, tokens: u64) {
        self.most_tokens = self.most_tokens.max(tokens);
        self.lengths.add(tokens);
    }

    /// Keeps the first rows for the preview.
    pub(super) fn show(&mut self, example: Example) {
        if self.first.len() < FIRST {
            self.first.push(example);
        }
    }
}

/// Whether there is nothing in it that a model could learn to say.
fn is_blank(example: &Example) -> bool {
    match example {
        Example::Chat(turns) => {
            turns.iter().filter(|turn| turn.role == Role::Assistant).all(|turn| turn.content.trim().is_empty())
        }
        Example::Completion { completion, .. } => completion.trim().is_empty(),
        Example::Text(text) => text.trim().is_empty(),
        Example::Preference { chosen: example, .. } | Example::Labelled { example, .. } => is_blank(example),
        Example::Choice { question, .. } => question.trim().is_empty(),
    }
}

/// The texts of a row.
fn texts(example: &Example) -> Vec<&str> {
    match example {
        Example::Chat(turns) => turns.iter().map(|turn| turn.content.as_str()).collect(),
        Example::Completion { prompt, completion } => vec![prompt, completion],
        Example::Text(text) => vec![text],
        Example::Preference { chosen, rejected } => [texts(chosen), texts(rejected)].concat(),
        Example::Labelled { example, .. } => texts(example),
        Example::Choice { question, choices, .. } => {
            std::iter::once(question).chain(choices).map(String::as_str).collect()
        }
    }
}

/// More tokens than a tokenizer makes of a row in practice. Letters come several to a token, digits and signs often
/// alone, other scripts at worst byte by byte; a chat template adds to every turn, and perhaps a system prompt.
fn most_tokens(example: &Example) -> u64 {
    const A_TURN: u64 = 8;
    const A_ROW: u64 = 64;
    match example {
        // Each of the two answers makes a row of its own.
        Example::Preference { chosen, rejected } => most_tokens(chosen).max(most_tokens(rejected)),
        // So does each choice behind its question.
        Example::Choice { question, choices, .. } => {
            let longest = choices.iter().map(|choice| tokens(choice)).max().unwrap_or(0);
            tokens(question) + longest + 2 * A_TURN + A_ROW
        }
        Example::Chat(_) | Example::Completion { .. } | Example::Text(_) | Example::Labelled { .. } => {
            texts(example).into_iter().map(|text| tokens(text) + A_TURN).sum::<u64>() + A_ROW
        }
    }
}

/// The same of a text alone.
pub(super) fn tokens(text: &str) -> u64 {
    let letters = text.bytes().filter(|byte| byte.is_ascii_alphabetic() || *byte == b' ').count() as u64;
    letters / 2 + (text.len() as u64 - letters)
}

fn broken_document(file: &str, text: &[u8], mark: usize, error: &serde_json::Error) -> DatasetError {
    let before: usize =
        text.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let skipped = if error.line() == 1 { mark } else { 0 };
    let byte = skipped + error.column().max(1);
    let offset = (before + byte - 1).min(text.len());
    let place = Place::Line { line: error.line() as u64, byte: byte as u64, offset: offset as u64 };
    let first = text[mark..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let next = match serde_json::from_slice::<Value>(first) {
        Ok(_) => "this looks like a row a line: rename the file to .jsonl",
        Err(_) => "mend the document",
    };
    row_error(file, place, format!("not JSON: {}", without_place(error)), &excerpt(text, offset), next)
}

/// The parser's complaint without its own idea of line and column.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(problem, _)| problem.to_owned())
}

fn row_error(file: &str, place: Place, problem: String, excerpt: &str, next: &str) -> DatasetError {
    let excerpt = excerpt.to_owned();
    DatasetError::Row(Box::new(BadRow { file: file.to_owned(), place, problem, excerpt, next: next.to_owned() }))
}

pub(super) fn unreadable(file: &str, error: &std::io::Error) -> DatasetError {
    DatasetError::File {
        file: file.to_owned(),
        problem: format!("cannot be read: {error}"),
        next: "check the disk and the file's permissions".into(),
    }
}

/// The text around byte `at`, escaped, at most 80 characters.
fn excerpt(text: &[u8], at: usize) -> String {
    const BEFORE: usize = 24;
    const ALL: usize = 72;
    let from = at.min(text.len()).saturating_sub(BEFORE);
    let to = (from + ALL).min(text.len());
    let escaped = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        other => other.escape_debug().to_string(),
    };
    let text_there = String::from_utf8_lossy(&text[from..to]);
    let shown: String = text_there.trim().chars().map(escaped).collect::<String>().chars().take(ALL).collect();
    let (left, right) = (if from > 0 { "..." } else { "" }, if to < text.len() { "..." } else { "" });
    format!("{left}{shown}{right}")
}

#[cfg(test)]
mod tests;
