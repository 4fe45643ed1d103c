//! Files of the store that nothing needs any more.
//!
//! A model or dataset is a folder of hard links to blobs, by content. The folder goes when neither the catalogue nor a
//! job names it; a blob, when no catalogue names it and no link to it is left. Both only after they have lain untouched
//! for a while: who brings something into the store, or finds it there, touches it, and names it only afterwards.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::folders;
use crate::api::{Taken, TakenKind};
use crate::blobs::{BlobError, Blobs};
use crate::config::Config;

/// What must stay.
pub(super) struct Needed {
    /// Digests of models and datasets.
    pub(super) folders: HashSet<String>,
    /// Digests of files.
    pub(super) files: HashSet<String>,
}

/// The store's files, and how long unused ones stay.
pub(super) struct Unused {
    blobs: Blobs,
    state_dir: PathBuf,
    age: Duration,
}

impl Unused {
    pub(super) fn new(blobs: Blobs, config: &Config) -> Self {
        Self { blobs, state_dir: config.state_dir.clone(), age: config.retention.unused_age }
    }

    /// Everything that nothing needs. Blocks.
    pub(super) fn find(&self, needed: &Needed) -> Result<Vec<Taken>, BlobError> {
        let mut taken = Vec::new();
        // Links that go with the folders found, by the file that they are links to.
        let mut links: HashMap<(u64, u64), u64> = HashMap::new();
        for (what, root) in folders(&self.state_dir) {
            for (name, path, folder) in self.entries(&root)? {
                if !folder.is_dir() || !is_digest(&name) || needed.folders.contains(&name) || !self.is_old(&folder) {
                    continue;
                }
                for (_, _, file) in self.entries(&path)? {
                    *links.entry((file.dev(), file.ino())).or_default() += 1;
                }
                taken.push(Taken { what, name, why: "no model, dataset or job names it".into(), bytes: 0 });
            }
        }
        for (_, shelf, metadata) in self.entries(self.blobs.root())? {
            let name = shelf.file_name().unwrap_or_default();
            if !metadata.is_dir() || name.len() != 2 {
                continue;
            }
            for (name, _, file) in self.entries(&shelf)? {
                let links_that_stay = file.nlink() - links.get(&(file.dev(), file.ino())).copied().unwrap_or(0);
                if is_digest(&name) && !needed.files.contains(&name) && links_that_stay <= 1 && self.is_old(&file) {
                    let why = "it is part of no model, no dataset and no artifact".into();
                    taken.push(Taken { what: TakenKind::File, name, why, bytes: file.len() });
                }
            }
        }
        Ok(taken)
    }

    /// Removes one of them, unless it is gone, or has been touched meanwhile. Blocks.
    pub(super) fn take(&self, what: TakenKind, name: &str) -> Result<bool, BlobError> {
        match folders(&self.state_dir).into_iter().find(|(kind, _)| *kind == what) {
            Some((_, root)) => {
                let path = root.join(name);
                if !self.still_old(&path)? {
                    return Ok(false);
                }
                // Never half a folder under its name: it would pass for the whole.
                self.blobs.discard_folder(&path)?;
                Ok(true)
            }
            None => {
                let path = self.blobs.path(name)?;
                if !self.still_old(&path)? {
                    return Ok(false);
                }
                fs::remove_file(&path).map_err(|error| self.blobs.failed(&path, error))?;
                Ok(true)
            }
        }
    }

    fn still_old(&self, path: &Path) -> Result<bool, BlobError> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.blobs.failed(path, error)),
            Ok(metadata) => Ok(self.is_old(&metadata)),
        }
    }

    /// A clock that was set back makes nothing old.
    fn is_old(&self, metadata: &Metadata) -> bool {
        let touched = metadata.modified().unwrap_or_else(|_| SystemTime::now());
        touched.elapsed().is_ok_and(|age| age >= self.age)
    }

    /// Name, path and metadata of what is in a folder; nothing if there is no such folder.
    fn entries(&self, folder: &Path) -> Result<Vec<(String, PathBuf, Metadata)>, BlobError> {
        let failed = |error| self.blobs.failed(folder, error);
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            match entry.metadata() {
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                metadata => {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    found.push((name, entry.path(), metadata.map_err(failed)?));
                }
            }
        }
        Ok(found)
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}
