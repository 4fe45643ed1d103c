use std::io::Cursor;

use super::*;

fn read_with<'a>(columns: &'a Columns, file: &str, text: &[u8]) -> Result<Tally<'a>, String> {
    let mut tally = Tally::new(columns);
    tally.read(file, &mut Cursor::new(text)).map_err(|error| error.to_string())?;
    Ok(tally)
}

fn counts(file: &str, text: &[u8]) -> (u64, u64) {
    let columns = Columns::default();
    let tally = read_with(&columns, file, text).unwrap();
    (tally.rows, tally.blank)
}

fn refusal(file: &str, text: impl AsRef<[u8]>) -> String {
    read_with(&Columns::default(), file, text.as_ref()).unwrap_err()
}

#[test]
fn byte_order_marks_carriage_returns_and_empty_lines_are_fine() {
    let text = b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n  \n{\"text\": \" \"}";
    assert_eq!(counts("a.jsonl", text), (2, 1));
    assert_eq!(counts("a.json", b"\xef\xbb\xbf[{\"text\": \"a\"}]"), (1, 0));
}

#[test]
fn blank_answers_are_counted_and_passed_over() {
    let text = concat!(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"\"}]}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n",
    );
    assert_eq!(counts("a.jsonl", text.as_bytes()), (1, 1));
    let columns = Columns::default();
    let tally = read_with(&columns, "a.jsonl", b"{\"prompt\": \"q\", \"completion\": \"\"}\n").unwrap();
    let error = tally.usable_format("a.jsonl").unwrap_err().to_string();
    assert!(error.contains("all 1 rows have a blank answer or text"), "{error}");
}

#[test]
fn a_broken_line_is_told_by_line_byte_offset_and_text() {
    let error = refusal("a.jsonl", "{\"text\": \"a\"}\n{\"text\": bad}\n");
    let expected = "a.jsonl, line 2, byte 10 (offset 23 in the file): not JSON: expected value; the text there: \
                    `{\"text\": bad}`; mend the line: each is one JSON object";
    assert_eq!(error, expected);
    let marked = refusal("a.jsonl", b"\xef\xbb\xbf{\"text\": bad}\n");
    assert!(marked.contains("line 1, byte 13 (offset 12 in the file)"), "{marked}");
    let cut = refusal("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b");
    assert!(cut.contains("line 2, byte") && cut.contains("EOF while parsing a string"), "{cut}");
}

#[test]
fn the_offset_points_at_the_byte_that_is_wrong() {
    for (before, line) in [("", "{\"text\": @}"), ("{\"text\": \"ü\"}\n", "{\"text\": \"ü\", @}")] {
        let text = format!("{before}{line}\n");
        let error = refusal("a.jsonl", &text);
        let offset: usize = error.split("offset ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(&text[offset..=offset], "@", "{error}");
    }
}

#[test]
fn a_row_that_does_not_fit_is_told_with_its_line() {
    let error = refusal("a.jsonl", "{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"prompt\": \"q\"}\n");
    assert!(
        error.starts_with("a.jsonl, line 2, byte 1 (offset 35 in the file): column `completion` is missing"),
        "{error}"
    );
    let error = refusal("a.json", "[{\"text\": \"a\"}, {\"text\": 1}]");
    assert!(error.starts_with("a.json, row [1]: column `text` holds a number, a string is expected"), "{error}");
}

#[test]
fn unknown_columns_come_with_the_mapping_that_would_work() {
    let text = "{\"question\": \"q\", \"answer\": \"a\"}\n";
    let error = refusal("a.jsonl", text);
    assert!(error.contains("give columns {\"prompt\": \"question\", \"completion\": \"answer\"}"), "{error}");
    let columns = Columns { prompt: Some("question".into()), completion: Some("answer".into()), ..Columns::default() };
    assert_eq!(read_with(&columns, "a.jsonl", text.as_bytes()).unwrap().rows, 1);
}

#[test]
fn a_line_without_end_is_not_read_into_memory() {
    let columns = Columns::default();
    let endless = std::iter::repeat_n(b'x', LONGEST_LINE as usize + 10).collect::<Vec<_>>();
    let error = read_with(&columns, "a.jsonl", &[b"{\"text\": \"".as_slice(), &endless].concat()).unwrap_err();
    assert!(error.contains("the line is longer than 4194304 bytes"), "{error}");
    assert!(error.len() < 400, "{error}");
}

#[test]
fn a_document_is_squads_or_a_list() {
    let squad = r#"{"data": [{"paragraphs": [{"context": "C", "qas": [
        {"question": "Q", "answers": [{"text": "A"}]}, {"question": "Q2", "answers": [{"text": " "}]}]}]}]}"#;
    assert_eq!(counts("a.json", squad.as_bytes()), (1, 1));
    let broken = refusal("a.json", squad.replace("\"context\"", "\"text\""));
    assert!(broken.contains("data[0].paragraphs[0].context: a string is expected"), "{broken}");
    assert!(refusal("a.json", "{\"text\": \"a\"}").contains("rename the file to .jsonl"));
    assert!(refusal("a.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").contains("rename the file to .jsonl"));
    assert!(refusal("a.json", "{\"rows\": []}").contains("neither a list of rows nor SQuAD's document"));
    let cut = refusal("a.json", "[\n{\"text\": \"a\"},\n{\"text\" \"b\"}]");
    assert!(cut.starts_with("a.json, line 3, byte 9 (offset 25 in the file): not JSON: expected `:`"), "{cut}");
}

#[test]
fn an_excerpt_is_short_and_escaped() {
    let text = format!("{}\u{1b}[31m\u{0}{}", "a".repeat(1000), "\"".repeat(1000));
    for at in [0, 500, 1000, 2000, 5000] {
        let shown = excerpt(text.as_bytes(), at);
        assert!(shown.chars().count() <= 80, "{shown}");
        assert!(!shown.contains(char::is_control));
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), lines: bool) {
        let columns = Columns::default();
        let _ = read_with(&columns, if lines { "a.jsonl" } else { "a.json" }, &bytes);
    }

    #[test]
    fn no_mutated_row_makes_the_reader_panic(at in 0usize..100, byte: u8, lines: bool) {
        let mut text = b"{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n{\"text\": 1}\n".to_vec();
        let at = at % text.len();
        text[at] = byte;
        let columns = Columns::default();
        let _ = read_with(&columns, if lines { "a.jsonl" } else { "a.json" }, &text);
    }
}
