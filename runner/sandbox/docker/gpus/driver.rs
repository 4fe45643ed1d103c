//! What NVIDIA's kernel driver shows of itself in the host's files.
//!
//! The forms are those of the chapter "Using the /proc File System Interface" of the driver's README, and of "Device Nodes
//! and Capabilities" of the MIG user guide.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The driver of the host whose files lie below a root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Driver<'a> {
    root: &'a Path,
}

impl<'a> Driver<'a> {
    pub(super) fn at(root: &'a Path) -> Self {
        Self { root }
    }

    /// Such as `580.159.04`: the first number with dots in a line of many words.
    pub(super) fn version(&self) -> Option<String> {
        let told = std::fs::read_to_string(self.proc("version")).ok()?;
        let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        told.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
    }

    /// The number in the name of each GPU's device file, by the GPU's UUID. What is not in use tells no UUID.
    pub(super) fn minors(&self) -> BTreeMap<String, u32> {
        let Ok(gpus) = std::fs::read_dir(self.proc("gpus")) else { return BTreeMap::new() };
        gpus.flatten()
            .filter_map(|gpu| minor_of(&std::fs::read_to_string(gpu.path().join("information")).ok()?))
            .collect()
    }

    /// The device files by which a slice is used, besides its GPU's: of the GPU instance and of the compute instance.
    pub(super) fn slice_nodes(&self, minor: u32, gpu_instance: u32, compute_instance: u32) -> Option<[String; 2]> {
        let instance = format!("capabilities/gpu{minor}/mig/gi{gpu_instance}");
        let node = |access: String| {
            let told = std::fs::read_to_string(self.proc(&access)).ok()?;
            Some(format!("nvidia-caps/nvidia-cap{}", field(&told, "DeviceFileMinor")?.parse::<u32>().ok()?))
        };
        Some([node(format!("{instance}/access"))?, node(format!("{instance}/ci{compute_instance}/access"))?])
    }

    /// The device file of that name, if it is there.
    pub(super) fn node(&self, name: &str) -> Option<PathBuf> {
        Some(self.root.join("dev").join(name)).filter(|path| path.exists())
    }

    fn proc(&self, file: &str) -> PathBuf {
        self.root.join("proc/driver/nvidia").join(file)
    }
}

fn minor_of(information: &str) -> Option<(String, u32)> {
    Some((field(information, "GPU UUID")?.to_owned(), field(information, "Device Minor")?.parse().ok()?))
}

/// The value in a line such as `Device Minor: \t 0`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_the_words_of_either_kernel_module() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/driver/nvidia");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(Driver::at(root.path()).version(), None);
        for (line, version) in [
            ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)",
                "580.159.04",
            ),
            ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.86.15  Release Build", "570.86.15"),
        ] {
            std::fs::write(folder.join("version"), format!("{line}\nGCC version:  gcc version 12.2.0\n")).unwrap();
            assert_eq!(Driver::at(root.path()).version().as_deref(), Some(version));
        }
    }

    #[test]
    fn a_gpus_device_file_is_told_by_its_uuid() {
        let told = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 255\nGPU UUID: \t GPU-5a2e\nBus Type: \t PCIe\n\
                    Device Minor: \t 3\nGPU Excluded:\t No\n";
        assert_eq!(minor_of(told), Some(("GPU-5a2e".to_owned(), 3)));
        assert_eq!(minor_of("Model: x\nDevice Minor: 3\n"), None);
    }
}
