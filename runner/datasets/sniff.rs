//! Files that are something else than rows in JSON, whatever they are called.

use super::DatasetError;

/// Bytes of a file's beginning that are looked at.
pub(super) const LOOK: usize = 4096;

/// How a file holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A row a line.
    Lines,
    /// One document: SQuAD's own, or a list of rows.
    Document,
    /// Plain text, all of it one row.
    Text,
}

const TO_JSONL: &str = "to_json('rows.jsonl', orient='records', lines=True)";

/// The kind of a file by its name and its beginning, or what it is instead.
pub(super) fn kind(name: &str, begin: &[u8]) -> Result<Kind, DatasetError> {
    let refused = |problem: &str, next: String| {
        Err(DatasetError::File { file: name.to_owned(), problem: problem.to_owned(), next })
    };
    let is_text = name.ends_with(".txt");
    let pandas = |reader: &str| format!("convert it: pandas.{reader}('{name}').{TO_JSONL}");
    for (magic, what, next) in [
        (&b"PAR1"[..], "a Parquet file", pandas("read_parquet")),
        (b"ARROW1", "an Arrow file", pandas("read_feather")),
        (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip".into()),
        (b"PK\x03\x04", "a zip archive", "unpack it with unzip".into()),
        (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with unzstd".into()),
        (b"BZh", "a bzip2 archive", "unpack it with bunzip2".into()),
        (b"\xff\xfe", "UTF-16 text", format!("convert it: iconv -f UTF-16 -t UTF-8 '{name}'")),
        (b"\xfe\xff", "UTF-16 text", format!("convert it: iconv -f UTF-16 -t UTF-8 '{name}'")),
        (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in the repository".into()),
        (b"<", "HTML or XML", "check the address that it was downloaded from".into()),
    ] {
        // A text may begin as it likes, as long as it is one.
        if begin.starts_with(magic) && !(magic == b"<" && is_text) {
            return refused(&format!("{what}, not rows in JSON"), next);
        }
    }
    let text = begin.strip_prefix(b"\xef\xbb\xbf").unwrap_or(begin).trim_ascii_start();
    if text.is_empty() && begin.len() < LOOK {
        return refused(
            "the file is empty",
            "write a JSON object a line, such as {\"prompt\": ..., \"completion\": ...}".into(),
        );
    }
    if text.contains(&0) {
        return refused("a binary file, not rows in JSON", "convert it to JSON lines".into());
    }
    if is_text {
        return Ok(Kind::Text);
    }
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let separator = [b',', b'\t', b';'].into_iter().find(|separator| line.contains(separator));
    if let Some(separator) = separator.filter(|_| !text.starts_with(b"{") && !text.starts_with(b"[")) {
        let next = match separator {
            b',' => pandas("read_csv"),
            _ => format!("convert it: pandas.read_csv('{name}', sep={:?}).{TO_JSONL}", char::from(separator)),
        };
        return refused("this looks like CSV, not rows in JSON", next);
    }
    if name.ends_with(".jsonl") {
        if text.starts_with(b"[") {
            return refused("one JSON list, not a row a line", format!("rename it to {}.json", super::stem(name)));
        }
        if line.trim_ascii() == b"{" {
            return refused(
                "one JSON document over several lines, not a row a line",
                format!("rename it to {}.json", super::stem(name)),
            );
        }
        return Ok(Kind::Lines);
    }
    if name.ends_with(".json") {
        return Ok(Kind::Document);
    }
    let problem = "its name says nothing about what is in it";
    let next = "name it .jsonl if it has a row a line, .json if it is one document, .txt if it is plain text";
    refused(problem, next.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, begin: &[u8]) -> String {
        kind(name, begin).unwrap_err().to_string()
    }

    #[test]
    fn rows_are_recognised_by_name_and_beginning() {
        assert_eq!(kind("a.jsonl", b"{\"text\": \"x\"}\n").unwrap(), Kind::Lines);
        assert_eq!(kind("a.jsonl", b"\xef\xbb\xbf\r\n{}").unwrap(), Kind::Lines);
        assert_eq!(kind("a.json", b"{\n").unwrap(), Kind::Document);
        assert_eq!(kind("a.json", b"[{}").unwrap(), Kind::Document);
        assert_eq!(kind("a.txt", b"<To be, or not; to be>, that is\n").unwrap(), Kind::Text);
    }

    #[test]
    fn what_is_something_else_is_named_with_the_way_to_convert_it() {
        let parquet = refusal("train.jsonl", b"PAR1\x15\x04");
        let expected = "train.jsonl: a Parquet file, not rows in JSON; convert it: \
                        pandas.read_parquet('train.jsonl').to_json('rows.jsonl', orient='records', lines=True)";
        assert_eq!(parquet, expected);
        assert!(refusal("a.jsonl", b"question,answer\n1,2\n").contains("looks like CSV"));
        assert!(refusal("a.tsv", b"q\ta\n").contains("sep='\\t'"));
        assert!(refusal("a.json", b"\x1f\x8b\x08").contains("gunzip"));
        assert!(refusal("a.json", b"<!doctype html>").contains("HTML"));
        assert!(refusal("a.jsonl", b"").contains("the file is empty"));
        assert!(refusal("a.jsonl", b"[\n{}").contains("rename it to a.json"));
        assert!(refusal("a.jsonl", b"{\n \"data\"").contains("rename it to a.json"));
        assert!(refusal("a.rows", b"{}").contains("name it .jsonl"));
        assert!(refusal("a.txt", b"ab\0cd").contains("a binary file"));
        assert!(refusal("a.jsonl", b"ab\0cd").contains("a binary file"));
    }
}
