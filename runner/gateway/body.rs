//! What a request brings along, read strictly: a field that nobody knows is a mistake that its sender should hear of.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use drydock_spec::JobId;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::Gateway;
use super::error::Refusal;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Gateway>> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> Result<Self, Refusal> {
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media = kind.split(';').next().unwrap_or_default().trim();
        // Browsers send other types across origins without asking first.
        if !media.eq_ignore_ascii_case("application/json") {
            let message = format!("the body's type is `{media}`");
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message)
                .hint("send Content-Type: application/json"));
        }
        let limit = gateway.desk.config.gateway.max_body.0;
        let bytes = Bytes::from_request(request, gateway).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::too_large(limit),
            _ => Refusal::bad_request("body_cut", "the body ended early").hint("send the request again"),
        })?;
        // Serde reads a struct from a list as well, field by field: an empty one would be a request with all defaults.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            let message = "the body is a list";
            return Err(Refusal::bad_request("invalid_request", message).hint("send one JSON object"));
        }
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = read(&mut json)?;
        json.end().map_err(|error| not_json(&error))?;
        Ok(Self(value))
    }
}

/// Reads a value, and says where it went wrong if it did.
pub(super) fn read<'de, T: DeserializeOwned, D>(json: D) -> Result<T, Refusal>
where
    D: serde::Deserializer<'de, Error = serde_json::Error>,
{
    serde_path_to_error::deserialize(json).map_err(|error| match error.inner().classify() {
        Category::Syntax | Category::Eof | Category::Io => not_json(error.inner()),
        Category::Data => misread(&error.path().to_string(), &error.inner().to_string()),
    })
}

fn not_json(error: &serde_json::Error) -> Refusal {
    Refusal::bad_request("invalid_json", format!("the body is not JSON: {error}")).hint("send one JSON object")
}

fn misread(path: &str, problem: &str) -> Refusal {
    // `.` is how the crate calls the value as a whole.
    let message = if path == "." { problem.to_owned() } else { format!("{path}: {problem}") };
    match nearest(problem) {
        Some(name) => Refusal::bad_request("invalid_request", message).hint(format!("did you mean `{name}`?")),
        None => Refusal::bad_request("invalid_request", message).hint("GET /v1/openapi.json describes every field"),
    }
}

/// The known name that an unknown one resembles, taken from serde's message: the unknown one stands first in it, and
/// every one that would have been accepted follows.
fn nearest(problem: &str) -> Option<&str> {
    let listed = problem.strip_prefix("unknown field ").or_else(|| problem.strip_prefix("unknown variant "))?;
    let mut names = listed.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    names
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// The query string.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Query::try_from_uri(&parts.uri).map(|Query(asked)| Self(asked)).map_err(|rejection| {
            Refusal::bad_request("invalid_query", rejection.body_text())
                .hint("GET /v1/openapi.json describes every parameter")
        })
    }
}

/// The job that the path names.
pub(super) struct Named(pub(super) JobId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let names = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
        let id = names.ok().and_then(|Path(mut names)| names.remove("id")).unwrap_or_default();
        job_id(&id).map(Self)
    }
}

/// A job id as somebody wrote it.
pub(super) fn job_id(text: &str) -> Result<JobId, Refusal> {
    text.parse().map_err(|error: drydock_spec::id::NotAJobId| {
        Refusal::bad_request("not_a_job_id", error.to_string())
            .hint("list_jobs (GET /v1/jobs) shows the jobs there are")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Submission;

    fn refused(text: &str) -> Refusal {
        read::<Submission, _>(&mut serde_json::Deserializer::from_str(text)).unwrap_err()
    }

    #[test]
    fn an_unknown_option_is_named_with_its_place_and_its_likeness() {
        let refusal = refused(r#"{"job": {"finetune": {"model": "m", "dataset": "d", "lora_rank": 4}}}"#);
        let message = &refusal.body.message;
        assert!(message.starts_with("job.finetune.lora_rank: unknown field `lora_rank`"), "{message}");
        assert!(message.ends_with("at line 1 column 63"), "{message}");
        assert_eq!(refusal.body.hint.unwrap(), "did you mean `lora_r`?");
    }

    #[test]
    fn broken_json_is_named_with_its_place() {
        let refusal = refused("{\"job\": \n}");
        assert_eq!(refusal.body.code, "invalid_json");
        assert!(refusal.body.message.contains("line 2 column 1"), "{}", refusal.body.message);
    }
}
