//! System calls that no library offers, made bare.

use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::ptr::null;

use libc::{c_int, c_long, c_ulong};

use crate::{error_name, outcome, tell};

/// Families of sockets that any kernel may know.
const FAMILIES: std::ops::Range<c_int> = 0..64;

/// Namespaces, by the flag that makes one and the file that is one.
const NAMESPACES: [(&str, c_int); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("net", libc::CLONE_NEWNET),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", 0x80),
];

/// Makes sockets of every family and kind, and tells of which families one could be made.
pub(crate) fn try_sockets() {
    let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET];
    let made = FAMILIES.filter(|family| {
        let single = kinds.iter().any(|kind| socket(*family, *kind).is_ok());
        single || kinds.iter().any(|kind| pair(*family, *kind).is_ok())
    });
    tell("families of sockets", &made.map(|family| family.to_string()).collect::<Vec<_>>().join(" "));
    for (family, number) in [
        ("unix", libc::AF_UNIX),
        ("inet", libc::AF_INET),
        ("inet6", libc::AF_INET6),
        ("netlink", libc::AF_NETLINK),
        ("packet", libc::AF_PACKET),
        ("vsock", libc::AF_VSOCK),
        ("alg", libc::AF_ALG),
    ] {
        tell(&format!("socket {family}"), &outcome(socket(number, libc::SOCK_DGRAM)));
    }
    // A filter compares all 64 bits, the kernel looks at 32 of them.
    let hidden: c_long = (1 << 32) | c_long::from(libc::AF_INET);
    // SAFETY: no pointers; a descriptor that should not be made is left to the process's end.
    let answer = unsafe { libc::syscall(libc::SYS_socket, hidden, libc::SOCK_DGRAM, 0) };
    tell("socket inet with more bits", &outcome(checked(answer)));
}

fn socket(family: c_int, kind: c_int) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is closed by its owner.
    let fd = checked(unsafe { libc::syscall(libc::SYS_socket, family, kind | libc::SOCK_CLOEXEC, 0) })?;
    close(fd);
    Ok(())
}

fn pair(family: c_int, kind: c_int) -> io::Result<()> {
    let mut fds: [c_int; 2] = [-1; 2];
    // SAFETY: the kernel writes two descriptors into the array that is handed to it.
    checked(unsafe { libc::syscall(libc::SYS_socketpair, family, kind, 0, fds.as_mut_ptr()) })?;
    fds.into_iter().for_each(close);
    Ok(())
}

/// Tries each call that the profile leaves out, with arguments that do no harm if it is let through.
pub(crate) fn try_all() {
    // SAFETY: every pointer is null or an address that cannot be one, which is an error to the kernel and not to us.
    let bare = |number: c_long| unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) };
    for (name, number) in DENIED {
        tell(&format!("syscall {name}"), &outcome(checked(bare(*number))));
    }
    #[cfg(target_arch = "x86_64")]
    for (name, number) in DENIED_ON_X86 {
        tell(&format!("syscall {name}"), &outcome(checked(bare(*number))));
    }
    // Newer than any profile: what the kernel learns later must not be open until somebody has looked at it.
    let known_and_allowed = [452, 454, 455, 456, 462];
    let open = (453..1024).filter(|number| !known_and_allowed.contains(number)).filter(|number| {
        !matches!(checked(bare(*number)).map_err(|error| error_name(&error)), Err(name) if name == "EPERM" || name == "ENOSYS")
    });
    tell("newer system calls", &open.map(|number| number.to_string()).collect::<Vec<_>>().join(" "));
    try_telling_ones();
}

/// Calls that would be refused for want of a privilege with bad arguments; with these they succeed where nothing but
/// the profile holds them back.
fn try_telling_ones() {
    let nothing = null::<u8>();
    let path = c"/".as_ptr();
    // SAFETY: every pointer is null or to a C string that lives on; null is an error to the kernel, not to us.
    unsafe {
        attempt("ptrace of itself", libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, nothing, nothing));
        attempt("own session keyring", libc::syscall(libc::SYS_keyctl, 0, -3, 1));
        attempt("userfaultfd for user faults", libc::syscall(libc::SYS_userfaultfd, 1));
        attempt("secret memory", libc::syscall(libc::SYS_memfd_secret, 0));
        attempt("tree of mounts", libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path, 0));
        attempt("personality without randomness", libc::syscall(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE));
        attempt("fanotify without privilege", libc::syscall(libc::SYS_fanotify_init, 0x200, 0));
        let fifo = c"/tmp/fifo".as_ptr();
        attempt("fifo", libc::syscall(libc::SYS_mknodat, libc::AT_FDCWD, fifo, libc::S_IFIFO | 0o600, 0));
    }
}

/// Tries to leave every namespace for a new one, and for one that is there.
pub(crate) fn try_namespaces() {
    for (name, flag) in NAMESPACES {
        let flag = c_ulong::from(flag.unsigned_abs());
        // SAFETY: no pointers; if it is let through, this process is somewhere else, which the answer says.
        let unshared = unsafe { libc::syscall(libc::SYS_unshare, flag) };
        tell(&format!("new {name} namespace"), &outcome(checked(unshared)));
        // A time namespace is not for `clone` to make: the bit is part of the signal's number there.
        if name != "time" {
            // SAFETY: it cannot return twice: it asks for a namespace together with a flag that must not stand with it.
            let cloned = unsafe {
                libc::syscall(libc::SYS_clone, flag | not_alone(), null::<u8>(), null::<u8>(), null::<u8>(), 0)
            };
            tell(&format!("child in a new {name} namespace"), &outcome(checked(cloned)));
        }
        let entered = std::fs::File::open(format!("/proc/1/ns/{name}")).and_then(|namespace| {
            // SAFETY: no pointers; the descriptor is open.
            checked(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), 0) })
        });
        tell(&format!("enter a {name} namespace"), &outcome(entered));
    }
}

/// CLONE_SIGHAND without CLONE_VM, which the kernel refuses whatever else is asked for.
fn not_alone() -> c_ulong {
    c_ulong::from(libc::CLONE_SIGHAND.unsigned_abs())
}

/// Other ways into the kernel than that of 64-bit programs, in a child as they may be its end.
pub(crate) fn try_other_doors() {
    for door in ["call-32-bit", "call-x32"] {
        let ended = Command::new("/drydock-worker").arg(door).status();
        tell(door, &ended.map_or_else(|error| error_name(&error), |status| status.to_string()));
    }
}

/// `getpid` by the way of 32-bit programs; 0 if the kernel answers it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_32_bit() -> u8 {
    let answer: i32;
    // SAFETY: `int 0x80` with getpid's number touches no memory; it clobbers what is named here.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    u8::from(answer <= 0)
}

/// `getpid` by the way of x32 programs; 0 if the kernel answers it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_x32() -> u8 {
    // SAFETY: no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_getpid | 0x4000_0000) };
    u8::from(answer <= 0)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn call_32_bit() -> u8 {
    1
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn call_x32() -> u8 {
    1
}

/// Takes the flags of a file away, such as that it is append-only.
pub(crate) fn clear_flags(path: &str) -> io::Result<()> {
    const SET_FLAGS: libc::Ioctl = 0x4008_6602;
    let file = std::fs::File::open(path)?;
    let none: c_int = 0;
    // SAFETY: the kernel reads one number, which lives on.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), SET_FLAGS, &none) }.into()).map(drop)
}

/// Makes the beginning of a file zeros without opening it for anything but appending.
pub(crate) fn punch_a_hole(path: &str) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().append(true).open(path)?;
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers; the descriptor is open.
    checked(unsafe { libc::fallocate(file.as_raw_fd(), hole, 0, 4096) }.into()).map(drop)
}

/// Maps a file so that writing to memory would write to it.
pub(crate) fn map_for_writing(path: &str) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().read(true).append(true).open(path)?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: asks for a mapping at an address of the kernel's choice; nothing is written to it.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attempt(name: &str, answer: c_long) {
    tell(&format!("telling {name}"), &outcome(checked(answer)));
}

pub(crate) fn checked(answer: c_long) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as c_int) }
}

fn close(fd: c_int) {
    // SAFETY: the descriptor was made by the caller and is known to nobody else.
    unsafe { libc::close(fd) };
}

/// Names each constant of libc that `syscall` takes by the call's own name.
macro_rules! calls {
    ($($name:ident $constant:ident),* $(,)?) => { &[$((stringify!($name), libc::$constant)),*] };
}

const DENIED: &[(&str, c_long)] = calls![
    ptrace SYS_ptrace, syslog SYS_syslog, vhangup SYS_vhangup, pivot_root SYS_pivot_root, adjtimex SYS_adjtimex,
    chroot SYS_chroot, acct SYS_acct, settimeofday SYS_settimeofday, mount SYS_mount, umount2 SYS_umount2,
    swapon SYS_swapon, swapoff SYS_swapoff, reboot SYS_reboot, sethostname SYS_sethostname,
    setdomainname SYS_setdomainname, init_module SYS_init_module, delete_module SYS_delete_module,
    quotactl SYS_quotactl, nfsservctl SYS_nfsservctl, lookup_dcookie SYS_lookup_dcookie,
    remap_file_pages SYS_remap_file_pages, clock_settime SYS_clock_settime, mbind SYS_mbind,
    set_mempolicy SYS_set_mempolicy, get_mempolicy SYS_get_mempolicy, kexec_load SYS_kexec_load,
    add_key SYS_add_key, request_key SYS_request_key, keyctl SYS_keyctl, migrate_pages SYS_migrate_pages,
    mknodat SYS_mknodat, unshare SYS_unshare, move_pages SYS_move_pages, perf_event_open SYS_perf_event_open,
    fanotify_init SYS_fanotify_init, fanotify_mark SYS_fanotify_mark, name_to_handle_at SYS_name_to_handle_at,
    open_by_handle_at SYS_open_by_handle_at, clock_adjtime SYS_clock_adjtime, setns SYS_setns,
    process_vm_readv SYS_process_vm_readv, process_vm_writev SYS_process_vm_writev, kcmp SYS_kcmp,
    finit_module SYS_finit_module, kexec_file_load SYS_kexec_file_load, bpf SYS_bpf, userfaultfd SYS_userfaultfd,
    io_uring_setup SYS_io_uring_setup, io_uring_enter SYS_io_uring_enter, io_uring_register SYS_io_uring_register,
    open_tree SYS_open_tree, move_mount SYS_move_mount, fsopen SYS_fsopen, fsconfig SYS_fsconfig,
    fsmount SYS_fsmount, fspick SYS_fspick, clone3 SYS_clone3, pidfd_getfd SYS_pidfd_getfd,
    process_madvise SYS_process_madvise, mount_setattr SYS_mount_setattr, quotactl_fd SYS_quotactl_fd,
    memfd_secret SYS_memfd_secret, set_mempolicy_home_node SYS_set_mempolicy_home_node,
];

#[cfg(target_arch = "x86_64")]
const DENIED_ON_X86: &[(&str, c_long)] = calls![
    mknod SYS_mknod, uselib SYS_uselib, ustat SYS_ustat, sysfs SYS_sysfs, modify_ldt SYS_modify_ldt,
    _sysctl SYS__sysctl, iopl SYS_iopl, ioperm SYS_ioperm,
    getpmsg SYS_getpmsg, putpmsg SYS_putpmsg,
    afs_syscall SYS_afs_syscall, tuxcall SYS_tuxcall, security SYS_security, set_thread_area SYS_set_thread_area,
    get_thread_area SYS_get_thread_area, epoll_ctl_old SYS_epoll_ctl_old, epoll_wait_old SYS_epoll_wait_old,
    vserver SYS_vserver,
];
