//! Looking at a folder that somebody hostile may have written, or is still writing.
//!
//! Every path is opened relative to a folder that is held open, by `openat2` with the kernel's own refusal of symbolic
//! links, of `..` and of other mounts. `O_NOFOLLOW` alone guards the last component only: a parent that is swapped
//! for a link leads out.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use rustix::io::Errno;

/// Holds a folder open. The path itself is ours and trusted; what is below is not.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Opens a file for reading. A fifo does not block and a terminal does not become ours.
pub(crate) fn open_file(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

fn open_folder(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(&root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), stay) {
            // The kernel could not rule out an escape because something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Something in the folder; its name is whatever bytes were chosen for it.
pub(crate) struct Entry {
    /// Relative to the folder.
    pub(crate) path: PathBuf,
    /// Of the entry itself, never of what a link points to.
    pub(crate) stat: Stat,
}

impl Entry {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// Why a walk came to no end.
#[derive(Debug)]
pub(crate) enum WalkError {
    TooDeep(PathBuf),
    Unreadable(PathBuf, Errno),
}

/// Whether the folder's writer can have brought the error about, by shutting a folder, nesting names beyond the longest
/// path or putting something else in a file's place. Other errors are the host's.
pub(crate) fn is_their_doing(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ACCESS | Errno::NAMETOOLONG | Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NOENT | Errno::NXIO
    )
}

/// Visits everything below the folder, folders before what they contain, in no other order, until the visitor has had
/// enough. Folders lie at most `most_depth` below each other. What vanishes meanwhile is not visited.
pub(crate) fn walk<E: From<WalkError>>(
    root: &OwnedFd,
    most_depth: usize,
    mut visit: impl FnMut(&Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut ahead = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = ahead.pop() {
        let unreadable = |errno| WalkError::Unreadable(folder.clone(), errno);
        let fd = match open_folder(root, &folder) {
            Err(Errno::NOENT) => continue,
            opened => opened.map_err(unreadable)?,
        };
        for name in names(&fd).map_err(unreadable)? {
            let name = name.map_err(unreadable)?;
            let stat = match statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(unreadable)?,
            };
            let entry = Entry { path: folder.join(name), stat };
            visit(&entry)?;
            if entry.kind() == FileType::Directory {
                if depth == most_depth {
                    return Err(WalkError::TooDeep(entry.path).into());
                }
                ahead.push((entry.path, depth + 1));
            }
        }
    }
    Ok(())
}

/// The names in an open folder, without `.` and `..`, one after the other: there may be millions.
fn names(folder: impl AsFd) -> Result<impl Iterator<Item = Result<OsString, Errno>>, Errno> {
    let entries = Dir::read_from(folder)?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
        Ok(entry) => Some(Ok(OsString::from_vec(entry.file_name().to_bytes().to_owned()))),
        Err(errno) => Some(Err(errno)),
    }))
}

/// Deletes everything below the folder. However deep the folders lie, the stack stays flat and few files are open:
/// what is nested is moved up into `root` first.
pub(crate) fn clear(root: &OwnedFd) -> Result<(), Errno> {
    let mut moved: u64 = 0;
    empty(root, |folder| clear_folder(root, folder, &mut moved))
}

/// Deletes the files of a folder, moves its folders up and deletes it.
fn clear_folder(root: &OwnedFd, folder: &OsStr, moved: &mut u64) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    unlock(root, folder);
    let fd = rustix::fs::openat(root, folder, flags, Mode::empty())?;
    empty(&fd, |nested| move_up(&fd, nested, root, moved))?;
    rustix::fs::unlinkat(root, folder, AtFlags::REMOVEDIR)
}

/// Deletes what is in an open folder, except folders, which `take_away` has to make disappear.
fn empty(fd: &OwnedFd, mut take_away: impl FnMut(&OsStr) -> Result<(), Errno>) -> Result<(), Errno> {
    /// Names that are read before any is deleted, as deleting while reading skips some.
    const BATCH: usize = 4096;
    loop {
        let batch: Vec<_> = names(fd)?.take(BATCH).collect::<Result<_, _>>()?;
        if batch.is_empty() {
            return Ok(());
        }
        for name in batch {
            match rustix::fs::unlinkat(fd, &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => take_away(&name)?,
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn move_up(from: &OwnedFd, name: &OsStr, root: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    unlock(from, name);
    loop {
        *moved += 1;
        let free = format!(".clear-{moved}");
        match rustix::fs::renameat_with(from, name, root, free, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            answer => return answer,
        }
    }
}

/// Opens up a folder that its owner has shut, which matters where we are not root. Whether it helped shows next.
fn unlock(parent: &OwnedFd, folder: &OsStr) {
    let _ = rustix::fs::chmodat(parent, folder, Mode::RWXU, AtFlags::empty());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(root: &OwnedFd, most_depth: usize) -> Result<Vec<PathBuf>, WalkError> {
        let mut paths = Vec::new();
        walk(root, most_depth, |entry| {
            paths.push(entry.path.clone());
            Ok::<_, WalkError>(())
        })?;
        paths.sort();
        Ok(paths)
    }

    #[test]
    fn a_walk_sees_links_and_does_not_follow_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), "x").unwrap();
        symlink("/", dir.path().join("a/root")).unwrap();
        let root = open_root(dir.path()).unwrap();
        assert_eq!(paths(&root, 2).unwrap(), ["a", "a/b", "a/b/file", "a/root"].map(PathBuf::from));
        assert!(matches!(paths(&root, 1), Err(WalkError::TooDeep(path)) if path == Path::new("a/b")));
    }

    #[test]
    fn no_path_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), dir.path().join("parent")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        let root = open_root(dir.path()).unwrap();
        for path in ["parent/secret", "file", "/etc/passwd", "../x", "parent/../../etc/passwd"] {
            assert!(open_file(&root, Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_tree_deeper_than_any_path_can_be_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_root(dir.path()).unwrap();
        let mut folder = open_root(dir.path()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&folder, "deep", Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            folder = rustix::fs::openat(&folder, "deep", flags, Mode::empty()).unwrap();
        }
        std::fs::write(dir.path().join(".clear-1"), "in the way").unwrap();
        symlink("/", dir.path().join("deep/root")).unwrap();
        clear(&root).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
