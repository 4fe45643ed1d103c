//! Containers of which the engine says that they run, although nothing is left of them.
//!
//! An engine hears of ends from its containerd. What ends while that is away the engine may never hear of, and then
//! says "running" for good. Where the gateway sees the engine's processes, it can see for itself: the container's first
//! process has gone, and its shim, which outlives it to tell how it ended, is still there. The shim is also what shows
//! that both see the same processes: to a gateway in a container of its own, or beside an engine in a virtual machine,
//! every process of a container would seem gone.

use std::path::Path;

use super::found::FirstProcess;

/// Whether the first process of a container that is said to run is gone for certain.
pub(super) async fn is_lifeless(process: FirstProcess) -> bool {
    let FirstProcess { container, pid } = process;
    let seen = pid <= 0 || Path::new("/proc").join(pid.to_string()).exists();
    // A host has thousands of processes, and is asked about them only here.
    !seen && tokio::task::spawn_blocking(move || has_shim(&container)).await.unwrap_or(false)
}

/// Whether a process carries the container's id and is a shim.
fn has_shim(container: &str) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        is_shim(&command, container)
    })
}

/// Such as `containerd-shim-runc-v2 -namespace moby -id 0123... -address ...`, with zeros between the words.
fn is_shim(command: &[u8], container: &str) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    let named = words.next().is_some_and(|program| {
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(b"containerd-shim")
    });
    named && words.any(|word| word == container.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_known_by_its_name_and_its_container() {
        let shim = b"/usr/bin/containerd-shim-runc-v2\0-namespace\0moby\0-id\0abc\0-address\0/run/x.sock\0";
        assert!(is_shim(shim, "abc"));
        assert!(!is_shim(shim, "ab"));
        assert!(!is_shim(b"grep\0abc\0", "abc"));
        assert!(!is_shim(b"", "abc"));
    }

    #[tokio::test]
    async fn without_a_shim_nothing_is_said_of_a_process_that_cannot_be_seen() {
        let process = |pid| FirstProcess { container: "0123456789abcdef".into(), pid };
        let nobody = i64::from(i32::MAX);
        assert!(!Path::new("/proc").join(nobody.to_string()).exists());
        assert!(!is_lifeless(process(nobody)).await);
        assert!(!is_lifeless(process(0)).await, "an engine's word for none");
    }
}
