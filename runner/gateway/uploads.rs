//! Files on their way in: a client names a file by its digest and sends what the house does not have yet.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};

use super::Gateway;
use super::error::Refusal;

pub(super) async fn has(
    State(gateway): State<Arc<Gateway>>,
    Path(sha256): Path<String>,
) -> Result<StatusCode, Refusal> {
    gateway.desk.blobs.path(&sha256)?;
    Ok(if gateway.desk.blobs.has(&sha256).await { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

/// Stores the body as it comes; what breaks off or has another digest leaves nothing behind.
pub(super) async fn put(
    State(gateway): State<Arc<Gateway>>,
    Path(sha256): Path<String>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let blobs = &gateway.desk.blobs;
    let limit = gateway.desk.config.gateway.max_upload.0;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if let Some(bytes) = announced {
        // Better now than after an hour of sending.
        if bytes > limit {
            return Err(crate::blobs::BlobError::TooLarge { limit }.into());
        }
        blobs.check_room(bytes)?;
    }
    let new = blobs.put(&sha256, request.into_body().into_data_stream(), limit).await?;
    Ok(if new { StatusCode::CREATED } else { StatusCode::OK })
}
