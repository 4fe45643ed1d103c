//! Files that models and datasets are made of, put into the store by their content before they are named.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};

use super::Gateway;
use super::error::Refusal;

/// Whether a file is there already, so that nobody sends it twice.
pub(super) async fn has(State(gateway): State<Arc<Gateway>>, Path(sha256): Path<String>) -> StatusCode {
    if gateway.desk.blobs.has(&sha256).await { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

/// Stores a file as it comes in. It appears only when all of it is there and is what its name says.
pub(super) async fn put(
    State(gateway): State<Arc<Gateway>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let limit = gateway.desk.config.gateway.max_upload.0;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if let Some(bytes) = announced {
        if bytes > limit {
            return Err(Refusal::upload_too_large(limit));
        }
        // Better now than after most of it has been sent.
        gateway.desk.blobs.check_room(bytes)?;
    }
    let new = gateway.desk.blobs.put(&sha256, body.into_data_stream(), limit).await?;
    Ok(if new { StatusCode::CREATED } else { StatusCode::OK })
}
