//! `drydock artifacts`

use std::path::{Component, Path, PathBuf};

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::client::Client;
use super::error::{CliError, Exit};
use super::jobs::Named;
use super::out::Out;
use super::text::{ago, now_ms, size};
use super::upload::{bar, hex};
use crate::api::{ArtifactList, ArtifactView, JobView};

/// Which job's artifacts, and where to.
#[derive(Debug, clap::Args)]
pub(super) struct Artifacts {
    #[command(flatten)]
    job: Named,
    /// Download them into this folder, and check each against its sha256
    #[arg(long, value_name = "FOLDER")]
    download: Option<PathBuf>,
}

impl Artifacts {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let id = self.job.find(client).await?;
        let list: ArtifactList = client.get(&["v1", "jobs", &id.to_string(), "artifacts"], &[]).await?;
        if let Some(folder) = &self.download {
            if list.artifacts.is_empty() {
                let job: JobView = client.get(&["v1", "jobs", &id.to_string()], &[]).await?;
                return Err(CliError::mistaken(
                    format!("nothing to download: job `{id}` is {} and has made no artifacts", job.state),
                    format!("`drydock watch {id}` follows it to its end; only a job that succeeds leaves artifacts"),
                ));
            }
            for artifact in &list.artifacts {
                download(client, artifact, folder, out).await?;
            }
        }
        if out.json {
            out.document(&list)?;
            return Ok(Exit::Ok);
        }
        let row = |artifact: &ArtifactView| {
            let role = artifact.role.clone().unwrap_or_default();
            [artifact.path.clone(), role, size(artifact.bytes), artifact.sha256.clone()]
        };
        out.table(["PATH", "ROLE", "SIZE", "SHA256"], list.artifacts.iter().map(row).collect())?;
        if let Some(at_ms) = list.removed_ms {
            out.note(format!("the files were removed {}, as the gateway's configuration says", ago(at_ms, now_ms())));
            return Ok(Exit::Ok);
        }
        match (&self.download, &list.folder) {
            (Some(folder), _) => out.note(format!("downloaded to {}", folder.display())),
            (None, Some(folder)) => out.note(format!("on the gateway's host they lie in {folder}")),
            (None, None) => out.note("the job has made nothing (yet)"),
        }
        Ok(Exit::Ok)
    }
}

/// Downloads one artifact below `folder`; a file appears under its name only when it is whole and right.
async fn download(client: &Client, artifact: &ArtifactView, folder: &Path, out: &mut Out) -> Result<(), CliError> {
    let target = folder.join(inside(&artifact.path)?);
    let parent = target.parent().unwrap_or(folder);
    let io = || CliError::io(target.display().to_string());
    std::fs::create_dir_all(parent).map_err(io())?;
    let temporary = tempfile::NamedTempFile::new_in(parent).map_err(io())?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(io())?);
    let bar = bar(artifact.bytes, &artifact.path, out);
    let mut chunks = client.download(&artifact.href).await?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|reason| CliError::Unreachable { url: client.address().to_owned(), reason })?;
        hash.update(&chunk);
        bytes += chunk.len() as u64;
        bar.set_position(bytes);
        file.write_all(&chunk).await.map_err(io())?;
    }
    bar.finish_and_clear();
    file.flush().await.map_err(io())?;
    let found = hex(&hash.finalize());
    if found != artifact.sha256 {
        return Err(CliError::Damaged {
            path: artifact.path.clone(),
            found: format!("sha256 {found} ({bytes} bytes)"),
            expected: format!("{} ({} bytes)", artifact.sha256, artifact.bytes),
        });
    }
    temporary.persist(&target).map_err(|error| io()(error.error))?;
    Ok(())
}

/// The path, if it stays below the folder that it is joined to.
fn inside(path: &str) -> Result<&Path, CliError> {
    let plain = Path::new(path);
    if !path.is_empty() && plain.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(plain);
    }
    Err(CliError::mistaken(
        format!("artifact `{path}` would be written outside of the folder"),
        "do not trust this gateway; report it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_cannot_leave_the_folder() {
        assert!(inside("adapter/adapter_model.safetensors").is_ok());
        for path in ["", "/etc/passwd", "../x", "a/../../x", "./x/.."] {
            assert!(inside(path).is_err(), "{path}");
        }
    }
}
