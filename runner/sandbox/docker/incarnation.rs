//! Which life of the engine it is: a text that changes when the engine was restarted.
//!
//! Docker's API has no start time, and its clock and counters change or stand still for other reasons. What a restart
//! cannot leave as it was is, in this order:
//!
//! 1. the process behind the socket (its pid and start time), unless another process such as systemd listens for it;
//! 2. the process named in the engine's pid file;
//! 3. the creation time of the default bridge network, which the engine makes anew when it starts. It keeps the old
//!    one when containers outlived it, which is why this comes last.
//!
//! An engine without any of the three counts as one that was never restarted.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// Where a Docker engine of the distributions leaves its pid.
const PID_FILE: &str = "/run/docker.pid";

/// The engine's process as this host shows it, if it does.
pub(super) async fn process(socket: Option<&Path>) -> Option<String> {
    let listener = match socket {
        Some(socket) => peer(socket).await,
        None => None,
    };
    let pid = match listener {
        Some(pid) if pid > 1 => pid,
        _ => pid_file(Path::new(PID_FILE))?,
    };
    // The kernel answers from memory: handing this to a thread that may block would wake more threads than it saves.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    Some(format!("process {pid}, started at tick {} of boot {}", start_tick(&stat)?, boot.trim()))
}

/// The process that listens on the socket: the kernel keeps its credentials from the time of `listen`.
async fn peer(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let credentials = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok()?;
    Some(credentials.pid.as_raw_nonzero().get())
}

/// It lies in a file system in memory.
fn pid_file(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Field 22 of `/proc/PID/stat`. The second field is the program's name in parentheses and may itself hold spaces and
/// parentheses, so counting starts behind the last one.
fn start_tick(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_tick_is_found_behind_any_program_name() {
        let stat = "2595 (docker) d (x)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_tick(stat), Some(4711));
    }

    #[tokio::test]
    async fn a_listener_is_known_by_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let incarnation = process(Some(&socket)).await.unwrap();
        assert!(incarnation.starts_with(&format!("process {}, ", std::process::id())), "{incarnation}");
    }
}
