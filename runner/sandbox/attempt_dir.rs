//! The host's side of an attempt: one folder that holds what its container sees.
//!
//! ```text
//! <root>/<job>-<attempt>/        0700, ours
//!     spec.json                  0444, written last: a folder without it is half-made
//!     events.jsonl               the container's user may append to it and do nothing else
//!     out.img                    where output is capped by a file system of its own
//!     out/                       the output folder
//! ```
//!
//! Creating and removing can be repeated after a crash at any point. Nothing here asks the engine: who calls has made
//! sure that no container uses the folder any more. Everything here blocks (milliseconds, or as long as it takes to
//! delete what a job left): call it where blocking is allowed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use drydock_spec::contract::{EVENTS_PATH, OUTPUT_PATH, SPEC_PATH};
use drydock_spec::{Attempt, AttemptSpec, JobId, Limits};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use super::users::{NoUser, Users};
use super::{Access, Mount};
use crate::hostile;

mod inputs;
mod output;

pub use inputs::{InputFolders, ModelFolders};
pub use output::{OutputCap, Usage};

/// The file of reports in an attempt's folder.
pub(super) const EVENTS_FILE: &str = "events.jsonl";

/// The folder could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptDirError {
    #[error(
        "{path} has room for {free_bytes} bytes, the attempt may need {needed_bytes}; free disk space or lower limits.disk_mib"
    )]
    DiskFull { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error(transparent)]
    NoUser(#[from] NoUser),
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A program of the host that makes or mounts file systems did not do it.
    #[error("`{program}` did not do its work on {path}: {message}")]
    Program { program: &'static str, path: PathBuf, message: String },
}

impl AttemptDirError {
    /// Whether it is for want of room on the host's disk.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::NoUser(_) | Self::Program { .. } => false,
        }
    }
}

/// How attempts' folders are made here.
#[derive(Debug, Clone)]
pub struct FolderSettings {
    /// The users that containers run as.
    pub users: Users,
    pub output_cap: OutputCap,
    /// Whether the events file is made append-only. A runtime whose containers have a kernel of their own has a server
    /// on the host open their files, and gVisor's does not open them for appending, which such a file then refuses.
    pub append_only: bool,
}

/// The folder of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptDir {
    path: PathBuf,
}

impl AttemptDir {
    /// Makes the folder anew, whatever is left of an earlier one. Only root can give files to another than itself.
    pub fn create(
        root: &Path,
        spec: &AttemptSpec,
        limits: &Limits,
        how: &FolderSettings,
    ) -> Result<Self, AttemptDirError> {
        let dir = Self::at(root, spec.job, spec.attempt);
        dir.clone().remove()?;
        make_private_folder(&dir.path)?;
        output::require_room(&dir.path, limits.disk_bytes)?;
        let owner =
            how.users.give(|owner| make_events_file(&dir.events_path(), owner, how.append_only).map(|()| owner))?;
        output::prepare(&dir.path, limits.disk_bytes, owner, how.output_cap)?;
        write_spec(&dir.spec_path(), spec)?;
        Ok(dir)
    }

    /// The folder of an attempt that was begun earlier, with its output in place again after a restart of the host;
    /// `None` if there is none, or a half-made one.
    pub fn open(root: &Path, job: JobId, attempt: Attempt) -> Result<Option<Self>, AttemptDirError> {
        let dir = Self::at(root, job, attempt);
        if !dir.spec_path().exists() {
            return Ok(None);
        }
        output::restore(&dir.path)?;
        Ok(Some(dir))
    }

    fn at(root: &Path, job: JobId, attempt: Attempt) -> Self {
        Self { path: root.join(format!("{job}-{attempt}")) }
    }

    /// What the container sees of the host.
    #[must_use]
    pub fn mounts(&self, inputs: &InputFolders) -> Vec<Mount> {
        let mount =
            |source: &Path, target: &str, access| Mount { source: source.into(), target: target.into(), access };
        let mut mounts = vec![
            mount(&self.spec_path(), SPEC_PATH, Access::ReadOnly),
            mount(&self.events_path(), EVENTS_PATH, Access::ReadWrite),
            mount(&self.output_path(), OUTPUT_PATH, Access::ReadWrite),
        ];
        mounts.extend(inputs.mounts());
        mounts
    }

    #[must_use]
    pub fn spec_path(&self) -> PathBuf {
        self.path.join("spec.json")
    }

    #[must_use]
    pub fn events_path(&self) -> PathBuf {
        self.path.join(EVENTS_FILE)
    }

    /// The user and group that the container has on the host.
    pub fn owner(&self) -> Result<(u32, u32), AttemptDirError> {
        let events = self.events_path();
        let file = events.symlink_metadata().map_err(io_error("look at", &events))?;
        Ok((file.uid(), file.gid()))
    }

    /// The folder that artifacts are collected from. What is in it is hostile.
    #[must_use]
    pub fn output_path(&self) -> PathBuf {
        self.path.join(output::FOLDER)
    }

    /// What the attempt has written. Counting stops soon after `most` is passed, so that it takes no longer than that.
    pub fn usage(&self, most: Usage) -> Result<Usage, AttemptDirError> {
        let events = self.events_path();
        let events_bytes = events.symlink_metadata().map_err(|source| io_error("look at", &events)(source))?.len();
        let output = output::usage(&self.path, most)?;
        Ok(Usage { bytes: output.bytes, files: output.files, events_bytes })
    }

    /// Removes the folder and what it holds. One that is half-made, half-removed or gone is no error.
    pub fn remove(self) -> Result<(), AttemptDirError> {
        if !self.path.exists() {
            return Ok(());
        }
        // From here on it counts as half-made.
        remove_file(&self.spec_path())?;
        set_append_only(&self.events_path(), false);
        output::release(&self.path)?;
        let root = hostile::open_root(&self.path).map_err(errno("open", &self.path))?;
        hostile::clear(&root).map_err(errno("clear", &self.path))?;
        std::fs::remove_dir(&self.path).map_err(io_error("remove", &self.path))
    }
}

/// Removes the folders of attempts that nobody wants to keep; says which. What does not look like an attempt's folder
/// is left alone.
pub fn sweep(root: &Path, keep: impl Fn(JobId, Attempt) -> bool) -> Result<Vec<(JobId, Attempt)>, AttemptDirError> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("list", root))?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("list", root))?.file_name();
        let Some((job, attempt)) = name.to_str().and_then(parse_name) else { continue };
        if keep(job, attempt) {
            continue;
        }
        match AttemptDir::at(root, job, attempt).remove() {
            Ok(()) => removed.push((job, attempt)),
            Err(error) => tracing::warn!(%job, %attempt, %error, "an attempt's folder stays until the next sweep"),
        }
    }
    Ok(removed)
}

fn parse_name(name: &str) -> Option<(JobId, Attempt)> {
    let (job, attempt) = name.rsplit_once('-')?;
    let parsed = (job.parse().ok()?, Attempt(attempt.parse().ok()?));
    // The same attempt in another spelling is not what we made.
    (format!("{}-{}", parsed.0, parsed.1) == name).then_some(parsed)
}

fn make_private_folder(path: &Path) -> Result<(), AttemptDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))
}

/// The file exists before the container does, so that the container can be given this one file and no folder in which
/// it could be replaced.
fn make_events_file(path: &Path, owner: (u32, u32), append_only: bool) -> Result<(), AttemptDirError> {
    let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(io_error("create", path))?;
    // Before it is append-only: its owner could not be changed afterwards.
    std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1)).map_err(io_error("give away", path))?;
    if append_only {
        set_append_only(path, true);
    }
    Ok(())
}

/// Makes the file append-only, or not, where the file system can do it and we may. Elsewhere a job can rewrite its own
/// reports, which harms nobody but that job.
fn set_append_only(path: &Path, append_only: bool) {
    let set = || -> Result<(), Errno> {
        let file = rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let mut flags = ioctl_getflags(&file)?;
        flags.set(IFlags::APPEND, append_only);
        ioctl_setflags(&file, flags)
    };
    match set() {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => tracing::debug!(path = %path.display(), %errno, append_only, "the append-only flag is not set"),
    }
}

/// Written beside its place and moved there, so that it is whole when it is there.
fn write_spec(path: &Path, spec: &AttemptSpec) -> Result<(), AttemptDirError> {
    let unfinished = path.with_extension("json.new");
    let json = serde_json::to_vec(spec).map_err(|error| io_error("write", path)(error.into()))?;
    let write = || -> io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(&json)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)
    };
    write().map_err(io_error("write", path))
}

fn remove_file(path: &Path) -> Result<(), AttemptDirError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttemptDirError {
    let path = path.to_owned();
    move |source| AttemptDirError::Io { action, path, source }
}

fn errno(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> AttemptDirError {
    let make = io_error(action, path);
    move |errno| make(errno.into())
}

#[cfg(test)]
pub(super) mod tests;
