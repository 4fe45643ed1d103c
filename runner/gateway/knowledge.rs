//! Experience with failures, out of the house and into it, as a file of JSON lines.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Gateway;
use super::body::Asked;
use super::error::Refusal;
use crate::api::ImportedKnowledge;
use crate::knowledge::{MEDIA_TYPE, MOST_BYTES};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportAsked {
    name: Option<String>,
    notes: Option<bool>,
}

pub(super) async fn export(
    State(gateway): State<Arc<Gateway>>,
    Asked(asked): Asked<ExportAsked>,
) -> Result<Response, Refusal> {
    let file = gateway.desk.export_knowledge(asked.name, asked.notes.unwrap_or_default()).await?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], file).into_response())
}

pub(super) async fn import(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Json<ImportedKnowledge>, Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Browsers send other types across origins without asking first.
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(MEDIA_TYPE) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_knowledge",
            format!("the body's type is `{kind}`"),
        )
        .hint(format!("send Content-Type: {MEDIA_TYPE}")));
    }
    let body = axum::body::to_bytes(request.into_body(), MOST_BYTES).await.map_err(|_| {
        let limit = bytesize::ByteSize(MOST_BYTES as u64).display().iec();
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {limit}, or cut"),
        )
        .hint("send the file as it was exported")
    })?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| Refusal::bad_request("not_knowledge", format!("the body is not UTF-8: {error}")))?
        .to_owned();
    let desk = gateway.desk.clone();
    Ok(Json(gateway.undisturbed(async move { desk.import_knowledge(&text).await }).await?))
}
