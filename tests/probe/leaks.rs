//! What the kernel's own folders show of the host, and what of them can be written.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{error_name, tell};

/// Files that show the host, its kernel's addresses, or what others do.
const SHOWING: [&str; 22] = [
    "/proc/kcore",
    "/proc/kallsyms",
    "/proc/keys",
    "/proc/config.gz",
    "/proc/cmdline",
    "/proc/interrupts",
    "/proc/modules",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/proc/kpagecount",
    "/proc/kmsg",
    "/proc/diskstats",
    "/proc/partitions",
    "/proc/latency_stats",
    "/dev/kmsg",
    "/dev/mem",
    "/dev/kvm",
    "/dev/fuse",
    "/dev/loop-control",
    "/run/docker.sock",
];

pub(crate) fn tell_leaks() {
    for path in SHOWING {
        let read = fs::File::open(path).and_then(|mut file| {
            let mut beginning = [0; 64];
            std::io::Read::read(&mut file, &mut beginning)
        });
        tell(&format!("read {path}"), &read.map_or_else(|error| error_name(&error), |read| format!("{read} bytes")));
    }
    for path in
        ["/sys/kernel", "/sys/module", "/sys/firmware", "/sys/devices/virtual/block", "/sys/devices/virtual/dmi"]
    {
        tell(&format!("list {path}"), &crate::inspect::names(path));
    }
    for root in ["/proc", "/sys"] {
        let mut found = Found::default();
        found.walk(Path::new(root));
        tell(&format!("looked at below {root}"), &found.seen.to_string());
        tell(&format!("writable below {root}"), &shown(&found.writable));
        tell(&format!("other jobs' files below {root}"), &shown(&found.backing_files));
    }
    tell("processes", &processes());
    tell(
        "control groups",
        &fs::read_to_string("/proc/self/cgroup").map_or_else(|e| error_name(&e), |text| places(&text)),
    );
    for name in ["resolv.conf", "hosts"] {
        let text = fs::read_to_string(format!("/etc/{name}")).unwrap_or_default();
        tell(name, &text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

#[derive(Default)]
struct Found {
    seen: u32,
    writable: Vec<PathBuf>,
    /// What loop devices are made of: the outputs of others.
    backing_files: Vec<PathBuf>,
}

impl Found {
    fn walk(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if kind.is_dir() {
                // A process's own folder is its own.
                let own = folder == Path::new("/proc") && entry.file_name().to_string_lossy().parse::<u32>().is_ok();
                if !own {
                    self.walk(&path);
                }
            } else if kind.is_file() {
                self.seen += 1;
                if entry.file_name() == "backing_file" && fs::read(&path).is_ok_and(|bytes| !bytes.is_empty()) {
                    self.backing_files.push(path.clone());
                }
                let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
                // What is masked is the null device.
                if opened.is_ok_and(|file| file.metadata().is_ok_and(|open| open.is_file())) {
                    self.writable.push(path);
                }
            }
        }
    }
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().take(20).map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
}

/// The names of all processes that can be seen.
fn processes() -> String {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let mut names: Vec<_> = numbered
        .filter_map(|entry| Some(fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned()))
        .collect();
    names.sort();
    names.join(" ")
}

/// Where in the trees of control groups this is: their names would tell of the host and of others.
fn places(text: &str) -> String {
    let mut places: Vec<_> = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    places.sort_unstable();
    places.dedup();
    places.join(" ")
}
