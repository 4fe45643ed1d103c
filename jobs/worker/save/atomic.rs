//! Files that are complete or not there at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a file under another name first: whoever looks sees all of it or nothing.
pub fn write_whole(target: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_by(target, |file| file.write_all(bytes))
}

/// The same for a file that `write` writes bit by bit.
pub fn write_whole_by<E: From<io::Error>>(
    target: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut partial = PathBuf::from(target).into_os_string();
    partial.push(".partial");
    let mut file = File::create(&partial)?;
    let written = write(&mut file);
    let written = written.and_then(|()| Ok(file.sync_all().and_then(|()| fs::rename(&partial, target))?));
    written.inspect_err(|_| {
        // What is left over would look like an artifact; that it cannot be removed changes nothing about the failure.
        let _ = fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/file.json");
        write_whole(&target, b"{}").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"{}");
        // A folder stands where the file should go: the rename fails, and nothing is left behind.
        let blocked = folder.path().join("blocked");
        fs::create_dir_all(blocked.join("inside")).unwrap();
        assert!(write_whole(&blocked, b"{}").is_err());
        let broken = write_whole_by(&folder.path().join("broken"), |_| Err(io::Error::other("no more")));
        assert!(broken.is_err());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
    }
}
