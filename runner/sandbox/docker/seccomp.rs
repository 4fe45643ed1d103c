//! The system calls that a container may make: an allow-list of our own, given to the engine as text with each
//! container, so that it does not depend on what the engine's own default lets through.

use std::sync::LazyLock;

use serde_json::Value;

/// The profile of a container with so many GPUs, as one line of JSON. The engine takes the text itself; a path would be
/// looked up on its host.
pub(super) fn profile(gpus: usize) -> &'static str {
    static PROFILE: LazyLock<String> = LazyLock::new(|| parsed(SOURCE).to_string());
    static WITH_SEVERAL_GPUS: LazyLock<String> = LazyLock::new(|| {
        let mut profile = parsed(SOURCE);
        if let (Some(allowed), Value::Array(more)) = (profile["syscalls"].as_array_mut(), parsed(SEVERAL_GPUS)) {
            allowed.extend(more);
        }
        profile.to_string()
    });
    if gpus > 1 { &WITH_SEVERAL_GPUS } else { &PROFILE }
}

const SOURCE: &str = include_str!("../../../images/seccomp.json");
/// What is allowed besides, where GPUs compute together.
const SEVERAL_GPUS: &str = include_str!("../../../images/seccomp-several-gpus.json");

fn parsed(source: &str) -> Value {
    serde_json::from_str(source).expect("the profile is part of the program and a test parses it")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    /// Every entry that allows a call, by the call's name.
    fn allowed() -> BTreeMap<String, Vec<Value>> {
        let profile: Value = serde_json::from_str(profile(1)).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let mut allowed = BTreeMap::<String, Vec<Value>>::new();
        for entry in profile["syscalls"].as_array().unwrap() {
            for name in entry["names"].as_array().unwrap() {
                if entry["action"] == "SCMP_ACT_ALLOW" {
                    allowed.entry(name.as_str().unwrap().to_owned()).or_default().push(entry.clone());
                }
            }
        }
        allowed
    }

    #[test]
    fn what_is_not_named_is_refused_and_no_call_is_named_twice_by_mistake() {
        for (name, entries) in allowed() {
            assert!(entries.len() == 1 || name == "personality", "{name} is allowed by {} entries", entries.len());
        }
    }

    #[test]
    fn calls_that_reach_into_the_kernel_or_other_processes_are_left_out() {
        let allowed = allowed();
        for name in [
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "process_madvise",
            "pidfd_getfd",
            "kcmp",
            "memfd_secret",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "bpf",
            "perf_event_open",
            "mount",
            "umount2",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "pivot_root",
            "chroot",
            "unshare",
            "setns",
            "clone3",
            "kexec_load",
            "kexec_file_load",
            "init_module",
            "finit_module",
            "delete_module",
            "swapon",
            "swapoff",
            "reboot",
            "quotactl",
            "acct",
            "nfsservctl",
            "name_to_handle_at",
            "open_by_handle_at",
            "fanotify_init",
            "mknod",
            "mknodat",
            "modify_ldt",
            "syslog",
            "settimeofday",
            "clock_settime",
            "iopl",
            "ioperm",
            "socketcall",
        ] {
            assert!(!allowed.contains_key(name), "{name} is allowed");
        }
    }

    /// As far as it is known without a GPU: what a driver's user space, threads and pinned memory take.
    #[test]
    fn what_computing_on_a_gpu_asks_of_the_kernel_is_let_through() {
        let allowed = allowed();
        for name in [
            "ioctl",
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mlock",
            "openat",
            "readlink",
            "poll",
            "ppoll",
            "eventfd2",
            "pipe2",
            "futex",
            "sched_getaffinity",
            "sched_setaffinity",
            "sched_yield",
            "memfd_create",
            "sysinfo",
            "bind",
            "recvmsg",
            "sendmsg",
            "prctl",
        ] {
            assert!(allowed.contains_key(name), "{name} is not allowed");
        }
    }

    #[test]
    fn only_unix_sockets_can_be_made() {
        let unix = json!([{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }]);
        let allowed = allowed();
        assert_eq!(allowed["socket"][0]["args"], unix);
        assert_eq!(allowed["socketpair"][0]["args"], unix);
    }

    #[test]
    fn several_gpus_may_introduce_themselves_over_the_loopback_and_that_is_all_they_may_besides() {
        let calls = |gpus| parsed(profile(gpus))["syscalls"].as_array().unwrap().clone();
        let (one, several) = (calls(1), calls(2));
        assert_eq!(several[..one.len()], one);
        let more = &several[one.len()..];
        assert!(more.iter().all(|entry| entry["names"] == json!(["socket"])), "{more:?}");
        let families: Vec<_> = more.iter().map(|entry| entry["args"][0]["value"].as_u64().unwrap()).collect();
        const AF_INET_AND_NETLINK: [u64; 2] = [2, 16];
        assert_eq!(families, AF_INET_AND_NETLINK);
        assert!(more.iter().all(|entry| entry["args"].as_array().unwrap().len() == 2), "and of one kind each");
    }

    #[test]
    fn clone_makes_no_namespaces() {
        const CLONE_NEWCGROUP_NS_UTS_IPC_USER_PID_NET: u64 = 0x7E02_0000;
        assert_eq!(
            allowed()["clone"][0]["args"],
            json!([{
                "index": 0,
                "value": CLONE_NEWCGROUP_NS_UTS_IPC_USER_PID_NET,
                "valueTwo": 0,
                "op": "SCMP_CMP_MASKED_EQ"
            }])
        );
    }
}
