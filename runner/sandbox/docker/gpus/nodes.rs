//! Device files that jobs could not open: the driver makes them for everybody (0666) unless it was told otherwise.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A device file that not everybody may read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shut {
    /// Such as `nvidia0`.
    pub(crate) name: String,
    /// Its permissions, such as `0o660`.
    pub(crate) mode: u32,
}

/// Those of the GPUs' device files below the root's `/dev` that workers could not open, by name.
pub(crate) fn shut_nodes(root: &Path) -> Vec<Shut> {
    let Ok(entries) = std::fs::read_dir(root.join("dev")) else { return Vec::new() };
    let is_ours = |name: &str| {
        let rest = name.strip_prefix("nvidia").unwrap_or("-");
        rest == "ctl" || rest == "-uvm" || !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit())
    };
    let mut shut: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| is_ours(name))?;
            let mode = entry.metadata().ok()?.permissions().mode() & 0o777;
            (mode & 0o006 != 0o006).then_some(Shut { name, mode })
        })
        .collect();
    shut.sort_by(|a, b| a.name.cmp(&b.name));
    shut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_files_that_not_everybody_may_use_are_named() {
        let root = tempfile::tempdir().unwrap();
        let dev = root.path().join("dev");
        std::fs::create_dir(&dev).unwrap();
        for (name, mode) in [("nvidia0", 0o660), ("nvidiactl", 0o666), ("nvidia-uvm", 0o600), ("null", 0o600)] {
            std::fs::write(dev.join(name), "").unwrap();
            std::fs::set_permissions(dev.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let shut: Vec<_> = shut_nodes(root.path()).into_iter().map(|shut| (shut.name, shut.mode)).collect();
        assert_eq!(shut, [("nvidia-uvm".to_owned(), 0o600), ("nvidia0".to_owned(), 0o660)]);
    }
}
