//! A dataset's files, read into examples.
//!
//! Nobody has looked at them before: no row, and no file that has to be held in one piece, is longer than a limit, and
//! what is longer is told before it is in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use drydock_spec::Failure;
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

/// What is read into memory in one piece, in MiB. A row becomes several times its size in tokens before it is cut.
#[derive(Clone, Copy)]
struct Limits {
    /// A line of a `.jsonl` file.
    line: u64,
    /// A `.json` or a `.txt` file.
    file: u64,
}

const LIMITS: Limits = Limits { line: 32, file: 512 };

/// Reads every `.jsonl`, `.json` and `.txt` file of the folder in the order of their names. A `.jsonl` holds a row a
/// line; a `.json` holds a list of rows, or a document in SQuAD's form; a `.txt` is one text.
pub fn read(folder: &Path, columns: &Columns) -> Result<Examples> {
    read_within(LIMITS, folder, columns)
}

fn read_within(limits: Limits, folder: &Path, columns: &Columns) -> Result<Examples> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).or_fail(BadDataset, "cannot read the dataset folder")? {
        paths.push(entry.or_fail(BadDataset, "cannot read the dataset folder")?.path());
    }
    paths.sort();
    let mut all = Examples { format: Format::Messages, examples: Vec::new() };
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let open = || File::open(&path).or_fail(BadDataset, format_args!("cannot read {name}"));
        let file = match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => lines(&name, BufReader::new(open()?), limits.line, columns)?,
            Some("json") => document(&name, &whole(&name, open()?, limits.file)?, columns)?,
            Some("txt") => plain_text(&name, whole(&name, open()?, limits.file)?),
            _ => continue,
        };
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

/// A file's text, without the mark that some editors put before it.
fn whole(name: &str, file: File, limit: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let read = file.take((limit << 20) + 1).read_to_end(&mut bytes);
    read.or_fail(BadDataset, format_args!("cannot read {name}"))?;
    if bytes.len() as u64 > limit << 20 {
        let message = format!("{name} is longer than {limit} MiB; one text or document may be as long as that");
        let hint = "split the file, or write a row a line into a .jsonl file";
        return Err(Failure::new(BadDataset, message).with_hint(hint).into());
    }
    let text = String::from_utf8(bytes).map_err(|error| error.utf8_error());
    let mut text = text.or_fail(BadDataset, format_args!("{name} is not UTF-8"))?;
    if text.starts_with(MARK) {
        text.drain(..MARK.len_utf8());
    }
    Ok(text)
}

/// What some editors put before a text.
const MARK: char = '\u{feff}';

/// One text; an empty file is passed over.
fn plain_text(name: &str, text: String) -> Examples {
    let is_empty = text.trim().is_empty();
    let placed = Placed { example: Example::Text(text), accepted: Vec::new(), place: name.to_owned() };
    Examples { format: Format::Text, examples: if is_empty { Vec::new() } else { vec![placed] } }
}

/// A row a line, of at most `limit` MiB; empty lines are passed over.
pub fn lines(name: &str, mut file: impl BufRead, limit: u64, columns: &Columns) -> Result<Examples> {
    let mut format = None;
    let mut examples = Vec::new();
    let (mut bytes, mut start) = (Vec::new(), 0);
    for number in 1u64.. {
        start += bytes.len();
        bytes.clear();
        let place = || format!("{name}, line {number}");
        let read = file.by_ref().take((limit << 20) + 1).read_until(b'\n', &mut bytes);
        if read.or_fail(BadDataset, format_args!("cannot read {name}"))? == 0 {
            break;
        }
        if bytes.len() as u64 > limit << 20 {
            let message =
                format!("{} (byte {start}) is longer than {limit} MiB, which is more than a row may have", place());
            return Err(Failure::new(BadDataset, message).with_hint("split the row, or leave it out").into());
        }
        let line = str::from_utf8(&bytes).or_fail(BadDataset, format_args!("{} is not UTF-8", place()))?;
        // The mark is no space to JSON.
        let line = if number == 1 { line.trim_start_matches(MARK) } else { line };
        if line.trim().is_empty() {
            continue;
        }
        let start = start + (bytes.len() - line.len());
        let row: Value = serde_json::from_str(line).map_err(|error| {
            let column = error.column().saturating_sub(1);
            let (byte, near) = (start + column, excerpt(line, column));
            Failure::new(BadDataset, format!("{} (byte {byte}): {}; near `{near}`", place(), bare(&error)))
        })?;
        let format = match format {
            Some(format) => format,
            None => *format.insert(form(columns, &row, &place())?),
        };
        let example = columns.example(format, &row).map_err(|error| {
            let message = format!("{} (byte {start}): {error}; near `{}`", place(), excerpt(line, 0));
            Failure::new(BadDataset, message)
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
pub fn document(name: &str, text: &str, columns: &Columns) -> Result<Examples> {
    let document: Value = serde_json::from_str(text).map_err(|error| {
        let line_start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        let byte = line_start + error.column().saturating_sub(1);
        let message = format!("{name} (byte {byte}): {}; near `{}`", bare(&error), excerpt(text, byte));
        Failure::new(BadDataset, message)
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
            Failure::new(BadDataset, format!("{place}: {error}; near `{}`", excerpt(&near, 0)))
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
    fn what_is_too_long_is_told_without_being_read() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str, before: &str| {
            // Ten GiB of zeros that take no room on the disk: nobody could wait until they are read.
            let path = folder.path().join(name);
            std::fs::write(&path, before).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(10 << 30).unwrap();
            let limits = Limits { line: 1, file: 2 };
            let Err(Ending::Failed(failure)) = read_within(limits, folder.path(), &Columns::default()) else {
                panic!()
            };
            std::fs::remove_file(path).unwrap();
            assert_eq!(failure.kind, BadDataset);
            (failure.message, failure.hint)
        };
        let (line, hint) = refused("a.jsonl", "{\"text\": \"1\"}\n{\"text\": \"");
        assert_eq!(line, "a.jsonl, line 2 (byte 14) is longer than 1 MiB, which is more than a row may have");
        assert_eq!(hint, "split the row, or leave it out");
        for name in ["a.json", "a.txt"] {
            let (file, hint) = refused(name, "[");
            assert!(file.starts_with(&format!("{name} is longer than 2 MiB")), "{file}");
            assert!(hint.starts_with("split the file"), "{hint}");
        }
    }

    #[test]
    fn what_is_nested_without_end_is_a_bad_line() {
        let deep = format!("{{\"text\": {}", "[".repeat(1_000_000));
        let nested = message(&[("a.jsonl", &deep)]);
        assert!(nested.starts_with("a.jsonl, line 1 (byte 135): recursion limit exceeded"), "{nested}");
        assert!(message(&[("a.json", &deep)]).starts_with("a.json (byte 135): recursion limit exceeded"));
    }

    #[test]
    fn a_line_that_is_no_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.jsonl"), b"{\"text\": \"1\"}\n\xff\n").unwrap();
        let Err(Ending::Failed(failure)) = read(folder.path(), &Columns::default()) else { panic!("it was read") };
        assert!(failure.message.starts_with("a.jsonl, line 2 is not UTF-8"), "{}", failure.message);
    }

    #[test]
    fn an_empty_dataset_says_so() {
        assert!(message(&[("a.jsonl", "\n\n")]).starts_with("the dataset has no rows"));
        assert!(message(&[("a.csv", "x")]).starts_with("the dataset has no rows"));
    }
}
