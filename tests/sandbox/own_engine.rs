//! A Docker engine of a test's own, set up as the test needs it, and gone afterwards.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use crate::stage::skipped;

/// The host's user and group that are 0 inside.
pub(crate) const FIRST: u32 = 300_000;

/// A Docker engine of a test's own.
pub(crate) struct Engine {
    folder: tempfile::TempDir,
    process: Child,
}

impl Engine {
    /// Starts one with these arguments, which has the probe's image; `None` where that cannot be.
    pub(crate) fn start(arguments: &[&str]) -> Option<Self> {
        Self::start_with(arguments, None, crate::image::probe)
    }

    /// The same, which looks for programs in this folder first and has this image.
    pub(crate) fn start_with(
        arguments: &[&str],
        programs: Option<&Path>,
        image: impl FnOnce() -> &'static str,
    ) -> Option<Self> {
        if std::env::var_os("DRYDOCK_TEST_ENGINES").is_none() {
            skipped("engines of its own are for `make test-sandbox`");
            return None;
        }
        if !rustix::process::geteuid().is_root() || !in_path("dockerd") {
            skipped("only root starts engines, where there is a dockerd");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // What is mounted below it is seen by the engine, too, as on hosts whose root is shared.
        mount_bind(folder.path(), folder.path()).unwrap();
        mount_change(folder.path(), MountPropagationFlags::SHARED).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        std::fs::write(folder.path().join("ids"), format!("daemon:{FIRST}:65536\n")).unwrap();
        // Whom it remaps to is read from files of the host, which it sees in another form than others do.
        let script = "set -e; cd \"$0\"; mount --bind ids /etc/subuid; mount --bind ids /etc/subgid; \
                      exec dockerd --data-root \"$0/data\" --exec-root \"$0/exec\" --pidfile \"$0/pid\" \
                      --host \"unix://$0/socket\" --bridge=none --iptables=false \"$@\"";
        let path = std::env::var("PATH").unwrap_or_default();
        let path = programs.map_or(path.clone(), |programs| format!("{}:{path}", programs.display()));
        let process = Command::new("unshare")
            .env("PATH", path)
            .args(["--mount", "--propagation", "slave", "sh", "-c", script])
            .arg(folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let engine = Self { folder, process };
        engine.until_it_answers();
        let image = format!("docker save {} | docker --host {} load", image(), engine.host());
        assert!(Command::new("sh").args(["-c", &image]).stdout(Stdio::null()).status().unwrap().success());
        Some(engine)
    }

    fn until_it_answers(&self) {
        for _ in 0..600 {
            let answer = Command::new("docker").args(["--host", &self.host(), "version"]).output().unwrap();
            if answer.status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("it does not answer:\n{}", std::fs::read_to_string(self.folder.path().join("log")).unwrap());
    }

    /// A folder whose mounts the engine sees.
    pub(crate) fn shared(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}/socket", self.folder.path().display())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}

/// Whether the engine that this host has is at least of this version.
pub(crate) fn is_at_least(major: u32, minor: u32) -> bool {
    let told = Command::new("dockerd").arg("--version").output();
    let told = told.map(|told| String::from_utf8_lossy(&told.stdout).into_owned()).unwrap_or_default();
    let mut numbers = told.split_whitespace().nth(2).unwrap_or_default().split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(has_major)), Some(Ok(has_minor))) => (has_major, has_minor) >= (major, minor),
        _ => false,
    }
}

pub(crate) fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()))
}
