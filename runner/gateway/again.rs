//! The same question again: a `get_job` over MCP that was answered before, word for word, gets the same answer as long
//! as nothing was written since.
//!
//! Agents ask how a job stands over and over. Most of what an answer costs is the protocol's machinery and the
//! database's; so an answer is kept with the question that led to it, whole, and with the database's [`Mark`]. Nothing
//! of the protocol is decided here: whatever is unlike a kept question in anything but its number goes the usual way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Gateway;
use crate::store::Mark;

const LARGEST_QUESTION: usize = 8 << 10;
const LARGEST_ANSWER: usize = 32 << 10;
const MOST_ANSWERS: usize = 128;

/// What an answer to a request begins with, up to the number of the request.
const OPENING: &str = r#"{"jsonrpc":"2.0","id":"#;

/// Answers that are true as long as the database's mark is the same.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    mark: Option<Mark>,
    /// What follows the number in an answer, by everything but the number in its question.
    endings: HashMap<Vec<u8>, Bytes>,
}

impl Answers {
    fn get(&self, mark: Mark, question: &[u8]) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.mark == Some(mark) { kept.endings.get(question).cloned() } else { None }
    }

    /// Keeps an answer that was made after the mark was taken.
    fn keep(&self, mark: Mark, question: Vec<u8>, ending: Bytes) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.mark != Some(mark) || kept.endings.len() >= MOST_ANSWERS {
            kept.endings.clear();
            kept.mark = Some(mark);
        }
        kept.endings.insert(question, ending);
    }
}

/// Stands before the MCP endpoint.
pub(super) async fn answer(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    if !may_be_kept(&request) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    // It is as short as it says, or the client is gone.
    let Ok(body) = to_bytes(body, LARGEST_QUESTION).await else { return StatusCode::BAD_REQUEST.into_response() };
    let asked = question(&parts.headers, &body);
    let mark = gateway.desk.store.mark();
    let (Some((id, question)), Some(mark)) = (asked, mark) else {
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    };
    if let Some(ending) = gateway.answers.get(mark, &question) {
        let text = [OPENING.as_bytes(), id.as_bytes(), &ending].concat();
        return ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response();
    }
    let response = next.run(Request::from_parts(parts, Body::from(body.clone()))).await;
    if response.status() != StatusCode::OK || !is_short_json(&response) {
        return response;
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, LARGEST_ANSWER).await {
        Ok(text) => {
            if let Some(ending) = lasting(&text, id) {
                gateway.answers.keep(mark, question, ending);
            }
            Response::from_parts(parts, Body::from(text))
        }
        // Bytes that are in memory already cannot fail to be read.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Whether the request is a short one with a body.
fn may_be_kept(request: &Request) -> bool {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    *request.method() == Method::POST && length.is_some_and(|length: usize| length <= LARGEST_QUESTION)
}

/// Whether the answer is one document, whole and short.
fn is_short_json(response: &Response) -> bool {
    use axum::body::HttpBody as _;
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    is_json && response.body().size_hint().exact().is_some_and(|bytes| bytes <= LARGEST_ANSWER as u64)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked<'a> {
    #[serde(borrow)]
    jsonrpc: &'a RawValue,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    method: &'a RawValue,
    #[serde(borrow)]
    params: &'a RawValue,
}

#[derive(Deserialize)]
struct Params<'a> {
    name: &'a str,
}

/// The number of a call of `get_job`, and everything else that its answer may depend on.
fn question<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<(&'a str, Vec<u8>)> {
    let asked: Asked<'_> = serde_json::from_slice(body).ok()?;
    let params = asked.params.get();
    let is_call = asked.jsonrpc.get() == r#""2.0""# && asked.method.get() == r#""tools/call""#;
    if !is_call || serde_json::from_str::<Params<'_>>(params).ok()?.name != "get_job" || !is_plain(asked.id.get()) {
        return None;
    }
    let mut question = Vec::with_capacity(params.len() + 256);
    for (name, value) in headers {
        if name.as_str().starts_with("mcp-") || [header::ACCEPT, header::CONTENT_TYPE].contains(name) {
            // Neither can hold a line's end.
            for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"] {
                question.extend_from_slice(part);
            }
        }
    }
    question.extend_from_slice(params.as_bytes());
    Some((asked.id.get(), question))
}

/// Whether a number, or a text in quotes, is written back as it stands here.
fn is_plain(id: &str) -> bool {
    let is_number = id == "0" || (!id.starts_with('0') && id.len() < 19 && id.bytes().all(|b| b.is_ascii_digit()));
    let inside = id.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    is_number || inside.is_some_and(|text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'))
}

/// What follows the number in an answer that stays true until something is written. What a queued job waits for also
/// depends on the engine, the disks and the time.
fn lasting(answer: &Bytes, id: &str) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Answer {
        result: Outcome,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outcome {
        structured_content: Job,
    }
    #[derive(Deserialize)]
    struct Job {
        state: String,
    }
    let ending = answer.strip_prefix(OPENING.as_bytes())?.strip_prefix(id.as_bytes())?;
    let state = serde_json::from_slice::<Answer>(answer).ok()?.result.structured_content.state;
    (ending.starts_with(b",") && state != "queued").then(|| answer.slice_ref(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str, headers: &[(&'static str, &'static str)]) -> Option<(String, Vec<u8>)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        question(&map, body.as_bytes()).map(|(id, question)| (id.to_owned(), question))
    }

    fn call(id: &str, params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}"#)
    }

    #[test]
    fn only_its_number_may_tell_a_question_from_another() {
        let get = r#"{"name":"get_job","arguments":{"id":"a"}}"#;
        let first = asked(&call("1", get), &[("mcp-name", "get_job")]).unwrap();
        let again = asked(&call(r#""x-2""#, get), &[("mcp-name", "get_job"), ("user-agent", "b")]).unwrap();
        assert_eq!((first.0.as_str(), again.0.as_str()), ("1", r#""x-2""#));
        assert_eq!(first.1, again.1);
        let other_job = asked(&call("1", &get.replace("\"a\"", "\"b\"")), &[("mcp-name", "get_job")]).unwrap();
        let other_header = asked(&call("1", get), &[("mcp-name", "get_jobs")]).unwrap();
        let twice = asked(&call("1", get), &[("mcp-name", "get_job"), ("mcp-name", "get_job")]).unwrap();
        for other in [other_job, other_header, twice] {
            assert_ne!(first.1, other.1);
        }
    }

    #[test]
    fn what_is_unusual_goes_the_usual_way() {
        let get = r#"{"name":"get_job","arguments":{"id":"a"}}"#;
        for id in ["null", "01", "-1", "1.0", "1e3", r#""a\u0041""#, r#""é""#, "[1]", "12345678901234567890"] {
            assert_eq!(asked(&call(id, get), &[]), None, "{id}");
        }
        let cancel = get.replace("get_job", "cancel_job");
        let hidden = r#"{"name":"get_job","name":"cancel_job"}"#;
        let notification = call("1", get).replace(r#""id":1,"#, "");
        let batch = format!("[{}]", call("1", get));
        for body in [call("1", &cancel), call("1", hidden), notification, batch, String::new(), "{".into()] {
            assert_eq!(asked(&body, &[]), None, "{body}");
        }
    }

    #[test]
    fn an_answer_lasts_if_its_job_waits_for_nothing() {
        let answer = |state: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"structuredContent":{{"state":"{state}"}}}}}}"#);
            lasting(&Bytes::from(text), "7")
        };
        assert!(answer("running").unwrap().starts_with(b",\"result\""));
        assert_eq!(answer("queued"), None);
        let error = Bytes::from_static(br#"{"jsonrpc":"2.0","id":7,"result":{"isError":true,"content":[]}}"#);
        assert_eq!(lasting(&error, "7"), None);
        assert_eq!(lasting(&error, "8"), None);
    }
}
