//! Where the gateway of a state folder listens right now.
//!
//! The configuration may say port 0, and flags may override it, so the gateway writes its true address beside its
//! data and clients of the same configuration read it there.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The file that says where the gateway listens; gone when this is dropped.
#[derive(Debug)]
pub struct AddressFile {
    path: PathBuf,
    address: SocketAddr,
}

impl AddressFile {
    /// Writes the address at once and whole: a reader sees the old file, the new one or none.
    pub fn publish(state_dir: &Path, address: SocketAddr) -> io::Result<Self> {
        let path = path(state_dir);
        let mut file = tempfile::NamedTempFile::new_in(state_dir)?;
        io::Write::write_all(&mut file, format!("{address}\n").as_bytes())?;
        file.persist(&path)?;
        Ok(Self { path, address })
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        // A gateway that was started meanwhile has written its own address; that one stays.
        if read(&self.path) == Some(self.address) {
            // Nothing can be done about a file that cannot be removed; clients notice that nobody answers there.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The address that the gateway of this state folder wrote, if it did. After a crash nobody may be listening there.
#[must_use]
pub fn published(state_dir: &Path) -> Option<SocketAddr> {
    read(&path(state_dir))
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("address")
}

fn read(path: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_readable_for_as_long_as_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 4711));
        let file = AddressFile::publish(folder.path(), address).unwrap();
        assert_eq!(published(folder.path()), Some(address));
        drop(file);
        assert_eq!(published(folder.path()), None);
    }

    #[test]
    fn a_gateway_that_ends_late_leaves_its_successors_address() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = [4711, 4712].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let ends_late = AddressFile::publish(folder.path(), old).unwrap();
        let _successor = AddressFile::publish(folder.path(), new).unwrap();
        drop(ends_late);
        assert_eq!(published(folder.path()), Some(new));
    }
}
