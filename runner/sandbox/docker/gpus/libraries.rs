//! The part of a driver that runs in the container: the libraries that belong to the version of the host's kernel module,
//! and to no other.
//!
//! They are looked for where distributions put them and where the loader is told to look (`/etc/ld.so.conf.d`), by their
//! full names, such as `libcuda.so.580.159.04`. Which ones computing takes is as in NVIDIA's libnvidia-container
//! (`nvc_info.c`: the libraries for compute, and NVML).

use std::path::{Path, PathBuf};

/// A library's file on the host, and what programs in the container call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) file: PathBuf,
    pub(super) names: Vec<String>,
}

/// What computing needs: without the first nothing can be done, the others compile kernels for a GPU that is newer than
/// the program, and tell of the GPU. Beside each, the number in the name that it is loaded by, if any.
const LIBRARIES: [(&str, Option<u32>); 6] = [
    ("libcuda.so", Some(1)),
    ("libnvidia-ml.so", Some(1)),
    ("libnvidia-ptxjitcompiler.so", Some(1)),
    ("libnvidia-nvvm.so", Some(4)),
    ("libnvidia-nvvm70.so", Some(4)),
    ("libnvidia-gpucomp.so", None),
];

/// The libraries of this version of the driver; an error in words if the one that matters is not there.
pub(super) fn find(root: &Path, version: &str) -> Result<Vec<Library>, String> {
    let folders = folders(root);
    let library = |(base, number): (&str, Option<u32>)| {
        let full = format!("{base}.{version}");
        let file = folders.iter().map(|folder| folder.join(&full)).find(|file| file.is_file())?.canonicalize().ok()?;
        let short = number.map(|number| format!("{base}.{number}"));
        Some(Library { file, names: short.into_iter().chain([full]).collect() })
    };
    let found: Vec<_> = LIBRARIES.into_iter().filter_map(library).collect();
    match found.first().is_some_and(|library| library.names[0] == "libcuda.so.1") {
        true => Ok(found),
        false => Err(format!(
            "libcuda.so.{version} is in none of {}; install the libraries of the driver's version",
            folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
        )),
    }
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let arch = std::env::consts::ARCH;
    let usual = [
        format!("usr/lib/{arch}-linux-gnu"),
        format!("usr/lib/{arch}-linux-gnu/nvidia/current"),
        "usr/lib64".to_owned(),
        "usr/lib".to_owned(),
        "usr/local/nvidia/lib64".to_owned(),
    ];
    let mut folders: Vec<_> = usual.iter().map(|folder| root.join(folder)).collect();
    folders.extend(configured(root));
    folders.retain(|folder| folder.is_dir());
    folders
}

/// The folders that the host's loader is told of.
fn configured(root: &Path) -> Vec<PathBuf> {
    let Ok(files) = std::fs::read_dir(root.join("etc/ld.so.conf.d")) else { return Vec::new() };
    let mut files: Vec<_> = files.flatten().map(|file| file.path()).collect();
    files.sort();
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts
        .flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        .filter(|line| line.starts_with('/'))
        .map(|line| root.join(line.trim_start_matches('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_libraries_of_the_running_driver_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let usual = root.path().join("usr/lib64");
        std::fs::create_dir_all(&usual).unwrap();
        std::fs::write(usual.join("libcuda.so.550.1"), "old").unwrap();
        let error = find(root.path(), "580.2").unwrap_err();
        assert!(error.contains("libcuda.so.580.2") && error.contains("usr/lib64"), "{error}");

        let other = root.path().join("opt/driver");
        std::fs::create_dir_all(&other).unwrap();
        std::fs::create_dir_all(root.path().join("etc/ld.so.conf.d")).unwrap();
        std::fs::write(root.path().join("etc/ld.so.conf.d/nvidia.conf"), "# the driver\n/opt/driver\n").unwrap();
        std::fs::write(other.join("libcuda.so.580.2"), "new").unwrap();
        std::fs::write(other.join("libnvidia-gpucomp.so.580.2"), "new").unwrap();
        let other = other.canonicalize().unwrap();
        let library = |names: &[&str]| Library {
            file: other.join(names.last().unwrap()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let expected = [library(&["libcuda.so.1", "libcuda.so.580.2"]), library(&["libnvidia-gpucomp.so.580.2"])];
        assert_eq!(find(root.path(), "580.2").unwrap(), expected);
    }
}
