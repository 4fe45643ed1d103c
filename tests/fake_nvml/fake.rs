//! A library that looks like NVIDIA's to whoever loads it, and says what a test wants it to.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One of its own for each test; gone with it.
pub(crate) struct FakeNvml {
    folder: tempfile::TempDir,
}

impl FakeNvml {
    /// Built by the host's C compiler. What it says is told in `nvml.c`.
    pub(crate) fn saying(state: &str) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nvml/nvml.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"]).arg(fake.library());
        let built = cc.arg(source).arg("-ldl").output().expect("there is a C compiler");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        fake.says(state);
        fake
    }

    pub(crate) fn says(&self, state: &str) {
        // In one piece: it may be read at any time.
        let next = self.folder.path().join("next");
        std::fs::write(&next, state).unwrap();
        std::fs::rename(next, self.folder.path().join("libnvidia-ml.so.1.state")).unwrap();
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }
}
