//! What a process takes up, as the kernel counts it.

use std::path::PathBuf;
use std::time::Duration;

/// A process of this host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(self) -> u64 {
        let status = std::fs::read_to_string(self.file("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Processor time so far, the kernel's for it included, of all of its threads; to a hundredth of a second.
    pub(crate) fn cpu(self) -> Duration {
        let stat = std::fs::read_to_string(self.file("stat")).unwrap();
        // The name in parentheses may hold anything; the numbers begin behind it, with the state, the third field.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    pub(crate) fn open_files(self) -> usize {
        std::fs::read_dir(self.file("fd")).unwrap().count()
    }

    /// How often its threads have gone to sleep so far.
    pub(crate) fn sleeps(self) -> u64 {
        let threads = std::fs::read_dir(self.file("task")).unwrap();
        let of = |thread: PathBuf| {
            let status = std::fs::read_to_string(thread.join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        threads.map(|thread| of(thread.unwrap().path())).sum()
    }

    fn file(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }
}
