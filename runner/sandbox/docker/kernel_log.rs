//! What the kernel itself has noted of a kill for memory.
//!
//! Docker begins to watch a container's memory only a moment after its start, and misses a kill before that, most of all
//! on a busy host. The kernel never does: it writes a line for each kill, with the group whose limit was hit, before the
//! process is dead. The line looks like this since Linux 4.19:
//!
//! `oom-kill:constraint=CONSTRAINT_MEMCG,...,oom_memcg=/docker/0123...,task_memcg=/docker/0123...,task=python,...`

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

/// The kernel's log, one record a read, which only root may read on most hosts.
const LOG: &str = "/dev/kmsg";
/// Longest record that the kernel gives.
const MOST_BYTES: usize = 8192;
/// Records that are read at most; a kernel keeps some ten thousand.
const MOST_RECORDS: usize = 200_000;
/// Letters of a container's whole id: nothing shorter is looked for, as it might be part of something else.
const ID: usize = 64;

/// Whether this kernel has killed a process of the container because the container had reached its own limit. Without
/// access to the log, or on another host than the engine's, nothing is known. Blocks.
pub(super) fn tells_of_a_kill(container: &str) -> bool {
    container.len() == ID && records().is_some_and(|mut records| records.any(|record| is_kill(&record, container)))
}

/// Whether the record tells of a kill for the container's own limit. For want of memory on the whole host others are
/// killed than those who took it: that is no fault of theirs.
fn is_kill(record: &str, container: &str) -> bool {
    let Some((_, facts)) = record.split_once("oom-kill:constraint=CONSTRAINT_MEMCG,") else { return false };
    facts.split(',').any(|fact| fact.strip_prefix("oom_memcg=").is_some_and(|group| group.contains(container)))
}

fn records() -> Option<impl Iterator<Item = String>> {
    let mut log: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(LOG).ok()?;
    let mut buffer = [0; MOST_BYTES];
    let next = move || loop {
        match log.read(&mut buffer) {
            Ok(0) => return None,
            Ok(length) => return Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            // The oldest was overwritten before it was read; the next read goes on behind it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(_) => return None,
        }
    };
    Some(std::iter::from_fn(next).take(MOST_RECORDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "e73e54ebe005e153b2df4f178ff9fda7a826a9f6c8aa85edb0b18d9dff7d99f0";
    const OTHER: &str = "0310f8902c3b07386c26efc4c2204890977de61a2c470d0ea2cb781d27b8cb40";

    fn record(constraint: &str, limit_of: &str, task_of: &str) -> String {
        format!(
            "6,46723,47168217421,-;oom-kill:constraint={constraint},nodemask=(null),cpuset={task_of},mems_allowed=0,\
             oom_memcg={limit_of},task_memcg=/docker/{task_of},task=drydock-worker,pid=3993,uid=65532\n"
        )
    }

    #[test]
    fn a_kill_for_the_containers_own_limit_is_told_whatever_drives_the_groups() {
        assert!(is_kill(&record("CONSTRAINT_MEMCG", &format!("/docker/{ONE}"), ONE), ONE));
        assert!(is_kill(&record("CONSTRAINT_MEMCG", &format!("/system.slice/docker-{ONE}.scope"), ONE), ONE));
    }

    #[test]
    fn a_kill_for_another_limit_is_none_of_the_containers() {
        assert!(!is_kill(&record("CONSTRAINT_MEMCG", &format!("/docker/{OTHER}"), OTHER), ONE));
        assert!(!is_kill(&record("CONSTRAINT_MEMCG", "/docker", ONE), ONE), "all of them together had too much");
        assert!(!is_kill(&record("CONSTRAINT_NONE", &format!("/docker/{ONE}"), ONE), ONE), "the host had no more");
        assert!(!is_kill("6,1,2,-;drydock-worker invoked oom-killer: gfp_mask=0xcc0\n", ONE));
    }

    #[test]
    fn what_is_no_whole_id_is_never_found() {
        assert!(!tells_of_a_kill("") && !tells_of_a_kill("docker"));
    }
}
