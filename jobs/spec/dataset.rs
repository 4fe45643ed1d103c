//! What a dataset's rows mean: from a JSON object to something that can be learnt from.
//!
//! The gateway uses these rules to refuse a dataset before anything is queued, the worker to read it; so a row that
//! the preview shows is the row that is trained on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which columns hold what, where the dataset's own names are not the usual ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// Column with a list of `{"role", "content"}`. Usually `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Column with the question or prompt. Usually `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Column with the answer or completion. Usually `completion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// Column with plain text, all of which is learnt. Usually `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Column with the instruction, in Alpaca's form. Usually `instruction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Column with the instruction's input, in Alpaca's form; may be missing or empty. Usually `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Column with the answer, in Alpaca's form. Usually `output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// The form of a dataset's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `{"messages": [{"role", "content"}, ...]}`
    Messages,
    /// `{"prompt", "completion"}`
    PromptCompletion,
    /// `{"text"}`
    Text,
    /// `{"instruction", "input", "output"}`
    Alpaca,
    /// SQuAD's own JSON: `{"data": [{"paragraphs": [{"context", "qas": [...]}]}]}`
    Squad,
}

/// Who says something in a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// Something to learn from, before any tokenizer has seen it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Example {
    /// Turns that the model's chat template joins; the assistant's turns are learnt.
    Chat(Vec<Message>),
    /// A prompt and how it goes on, joined as they stand; the completion is learnt.
    Completion { prompt: String, completion: String },
    /// Plain text, all of it learnt.
    Text(String),
}

/// A row that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("the row is {0}, not a JSON object")]
    NotAnObject(&'static str),
    #[error("no known columns; found {}; {}", list(.found), .next)]
    UnknownColumns { found: Vec<String>, next: String },
    #[error("column `{column}` is missing; found {}", list(.found))]
    MissingColumn { column: String, found: Vec<String> },
    #[error("column `{column}` holds {found}, {expected} is expected")]
    WrongType { column: String, found: &'static str, expected: &'static str },
    #[error("`messages` {0}")]
    BadMessages(String),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ") }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn keys(row: &Map<String, Value>) -> Vec<String> {
    row.keys().cloned().collect()
}

/// Pairs of columns that people use for prompt and completion, most usual first.
const LOOKALIKES: [(&str, &str); 8] = [
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("input", "output"),
    ("source", "target"),
    ("instruction", "response"),
    ("problem", "solution"),
    ("context", "response"),
];

impl Columns {
    fn name<'a>(chosen: &'a Option<String>, usual: &'a str) -> &'a str {
        chosen.as_deref().unwrap_or(usual)
    }

    /// The form of the rows, judged by one of them. Columns that the caller named decide before usual names do.
    pub fn detect(&self, row: &Value) -> Result<Format, RowError> {
        let row = row.as_object().ok_or_else(|| RowError::NotAnObject(type_name(row)))?;
        if self.messages.is_some() {
            return Ok(Format::Messages);
        }
        if self.prompt.is_some() || self.completion.is_some() {
            return Ok(Format::PromptCompletion);
        }
        if self.instruction.is_some() || self.output.is_some() || self.input.is_some() {
            return Ok(Format::Alpaca);
        }
        if self.text.is_some() {
            return Ok(Format::Text);
        }
        let has = |column: &str| row.contains_key(column);
        if has("messages") {
            Ok(Format::Messages)
        } else if has("prompt") && has("completion") {
            Ok(Format::PromptCompletion)
        } else if has("instruction") && has("output") {
            Ok(Format::Alpaca)
        } else if has("data") && row["data"].is_array() {
            Ok(Format::Squad)
        } else if has("text") {
            Ok(Format::Text)
        } else {
            let next = match LOOKALIKES.iter().find(|(prompt, completion)| has(prompt) && has(completion)) {
                Some((prompt, completion)) => {
                    format!("give columns {{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}")
                }
                None => {
                    "name them with `columns`: messages, or prompt and completion, or instruction and output, or text"
                        .into()
                }
            };
            Err(RowError::UnknownColumns { found: keys(row), next })
        }
    }

    /// What a row of the given form says. [`Format::Squad`] has no rows of this kind; see [`squad`].
    pub fn example(&self, format: Format, row: &Value) -> Result<Example, RowError> {
        let row = row.as_object().ok_or_else(|| RowError::NotAnObject(type_name(row)))?;
        match format {
            Format::Messages => messages(row, Self::name(&self.messages, "messages")),
            Format::PromptCompletion => self.prompt_completion(row),
            Format::Text => Ok(Example::Text(string(row, Self::name(&self.text, "text"))?)),
            Format::Alpaca => {
                let instruction = string(row, Self::name(&self.instruction, "instruction"))?;
                let input = match row.get(Self::name(&self.input, "input")) {
                    None | Some(Value::Null) => String::new(),
                    Some(_) => string(row, Self::name(&self.input, "input"))?,
                };
                let output = string(row, Self::name(&self.output, "output"))?;
                let user = if input.trim().is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
                Ok(chat(user, output))
            }
            Format::Squad => Err(RowError::MissingColumn { column: "data".into(), found: keys(row) }),
        }
    }

    /// Strings are joined as they stand; lists of messages (the conversational form) make one chat.
    fn prompt_completion(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        let (prompt, completion) = (Self::name(&self.prompt, "prompt"), Self::name(&self.completion, "completion"));
        if row.get(prompt).is_some_and(Value::is_array) {
            let mut turns = turns(row, prompt)?;
            turns.extend(self::turns(row, completion)?);
            return with_assistant(turns);
        }
        Ok(Example::Completion { prompt: string(row, prompt)?, completion: string(row, completion)? })
    }
}

fn chat(user: String, assistant: String) -> Example {
    Example::Chat(vec![
        Message { role: Role::User, content: user },
        Message { role: Role::Assistant, content: assistant },
    ])
}

fn string(row: &Map<String, Value>, column: &str) -> Result<String, RowError> {
    match row.get(column) {
        None => Err(RowError::MissingColumn { column: column.to_owned(), found: keys(row) }),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => {
            Err(RowError::WrongType { column: column.to_owned(), found: type_name(other), expected: "a string" })
        }
    }
}

fn messages(row: &Map<String, Value>, column: &str) -> Result<Example, RowError> {
    with_assistant(turns(row, column)?)
}

fn turns(row: &Map<String, Value>, column: &str) -> Result<Vec<Message>, RowError> {
    let value =
        row.get(column).ok_or_else(|| RowError::MissingColumn { column: column.to_owned(), found: keys(row) })?;
    let list = value.as_array().ok_or_else(|| RowError::WrongType {
        column: column.to_owned(),
        found: type_name(value),
        expected: "a list of messages",
    })?;
    list.iter()
        .enumerate()
        .map(|(index, turn)| {
            Message::deserialize(turn).map_err(|error| {
                RowError::BadMessages(format!(
                    "[{index}]: {error}; each is {{\"role\": \"system\" | \"user\" | \"assistant\", \"content\": \"...\"}}"
                ))
            })
        })
        .collect()
}

fn with_assistant(turns: Vec<Message>) -> Result<Example, RowError> {
    if turns.iter().any(|turn| turn.role == Role::Assistant) {
        Ok(Example::Chat(turns))
    } else {
        Err(RowError::BadMessages("hold no assistant turn, so there is nothing to learn".into()))
    }
}

/// A part of SQuAD's JSON that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SquadError {
    /// Where, as in `data[3].paragraphs[0].qas[2]`.
    pub path: String,
    pub problem: String,
}

/// The examples of a document in SQuAD's own form: context and question as the user's turn, the first of the accepted
/// answers as the assistant's. Questions that are marked impossible (SQuAD v2) are answered with "unanswerable".
pub fn squad(document: &Value) -> Result<Vec<Example>, SquadError> {
    let mut examples = Vec::new();
    for (a, article) in items(document, "", "data")?.iter().enumerate() {
        let at = format!("data[{a}]");
        for (p, paragraph) in items(article, &at, "paragraphs")?.iter().enumerate() {
            let at = format!("{at}.paragraphs[{p}]");
            let context = text(paragraph, &at, "context")?;
            for (q, qa) in items(paragraph, &at, "qas")?.iter().enumerate() {
                let at = format!("{at}.qas[{q}]");
                let question = text(qa, &at, "question")?;
                let answer = if qa.get("is_impossible").and_then(Value::as_bool) == Some(true) {
                    "unanswerable".to_owned()
                } else {
                    match items(qa, &at, "answers")?.first() {
                        Some(answer) => text(answer, &format!("{at}.answers[0]"), "text")?.to_owned(),
                        None => return Err(SquadError { path: at, problem: "`answers` is empty".into() }),
                    }
                };
                examples.push(chat(format!("{context}\n\n{question}"), answer));
            }
        }
    }
    Ok(examples)
}

fn items<'a>(value: &'a Value, at: &str, key: &str) -> Result<&'a Vec<Value>, SquadError> {
    value.get(key).and_then(Value::as_array).ok_or_else(|| SquadError {
        path: if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") },
        problem: "a list is expected".into(),
    })
}

fn text<'a>(value: &'a Value, at: &str, key: &str) -> Result<&'a str, SquadError> {
    value
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| SquadError { path: format!("{at}.{key}"), problem: "a string is expected".into() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(row: Value) -> Result<Example, RowError> {
        let columns = Columns::default();
        columns.example(columns.detect(&row)?, &row)
    }

    #[test]
    fn every_usual_form_is_understood() {
        let said = chat("q".into(), "a".into());
        let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        assert_eq!(read(json!({"messages": turns})).unwrap(), said);
        assert_eq!(read(json!({"instruction": "q", "input": "", "output": "a"})).unwrap(), said);
        assert_eq!(read(json!({"instruction": "q", "output": "a"})).unwrap(), said);
        assert_eq!(
            read(json!({"prompt": "q", "completion": "a"})).unwrap(),
            Example::Completion { prompt: "q".into(), completion: "a".into() }
        );
        assert_eq!(
            read(json!({"prompt": [{"role": "user", "content": "q"}],
                        "completion": [{"role": "assistant", "content": "a"}]}))
            .unwrap(),
            said
        );
        assert_eq!(read(json!({"text": "t"})).unwrap(), Example::Text("t".into()));
    }

    #[test]
    fn unknown_columns_come_with_the_mapping_that_would_work() {
        let row = json!({"question": "q", "answer": "a", "id": 1});
        let error = read(row.clone()).unwrap_err().to_string();
        assert!(error.contains(r#"give columns {"prompt": "question", "completion": "answer"}"#), "{error}");
        let columns =
            Columns { prompt: Some("question".into()), completion: Some("answer".into()), ..Columns::default() };
        let format = columns.detect(&row).unwrap();
        assert_eq!(
            columns.example(format, &row).unwrap(),
            Example::Completion { prompt: "q".into(), completion: "a".into() }
        );
    }

    #[test]
    fn a_chat_without_an_assistant_is_refused() {
        let error = read(json!({"messages": [{"role": "user", "content": "q"}]})).unwrap_err();
        assert!(error.to_string().contains("no assistant turn"), "{error}");
    }

    #[test]
    fn a_wrong_type_is_named() {
        let error = read(json!({"prompt": "q", "completion": 3})).unwrap_err().to_string();
        assert_eq!(error, "column `completion` holds a number, a string is expected");
    }

    #[test]
    fn squad_gives_one_chat_a_question() {
        let document = json!({"data": [{"paragraphs": [{"context": "C", "qas": [
            {"question": "Q", "answers": [{"text": "A", "answer_start": 0}]},
            {"question": "Q2", "is_impossible": true, "answers": []}]}]}]});
        assert_eq!(Columns::default().detect(&document).unwrap(), Format::Squad);
        let examples = squad(&document).unwrap();
        assert_eq!(examples[0], chat("C\n\nQ".into(), "A".into()));
        assert_eq!(examples[1], chat("C\n\nQ2".into(), "unanswerable".into()));
        let broken = json!({"data": [{"paragraphs": [{"context": "C", "qas": [{"question": "Q", "answers": []}]}]}]});
        assert_eq!(squad(&broken).unwrap_err().path, "data[0].paragraphs[0].qas[0]");
    }
}
