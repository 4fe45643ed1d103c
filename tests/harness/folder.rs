//! A test's folder on the disk.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use drydock::sandbox::{ContainerName, attempt_dir};
use drydock_spec::{Attempt, JobId};

/// A temporary folder for a gateway's state and for what it reads. All of it goes when the test ends, also what a
/// gateway would have tidied up: a test need not wait until that is done, and one that fails cannot.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    pub fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }
}

impl Drop for Folder {
    /// Attempts' folders hold mounts and a file that can only be appended to, so deleting is not enough.
    fn drop(&mut self) {
        // A thread of the gateway's may still be writing or deleting in there; then one of the two has to begin again.
        for _ in 0..100 {
            let swept = attempt_dir::sweep(&self.state().join("attempts"), |job, attempt| {
                remove_container(job, attempt);
                false
            });
            if swept.is_ok() && std::fs::remove_dir_all(self.0.path()).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Without asking whether there is one, or an engine.
fn remove_container(job: JobId, attempt: Attempt) {
    let name = ContainerName::of(job, attempt).to_string();
    let mut docker = Command::new("docker");
    let _ = docker.args(["rm", "--force", &name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
