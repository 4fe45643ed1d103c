//! Outputs that are made to harm whoever takes them over, each in a folder of its own below `/out`.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use crate::syscalls::checked;
use crate::{outcome, tell};

/// Makes one of each, and tells which of them could be made.
pub(crate) fn make_all() {
    make("link", |folder| symlink("/etc/passwd", format!("{folder}/file")));
    make("linked-folder", |folder| symlink("/", format!("{folder}/folder")));
    make("magic-link", |folder| symlink("/proc/self/exe", format!("{folder}/file")));
    make("second-name", |folder| {
        File::create(format!("{folder}/file"))?;
        fs::hard_link(format!("{folder}/file"), format!("{folder}/second"))
    });
    make("input-as-output", |folder| fs::hard_link("/in/model/weights", format!("{folder}/file")));
    make("socket", |folder| UnixListener::bind(format!("{folder}/socket")).map(drop));
    make("fifo", |folder| make_node(&format!("{folder}/fifo"), libc::S_IFIFO, 0));
    // The host's first disk, and its memory.
    make("disk", |folder| make_node(&format!("{folder}/disk"), libc::S_IFBLK, libc::makedev(254, 0)));
    make("memory", |folder| make_node(&format!("{folder}/memory"), libc::S_IFCHR, libc::makedev(1, 1)));
    make("sparse", |folder| {
        // SAFETY: sets a signal's disposition; without it the refusal would end this process.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        File::create(format!("{folder}/file"))?.set_len(8 << 40)
    });
    make("holes", |folder| {
        (0..4).try_for_each(|number| File::create(format!("{folder}/{number}"))?.set_len(200 << 20))
    });
    make("setuid", |folder| {
        File::create(format!("{folder}/program"))?.write_all(b"#!/bin/sh\n")?;
        fs::set_permissions(format!("{folder}/program"), Permissions::from_mode(0o6777))
    });
    make("deep", |folder| {
        std::env::set_current_dir(folder)?;
        (0..3000).try_for_each(|_| fs::create_dir("d").and_then(|()| std::env::set_current_dir("d")))
    });
    for (case, name) in [
        ("newline", &b"line\nbreak"[..]),
        ("escape", b"\x1b[2Jcleared"),
        ("invalid", b"\xff\xfe"),
        ("turned", "adapter\u{202e}txt.exe".as_bytes()),
        ("long", &[b'n'; 255]),
    ] {
        make(case, |folder| File::create(std::path::Path::new(folder).join(OsStr::from_bytes(name))).map(drop));
    }
    make("shut", |folder| {
        fs::create_dir_all(format!("{folder}/folder/inside"))?;
        fs::set_permissions(format!("{folder}/folder"), Permissions::from_mode(0o0))
    });
    make("up", |folder| File::create(format!("{folder}/..\u{2215}..\u{2215}etc")).map(drop));
    make("harmless", |folder| File::create(format!("{folder}/file"))?.write_all(b"abc"));
}

fn make(case: &str, what: impl FnOnce(&str) -> io::Result<()>) {
    let folder = format!("/out/{case}");
    let made = fs::create_dir(&folder).and_then(|()| what(&folder));
    tell(&format!("make {case}"), &outcome(made));
}

pub(crate) fn make_node(path: &str, kind: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the path is a C string that lives on.
    checked(unsafe { libc::syscall(libc::SYS_mknodat, libc::AT_FDCWD, path.as_ptr(), kind | 0o666, device) }).map(drop)
}
