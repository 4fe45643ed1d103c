//! SQuAD's own form: one JSON document of articles, paragraphs and questions.

use serde_json::Value;

use super::{Example, chat};

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
