//! A Docker engine of a test's own, which may be stopped, killed and started again while others use theirs.

use std::ffi::CString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// Longest that an engine may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Engine {
    folder: tempfile::TempDir,
    live_restore: bool,
    daemon: Option<Child>,
}

impl Engine {
    /// A running engine that has the probe's image; `live_restore` tells whether containers outlive it.
    pub(crate) fn start(live_restore: bool) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), live_restore, daemon: None }.stocked()
    }

    /// The same with a small disk to itself.
    pub(crate) fn with_disk(mib: usize) -> Self {
        let engine = Self { folder: tempfile::tempdir().unwrap(), live_restore: false, daemon: None };
        std::fs::create_dir(engine.root()).unwrap();
        let options = CString::new(format!("size={mib}m")).unwrap();
        mount("drydock-test", engine.root(), "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        engine.stocked()
    }

    fn stocked(mut self) -> Self {
        let engine = &mut self;
        engine.up();
        let mut save =
            Command::new("docker").args(["save", crate::image::probe()]).stdout(Stdio::piped()).spawn().unwrap();
        let image = save.stdout.take().unwrap();
        let loaded = engine.docker(&["load", "--quiet"]).stdin(image).stdout(Stdio::null()).status().unwrap();
        assert!(loaded.success() && save.wait().unwrap().success());
        self
    }

    /// Where it keeps its data.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Where it listens, as Docker's clients write it.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("engine.sock").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn docker(&self, arguments: &[&str]) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(self.host()).args(arguments);
        docker
    }

    /// Starts the engine, with its containerd, and returns when it answers.
    pub(crate) fn up(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut daemon = Command::new("dockerd");
        daemon
            .arg("--data-root")
            .arg(self.root())
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .args(["--host", &self.host(), "--bridge=none", "--iptables=false"])
            .arg(format!("--live-restore={}", self.live_restore))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        self.daemon = Some(daemon.spawn().expect("these tests need Docker's engine: install `docker.io`"));
        self.wait_for("it does not answer", || {
            self.docker(&["info"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
        });
    }

    fn wait_for(&self, otherwise: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            let log = || std::fs::read_to_string(self.path("log")).unwrap();
            assert!(begun.elapsed() < PATIENCE, "{otherwise}; the engine's log:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM, as at a host's shutdown, and returns when it has gone.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        signal(daemon.id(), Signal::TERM);
        daemon.wait().unwrap();
    }

    /// SIGKILL. Its containerd dies with it, as the engine has asked the kernel for that.
    pub(crate) fn kill(&mut self) {
        let containerd = self.below("containerd");
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        // An engine that starts while the old one's is still listed takes it for alive, and waits for it in vain.
        self.wait_for("its containerd stays", || {
            containerd.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        });
    }

    /// Stops the engine in its tracks for a while.
    pub(crate) fn freeze(&self, time: Duration) {
        let daemon = self.daemon.as_ref().unwrap().id();
        signal(daemon, Signal::STOP);
        std::thread::sleep(time);
        signal(daemon, Signal::CONT);
    }

    /// Kills the containerd below the engine.
    pub(crate) fn kill_containerd(&self) {
        let killed = kill_all(&self.below("containerd"));
        assert_eq!(killed, 1, "an engine has one containerd");
    }

    /// Kills the shims that stand between containerd and containers.
    pub(crate) fn kill_shims(&self) {
        assert!(kill_all(&self.below("containerd-shim")) > 0, "there is a shim for each container");
    }

    /// Kills what runs in containers, as the host's kernel does when the host has no memory left.
    pub(crate) fn kill_workers(&self) {
        assert!(kill_all(&self.workers()) > 0, "there are workers");
    }

    /// Everything at once, as when the power goes: what is kept in memory, `/run` with it, is gone as well.
    pub(crate) fn cut_power(&mut self) {
        let (workers, shims) = (self.workers(), self.below("containerd-shim"));
        self.daemon.as_mut().unwrap().kill().unwrap();
        kill_all(&self.below("containerd"));
        kill_all(&shims);
        kill_all(&workers);
        self.daemon.take().unwrap().wait().unwrap();
        let memory = self.path("exec");
        self.wait_for("its exec root stays", || {
            detach(&memory);
            std::fs::remove_dir_all(&memory).is_ok()
        });
    }

    /// Processes of this program that were started by this engine: they carry its folder in their arguments.
    fn below(&self, program: &str) -> Vec<u32> {
        // The kernel keeps 15 bytes of a name.
        let program = &program[..program.len().min(15)];
        let folder = self.path("exec").display().to_string();
        processes(|name, arguments| name == program && arguments.contains(&folder))
    }

    /// The first processes of this engine's containers: the children of its shims.
    fn workers(&self) -> Vec<u32> {
        let shims = self.below("containerd-shim");
        let parent = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
        };
        processes(|_, _| true).into_iter().filter(|pid| parent(*pid).is_some_and(|up| shims.contains(&up))).collect()
    }
}

impl Drop for Engine {
    /// Also when a test has failed: nothing of it runs on, and no mount of it stays.
    fn drop(&mut self) {
        let workers = self.workers();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        kill_all(&self.below("containerd"));
        kill_all(&self.below("containerd-shim"));
        kill_all(&workers);
        for _ in 0..100 {
            detach(self.folder.path());
            if std::fs::remove_dir_all(self.folder.path()).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Kills these processes; says how many there still were.
fn kill_all(pids: &[u32]) -> usize {
    pids.iter().filter(|pid| kill_process(Pid::from_raw(**pid as i32).unwrap(), Signal::KILL).is_ok()).count()
}

/// Processes by name and arguments.
fn processes(wanted: impl Fn(&str, &str) -> bool) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        wanted(&name, &String::from_utf8_lossy(&read("cmdline")).replace('\0', " "))
    })
    .collect()
}

/// Unmounts what is mounted below a folder, the innermost first.
pub(crate) fn detach(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
}
