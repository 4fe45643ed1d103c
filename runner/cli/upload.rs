//! Files of this machine, put into the gateway's store by their content.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

use super::client::Client;
use super::error::CliError;
use super::out::Out;
use super::text::size;
use crate::api::FileRef;

/// Uploads what `source` holds: the file itself, or the files of the folder (not of folders in it) whose names end in
/// one of `endings`. Files that the gateway has already are not sent again.
pub(super) async fn upload(
    client: &Client,
    source: &Path,
    endings: &[&str],
    out: &mut Out,
) -> Result<Vec<FileRef>, CliError> {
    let mut files = Vec::new();
    for path in files_of(source, endings)? {
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(|| {
            CliError::mistaken(format!("{}: the name is not UTF-8", path.display()), "rename the file")
        })?;
        let (sha256, bytes) = digest(&path).await?;
        if client.has_blob(&sha256).await? {
            out.note(format!("{name}: {}, there already", size(bytes)));
        } else {
            send(client, &path, &name, &sha256, bytes, out).await?;
            out.note(format!("{name}: {} uploaded", size(bytes)));
        }
        files.push(FileRef { path: name, sha256 });
    }
    Ok(files)
}

fn files_of(source: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, CliError> {
    let io = || CliError::io(source.display().to_string());
    if std::fs::metadata(source).map_err(io())?.is_file() {
        return Ok(vec![source.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(source).map_err(io())? {
        let path = entry.map_err(io())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = !name.starts_with('.') && endings.iter().any(|ending| name.ends_with(ending));
        if wanted && std::fs::metadata(&path).map_err(io())?.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let what = format!("{}: no file here ends in {}", source.display(), endings.join(", "));
        return Err(CliError::mistaken(what, "name the folder that holds the files, or the file itself"));
    }
    Ok(files)
}

/// The file's sha256 in hex, and its size.
async fn digest(path: &Path) -> Result<(String, u64), CliError> {
    let (path, what) = (path.to_owned(), path.display().to_string());
    let hashed = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(path)?;
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((hex(&hash.finalize()), bytes)),
                read => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
    });
    match hashed.await {
        Ok(result) => result.map_err(CliError::io(what)),
        Err(stopped) => Err(CliError::Io { what, error: stopped.into() }),
    }
}

async fn send(
    client: &Client,
    path: &Path,
    name: &str,
    sha256: &str,
    bytes: u64,
    out: &mut Out,
) -> Result<(), CliError> {
    let file = tokio::fs::File::open(path).await.map_err(CliError::io(path.display().to_string()))?;
    let bar = bar(bytes, name, out);
    let shown = bar.clone();
    let chunks = ReaderStream::with_capacity(file, 256 << 10).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            shown.inc(chunk.len() as u64);
        }
    });
    let sent = client.put_blob(sha256, bytes, reqwest::Body::wrap_stream(chunks)).await;
    bar.finish_and_clear();
    sent
}

/// A bar for `bytes` bytes, where there is a terminal to draw it on.
pub(super) fn bar(bytes: u64, name: &str, out: &Out) -> ProgressBar {
    if !out.live {
        return ProgressBar::hidden();
    }
    let template = "{msg} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(bytes).with_style(style.progress_chars("=> ")).with_message(super::text::one_line(name));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
