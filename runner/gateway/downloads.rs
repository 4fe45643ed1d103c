//! Artifacts on their way out.
//!
//! The files come from inside a container, so they are opened as one would open a stranger's: only by a path that the
//! store lists, below the job's own folder, through no link of any kind, and only if it is a plain file.

use std::fs::File;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::Gateway;
use super::body::Named;
use super::error::Refusal;

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
    gateway.desk.store.job(id).await?;
    let listed = gateway.desk.store.artifacts(id).await?.into_iter().find(|artifact| artifact.path == path);
    let Some(listed) = listed else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_artifact",
            format!("job `{id}` has no artifact `{path}`"),
        )
        .hint(format!("GET /v1/jobs/{id}/artifacts lists what there is")));
    };
    let folder = gateway.desk.artifact_folder(id);
    let opened = tokio::task::spawn_blocking(move || open(&folder, &path)).await;
    let (file, bytes) =
        opened.map_err(|error| Refusal::internal(&error))?.map_err(|error| Refusal::internal(&error))?;
    if bytes != listed.bytes {
        let message = format!("artifact `{}` has {bytes} bytes, {} were stored", listed.path, listed.bytes);
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "artifact_changed", message)
            .hint("somebody changed the file on the gateway's host; run the job again"));
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

/// Opens a plain file below `folder`, with its size.
fn open(folder: &FilePath, path: &str) -> std::io::Result<(File, u64)> {
    let folder = rustix::fs::openat(CWD, folder, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // NONBLOCK, because to open a fifo otherwise waits for somebody to write to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = File::from(rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve)?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(std::io::Error::other("not a plain file"));
    }
    Ok((file, about.len()))
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
    fn only_plain_files_below_the_folder_open() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("job");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        std::fs::write(folder.join("deep/file"), "inside").unwrap();
        std::fs::write(base.path().join("secret"), "outside").unwrap();
        std::os::unix::fs::symlink(base.path().join("secret"), folder.join("link")).unwrap();
        std::os::unix::fs::symlink(base.path(), folder.join("up")).unwrap();
        assert_eq!(open(&folder, "deep/file").unwrap().1, 6);
        for path in ["../secret", "link", "up/secret", "deep", "/etc/passwd", "deep/../../secret", ""] {
            assert!(open(&folder, path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_name_cannot_break_out_of_its_header() {
        assert_eq!(plain_name("a/b\"; x=\r\nEvil: 1.bin"), "b__ x___Evil_ 1.bin");
    }
}
