//! One pass over a hostile output folder: look at everything first, then copy.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::{Artifact, ArtifactError, Caps, Reason, Wanted};
use crate::hostile::{self, Entry, WalkError};

const BUFFER_BYTES: usize = 1 << 20;
/// Bytes of a path at most: below what a system call takes, and enough for people.
const MOST_PATH_BYTES: usize = 1024;

/// Copies what is wanted of the output folder into `into`, an empty folder of ours. All of it is looked at: what is not
/// taken from anybody is not passed over either.
pub(super) fn collect(output: &Path, into: &Path, caps: Caps, wanted: &Wanted) -> Result<Vec<Artifact>, ArtifactError> {
    let root = hostile::open_root(output).map_err(ArtifactError::errno("open", output))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = caps.bytes;
    let mut artifacts = Vec::new();
    for path in list(&root, output, caps)?.into_iter().filter(|path| wanted.includes(path)) {
        let (mut file, bytes) = open(&root, &path, output)?;
        left = left.checked_sub(bytes).ok_or_else(|| rejected(&path, Reason::TooLarge(caps.bytes)))?;
        let sha256 = copy(&mut file, bytes, &into.join(&path), &mut buffer)
            .map_err(|error| error.unwrap_or_else(|| rejected(&path, Reason::Changed)))?;
        artifacts.push(Artifact { path, role: None, bytes, sha256 });
    }
    for folder in folders_of(&artifacts) {
        sync_folder(&into.join(folder))?;
    }
    Ok(artifacts)
}

/// The paths of all files, sorted. Anything but files and folders is refused, so that nothing is lost in silence.
fn list(root: &OwnedFd, output: &Path, caps: Caps) -> Result<Vec<String>, ArtifactError> {
    enum Stop {
        Error(ArtifactError),
        Walk(WalkError),
    }
    impl From<WalkError> for Stop {
        fn from(error: WalkError) -> Self {
            Self::Walk(error)
        }
    }
    let (mut entries, mut bytes) = (0, 0_u64);
    let mut paths = Vec::new();
    let walked = hostile::walk(root, caps.depth, |entry| {
        let path = readable(&entry.path).map_err(Stop::Error)?;
        let stop = |why| Stop::Error(rejected(&path, why));
        entries += 1;
        if entries > caps.entries {
            return Err(stop(Reason::TooMany(caps.entries)));
        }
        check_kind(entry).map_err(stop)?;
        if entry.kind() == FileType::RegularFile {
            // Before anything is copied: a file of 8 TiB full of holes costs its owner nothing.
            bytes = bytes.saturating_add(u64::try_from(entry.stat.st_size).unwrap_or(u64::MAX));
            if bytes > caps.bytes {
                return Err(stop(Reason::TooLarge(caps.bytes)));
            }
            paths.push(path);
        }
        Ok(())
    });
    match walked {
        Ok(()) => {
            paths.sort();
            Ok(paths)
        }
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Walk(WalkError::TooDeep(path))) => {
            Err(rejected(&path.to_string_lossy(), Reason::TooDeep(caps.depth)))
        }
        Err(Stop::Walk(WalkError::Unreadable(path, why))) if hostile::is_their_doing(why) => {
            Err(rejected(&path.to_string_lossy(), Reason::Shut(why)))
        }
        Err(Stop::Walk(WalkError::Unreadable(path, why))) => {
            Err(ArtifactError::errno("look into", &output.join(path))(why))
        }
    }
}

/// The path as text that can be shown and asked for: no control characters, and none that turn the direction of what
/// follows, so that a name cannot pose as another.
fn readable(path: &Path) -> Result<String, ArtifactError> {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    match path.to_str() {
        Some(text) if text.len() <= MOST_PATH_BYTES && !text.chars().any(|c| c.is_control() || turns(c)) => {
            Ok(text.to_owned())
        }
        _ => Err(rejected(&path.to_string_lossy(), Reason::Name)),
    }
}

fn check_kind(entry: &Entry) -> Result<(), Reason> {
    match entry.kind() {
        FileType::Directory => Ok(()),
        FileType::RegularFile => check_links(entry.stat.st_nlink),
        FileType::Symlink => Err(Reason::NotAFile("symbolic link")),
        FileType::Fifo => Err(Reason::NotAFile("fifo")),
        FileType::Socket => Err(Reason::NotAFile("socket")),
        FileType::CharacterDevice | FileType::BlockDevice => Err(Reason::NotAFile("device")),
        FileType::Unknown => Err(Reason::NotAFile("thing of an unknown kind")),
    }
}

/// The count's type differs between architectures.
fn check_links(links: impl Into<u64>) -> Result<(), Reason> {
    match links.into() {
        1 => Ok(()),
        // Another one has taken its name since it was opened.
        0 => Err(Reason::Changed),
        links => Err(Reason::Linked(links)),
    }
}

/// Opens a listed file and looks at it again, this time at what is really open. Gives its size.
fn open(root: &OwnedFd, path: &str, output: &Path) -> Result<(File, u64), ArtifactError> {
    let file = match hostile::open_file(root, Path::new(path)) {
        Ok(fd) => File::from(fd),
        Err(why) if hostile::is_their_doing(why) => return Err(rejected(path, Reason::Shut(why))),
        Err(why) => return Err(ArtifactError::errno("open", &output.join(path))(why)),
    };
    let metadata = file.metadata().map_err(ArtifactError::io("look at", &output.join(path)))?;
    if !metadata.is_file() {
        return Err(rejected(path, Reason::Changed));
    }
    check_links(metadata.nlink()).map_err(|why| rejected(path, why))?;
    Ok((file, metadata.len()))
}

/// Copies exactly `bytes` bytes and gives their digest: what is hashed is what is kept. `Err(None)` if the file turned
/// out to have another size.
fn copy(from: &mut File, bytes: u64, to: &Path, buffer: &mut [u8]) -> Result<String, Option<ArtifactError>> {
    let parent = to.parent().unwrap_or(to);
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(ArtifactError::io("make", parent))?;
    let mut kept = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(to)
        .map_err(ArtifactError::io("create", to))?;
    let mut hash = Sha256::new();
    let mut copied = 0;
    loop {
        let read = from.read(buffer).map_err(ArtifactError::io("read for", to))?;
        if read == 0 {
            break;
        }
        copied += read as u64;
        if copied > bytes {
            return Err(None);
        }
        hash.update(&buffer[..read]);
        kept.write_all(&buffer[..read]).map_err(ArtifactError::io("write", to))?;
    }
    if copied != bytes {
        return Err(None);
    }
    kept.sync_all().map_err(ArtifactError::io("write", to))?;
    Ok(hex(&hash.finalize()))
}

/// Every folder that holds an artifact or such a folder; the empty path is the one that all lie in.
fn folders_of(artifacts: &[Artifact]) -> BTreeSet<&Path> {
    artifacts.iter().flat_map(|artifact| Path::new(&artifact.path).ancestors().skip(1)).chain([Path::new("")]).collect()
}

/// Makes new names last through a crash.
pub(super) fn sync_folder(folder: &Path) -> Result<(), ArtifactError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(ArtifactError::io("write", folder))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The path is shown to people: whatever could play tricks on a terminal is escaped.
fn rejected(path: &str, why: Reason) -> ArtifactError {
    let path = path.chars().take(256).collect::<String>().escape_debug().to_string();
    ArtifactError::Rejected { path, why }
}
