//! Artifacts on their way out.
//!
//! The files come from inside a container: only what the database lists is handed out, and the artifact store opens it
//! as one would open a stranger's.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::Gateway;
use super::body::Named;
use super::error::Refusal;
use super::words;

/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;

#[derive(Deserialize)]
pub(super) struct Wanted {
    path: String,
}

pub(super) async fn artifact(
    State(gateway): State<Arc<Gateway>>,
    Named(id): Named,
    Path(Wanted { path }): Path<Wanted>,
) -> Result<Response, Refusal> {
    let job = gateway.desk.store.job(id).await?;
    let listed = gateway.desk.store.artifacts(id).await?.into_iter().find(|artifact| artifact.path == path);
    let Some(listed) = listed else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_artifact",
            format!("job `{id}` has no artifact `{path}`"),
        )
        .hint(format!("GET /v1/jobs/{id}/artifacts lists what there is")));
    };
    if let Some(at_ms) = job.artifacts_removed_ms {
        let message = format!("artifact `{path}` of job `{id}` was removed on {}", words::day(at_ms));
        return Err(Refusal::new(StatusCode::GONE, "artifact_removed", message).hint(
            "submit the job again; [retention] of the gateway's configuration says how long artifacts are kept",
        ));
    }
    let artifacts = gateway.desk.artifacts.clone();
    let opened = tokio::task::spawn_blocking(move || artifacts.open_for_reading(id, &path)).await;
    let opened = opened.map_err(|error| Refusal::internal(&error))?.map_err(|error| Refusal::internal(&error))?;
    let Some((file, bytes)) = opened else { return Err(changed(&listed.path, "is no plain file any more")) };
    if bytes != listed.bytes {
        return Err(changed(&listed.path, &format!("has {bytes} bytes, {} were stored", listed.bytes)));
    }
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", plain_name(&listed.path))),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::ETAG, format!("\"{}\"", listed.sha256)),
    ];
    let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK);
    Ok((headers, Body::from_stream(stream)).into_response())
}

fn changed(path: &str, how: &str) -> Refusal {
    let message = format!("artifact `{path}` {how}");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "artifact_changed", message)
        .hint("somebody changed the file on the gateway's host; run the job again")
}

/// A name that is safe between quotes in a header and in every file system.
fn plain_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_break_out_of_its_header() {
        assert_eq!(plain_name("a/b\"; x=\r\nEvil: 1.bin"), "b__ x___Evil_ 1.bin");
    }
}
