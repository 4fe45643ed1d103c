//! Folders that a container can mount, put together from blobs.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::same::same;
use super::{BlobError, Blobs, hex};

/// A file of a folder, by its content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredFile {
    /// The file's name; folders have no folders in them.
    pub path: String,
    /// Lower-case hex.
    pub sha256: String,
    pub bytes: u64,
}

/// What a folder is called: the sha256 over a line `<sha256>  <path>` for each of its files, sorted by path.
#[must_use]
pub fn digest_of(files: &[StoredFile]) -> String {
    let mut lines: Vec<_> = files.iter().map(|file| (&file.path, &file.sha256)).collect();
    lines.sort_unstable();
    let mut hash = Sha256::new();
    for (path, sha256) in lines {
        hash.update(format!("{sha256}  {path}\n"));
    }
    hex(&hash.finalize())
}

/// Refuses what would lead out of a folder, hide in it, or break somebody's terminal.
pub fn check_name(name: &str) -> Result<(), BlobError> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains('/')
        && !name.contains(char::is_control);
    if plain { Ok(()) } else { Err(BlobError::NotAName(name.escape_debug().take(300).collect())) }
}

impl Blobs {
    /// The folder `<parent>/<digest>` with these files, made if it is not there. Its files are hard links to the
    /// blobs, so that it costs no room; copies where the file system has no links. One that is there already is mended
    /// where its files are not what the blobs are. Blocks.
    pub fn assemble(&self, parent: &Path, files: &[StoredFile]) -> Result<PathBuf, BlobError> {
        let target = parent.join(digest_of(files));
        if target.is_dir() {
            for file in files {
                self.mend(file, &target)?;
            }
            super::touch(&target);
            return Ok(target);
        }
        let failed = |error| self.failed(&target, error);
        fs::create_dir_all(parent).map_err(failed)?;
        let draft = tempfile::tempdir_in(self.drafts()).map_err(failed)?;
        for file in files {
            self.place(file, &draft.path().join(&file.path))?;
        }
        // The worker inside is another user, who must be able to look in.
        fs::set_permissions(draft.path(), Permissions::from_mode(0o755)).map_err(failed)?;
        File::open(draft.path()).and_then(|folder| folder.sync_all()).map_err(failed)?;
        match fs::rename(draft.path(), &target) {
            // Somebody else was faster with the same content; the draft goes away by itself.
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(failed(error)),
            Ok(()) => {
                let _ = draft.keep();
                File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)?;
            }
        }
        Ok(target)
    }

    /// Removes a folder that was put together: it is gone from its name in one step. Blocks.
    pub(crate) fn discard_folder(&self, folder: &Path) -> Result<(), BlobError> {
        let failed = |error| self.failed(folder, error);
        let draft = tempfile::tempdir_in(self.drafts()).map_err(failed)?;
        fs::rename(folder, draft.path().join("discarded")).map_err(failed)?;
        draft.close().map_err(failed)
    }

    /// Puts a file of the folder in its place again, if it is gone or not what its blob is. Who has the old one open
    /// keeps it.
    fn mend(&self, file: &StoredFile, folder: &Path) -> Result<(), BlobError> {
        check_name(&file.path)?;
        let (at, blob) = (folder.join(&file.path), self.path(&file.sha256)?);
        match same(&at, &blob) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // Which of the two is missing shows in what follows.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(self.failed(&at, error)),
        }
        tracing::warn!(file = %at.display(), "a damaged file of the store is replaced");
        let failed = |error| self.failed(&at, error);
        let draft = tempfile::tempdir_in(self.drafts()).map_err(failed)?;
        let whole = draft.path().join("whole");
        self.place(file, &whole)?;
        fs::rename(&whole, &at).map_err(failed)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn place(&self, file: &StoredFile, at: &Path) -> Result<(), BlobError> {
        check_name(&file.path)?;
        let blob = self.path(&file.sha256)?;
        match fs::hard_link(&blob, at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(BlobError::Missing(file.sha256.clone())),
            Err(_) => {
                self.check_room(file.bytes)?;
                fs::copy(&blob, at).map_err(|error| self.failed(at, error))?;
                File::open(at).and_then(|copy| copy.sync_all()).map_err(|error| self.failed(at, error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn stored(blobs: &Blobs, path: &str, text: &str) -> StoredFile {
        let stored = blobs.put_bytes(text.as_bytes()).unwrap();
        StoredFile { path: path.into(), sha256: stored.sha256, bytes: stored.bytes }
    }

    #[test]
    fn a_folder_links_to_its_blobs_and_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(state.path()).unwrap();
        let files = [stored(&blobs, "b.txt", "b"), stored(&blobs, "a.txt", "a")];
        let parent = state.path().join("models");
        let folder = blobs.assemble(&parent, &files).unwrap();
        assert_eq!(folder, parent.join(digest_of(&files)));
        assert_eq!(fs::read(folder.join("a.txt")).unwrap(), b"a");
        let blob = fs::metadata(blobs.path(&files[0].sha256).unwrap()).unwrap();
        assert_eq!(fs::metadata(folder.join("b.txt")).unwrap().ino(), blob.ino());
        assert_eq!(blobs.assemble(&parent, &files).unwrap(), folder);
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_was_damaged_is_mended_when_its_files_are_brought_again() {
        let state = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(state.path()).unwrap();
        let parent = state.path().join("models");
        let files = [stored(&blobs, "a.txt", "abc"), stored(&blobs, "b.txt", "b"), stored(&blobs, "c.txt", "c")];
        let folder = blobs.assemble(&parent, &files).unwrap();
        // The disk has lost bits of the one, which both names show; the others' names are all that is wrong.
        let blob = blobs.path(&files[0].sha256).unwrap();
        fs::set_permissions(&blob, Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, "aBc").unwrap();
        fs::remove_file(folder.join("b.txt")).unwrap();
        fs::remove_file(folder.join("c.txt")).unwrap();
        fs::write(folder.join("c.txt"), "").unwrap();
        for (file, text) in files.iter().zip(["abc", "b", "c"]) {
            assert_eq!(stored(&blobs, &file.path, text), *file);
        }
        blobs.assemble(&parent, &files).unwrap();
        for (file, text) in files.iter().zip(["abc", "b", "c"]) {
            assert_eq!(fs::read_to_string(folder.join(&file.path)).unwrap(), text);
            assert_eq!(fs::read_to_string(blobs.path(&file.sha256).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_but_on_every_name_and_content() {
        let file = |path: &str, sha256: &str| StoredFile { path: path.into(), sha256: sha256.into(), bytes: 1 };
        let digest = digest_of(&[file("a", "1"), file("b", "2")]);
        assert_eq!(digest, digest_of(&[file("b", "2"), file("a", "1")]));
        assert_ne!(digest, digest_of(&[file("a", "2"), file("b", "1")]));
        assert_ne!(digest, digest_of(&[file("a", "1")]));
    }

    #[test]
    fn a_missing_blob_is_named_and_no_folder_is_left() {
        let state = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(state.path()).unwrap();
        let gone = StoredFile { path: "a".into(), sha256: "0".repeat(64), bytes: 1 };
        let parent = state.path().join("models");
        assert!(matches!(blobs.assemble(&parent, &[gone]), Err(BlobError::Missing(_))));
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        assert_eq!(fs::read_dir(blobs.drafts()).unwrap().count(), 0);
    }
}
