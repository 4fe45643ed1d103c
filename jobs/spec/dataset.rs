//! What a dataset's rows mean: from a JSON object to something that can be learnt from.
//!
//! The gateway uses these rules to refuse a dataset before anything is queued, the worker to read it; so a row that
//! the preview shows is the row that is trained on.

mod squad;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use squad::{SquadError, SquadQuestion, squad};

/// Which columns hold what, where their names are not the usual ones.
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
    /// Column with the better answer of a pair. Usually `chosen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// Column with the worse answer of a pair. Usually `rejected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// Column with true for a good completion, false for a bad one. Usually `label`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Column with the question of a multiple choice. Usually `question`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Column with the list of choices. Usually `choices`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<String>,
    /// Column with the right choice: its index from 0, its letter, or its text. Usually `answer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
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
    /// `{"prompt", "chosen", "rejected"}`, or `{"chosen", "rejected"}` with whole chats
    Preference,
    /// `{"prompt", "completion", "label"}`
    Labelled,
    /// `{"question", "choices", "answer"}`
    MultipleChoice,
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
    /// Two answers to the same prompt, the first of them better.
    Preference { chosen: Box<Example>, rejected: Box<Example> },
    /// An answer that is good or bad.
    Labelled { example: Box<Example>, good: bool },
    /// A question, its choices, and which of them is right, from 0.
    Choice { question: String, choices: Vec<String>, answer: usize },
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
    #[error("column `{column}` {problem}")]
    BadValue { column: String, problem: String },
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
        if self.chosen.is_some() || self.rejected.is_some() {
            return Ok(Format::Preference);
        }
        if self.choices.is_some() {
            return Ok(Format::MultipleChoice);
        }
        if self.label.is_some() {
            return Ok(Format::Labelled);
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
        } else if has("chosen") && has("rejected") {
            Ok(Format::Preference)
        } else if has("question") && has("choices") {
            Ok(Format::MultipleChoice)
        } else if has("prompt") && has("completion") && row.get("label").is_some_and(Value::is_boolean) {
            Ok(Format::Labelled)
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
            Format::Preference => self.preference(row),
            Format::Labelled => self.labelled(row),
            Format::MultipleChoice => self.choice(row),
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

    /// With a prompt, two answers to it; without one, two whole chats.
    fn preference(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        let side = |chosen: &Option<String>, usual: &str| {
            let column = Self::name(chosen, usual);
            if row.contains_key(Self::name(&self.prompt, "prompt")) {
                let named = Self { completion: Some(column.to_owned()), ..self.clone() };
                named.prompt_completion(row)
            } else {
                messages(row, column)
            }
            .map(Box::new)
        };
        Ok(Example::Preference { chosen: side(&self.chosen, "chosen")?, rejected: side(&self.rejected, "rejected")? })
    }

    fn labelled(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        let column = Self::name(&self.label, "label");
        let label =
            row.get(column).ok_or_else(|| RowError::MissingColumn { column: column.into(), found: keys(row) })?;
        let good = label.as_bool().ok_or_else(|| RowError::WrongType {
            column: column.to_owned(),
            found: type_name(label),
            expected: "true or false",
        })?;
        Ok(Example::Labelled { example: Box::new(self.prompt_completion(row)?), good })
    }

    fn choice(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        let question = string(row, Self::name(&self.question, "question"))?;
        let choices = choices(row, Self::name(&self.choices, "choices"))?;
        let answer = right_choice(row, Self::name(&self.answer, "answer"), &choices)?;
        Ok(Example::Choice { question, choices, answer })
    }
}

/// A list of texts, or (as ARC and CommonsenseQA have it) an object with such a list under `text`.
fn choices(row: &Map<String, Value>, column: &str) -> Result<Vec<String>, RowError> {
    let value = row.get(column).ok_or_else(|| RowError::MissingColumn { column: column.into(), found: keys(row) })?;
    let list = value.as_array().or_else(|| value.get("text").and_then(Value::as_array));
    let texts: Option<Vec<String>> = list.and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    match texts {
        Some(texts) if texts.len() >= 2 => Ok(texts),
        Some(texts) => {
            let problem = format!("holds {} choices; at least 2 are expected", texts.len());
            Err(RowError::BadValue { column: column.to_owned(), problem })
        }
        None => Err(RowError::WrongType {
            column: column.to_owned(),
            found: type_name(value),
            expected: "a list of strings",
        }),
    }
}

/// The right choice by index from 0, by letter from A, or by its own text.
fn right_choice(row: &Map<String, Value>, column: &str, choices: &[String]) -> Result<usize, RowError> {
    let value = row.get(column).ok_or_else(|| RowError::MissingColumn { column: column.into(), found: keys(row) })?;
    let by_text = |text: &str| choices.iter().position(|choice| choice == text);
    let by_letter = |text: &str| match text.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
        _ => text.parse().ok(),
    };
    let index = match value {
        Value::Number(number) => number.as_u64().and_then(|index| usize::try_from(index).ok()),
        Value::String(text) => by_text(text).or_else(|| by_letter(text)),
        _ => None,
    };
    index.filter(|&index| index < choices.len()).ok_or_else(|| RowError::BadValue {
        column: column.to_owned(),
        problem: format!("holds {value}, which is none of the {} choices", choices.len()),
    })
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

#[cfg(test)]
mod tests;
