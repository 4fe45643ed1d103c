//! What lost attempts had come to: checkpoints, taken over from output folders and handed to the next attempt.
//!
//! ```text
//! <root>/<job>-<attempt>/<path in the output folder>
//! ```
//!
//! A checkpoint comes out of a container and is hostile until it has been taken over as artifacts are: plain files only,
//! copied and hashed. It is handed on read-only, and only if its files still have their digest.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use drydock_spec::report::Checkpoint;
use drydock_spec::{Attempt, JobId};
use sha2::{Digest, Sha256};

use crate::artifacts::{Artifact, ArtifactError, ArtifactStore, CHECKPOINTS, Caps, Wanted};
use crate::blobs::{StoredFile, digest_of, hex};

/// A checkpoint that was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// Optimizer steps that had been taken.
    pub step: u64,
    /// Its folder, as it was called in the output folder.
    pub path: String,
    pub bytes: u64,
    /// Of its files, as models have one.
    pub digest: String,
}

/// The checkpoints of lost attempts. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    store: ArtifactStore,
}

impl Checkpoints {
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { store: ArtifactStore::new(root) }
    }

    /// Takes a checkpoint over from an attempt's output folder; `None` if it is not there as it was announced. This
    /// reads and writes every byte: call it where blocking is allowed, and only when the container is gone.
    pub fn keep(
        &self,
        job: JobId,
        attempt: Attempt,
        output: &Path,
        announced: &Checkpoint,
        caps: Caps,
    ) -> Result<Option<Kept>, ArtifactError> {
        if !is_plain(&announced.path) {
            return Ok(None);
        }
        let wanted = Wanted::Within(announced.path.clone());
        let name = name(job, attempt);
        let files = self.store.take(&name, output, caps, &wanted)?;
        let bytes = files.iter().map(|file| file.bytes).sum();
        if files.is_empty() || bytes != announced.bytes {
            self.store.drop_folder(&name)?;
            return Ok(None);
        }
        let folder = self.store.at(&name).join(&announced.path);
        // The worker inside is another user, who must be able to look in.
        let opened = std::fs::set_permissions(&folder, Permissions::from_mode(0o755));
        opened.map_err(ArtifactError::io("open up", &folder))?;
        let digest = digest_of(&stored(&announced.path, files));
        Ok(Some(Kept { attempt, step: announced.step, path: announced.path.clone(), bytes, digest }))
    }

    /// The folder to hand to the next attempt, if its files are what they were. Reads every byte: call it where blocking
    /// is allowed.
    pub fn verified(&self, job: JobId, kept: &Kept) -> Result<Option<PathBuf>, ArtifactError> {
        let folder = self.store.at(&name(job, kept.attempt)).join(&kept.path);
        let files = match hashed(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            files => files.map_err(ArtifactError::io("read", &folder))?,
        };
        Ok((digest_of(&files) == kept.digest).then_some(folder))
    }

    /// Removes those that nobody wants to keep. What does not look like a checkpoint of an attempt is left alone.
    pub fn sweep(&self, keep: impl Fn(JobId, Attempt) -> bool) -> Result<(), ArtifactError> {
        for name in self.store.names()? {
            let Some((job, attempt)) = parse_name(&name) else { continue };
            if !keep(job, attempt) {
                tracing::info!(%job, %attempt, "a checkpoint is no longer needed");
                self.store.drop_folder(&name)?;
            }
        }
        Ok(())
    }
}

fn name(job: JobId, attempt: Attempt) -> String {
    format!("{job}-{attempt}")
}

fn parse_name(text: &str) -> Option<(JobId, Attempt)> {
    let (job, attempt) = text.rsplit_once('-')?;
    let parsed = (job.parse().ok()?, Attempt(attempt.parse().ok()?));
    (name(parsed.0, parsed.1) == text).then_some(parsed)
}

/// Whether a path that a worker has told is a folder right below that of checkpoints.
fn is_plain(path: &str) -> bool {
    let own = path.strip_prefix(CHECKPOINTS).and_then(|rest| rest.strip_prefix('/'));
    own.is_some_and(|name| {
        !name.is_empty()
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    })
}

fn stored(folder: &str, files: Vec<Artifact>) -> Vec<StoredFile> {
    let below = |path: &str| path.strip_prefix(folder).unwrap_or(path).trim_start_matches('/').to_owned();
    files
        .into_iter()
        .map(|file| StoredFile { path: below(&file.path), sha256: file.sha256, bytes: file.bytes })
        .collect()
}

/// The files of a folder of ours, with their digests.
fn hashed(folder: &Path) -> io::Result<Vec<StoredFile>> {
    std::fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            let (mut file, mut hash) = (File::open(entry.path())?, Sha256::new());
            let bytes = io::copy(&mut file, &mut Hashing(&mut hash))?;
            let path = entry.file_name().to_string_lossy().into_owned();
            Ok(StoredFile { path, sha256: hex(&hash.finalize()), bytes })
        })
        .collect()
}

struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps { entries: 100, depth: 4, bytes: 1 << 20 };

    fn job() -> JobId {
        JobId::from_parts(1, 1)
    }

    fn announced(step: u64, bytes: u64) -> Checkpoint {
        Checkpoint { step, path: format!("checkpoints/step-{step}"), bytes }
    }

    /// An output folder with a checkpoint at step 5, of 6 bytes.
    fn output() -> (tempfile::TempDir, PathBuf, Checkpoints) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir_all(out.join("checkpoints/step-5")).unwrap();
        std::fs::write(out.join("checkpoints/step-5/a"), "abc").unwrap();
        std::fs::write(out.join("checkpoints/step-5/b"), "def").unwrap();
        std::fs::write(out.join("unfinished"), "x").unwrap();
        let checkpoints = Checkpoints::new(folder.path().join("kept"));
        (folder, out, checkpoints)
    }

    #[test]
    fn a_checkpoint_is_handed_on_only_as_it_was_announced_and_only_while_it_is_whole() {
        let (_folder, out, checkpoints) = output();
        let keep = |announced: &Checkpoint| checkpoints.keep(job(), Attempt(2), &out, announced, CAPS).unwrap();
        assert_eq!(keep(&announced(5, 7)), None, "a byte is missing");
        assert_eq!(keep(&announced(9, 6)), None, "it is gone");
        let kept = keep(&announced(5, 6)).unwrap();
        assert_eq!((kept.step, kept.bytes, kept.attempt), (5, 6, Attempt(2)));
        let folder = checkpoints.verified(job(), &kept).unwrap().unwrap();
        assert_eq!(std::fs::read(folder.join("b")).unwrap(), b"def");
        assert!(!folder.join("../../unfinished").exists(), "nothing else is kept");
        std::fs::remove_file(folder.join("a")).unwrap();
        assert_eq!(checkpoints.verified(job(), &kept).unwrap(), None);
    }

    #[test]
    fn a_checkpoint_cannot_be_a_way_out_of_the_output_folder() {
        let (folder, out, checkpoints) = output();
        for path in ["", "checkpoints", "checkpoints/..", "../x", "checkpoints/a/b", "/etc", "checkpoints/."] {
            let announced = Checkpoint { step: 1, path: path.into(), bytes: 6 };
            assert_eq!(checkpoints.keep(job(), Attempt(1), &out, &announced, CAPS).unwrap(), None, "{path}");
        }
        std::fs::rename(out.join("checkpoints"), folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), out.join("checkpoints")).unwrap();
        assert!(checkpoints.keep(job(), Attempt(1), &out, &announced(5, 6), CAPS).is_err());
    }

    #[test]
    fn what_nobody_wants_is_swept_away() {
        let (folder, out, checkpoints) = output();
        for attempt in [1, 2] {
            checkpoints.keep(job(), Attempt(attempt), &out, &announced(5, 6), CAPS).unwrap().unwrap();
        }
        std::fs::create_dir(folder.path().join("kept/somebody-else's")).unwrap();
        checkpoints.sweep(|_, attempt| attempt == Attempt(2)).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path().join("kept")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [format!("{}-2", job()).as_str(), "somebody-else's"]);
    }
}
