//! The artifacts of all jobs: files taken over from output folders, each with its digest.
//!
//! ```text
//! <root>/<job>/<path in the output folder>
//! <root>/<job>.<number>.new/               a collection that has not come to its end
//! ```
//!
//! An output folder is read as a hostile one, after its container is gone. A collection appears whole or not at all;
//! collecting again gives the same again, and is how a crash in between is mended.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use drydock_spec::JobId;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::hostile;

mod collect;

/// The folder of an output folder that checkpoints lie in.
pub const CHECKPOINTS: &str = "checkpoints";

/// What the name of an unfinished collection ends with.
const UNFINISHED: &str = ".new";

/// A file that a job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Relative to the output folder, with `/` between its parts.
    pub path: String,
    /// What the worker says it is, such as `adapter`; the files themselves do not tell.
    pub role: Option<String>,
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// What a job may leave behind.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Files and folders together.
    pub entries: u64,
    /// Folders below each other.
    pub depth: usize,
    /// Sum of the files' sizes in bytes; a hole in a sparse file counts like any other byte.
    pub bytes: u64,
}

impl Caps {
    /// The usual caps, for a job that may use so much disk.
    #[must_use]
    pub fn of_disk(bytes: u64) -> Self {
        Self { entries: 10_000, depth: 16, bytes }
    }
}

/// Which files of an output folder are taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Those outside the folder of checkpoints: a checkpoint is of use to attempts of the same job and to nobody else.
    AllButCheckpoints,
    /// Those with these paths.
    These(BTreeSet<String>),
    /// Those below this folder.
    Within(String),
}

impl Wanted {
    fn includes(&self, path: &str) -> bool {
        match self {
            Self::AllButCheckpoints => path.split('/').next() != Some(CHECKPOINTS),
            Self::These(paths) => paths.contains(path),
            Self::Within(folder) => path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/')),
        }
    }
}

/// An output folder was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The job left something that is not taken from anybody. Trying again gives the same.
    #[error("`{path}` in the output folder {why}")]
    Rejected { path: String, why: Reason },
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// What is wrong with a file of a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("is a {0}; only plain files and folders are taken over")]
    NotAFile(&'static str),
    #[error("has {0} names; only files with one name are taken over")]
    Linked(u64),
    #[error("has a name that is not readable text")]
    Name,
    #[error("lies more than {0} folders deep")]
    TooDeep(usize),
    #[error("is one too many: at most {0} files and folders are taken over")]
    TooMany(u64),
    #[error("makes the output larger than {0} bytes")]
    TooLarge(u64),
    #[error("changed while it was read")]
    Changed,
    #[error("cannot be opened: {0}")]
    Shut(Errno),
}

impl ArtifactError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    fn errno(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let make = Self::io(action, path);
        move |errno| make(errno.into())
    }
}

/// The store of artifacts.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    root: PathBuf,
}

impl ArtifactStore {
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Takes over what is wanted of a job's output folder, in place of what was taken over from the job before. Artifacts
    /// come in the order of their paths. This reads and writes every byte: call it where blocking is allowed, and only
    /// when the container is gone.
    pub fn collect(
        &self,
        job: JobId,
        output: &Path,
        caps: Caps,
        wanted: &Wanted,
    ) -> Result<Vec<Artifact>, ArtifactError> {
        self.take(&job.to_string(), output, caps, wanted)
    }

    /// The same into the folder `name`.
    pub(crate) fn take(
        &self,
        name: &str,
        output: &Path,
        caps: Caps,
        wanted: &Wanted,
    ) -> Result<Vec<Artifact>, ArtifactError> {
        // A name of its own: whoever lost the right to collect may still be at it.
        let unfinished = self.root.join(format!("{name}.{:016x}{UNFINISHED}", rand::random::<u64>()));
        let make = DirBuilder::new().recursive(true).mode(0o700).create(&unfinished);
        make.map_err(ArtifactError::io("make", &unfinished))?;
        let collected = collect::collect(output, &unfinished, caps, wanted);
        if collected.is_ok() {
            replace(&unfinished, &self.at(name))?;
        }
        // After a success this is what was replaced.
        delete(&unfinished)?;
        collected
    }

    /// Removes what collections have left behind that were cut off. Nobody may be collecting meanwhile.
    pub fn sweep_unfinished(&self) -> Result<(), ArtifactError> {
        for name in self.names()?.into_iter().filter(|name| name.ends_with(UNFINISHED)) {
            self.drop_folder(&name)?;
        }
        Ok(())
    }

    /// The names of all folders, those of unfinished collections among them.
    pub(crate) fn names(&self) -> Result<Vec<String>, ArtifactError> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(ArtifactError::io("list", &self.root))?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().into_string()));
        let names = names.collect::<io::Result<Vec<_>>>().map_err(ArtifactError::io("list", &self.root))?;
        // What is not text was not made here.
        Ok(names.into_iter().flatten().collect())
    }

    /// Opens an artifact, with its size in bytes; `None` if the job has none of that path. The path may come from
    /// anybody: none leads out of the job's folder.
    pub fn open_for_reading(&self, job: JobId, path: &str) -> Result<Option<(File, u64)>, ArtifactError> {
        let folder = self.folder(job);
        let root = match hostile::open_root(&folder) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(ArtifactError::errno("open", &folder))?,
        };
        let file = match hostile::open_file(&root, Path::new(path)) {
            Ok(fd) => File::from(fd),
            Err(Errno::MFILE | Errno::NFILE | Errno::IO | Errno::NOMEM) => {
                let why = io::Error::other("the host has no room for another open file, or its disk fails");
                return Err(ArtifactError::io("open", &folder)(why));
            }
            // Absent, a link, above the root, too long, a folder where a file was: nothing that can be read.
            Err(_) => return Ok(None),
        };
        let metadata = file.metadata().map_err(ArtifactError::io("look at", &folder))?;
        // A second name is ours as well: a model that a job has left is a blob of the store, too.
        Ok(metadata.is_file().then_some((file, metadata.len())))
    }

    /// Deletes a job's artifacts. A job that has none is no error.
    pub fn remove(&self, job: JobId) -> Result<(), ArtifactError> {
        self.drop_folder(&job.to_string())
    }

    /// Deletes a folder, unless it is gone already.
    pub(crate) fn drop_folder(&self, name: &str) -> Result<(), ArtifactError> {
        delete(&self.at(name))
    }

    /// Where the folder of that name lies, or would.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder that holds what a job has made.
    #[must_use]
    pub fn folder(&self, job: JobId) -> PathBuf {
        self.at(&job.to_string())
    }
}

/// Puts a folder in another's place, or where there was none, in one step.
fn replace(new: &Path, old: &Path) -> Result<(), ArtifactError> {
    let moved = match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => renameat_with(CWD, new, CWD, old, RenameFlags::NOREPLACE),
        answer => answer,
    };
    moved.map_err(ArtifactError::errno("put in place", old))?;
    collect::sync_folder(old.parent().unwrap_or(old))
}

fn delete(folder: &Path) -> Result<(), ArtifactError> {
    let root = match hostile::open_root(folder) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.map_err(ArtifactError::errno("open", folder))?,
    };
    hostile::clear(&root).map_err(ArtifactError::errno("clear", folder))?;
    std::fs::remove_dir(folder).map_err(ArtifactError::io("remove", folder))
}
