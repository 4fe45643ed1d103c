//! Which files of the gateway's host a request may name: those below the configured `data_dirs`, and nothing else.
//!
//! Whoever may speak to the gateway may otherwise have no business on its host, so a path is followed to its end
//! before it is judged, opened without following anything more, and judged again by what was opened.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// A path may not be read, or cannot be.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("`{path}` does not exist; {searched}")]
    NotFound { path: String, searched: String },
    #[error("`{path}` lies outside of data_dirs ({dirs}); move it there, or add its folder to data_dirs")]
    Outside { path: String, dirs: String },
    #[error("`{path}`: `{part}` begins with a dot, and such files are never read; copy it to a plain name")]
    Hidden { path: String, part: String },
    #[error("`{path}` is neither a file nor a folder; give one of the two")]
    Special { path: String },
    #[error("`{path}` cannot be read: {error}; check its permissions for the user that runs drydock")]
    Unreadable { path: String, error: std::io::Error },
}

/// Something below one of the folders.
#[derive(Debug)]
pub enum Found {
    File(OpenFile),
    /// A folder's plain files, by name; what is in its folders, hidden or special is left out.
    Folder {
        name: String,
        files: Vec<OpenFile>,
    },
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// Without its folders.
    pub name: String,
    pub file: File,
    pub bytes: u64,
}

/// The folders that files may be read from.
#[derive(Debug, Clone)]
pub struct DataDirs(Vec<PathBuf>);

impl DataDirs {
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self(dirs)
    }

    /// Opens what `path` names; a relative one is looked for in each of the folders. Blocks.
    pub fn open(&self, path: &str) -> Result<Found, PathError> {
        let real = self.resolve(path)?;
        let name = real.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let (file, what) = self.open_real(path, &real)?;
        if what.is_file() {
            return Ok(Found::File(OpenFile { name, bytes: what.len(), file }));
        }
        if !what.is_dir() {
            return Err(PathError::Special { path: path.to_owned() });
        }
        Ok(Found::Folder { name, files: self.files(path, &real)? })
    }

    fn files(&self, path: &str, folder: &Path) -> Result<Vec<OpenFile>, PathError> {
        let mut files = Vec::new();
        for entry in folder.read_dir().map_err(|error| unreadable(path, error))? {
            let entry = entry.map_err(|error| unreadable(path, error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(|error| unreadable(path, error))?;
            if name.starts_with('.') || !(kind.is_file() || kind.is_symlink()) {
                continue;
            }
            let shown = format!("{path}/{name}");
            // A link's target is judged like any other path: Hugging Face's own cache is made of links.
            let real = entry.path().canonicalize().map_err(|error| unreadable(&shown, error))?;
            let (file, what) = self.open_real(&shown, &real)?;
            if what.is_file() {
                files.push(OpenFile { name, bytes: what.len(), file });
            }
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Opens a path that has no links in it any more.
    fn open_real(&self, shown: &str, real: &Path) -> Result<(File, Metadata), PathError> {
        let (root, below) = self.place(shown, real)?;
        let file = File::from(open_beneath(&root, &below).map_err(|error| unreadable(shown, error))?);
        let what = file.metadata().map_err(|error| unreadable(shown, error))?;
        Ok((file, what))
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, PathError> {
        let candidates: Vec<_> = match Path::new(path) {
            absolute if absolute.is_absolute() => vec![absolute.to_owned()],
            relative => self.0.iter().map(|dir| dir.join(relative)).collect(),
        };
        for candidate in &candidates {
            match candidate.canonicalize() {
                Ok(real) => return Ok(real),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(path, error)),
            }
        }
        let searched = if Path::new(path).is_absolute() {
            "check the path on the gateway's host".to_owned()
        } else {
            format!("relative paths are looked for in data_dirs ({})", self.names())
        };
        Err(PathError::NotFound { path: path.to_owned(), searched })
    }

    /// The folder that the path lies below, and the way from there.
    fn place(&self, shown: &str, real: &Path) -> Result<(PathBuf, PathBuf), PathError> {
        let roots = self.0.iter().filter_map(|dir| dir.canonicalize().ok());
        let mut hidden = None;
        for root in roots {
            let Ok(below) = real.strip_prefix(&root) else { continue };
            match below.components().find_map(dotted) {
                None => return Ok((root, below.to_owned())),
                Some(part) => hidden = Some(part),
            }
        }
        Err(match hidden {
            Some(part) => PathError::Hidden { path: shown.to_owned(), part },
            None => PathError::Outside { path: shown.to_owned(), dirs: self.names() },
        })
    }

    fn names(&self) -> String {
        self.0.iter().map(|dir| format!("`{}`", dir.display())).collect::<Vec<_>>().join(", ")
    }
}

fn dotted(part: Component<'_>) -> Option<String> {
    let name = part.as_os_str().to_string_lossy();
    name.starts_with('.').then(|| name.into_owned())
}

fn unreadable(path: &str, error: impl Into<std::io::Error>) -> PathError {
    PathError::Unreadable { path: path.to_owned(), error: error.into() }
}

/// Opens without following any link, and without waiting for whoever might write into a fifo.
fn open_beneath(root: &Path, below: &Path) -> Result<OwnedFd, Errno> {
    let folder = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(&folder, below, flags, Mode::empty(), stay) {
            // The kernel could not rule out an escape because something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct World {
        _root: tempfile::TempDir,
        data: PathBuf,
        outside: PathBuf,
        dirs: DataDirs,
    }

    fn world() -> World {
        let root = tempfile::tempdir().unwrap();
        let (data, outside) = (root.path().join("data"), root.path().join("outside"));
        fs::create_dir_all(data.join("sub/.git")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(data.join("sub/rows.jsonl"), "{}").unwrap();
        fs::write(data.join("sub/.git/config"), "secret").unwrap();
        fs::write(outside.join("key"), "secret").unwrap();
        let dirs = DataDirs::new(vec![data.clone()]);
        World { _root: root, data, outside, dirs }
    }

    fn refusal(world: &World, path: impl AsRef<Path>) -> String {
        world.dirs.open(path.as_ref().to_str().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_found_by_relative_and_absolute_path() {
        let world = world();
        for path in ["sub/rows.jsonl", world.data.join("sub/rows.jsonl").to_str().unwrap()] {
            match world.dirs.open(path).unwrap() {
                Found::File(file) => assert_eq!((file.name.as_str(), file.bytes), ("rows.jsonl", 2)),
                other => panic!("{other:?}"),
            }
        }
        match world.dirs.open("sub").unwrap() {
            Found::Folder { name, files } => assert_eq!((name.as_str(), files.len()), ("sub", 1)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_outside_is_read_whatever_leads_there() {
        let world = world();
        symlink(world.outside.join("key"), world.data.join("link")).unwrap();
        symlink(&world.outside, world.data.join("folder")).unwrap();
        for path in ["link", "folder/key", "../outside/key", "/etc/hostname"] {
            let refusal = refusal(&world, path);
            assert!(refusal.contains("lies outside of data_dirs"), "{path}: {refusal}");
            assert!(refusal.contains("add its folder to data_dirs"), "{path}: {refusal}");
        }
    }

    #[test]
    fn what_begins_with_a_dot_is_never_read() {
        let world = world();
        let refusal = refusal(&world, "sub/.git/config");
        assert!(refusal.contains("`.git` begins with a dot"), "{refusal}");
        symlink(world.data.join("sub/.git/config"), world.data.join("innocent")).unwrap();
        assert!(self::refusal(&world, "innocent").contains("begins with a dot"));
    }

    #[test]
    fn a_fifo_neither_blocks_nor_is_read() {
        let world = world();
        let fifo = world.data.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(refusal(&world, "fifo").contains("neither a file nor a folder"));
    }

    #[test]
    fn a_missing_file_says_where_it_was_looked_for() {
        let world = world();
        let refusal = refusal(&world, "none.jsonl");
        assert!(
            refusal.contains("`none.jsonl` does not exist; relative paths are looked for in data_dirs"),
            "{refusal}"
        );
    }
}
