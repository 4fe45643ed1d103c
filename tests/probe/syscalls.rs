//! System calls that no library offers, made bare.

use std::io;
use std::ptr::null;

use libc::{c_int, c_long, c_ulong};

use crate::{outcome, tell};

/// Makes a socket of the family and closes it again.
pub(crate) fn socket(family: c_int) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is closed by its owner.
    let fd = checked(unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    close(fd);
    Ok(())
}

/// Tries each call that the profile leaves out, with arguments that do no harm if it is let through. Without the
/// profile most of them would give another error than EPERM; only those that need a privilege give EPERM either way.
pub(crate) fn try_all() {
    let nothing = null::<u8>();
    let path = c"/".as_ptr();
    let user_namespace = c_ulong::from(libc::CLONE_NEWUSER.unsigned_abs());
    // SAFETY: every pointer is null or to a C string that lives on; null is an error to the kernel, not to us. The
    // clone call cannot return twice: it asks for a namespace together with a flag that must not stand with it.
    unsafe {
        attempt("io_uring_setup", libc::syscall(libc::SYS_io_uring_setup, 1, nothing));
        attempt("io_uring_enter", libc::syscall(libc::SYS_io_uring_enter, -1, 0, 0, 0, nothing, 0));
        attempt("ptrace", libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, nothing, nothing));
        attempt(
            "process_vm_readv",
            libc::syscall(libc::SYS_process_vm_readv, libc::getpid(), nothing, 0, nothing, 0, 0),
        );
        attempt(
            "process_vm_writev",
            libc::syscall(libc::SYS_process_vm_writev, libc::getpid(), nothing, 0, nothing, 0, 0),
        );
        attempt("pidfd_getfd", libc::syscall(libc::SYS_pidfd_getfd, -1, 0, 0));
        attempt("keyctl", libc::syscall(libc::SYS_keyctl, 0, -3, 1));
        attempt("add_key", libc::syscall(libc::SYS_add_key, nothing, nothing, nothing, 0, -3));
        attempt("request_key", libc::syscall(libc::SYS_request_key, nothing, nothing, nothing, 0));
        attempt("bpf", libc::syscall(libc::SYS_bpf, 0, nothing, 0));
        attempt("perf_event_open", libc::syscall(libc::SYS_perf_event_open, nothing, 0, -1, -1, 0));
        attempt("userfaultfd", libc::syscall(libc::SYS_userfaultfd, 1));
        attempt("memfd_secret", libc::syscall(libc::SYS_memfd_secret, 0));
        attempt("unshare", libc::syscall(libc::SYS_unshare, user_namespace));
        attempt("setns", libc::syscall(libc::SYS_setns, -1, 0));
        attempt("mount", libc::syscall(libc::SYS_mount, c"none".as_ptr(), path, c"tmpfs".as_ptr(), 0, nothing));
        attempt("umount2", libc::syscall(libc::SYS_umount2, path, 0));
        attempt("open_tree", libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path, 0));
        attempt("fsopen", libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0));
        attempt("pivot_root", libc::syscall(libc::SYS_pivot_root, path, path));
        attempt("chroot", libc::syscall(libc::SYS_chroot, path));
        attempt("name_to_handle_at", libc::syscall(libc::SYS_name_to_handle_at, -1, path, nothing, nothing, 0));
        attempt("open_by_handle_at", libc::syscall(libc::SYS_open_by_handle_at, -1, nothing, 0));
        attempt("mknodat", libc::syscall(libc::SYS_mknodat, libc::AT_FDCWD, c"/tmp/fifo".as_ptr(), libc::S_IFIFO, 0));
        attempt("kexec_load", libc::syscall(libc::SYS_kexec_load, 0, 0, nothing, 0));
        attempt("finit_module", libc::syscall(libc::SYS_finit_module, -1, nothing, 0));
        attempt("swapon", libc::syscall(libc::SYS_swapon, path, 0));
        attempt("reboot", libc::syscall(libc::SYS_reboot, 0, 0, 0, nothing));
        attempt("quotactl", libc::syscall(libc::SYS_quotactl, 0, path, 0, nothing));
        attempt("acct", libc::syscall(libc::SYS_acct, path));
        attempt("fanotify_init", libc::syscall(libc::SYS_fanotify_init, 0, 0));
        attempt("personality", libc::syscall(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE));
        attempt("clone3", libc::syscall(libc::SYS_clone3, nothing, 0));
        attempt("clone", libc::syscall(libc::SYS_clone, user_namespace | thread_flag(), nothing, nothing, nothing, 0));
    }
}

/// CLONE_SIGHAND without CLONE_VM, which the kernel refuses whatever else is asked for.
fn thread_flag() -> c_ulong {
    c_ulong::from(libc::CLONE_SIGHAND.unsigned_abs())
}

fn attempt(name: &str, answer: c_long) {
    tell(&format!("syscall {name}"), &outcome(checked(answer)));
}

fn checked(answer: c_long) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as c_int) }
}

fn close(fd: c_int) {
    // SAFETY: the descriptor was made by the caller and is known to nobody else.
    unsafe { libc::close(fd) };
}
