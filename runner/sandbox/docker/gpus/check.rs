//! Whether a container that was started has exactly the GPUs that it was given.
//!
//! Injectors are other people's programs, a CDI file may be older than the GPUs of today, and an index may have become
//! another's. What counts is which device files lie in the container's `/dev`, which this host's kernel shows to whoever
//! may look into the container's first process: root. Another gateway cannot look, and takes the engine's word.

use std::collections::BTreeSet;
use std::path::Path;

use drydock_gpu::inventory::Inventory;

use super::driver::Driver;

/// What is wrong with the GPUs in the container of that process, if anything is and can be seen.
pub(in super::super) fn amiss(pid: i64, units: &[String], gpus: &Inventory, root: &Path) -> Option<String> {
    let seen = seen(&Path::new("/proc").join(pid.to_string()).join("root").join("dev"))?;
    compare(&seen, &given(units, gpus, root)?)
}

/// The numbers of the GPUs' device files in a folder; `None` if it cannot be looked into.
fn seen(folder: &Path) -> Option<BTreeSet<u32>> {
    let entries = std::fs::read_dir(folder).ok()?;
    Some(
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("nvidia")?.parse().ok())
            .collect(),
    )
}

/// The numbers that the units' GPUs have on the host; `None` if the driver does not tell them all.
fn given(units: &[String], gpus: &Inventory, root: &Path) -> Option<BTreeSet<u32>> {
    let minors = Driver::at(root).minors();
    units.iter().map(|unit| minors.get(&gpus.gpu_of(unit)?.uuid).copied()).collect()
}

fn compare(seen: &BTreeSet<u32>, given: &BTreeSet<u32>) -> Option<String> {
    let names = |numbers: &BTreeSet<u32>| match numbers.is_empty() {
        true => "none".to_owned(),
        false => numbers.iter().map(|number| format!("/dev/nvidia{number}")).collect::<Vec<_>>().join(", "),
    };
    (seen != given).then(|| format!("a container that was given {} has {}", names(given), names(seen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_too_few_and_a_gpu_too_many_are_both_amiss() {
        let numbers = |of: &[u32]| of.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(compare(&numbers(&[0, 2]), &numbers(&[0, 2])), None);
        assert_eq!(compare(&numbers(&[]), &numbers(&[1])).unwrap(), "a container that was given /dev/nvidia1 has none");
        assert_eq!(
            compare(&numbers(&[0, 1]), &numbers(&[1])).unwrap(),
            "a container that was given /dev/nvidia1 has /dev/nvidia0, /dev/nvidia1"
        );
    }

    #[test]
    fn only_gpus_count_among_the_device_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "null"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(seen(folder.path()).unwrap().into_iter().collect::<Vec<_>>(), [0, 12]);
        assert_eq!(seen(&folder.path().join("none")), None);
    }
}
