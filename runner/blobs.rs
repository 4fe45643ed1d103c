//! Files by their content: each lies once under `<state>/blobs/<aa>/<sha256>`, read-only, whatever it is part of.
//!
//! A blob appears under its name only when all of it is written, hashed and on the disk; so what is there is whole,
//! and two who bring the same one do not disturb each other.

use std::fmt::Display;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempPath};
use tokio::sync::mpsc;

mod folder;
mod same;

use same::same;

pub use folder::{StoredFile, check_name, digest_of};

/// A blob could not be stored or found.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error(
        "no room: {} needed, {} free under {}; free disk space, or set state_dir to a larger disk",
        size(*.needed), size(*.free), .folder.display()
    )]
    Full { needed: u64, free: u64, folder: PathBuf },
    #[error("the content's sha256 is {found}, {expected} was announced; send the file again")]
    Mismatch { expected: String, found: String },
    #[error("more than {} were sent; raise gateway.max_upload if that is intended", size(*.limit))]
    TooLarge { limit: u64 },
    #[error("`{0}` is not a sha256: 64 lower-case hex digits are expected")]
    NotADigest(String),
    #[error("`{0}` is not a plain file name; give names without folders, such as `train.jsonl`")]
    NotAName(String),
    #[error("no file with sha256 {0} is stored; upload it first with PUT /v1/blobs/{0}")]
    Missing(String),
    #[error("the upload broke off after {}: {reason}; send the file again", size(*.received))]
    Interrupted { received: u64, reason: String },
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

/// What became of a file that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Lower-case hex.
    pub sha256: String,
    pub bytes: u64,
    /// False if the same content was there before.
    pub new: bool,
}

/// A download that was not gone on with for a week will not be.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// The blobs of one installation. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Blobs {
    root: Arc<Path>,
}

impl Blobs {
    /// The blobs below `state_dir`, which nobody else may be using: what was left half-written there is swept away.
    pub fn open(state_dir: &Path) -> Result<Self, BlobError> {
        let blobs = Self { root: state_dir.join("blobs").into() };
        let drafts = blobs.drafts();
        match fs::remove_dir_all(&drafts) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(blobs.failed(&drafts, error)),
            _ => {}
        }
        for folder in [drafts, blobs.partial()] {
            fs::create_dir_all(&folder).map_err(|error| blobs.failed(&folder, error))?;
        }
        blobs.sweep_partial(ABANDONED_AFTER);
        Ok(blobs)
    }

    /// Removes downloads that nobody has gone on with for so long. What cannot be removed is left for the next time.
    fn sweep_partial(&self, after: Duration) {
        for entry in fs::read_dir(self.partial()).into_iter().flatten().flatten() {
            let touched = entry.metadata().and_then(|file| file.modified());
            let abandoned = touched.is_ok_and(|touched| touched.elapsed().is_ok_and(|age| age > after));
            if abandoned && let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(file = %entry.path().display(), %error, "abandoned download stays");
            }
        }
    }

    /// Where the blob lies, or would.
    pub fn path(&self, sha256: &str) -> Result<PathBuf, BlobError> {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if sha256.len() != 64 || !sha256.bytes().all(hex) {
            return Err(BlobError::NotADigest(sha256.chars().take(80).collect()));
        }
        Ok(self.root.join(&sha256[..2]).join(sha256))
    }

    /// The folder that all of them lie below.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the blob is here.
    pub async fn has(&self, sha256: &str) -> bool {
        match self.path(sha256) {
            Ok(path) => tokio::fs::try_exists(path).await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Opens a blob for reading.
    pub fn read(&self, sha256: &str) -> Result<File, BlobError> {
        let path = self.path(sha256)?;
        File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => BlobError::Missing(sha256.to_owned()),
            _ => self.failed(&path, error),
        })
    }

    /// Refuses what would not fit on the disk, before any of it is sent.
    pub fn check_room(&self, bytes: u64) -> Result<(), BlobError> {
        let free = self.free();
        if bytes > free {
            return Err(BlobError::Full { needed: bytes, free, folder: self.root.to_path_buf() });
        }
        Ok(())
    }

    /// Bytes that are free on the state folder's disk; all there can be if the system does not say.
    #[must_use]
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&*self.root).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Stores what `stream` brings, at most `limit` bytes, if it hashes to `sha256`; says whether it is new. Nothing
    /// stays behind of what breaks off or differs.
    pub async fn put<E: Display>(
        &self,
        sha256: &str,
        mut stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
        limit: u64,
    ) -> Result<bool, BlobError> {
        self.path(sha256)?;
        // `None` is the end, which has to come: what broke off may look whole.
        let (chunks, incoming) = mpsc::channel::<Option<Bytes>>(8);
        let blobs = self.clone();
        let expected = sha256.to_owned();
        // Hashing and writing keep a thread busy, which must not be one that answers requests.
        let writer = tokio::task::spawn_blocking(move || blobs.write(&expected, incoming));
        let mut received = 0;
        while let Some(chunk) = stream.next().await {
            // Returning drops the channel early; the writer then misses the end and leaves nothing.
            let chunk = chunk.map_err(|error| BlobError::Interrupted { received, reason: error.to_string() })?;
            received += chunk.len() as u64;
            if received > limit {
                return Err(BlobError::TooLarge { limit });
            }
            if chunks.send(Some(chunk)).await.is_err() {
                break;
            }
        }
        // A writer that has given up says why by itself.
        let _ = chunks.send(None).await;
        let stored = writer.await.map_err(|error| self.failed(&self.root, std::io::Error::other(error)))??;
        Ok(stored.new)
    }

    fn write(&self, expected: &str, mut incoming: mpsc::Receiver<Option<Bytes>>) -> Result<Stored, BlobError> {
        let mut draft = Draft::begin(self)?;
        let mut received = 0;
        while let Some(part) = incoming.blocking_recv() {
            let Some(chunk) = part else { return draft.keep(Some(expected)) };
            draft.append(&chunk)?;
            received += chunk.len() as u64;
        }
        Err(BlobError::Interrupted { received, reason: "its end did not come".into() })
    }

    /// Stores a copy of an open file, from its beginning. Blocks.
    pub fn put_file(&self, file: &mut File) -> Result<Stored, BlobError> {
        let length = file.metadata().map_err(|error| self.failed(&self.root, error))?.len();
        let mut draft = Draft::begin(self)?;
        if rustix::fs::ioctl_ficlone(&draft.file, &*file).is_ok() {
            // The copy shares the file's blocks; only the hash is left to be made, of what cannot change any more.
            draft.rehash()?;
        } else {
            self.check_room(length)?;
            file.rewind().map_err(|error| self.failed(&self.root, error))?;
            self.each_chunk(file, |chunk| draft.append(chunk))?;
        }
        draft.keep(None)
    }

    /// Stores a file of ours whose digest is known and which nobody will change: by a second name for it where the file
    /// system has such, otherwise by a copy. Blocks.
    pub(crate) fn link(&self, path: &Path, sha256: &str) -> Result<(), BlobError> {
        let target = self.path(sha256)?;
        let folder = target.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(|error| self.failed(folder, error))?;
        match fs::hard_link(path, &target) {
            Ok(()) => File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| self.failed(path, error)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                touch(&target);
                Ok(())
            }
            Err(_) => {
                let mut file = File::open(path).map_err(|error| self.failed(path, error))?;
                let stored = self.put_file(&mut file)?;
                match stored.sha256 == sha256 {
                    true => Ok(()),
                    false => Err(BlobError::Mismatch { expected: sha256.to_owned(), found: stored.sha256 }),
                }
            }
        }
    }

    /// Stores these bytes. Blocks.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Stored, BlobError> {
        let mut draft = Draft::begin(self)?;
        draft.append(bytes)?;
        draft.keep(None)
    }

    pub(crate) fn each_chunk(
        &self,
        file: &mut File,
        mut use_chunk: impl FnMut(&[u8]) -> Result<(), BlobError>,
    ) -> Result<(), BlobError> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => use_chunk(&buffer[..n])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&self.root, error)),
            }
        }
    }

    /// Files that are being made; worth nothing after a restart.
    fn drafts(&self) -> PathBuf {
        self.root.join("drafts")
    }

    /// Downloads that were begun; they are continued after a restart.
    fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Where the download that is called `key` grows.
    pub(crate) fn partial_path(&self, key: &str) -> PathBuf {
        self.partial().join(key)
    }

    /// Makes a finished download a blob, if it hashes to `expected`; it is gone from where it grew in any case.
    /// Blocks.
    pub(crate) fn adopt(&self, partial: &Path, expected: Option<&str>) -> Result<Stored, BlobError> {
        let failed = |error| self.failed(partial, error);
        let path = TempPath::try_from_path(partial).map_err(failed)?;
        let file = NamedTempFile::from_parts(File::open(partial).map_err(failed)?, path);
        let mut draft = Draft { blobs: self, file, hash: Sha256::new(), bytes: 0 };
        draft.rehash()?;
        draft.keep(expected)
    }

    pub(crate) fn failed(&self, path: &Path, error: std::io::Error) -> BlobError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                BlobError::Full { needed: 1, free: self.free(), folder: self.root.to_path_buf() }
            }
            _ => BlobError::Io { path: path.to_owned(), error },
        }
    }
}

/// A blob in the making. Dropping it removes it.
struct Draft<'a> {
    blobs: &'a Blobs,
    file: NamedTempFile,
    hash: Sha256,
    bytes: u64,
}

impl<'a> Draft<'a> {
    fn begin(blobs: &'a Blobs) -> Result<Self, BlobError> {
        let folder = blobs.drafts();
        let file = NamedTempFile::new_in(&folder).map_err(|error| blobs.failed(&folder, error))?;
        Ok(Self { blobs, file, hash: Sha256::new(), bytes: 0 })
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        self.file.write_all(chunk).map_err(|error| match self.blobs.failed(self.file.path(), error) {
            BlobError::Full { free, folder, .. } => BlobError::Full { needed: chunk.len() as u64, free, folder },
            other => other,
        })
    }

    fn rehash(&mut self) -> Result<(), BlobError> {
        let (hash, bytes) = (&mut self.hash, &mut self.bytes);
        self.blobs.each_chunk(self.file.as_file_mut(), |chunk| {
            hash.update(chunk);
            *bytes += chunk.len() as u64;
            Ok(())
        })
    }

    fn keep(self, expected: Option<&str>) -> Result<Stored, BlobError> {
        let Self { blobs, file, hash, bytes } = self;
        let sha256 = hex(&hash.finalize());
        if let Some(expected) = expected.filter(|expected| **expected != sha256) {
            return Err(BlobError::Mismatch { expected: expected.to_owned(), found: sha256 });
        }
        let target = blobs.path(&sha256)?;
        let failed = |error| blobs.failed(&target, error);
        let folder = target.parent().unwrap_or(&blobs.root);
        fs::create_dir_all(folder).map_err(failed)?;
        file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        let new = match file.persist_noclobber(&target) {
            Ok(_) => true,
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                // What was just hashed is right; what has lain there for a while may have been damaged since.
                if !same(error.file.path(), &target).map_err(failed)? {
                    tracing::warn!(blob = %target.display(), "a damaged file of the store is replaced");
                    error.file.persist(&target).map_err(|error| failed(error.error))?;
                }
                touch(&target);
                false
            }
            Err(error) => return Err(failed(error.error)),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(Stored { sha256, bytes, new })
    }
}

/// Says that a file or folder of the store is wanted, so that it is not taken for one that nobody needs. One that
/// cannot be touched is as old as it was, which shows when it is named.
fn touch(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| file.set_modified(std::time::SystemTime::now())) {
        tracing::debug!(path = %path.display(), %error, "not touched");
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes for people, such as `1.8 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let state = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(state.path()).unwrap();
        (state, blobs)
    }

    fn bytes(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + Unpin {
        stream::iter(parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect::<Vec<_>>())
    }

    fn drafts(blobs: &Blobs) -> usize {
        fs::read_dir(blobs.drafts()).unwrap().count()
    }

    #[tokio::test]
    async fn the_same_content_is_new_only_once() {
        let (_state, blobs) = blobs();
        assert!(!blobs.has(HELLO).await);
        assert!(blobs.put(HELLO, bytes(&["hel", "lo"]), 5).await.unwrap());
        assert!(!blobs.put(HELLO, bytes(&["hello"]), 5).await.unwrap());
        assert!(blobs.has(HELLO).await);
        let path = blobs.path(HELLO).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    }

    #[tokio::test]
    async fn many_may_bring_the_same_at_once() {
        let (_state, blobs) = blobs();
        let puts = (0..16).map(|_| blobs.put(HELLO, bytes(&["h", "ello"]), 100));
        let new = futures::future::try_join_all(puts).await.unwrap();
        assert_eq!(new.iter().filter(|new| **new).count(), 1);
        assert_eq!(drafts(&blobs), 0);
    }

    #[tokio::test]
    async fn what_differs_breaks_off_or_is_too_large_leaves_nothing() {
        let (_state, blobs) = blobs();
        let wrong = blobs.put(HELLO, bytes(&["help!"]), 100).await.unwrap_err();
        assert!(matches!(wrong, BlobError::Mismatch { .. }), "{wrong}");
        let large = blobs.put(HELLO, bytes(&["hello", "!"]), 5).await.unwrap_err();
        assert!(large.to_string().starts_with("more than 5 B were sent"), "{large}");
        let cut = stream::iter([Ok(Bytes::from_static(b"hel")), Err("connection reset")]);
        let cut = blobs.put(HELLO, cut, 100).await.unwrap_err();
        assert_eq!(cut.to_string(), "the upload broke off after 3 B: connection reset; send the file again");
        assert!(!blobs.has(HELLO).await);
        assert!(matches!(blobs.put("../../etc", bytes(&[]), 5).await, Err(BlobError::NotADigest(_))));
        // The writer of a broken upload ends by itself, a moment after its caller was told.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while drafts(&blobs) > 0 && std::time::Instant::now() < patience {
            tokio::task::yield_now().await;
        }
        assert_eq!(drafts(&blobs), 0);
    }

    #[test]
    fn a_file_is_copied_and_hashed() {
        let (state, blobs) = blobs();
        let path = state.path().join("file");
        fs::write(&path, "hello").unwrap();
        let mut file = File::open(&path).unwrap();
        let stored = blobs.put_file(&mut file).unwrap();
        assert_eq!(stored, Stored { sha256: HELLO.into(), bytes: 5, new: true });
        assert!(!blobs.put_file(&mut file).unwrap().new);
        fs::write(&path, "other").unwrap();
        let mut read = String::new();
        blobs.read(HELLO).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "hello");
    }

    #[test]
    fn more_than_is_free_is_refused_in_numbers() {
        let (_state, blobs) = blobs();
        let error = blobs.check_room(u64::MAX).unwrap_err();
        assert!(matches!(error, BlobError::Full { needed: u64::MAX, free, .. } if free == blobs.free()), "{error}");
        assert!(error.to_string().contains("free disk space"), "{error}");
    }

    #[test]
    fn opening_sweeps_what_was_half_written() {
        let (state, blobs) = blobs();
        fs::write(blobs.drafts().join("left"), "half").unwrap();
        fs::write(blobs.partial().join("kept"), "half").unwrap();
        let blobs = Blobs::open(state.path()).unwrap();
        assert_eq!(drafts(&blobs), 0);
        assert!(blobs.partial().join("kept").exists());
    }

    #[test]
    fn an_abandoned_download_is_swept_away() {
        let (_state, blobs) = blobs();
        let path = blobs.partial_path("old");
        fs::write(&path, "half").unwrap();
        let week_ago = std::time::SystemTime::now() - 2 * ABANDONED_AFTER;
        File::options().write(true).open(&path).unwrap().set_modified(week_ago).unwrap();
        fs::write(blobs.partial_path("new"), "half").unwrap();
        blobs.sweep_partial(ABANDONED_AFTER);
        assert!(!path.exists() && blobs.partial_path("new").exists());
    }

    #[test]
    fn a_full_disk_is_told_from_other_trouble() {
        let (_state, blobs) = blobs();
        for full in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            assert!(matches!(blobs.failed(Path::new("x"), full.into()), BlobError::Full { .. }));
        }
        assert!(matches!(blobs.failed(Path::new("x"), rustix::io::Errno::IO.into()), BlobError::Io { .. }));
    }
}
