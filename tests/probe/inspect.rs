//! What the inside looks like, and what can be done there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{EVENTS, leaks, outcome, rights, syscalls, tell};

/// Tries everything. A socket of this abstract name listens on the host.
pub(crate) fn inspect(host_socket: &str) {
    try_to_rewrite_reports();
    tell_who_it_is();
    tell_what_it_sees();
    tell_of_inputs(Path::new("/in"));
    leaks::tell_leaks();
    try_the_network(host_socket);
    try_to_write();
    try_to_execute();
    rights::try_to_rise();
    syscalls::try_other_doors();
    syscalls::try_all();
    syscalls::try_namespaces();
    tell("end", "reached");
}

fn tell_who_it_is() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"] {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        tell(key, &value.map_or("missing".to_owned(), |value| value.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    for (name, which) in [("core", libc::RLIMIT_CORE), ("nofile", libc::RLIMIT_NOFILE), ("fsize", libc::RLIMIT_FSIZE)] {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel fills the struct that is handed to it.
        unsafe { libc::getrlimit(which, &mut limit) };
        tell(&format!("limit {name}"), &limit.rlim_max.to_string());
    }
    tell("environment", &environment());
    tell("kernel", fs::read_to_string("/proc/version").unwrap_or_default().trim());
    tell("first process", fs::read_to_string("/proc/1/comm").unwrap_or_default().trim());
}

/// Every variable with its value.
pub(crate) fn environment() -> String {
    let mut names: Vec<_> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    names.sort();
    names.join(" ")
}

/// Every input: what its file says, and whether another can be put beside it.
fn tell_of_inputs(folder: &Path) {
    let weights = folder.join("weights");
    if weights.exists() {
        let read = fs::read_to_string(&weights).unwrap_or_else(|error| crate::error_name(&error));
        tell(&format!("input {}", folder.display()), &read);
        tell(&format!("create {}/file", folder.display()), &outcome(File::create(folder.join("file"))));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        tell_of_inputs(&entry.path());
    }
}

fn tell_what_it_sees() {
    tell("interfaces", &names("/sys/class/net"));
    tell("devices", &names("/dev"));
    tell("root", &names("/"));
    tell("etc", &names("/etc"));
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?");
        tell(&format!("mount {}", fields[4]), &format!("{kind} {}", fields[5]));
    }
}

fn try_the_network(host_socket: &str) {
    syscalls::try_sockets();
    for (what, address) in [
        ("somewhere", SocketAddr::from(([1, 1, 1, 1], 443))),
        ("metadata", SocketAddr::from(([169, 254, 169, 254], 80))),
        ("the host's engine", SocketAddr::from(([127, 0, 0, 1], 2375))),
    ] {
        tell(&format!("connect {what}"), &outcome(TcpStream::connect_timeout(&address, Duration::from_secs(3))));
    }
    // A name outside of all folders: only a network namespace keeps it apart.
    let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(host_socket);
    tell(
        "connect the host's abstract socket",
        &outcome(abstract_name.and_then(|name| UnixStream::connect_addr(&name))),
    );
}

fn try_to_write() {
    for path in ["/file", "/job/file", "/in/file", "/dev/file", "/proc/file", "/sys/file"] {
        tell(&format!("create {path}"), &outcome(File::create(path)));
    }
    for path in
        ["/job/spec.json", "/in/model/weights", "/drydock-worker", "/proc/sys/kernel/core_pattern", "/sys/power/state"]
    {
        tell(&format!("write {path}"), &outcome(OpenOptions::new().write(true).open(path)));
    }
    tell("make the spec writable", &outcome(fs::set_permissions("/job/spec.json", Permissions::from_mode(0o777))));
    tell("create /out/file", &outcome(File::create("/out/file").and_then(|mut file| file.write_all(b"result"))));
    tell("create /tmp/file", &outcome(File::create("/tmp/file").and_then(|mut file| file.write_all(b"scratch"))));
}

/// First of all, and told only afterwards: where it works, nothing that was told before is left.
fn try_to_rewrite_reports() {
    let tried = [
        ("truncate", outcome(OpenOptions::new().write(true).truncate(true).open(EVENTS))),
        ("cut", outcome(OpenOptions::new().append(true).open(EVENTS).and_then(|file| file.set_len(0)))),
        ("overwrite", outcome(OpenOptions::new().write(true).open(EVENTS))),
        ("delete", outcome(fs::remove_file(EVENTS))),
        ("move", outcome(fs::rename(EVENTS, "/job/other"))),
        ("move to out", outcome(fs::rename(EVENTS, "/out/other"))),
        ("link", outcome(fs::hard_link(EVENTS, "/out/other"))),
        ("replace by a link", outcome(symlink("/out/file", EVENTS))),
        ("make executable", outcome(fs::set_permissions(EVENTS, Permissions::from_mode(0o777)))),
        ("clear flags", outcome(syscalls::clear_flags(EVENTS))),
        ("punch a hole", outcome(syscalls::punch_a_hole(EVENTS))),
        ("map for writing", outcome(syscalls::map_for_writing(EVENTS))),
        ("append", outcome(OpenOptions::new().append(true).open(EVENTS))),
    ];
    for (what, outcome) in tried {
        tell(&format!("reports {what}"), &outcome);
    }
}

fn try_to_execute() {
    for folder in ["/tmp", "/out", "/dev/shm"] {
        tell(&format!("execute in {folder}"), &outcome(execute(&format!("{folder}/copy"))));
    }
}

/// Runs a copy of this program.
fn execute(path: &str) -> io::Result<()> {
    let copied =
        fs::copy("/drydock-worker", path).and_then(|_| fs::set_permissions(path, Permissions::from_mode(0o755)));
    if let Err(error) = copied {
        return Err(io::Error::other(format!("not even written: {error}")));
    }
    let executed = Command::new(path).args(["exit", "0"]).status().map(|_| ());
    fs::remove_file(path)?;
    executed
}

pub(crate) fn names(folder: &str) -> String {
    let Ok(entries) = fs::read_dir(folder) else { return "unreadable".to_owned() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.join(" ")
}
