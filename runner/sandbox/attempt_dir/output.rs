//! The output folder and what keeps it from filling the host's disk.
//!
//! Engines cap a container's files only on a few storage drivers. So the folder is a small file system of its own
//! where we may mount one: writing past its end fails inside, as on any full disk, and a job can report that. Where we
//! may not, the folder is an ordinary one and its use has to be watched from outside. An engine in another mount
//! namespace than ours has to receive our mounts, or a container gets the folder below the file system: that one is
//! root's, so that writing fails at once instead of going where nobody looks.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statvfs, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde::{Deserialize, Serialize};

use super::{AttemptDirError, errno, io_error};
use crate::hostile::{self, WalkError};

pub(super) const FOLDER: &str = "out";
const IMAGE: &str = "out.img";

/// Folders below each other; past this a tree counts as too many files.
const MOST_DEPTH: usize = 64;

/// How the output folder is capped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputCap {
    /// `LoopMount` where this process may mount, otherwise `Watched`.
    #[default]
    Auto,
    /// A file system of the attempt's own, in a sparse file. Needs root, loop devices and `mkfs.ext4`.
    LoopMount,
    /// An ordinary folder. Single files are capped by the container's limits; the sum is for the runner to watch.
    Watched,
}

/// What an attempt has written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk in the output folder.
    pub bytes: u64,
    /// Files and folders in the output folder.
    pub files: u64,
    /// Bytes of reports.
    pub events_bytes: u64,
}

/// Refuses to begin what the disk has no room for at this moment.
pub(super) fn require_room(dir: &Path, needed_bytes: u64) -> Result<(), AttemptDirError> {
    let disk = statvfs(dir).map_err(errno("ask for the free space of", dir))?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free_bytes < needed_bytes {
        return Err(AttemptDirError::DiskFull { path: dir.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}

/// Makes the output folder in an attempt's new folder.
pub(super) fn prepare(dir: &Path, bytes: u64, owner: (u32, u32), cap: OutputCap) -> Result<(), AttemptDirError> {
    let folder = dir.join(FOLDER);
    std::fs::create_dir(&folder).map_err(io_error("make", &folder))?;
    match cap {
        OutputCap::LoopMount => prepare_file_system(dir, bytes, owner),
        OutputCap::Watched => prepare_folder(&folder, owner),
        OutputCap::Auto if !rustix::process::geteuid().is_root() => prepare_folder(&folder, owner),
        OutputCap::Auto => match prepare_file_system(dir, bytes, owner) {
            Err(error @ AttemptDirError::Program { .. }) => {
                tracing::warn!(%error, "the output is watched instead of capped");
                release(dir)?;
                prepare_folder(&folder, owner)
            }
            other => other,
        },
    }
}

/// Puts an existing output folder in place again, after the host was restarted.
pub(super) fn restore(dir: &Path) -> Result<(), AttemptDirError> {
    let folder = dir.join(FOLDER);
    let image = dir.join(IMAGE);
    if is_mount_point(&folder)? {
        Ok(())
    } else if image.exists() {
        mount_image(&image, &folder)
    } else {
        shut_folder(&folder)
    }
}

/// Takes the output folder's mounts away, so that the attempt's folder can be deleted.
pub(super) fn release(dir: &Path) -> Result<(), AttemptDirError> {
    let folder = dir.join(FOLDER);
    while folder.exists() && is_mount_point(&folder)? {
        match unmount(&folder, UnmountFlags::NOFOLLOW) {
            // Somebody has a file open in it: it goes away when that is closed.
            Err(Errno::BUSY) => unmount(&folder, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
            other => other,
        }
        .map_err(errno("unmount", &folder))?;
    }
    let image = dir.join(IMAGE);
    super::remove_file(&image)
}

/// What is in the output folder.
pub(super) fn usage(dir: &Path, most: Usage) -> Result<Usage, AttemptDirError> {
    let folder = dir.join(FOLDER);
    if dir.join(IMAGE).exists() { file_system_usage(&folder) } else { counted_usage(&folder, most) }
}

/// A sparse file that holds a file system of the given size, mounted so that nothing in it can be executed and no
/// device or setuid bit counts.
fn prepare_file_system(dir: &Path, bytes: u64, owner: (u32, u32)) -> Result<(), AttemptDirError> {
    let (image, folder) = (dir.join(IMAGE), dir.join(FOLDER));
    make_image(&image, bytes, owner)?;
    mount_image(&image, &folder)?;
    // What mkfs leaves there is not the job's.
    let lost = folder.join("lost+found");
    std::fs::remove_dir(&lost).map_err(io_error("remove", &lost))
}

fn make_image(image: &Path, bytes: u64, (uid, gid): (u32, u32)) -> Result<(), AttemptDirError> {
    let file = std::fs::File::create_new(image).map_err(io_error("create", image))?;
    file.set_len(bytes).map_err(io_error("size", image))?;
    // No journal: after a crash of the host the attempt is begun anew, its output is not mended.
    let command = |program: &mut Command| {
        program
            .args(["-q", "-F", "-m", "0", "-b", "4096", "-O", "^has_journal,^resize_inode"])
            .args(["-N", &inodes(bytes).to_string()])
            .args(["-E", &format!("lazy_itable_init=1,nodiscard,root_owner={uid}:{gid}")])
            .arg(image);
    };
    execute("mkfs.ext4", image, command)
}

/// Files and folders that the output may hold, by its size in bytes.
fn inodes(bytes: u64) -> u64 {
    (bytes / (16 << 10)).clamp(256, 16_384)
}

fn mount_image(image: &Path, folder: &Path) -> Result<(), AttemptDirError> {
    execute("mount", image, |program| {
        program.args(["-t", "ext4", "-o", "loop,rw,nosuid,nodev,noexec,noatime"]).arg(image).arg(folder);
    })
}

/// An ordinary folder of the container's user.
fn prepare_folder(folder: &Path, (uid, gid): (u32, u32)) -> Result<(), AttemptDirError> {
    std::os::unix::fs::chown(folder, Some(uid), Some(gid)).map_err(io_error("give away", folder))?;
    shut_folder(folder)
}

/// Mounts the folder on itself, so that nothing in it can be executed: an engine hands these flags on, and cannot be
/// asked for them. Only root may do so; for others the folder stays as it is.
fn shut_folder(folder: &Path) -> Result<(), AttemptDirError> {
    match mount_bind(folder, folder) {
        Err(Errno::PERM) => return Ok(()),
        bound => bound.map_err(errno("mount", folder))?,
    }
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(folder, flags, c"").map_err(errno("mount", folder))?;
    // Engines in another mount namespace receive mounts as they are made, and never hear of a remount: this one is made
    // with the flags of the one below it.
    mount_bind(folder, folder).map_err(errno("mount", folder))
}

fn file_system_usage(folder: &Path) -> Result<Usage, AttemptDirError> {
    /// Those that every ext4 sets aside.
    const RESERVED_INODES: u64 = 10;
    let disk = statvfs(folder).map_err(errno("ask for the free space of", folder))?;
    Ok(Usage {
        bytes: disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize),
        files: disk.f_files.saturating_sub(disk.f_ffree).saturating_sub(RESERVED_INODES),
        events_bytes: 0,
    })
}

fn counted_usage(folder: &Path, most: Usage) -> Result<Usage, AttemptDirError> {
    /// Why counting stopped before the end.
    enum Stop {
        Passed,
        Walk(WalkError),
    }
    impl From<WalkError> for Stop {
        fn from(error: WalkError) -> Self {
            Self::Walk(error)
        }
    }
    let root = hostile::open_root(folder).map_err(errno("open", folder))?;
    let mut usage = Usage { bytes: 0, files: 0, events_bytes: 0 };
    let counted = hostile::walk(&root, MOST_DEPTH, |entry| {
        usage.files += 1;
        usage.bytes += u64::try_from(entry.stat.st_blocks).unwrap_or(0) * 512;
        if usage.bytes > most.bytes || usage.files > most.files { Err(Stop::Passed) } else { Ok(()) }
    });
    let beyond = Usage { files: most.files.saturating_add(1), ..usage };
    match counted {
        Ok(()) | Err(Stop::Passed) => Ok(usage),
        Err(Stop::Walk(WalkError::TooDeep(_))) => Ok(beyond),
        // An attempt that could hide what it writes would never be found to write too much.
        Err(Stop::Walk(WalkError::Unreadable(_, why))) if hostile::is_their_doing(why) => Ok(beyond),
        Err(Stop::Walk(WalkError::Unreadable(path, why))) => Err(errno("look into", &folder.join(path))(why)),
    }
}

/// Whether something is mounted on the folder.
fn is_mount_point(folder: &Path) -> Result<bool, AttemptDirError> {
    let found = statx(rustix::fs::CWD, folder, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
        .map_err(errno("look at", folder))?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Runs a program of the host's. What it says on stderr becomes the message if it fails.
fn execute(program: &'static str, path: &Path, arguments: impl FnOnce(&mut Command)) -> Result<(), AttemptDirError> {
    let failed = |message| AttemptDirError::Program { program, path: PathBuf::from(path), message };
    let mut command = Command::new(program);
    arguments(&mut command);
    let output = command.env("PATH", search_path()).output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
    }
}

/// Where mkfs lies is often not in the path that a service is started with.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    path
}
