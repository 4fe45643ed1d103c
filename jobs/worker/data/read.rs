//! A dataset's files, read into examples.

use std::path::Path;

use drydock_spec::FailureKind::BadDataset;
use drydock_spec::dataset::{Columns, Example, Format, squad};
use serde_json::Value;

use crate::ending::{OrFail, Result, failed};

/// An example and where it stands, for those who look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub example: Example,
    /// Every answer that is right, where the file gives several (SQuAD); the example holds the first of them.
    pub accepted: Vec<String>,
    /// File and line, as in `train.jsonl, line 17`.
    pub place: String,
}

/// A dataset as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examples {
    /// The form of the first file's rows.
    pub format: Format,
    pub examples: Vec<Placed>,
}

/// Characters around a mistake that are shown.
const CONTEXT_CHARS: usize = 60;

/// Reads every `.jsonl`, `.json` and `.txt` file of the folder in the order of their names. A `.jsonl` holds a row a
/// line; a `.json` holds a list of rows, or a document in SQuAD's form; a `.txt` is one text.
pub fn read(folder: &Path, columns: &Columns) -> Result<Examples> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).or_fail(BadDataset, "cannot read the dataset folder")? {
        paths.push(entry.or_fail(BadDataset, "cannot read the dataset folder")?.path());
    }
    paths.sort();
    let mut all = Examples { format: Format::Messages, examples: Vec::new() };
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let read_file: fn(&str, &str, &Columns) -> Result<Examples> =
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("jsonl") => lines,
                Some("json") => document,
                Some("txt") => plain_text,
                _ => continue,
            };
        let bytes = std::fs::read(&path).or_fail(BadDataset, format_args!("cannot read {name}"))?;
        let text = String::from_utf8(bytes).map_err(|error| error.utf8_error());
        let text = text.or_fail(BadDataset, format_args!("{name} is not UTF-8"))?;
        let file = read_file(&name, text.trim_start_matches('\u{feff}'), columns)?;
        if all.examples.is_empty() {
            all.format = file.format;
        }
        all.examples.extend(file.examples);
    }
    if all.examples.is_empty() {
        return failed(BadDataset, "the dataset has no rows: its folder holds no .jsonl, .json or .txt file with any");
    }
    Ok(all)
}

/// One text; an empty file is passed over.
fn plain_text(name: &str, text: &str, _columns: &Columns) -> Result<Examples> {
    let example = || Placed { example: Example::Text(text.to_owned()), accepted: Vec::new(), place: name.to_owned() };
    let examples = if text.trim().is_empty() { Vec::new() } else { vec![example()] };
    Ok(Examples { format: Format::Text, examples })
}

/// A row a line; empty lines are passed over.
fn lines(name: &str, text: &str, columns: &Columns) -> Result<Examples> {
    let mut format = None;
    let mut examples = Vec::new();
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let start = offset;
        offset += line.len();
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{name}, line {}", index + 1);
        let row: Value = serde_json::from_str(line).map_err(|error| {
            let column = error.column().saturating_sub(1);
            let (byte, near) = (start + column, excerpt(line, column));
            drydock_spec::Failure::new(
                BadDataset,
                format!("{} (byte {byte}): {}; near `{near}`", place(), bare(&error)),
            )
        })?;
        let format = match format {
            Some(format) => format,
            None => *format.insert(form(columns, &row, &place())?),
        };
        let example = columns.example(format, &row).map_err(|error| {
            let message = format!("{} (byte {start}): {error}; near `{}`", place(), excerpt(line, 0));
            drydock_spec::Failure::new(BadDataset, message)
        })?;
        examples.push(Placed { example, accepted: Vec::new(), place: place() });
    }
    Ok(Examples { format: format.unwrap_or(Format::Messages), examples })
}

fn form(columns: &Columns, row: &Value, place: &str) -> Result<Format> {
    match columns.detect(row).or_fail(BadDataset, place)? {
        Format::Squad => failed(BadDataset, format!("{place}: a whole SQuAD document; put it into a .json file")),
        format => Ok(format),
    }
}

/// A list of rows, or SQuAD's document.
fn document(name: &str, text: &str, columns: &Columns) -> Result<Examples> {
    let document: Value = serde_json::from_str(text).map_err(|error| {
        let line_start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        let byte = line_start + error.column().saturating_sub(1);
        let message = format!("{name} (byte {byte}): {}; near `{}`", bare(&error), excerpt(text, byte));
        drydock_spec::Failure::new(BadDataset, message)
    })?;
    let Value::Array(rows) = &document else {
        if columns.detect(&document).or_fail(BadDataset, name)? != Format::Squad {
            return failed(BadDataset, format!("{name}: one object; a list of rows or a SQuAD document is expected"));
        }
        let questions = squad(&document).or_fail(BadDataset, name)?.into_iter().enumerate();
        let placed = questions.map(|(i, question)| Placed {
            example: question.example(),
            accepted: question.answers,
            place: format!("{name}, question {}", i + 1),
        });
        let examples = placed.collect();
        return Ok(Examples { format: Format::Squad, examples });
    };
    let mut format = None;
    let mut examples = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let place = format!("{name}, row {}", index + 1);
        let format = match format {
            Some(format) => format,
            None => *format.insert(form(columns, row, &place)?),
        };
        let example = columns.example(format, row).map_err(|error| {
            let near = row.to_string();
            drydock_spec::Failure::new(BadDataset, format!("{place}: {error}; near `{}`", excerpt(&near, 0)))
        })?;
        examples.push(Placed { example, accepted: Vec::new(), place });
    }
    Ok(Examples { format: format.unwrap_or(Format::Messages), examples })
}

/// What is wrong, without serde_json's line and column: those count within the line that it was given.
fn bare(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

/// The text around a byte.
fn excerpt(text: &str, byte: usize) -> String {
    let at = text.floor_char_boundary(byte.min(text.len()));
    let from = text[..at].char_indices().rev().take(CONTEXT_CHARS).last().map_or(at, |(index, _)| index);
    let to = text[at..].char_indices().nth(CONTEXT_CHARS).map_or(text.len(), |(index, _)| at + index);
    text[from..to].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::Ending;

    fn read_files(files: &[(&str, &str)]) -> Result<Examples> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        read(folder.path(), &Columns::default())
    }

    fn message(files: &[(&str, &str)]) -> String {
        match read_files(files) {
            Err(Ending::Failed(failure)) if failure.kind == BadDataset => failure.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_read_in_the_order_of_their_names_and_others_are_passed_over() {
        let read = read_files(&[
            ("b.json", r#"[{"text": "3"}]"#),
            ("a.jsonl", "\u{feff}{\"text\": \"1\"}\n\n{\"text\": \"2\"}"),
            ("README.md", "no rows"),
            ("c.txt", "4\n\n5\n"),
            ("d.txt", "\n"),
        ])
        .unwrap();
        let texts: Vec<_> = read.examples.iter().map(|placed| (&placed.example, placed.place.as_str())).collect();
        assert_eq!(read.format, Format::Text);
        assert_eq!(texts[1], (&Example::Text("2".into()), "a.jsonl, line 3"));
        assert_eq!(texts[2], (&Example::Text("3".into()), "b.json, row 1"));
        assert_eq!(texts[3..], [(&Example::Text("4\n\n5\n".into()), "c.txt")]);
    }

    #[test]
    fn a_bad_line_is_named_with_its_byte_and_the_text_around_it() {
        let text = "{\"text\": \"ä\"}\n{\"text\": \"2\",}\n";
        let broken = message(&[("a.jsonl", text)]);
        assert!(broken.starts_with("a.jsonl, line 2 (byte 28): trailing comma"), "{broken}");
        assert!(broken.ends_with("near `{\"text\": \"2\",}`"), "{broken}");
        let wrong = message(&[("a.jsonl", "{\"text\": \"1\"}\n{\"text\": 2}\n")]);
        assert_eq!(
            wrong,
            "a.jsonl, line 2 (byte 14): column `text` holds a number, a string is expected; near `{\"text\": 2}`"
        );
        let cut = message(&[("a.json", "[{\"text\": \"1\"},\n{\"text\"")]);
        assert!(cut.starts_with("a.json (byte 22): EOF while parsing"), "{cut}");
    }

    #[test]
    fn an_empty_dataset_says_so() {
        assert!(message(&[("a.jsonl", "\n\n")]).starts_with("the dataset has no rows"));
        assert!(message(&[("a.csv", "x")]).starts_with("the dataset has no rows"));
    }
}
