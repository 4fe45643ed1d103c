//! Ways to more rights: becoming somebody else, and going beyond one's limits.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::syscalls::checked;
use crate::{outcome, tell};

pub(crate) fn try_to_rise() {
    try_to_become_root();
    try_to_own();
    try_to_go_beyond_limits();
}

fn try_to_become_root() {
    let groups: [libc::gid_t; 1] = [0];
    // SAFETY: the only pointers are to an array that lives on, and null.
    unsafe {
        attempt("setuid", libc::syscall(libc::SYS_setuid, 0));
        attempt("setresuid", libc::syscall(libc::SYS_setresuid, 0, 0, 0));
        attempt("setgid", libc::syscall(libc::SYS_setgid, 0));
        attempt("setgroups", libc::syscall(libc::SYS_setgroups, 1, groups.as_ptr()));
        attempt(
            "ambient capability",
            libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 21, 0, 0),
        );
        attempt("securebits", libc::syscall(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 1, 0, 0, 0));
    }
    attempt("all capabilities", set_all_capabilities());
}

/// Asks for every capability at once.
fn set_all_capabilities() -> libc::c_long {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let all: [u32; 6] = [u32::MAX; 6];
    // SAFETY: header and data have the layout of version 3 and live on.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), all.as_ptr()) }
}

/// Files that would run as somebody else.
fn try_to_own() {
    let made =
        File::create("/out/setuid").and_then(|_| fs::set_permissions("/out/setuid", Permissions::from_mode(0o6755)));
    tell("rise setuid file made", &outcome(made));
    tell("rise give a file to root", &outcome(std::os::unix::fs::chown("/out/setuid", Some(0), Some(0))));
    tell("rise owner of a setuid file", &fs::metadata("/out/setuid").map_or(u32::MAX, |file| file.uid()).to_string());
    let (path, name) = (c"/out/setuid", c"security.capability");
    // Every permitted capability, in the form of version 2.
    let value: [u32; 5] = [0x0200_0001, u32::MAX, 0, u32::MAX, 0];
    // SAFETY: every pointer is to something that lives on; the length is that of the value.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 20, 0) };
    tell("rise capability of a file", &outcome(checked(set.into())));
}

fn try_to_go_beyond_limits() {
    for (name, which) in [("core", libc::RLIMIT_CORE), ("nofile", libc::RLIMIT_NOFILE), ("fsize", libc::RLIMIT_FSIZE)] {
        let more = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the kernel reads the struct that is handed to it.
        attempt(&format!("limit {name}"), unsafe { libc::setrlimit(which, &more) }.into());
    }
    // SAFETY: no pointers but to a struct that lives on.
    unsafe {
        attempt("priority", libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, -20));
        let first = libc::sched_param { sched_priority: 1 };
        attempt("real-time scheduling", libc::sched_setscheduler(0, libc::SCHED_FIFO, &first).into());
        const REAL_TIME: i32 = 1 << 13;
        attempt("real-time disk", libc::syscall(libc::SYS_ioprio_set, 1, 0, REAL_TIME));
    }
    for less in ["-1000", "-500", "-1", "0", "499"] {
        let written = OpenOptions::new()
            .write(true)
            .open("/proc/self/oom_score_adj")
            .and_then(|mut file| file.write_all(less.as_bytes()));
        tell(&format!("rise killed later, by {less}"), &outcome(written));
    }
}

fn attempt(name: &str, answer: libc::c_long) {
    tell(&format!("rise {name}"), &outcome(checked(answer)));
}
