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

/// A question of a document, and every answer that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SquadQuestion {
    /// The context, an empty line, and the question.
    pub asked: String,
    /// At least one, each once.
    pub answers: Vec<String>,
}

impl SquadQuestion {
    /// The question as the user's turn, the first of the answers as the assistant's.
    #[must_use]
    pub fn example(&self) -> Example {
        chat(self.asked.clone(), self.answers[0].clone())
    }
}

/// The questions of a document in SQuAD's own form. Those that are marked impossible (SQuAD v2) are answered with
/// "unanswerable".
pub fn squad(document: &Value) -> Result<Vec<SquadQuestion>, SquadError> {
    let mut questions = Vec::new();
    for (a, article) in items(document, "", "data")?.iter().enumerate() {
        let at = format!("data[{a}]");
        for (p, paragraph) in items(article, &at, "paragraphs")?.iter().enumerate() {
            let at = format!("{at}.paragraphs[{p}]");
            let context = text(paragraph, &at, "context")?;
            for (q, qa) in items(paragraph, &at, "qas")?.iter().enumerate() {
                let at = format!("{at}.qas[{q}]");
                let question = text(qa, &at, "question")?;
                let answers = answers(qa, &at)?;
                questions.push(SquadQuestion { asked: format!("{context}\n\n{question}"), answers });
            }
        }
    }
    Ok(questions)
}

fn answers(qa: &Value, at: &str) -> Result<Vec<String>, SquadError> {
    if qa.get("is_impossible").and_then(Value::as_bool) == Some(true) {
        return Ok(vec!["unanswerable".to_owned()]);
    }
    let mut answers: Vec<String> = Vec::new();
    for (index, answer) in items(qa, at, "answers")?.iter().enumerate() {
        let answer = text(answer, &format!("{at}.answers[{index}]"), "text")?;
        if answers.iter().all(|known| known != answer) {
            answers.push(answer.to_owned());
        }
    }
    if answers.is_empty() {
        return Err(SquadError { path: at.to_owned(), problem: "`answers` is empty".into() });
    }
    Ok(answers)
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
