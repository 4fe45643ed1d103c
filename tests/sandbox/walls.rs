//! What a container sees and can do, told by a probe that ran as the worker would.

use std::collections::BTreeMap;

use rustix::fs::{IFlags, ioctl_getflags};
use tokio::sync::OnceCell;

use crate::stage::{Stage, contract_inputs};

/// What one run of the probe has told; every test looks at a part of it.
struct Told {
    facts: BTreeMap<String, String>,
    /// Whether the host could make the events file append-only: root can, on most file systems.
    append_only: bool,
    fsize: u64,
    user: (u32, u32),
}

impl Told {
    async fn from_inside() -> &'static Self {
        static TOLD: OnceCell<Told> = OnceCell::const_new();
        TOLD.get_or_init(Self::tell).await
    }

    async fn tell() -> Self {
        let stage = Stage::new();
        let act = stage.act(&["inspect"]);
        let flags = ioctl_getflags(std::fs::File::open(act.dir.events_path()).unwrap());
        let exit = stage.play(&act).await;
        let facts = act.told();
        assert_eq!((exit.code, facts.get("end").map(String::as_str)), (0, Some("reached")), "{facts:?}");
        Self {
            facts,
            append_only: flags.is_ok_and(|flags| flags.contains(IFlags::APPEND)),
            fsize: act.launch.limits.disk_bytes,
            user: stage.settings.user,
        }
    }

    fn get(&self, fact: &str) -> &str {
        self.facts.get(fact).unwrap_or_else(|| panic!("the probe does not tell `{fact}`"))
    }

    /// The facts whose names begin so, by the rest of their names.
    fn all(&self, beginning: &str) -> BTreeMap<&str, &str> {
        let rest = |(fact, value)| Some((str::strip_prefix(fact, beginning)?, value));
        self.facts.iter().filter_map(|(fact, value)| rest((fact.as_str(), value.as_str()))).collect()
    }
}

#[tokio::test]
async fn there_is_no_network() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("interfaces"), "lo");
    assert_eq!(told.get("connect"), "EPERM");
}

#[tokio::test]
async fn no_socket_but_a_local_one_can_be_made() {
    let told = Told::from_inside().await;
    assert_eq!(
        told.all("socket "),
        BTreeMap::from([
            ("unix", "ok"),
            ("inet", "EPERM"),
            ("inet6", "EPERM"),
            ("netlink", "EPERM"),
            ("packet", "EPERM"),
            ("vsock", "EPERM"),
            ("alg", "EPERM"),
        ])
    );
}

#[tokio::test]
async fn there_is_no_privilege_and_none_to_gain() {
    let told = Told::from_inside().await;
    assert!(told.all("Cap").values().all(|set| *set == "0000000000000000"), "{:?}", told.all("Cap"));
    assert_eq!(told.all("Cap").len(), 5);
    assert_eq!(told.get("NoNewPrivs"), "1");
    assert_eq!(told.get("Seccomp"), "2", "2 is a filter");
}

#[tokio::test]
async fn it_runs_as_the_configured_user() {
    let told = Told::from_inside().await;
    let four_times = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((told.get("Uid"), told.get("Gid")), (&*four_times(told.user.0), &*four_times(told.user.1)));
    assert_ne!(told.user.0, 0);
    assert_eq!(told.get("first process"), "docker-init");
}

#[tokio::test]
async fn the_environment_holds_nothing_of_the_hosts() {
    let told = Told::from_inside().await;
    let names: Vec<_> =
        told.get("environment").split(' ').map(|variable| variable.split('=').next().unwrap()).collect();
    assert_eq!(names, ["HOME", "HOSTNAME", "PATH", "TMPDIR"]);
}

#[tokio::test]
async fn limits_hold_for_files_and_core_dumps() {
    let told = Told::from_inside().await;
    assert_eq!(
        told.all("limit "),
        BTreeMap::from([("core", "0"), ("nofile", "4096"), ("fsize", &*told.fsize.to_string())])
    );
}

#[tokio::test]
async fn nothing_is_mounted_but_the_contract_and_what_every_container_has() {
    let told = Told::from_inside().await;
    let options = |path: &str| told.get(&format!("mount {path}")).split_once(' ').unwrap().1.to_owned();
    for path in ["/", "/job/spec.json", "/sys"].into_iter().chain(contract_inputs()) {
        assert!(options(path).starts_with("ro,"), "{path}: {}", options(path));
    }
    for path in ["/tmp", "/dev/shm", "/dev/mqueue", "/proc"] {
        assert!(options(path).starts_with("rw,nosuid,nodev,noexec"), "{path}: {}", options(path));
    }
    if rustix::process::geteuid().is_root() {
        assert!(options("/out").starts_with("rw,nosuid,nodev,noexec"), "{}", options("/out"));
    }
    let usual =
        ["/", "/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/sbin/docker-init", "/sys", "/tmp"];
    let contract = [&["/job/events.jsonl", "/job/spec.json", "/out"], &contract_inputs()[..]].concat();
    let below = ["/dev/", "/proc/", "/sys/"];
    let others: Vec<_> = told
        .all("mount ")
        .into_keys()
        .filter(|path| !usual.contains(path) && !contract.contains(path))
        .filter(|path| !below.iter().any(|folder| path.starts_with(folder)))
        .collect();
    assert_eq!(others, <[&str; 0]>::default());
    assert!(contract.iter().all(|path| told.all("mount ").contains_key(path)));
}

#[tokio::test]
async fn every_input_can_be_read_and_not_written() {
    let told = Told::from_inside().await;
    for input in contract_inputs() {
        assert_eq!(told.get(&format!("input {input}")), input, "each is where it belongs");
        assert_eq!(told.get(&format!("create {input}/file")), "EROFS");
    }
}

#[tokio::test]
async fn there_are_no_files_but_the_programs_and_the_contracts() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("root"), ".dockerenv dev drydock-worker etc in job out proc sbin sys tmp");
    assert_eq!(told.get("etc"), "hostname hosts mtab resolv.conf");
}

#[tokio::test]
async fn there_are_no_devices_but_the_usual_ones() {
    let told = Told::from_inside().await;
    let usual = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(told.get("devices"), usual);
}

#[tokio::test]
async fn what_shows_the_host_is_empty() {
    let told = Told::from_inside().await;
    for (path, seen) in told.all("read ") {
        // Some kernels do not have them all.
        assert!(["0 bytes", "ENOENT", "EACCES"].contains(&seen), "{path}: {seen}");
    }
    assert!(told.all("list ").values().all(|names| names.is_empty()), "{:?}", told.all("list "));
}

#[tokio::test]
async fn nothing_can_be_written_but_output_and_scratch() {
    let told = Told::from_inside().await;
    for (path, outcome) in told.all("create ").into_iter().chain(told.all("write ")) {
        match path {
            "/out/file" | "/tmp/file" => assert_eq!(outcome, "ok", "{path}"),
            _ => assert!(["EROFS", "EACCES", "ENOENT"].contains(&outcome), "{path}: {outcome}"),
        }
    }
    assert_eq!(told.get("make the spec writable"), "EROFS");
}

#[tokio::test]
async fn reports_can_be_added_and_not_taken_back() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("append reports"), "ok");
    assert_eq!(told.get("delete reports"), "EROFS");
    assert_eq!(told.get("move reports"), "EROFS");
    assert_eq!(told.get("move reports to out"), "EXDEV");
    assert_eq!(told.get("link reports"), "EXDEV");
    assert_ne!(told.get("make reports a link"), "ok");
    if told.append_only {
        for change in ["truncate reports", "cut reports", "overwrite reports", "make reports executable"] {
            assert_eq!(told.get(change), "EPERM", "{change}");
        }
    }
}

#[tokio::test]
async fn nothing_can_be_executed_that_was_not_in_the_image() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("execute in /tmp"), "EACCES");
    assert_eq!(told.get("execute in /dev/shm"), "EACCES");
    if rustix::process::geteuid().is_root() {
        assert_eq!(told.get("execute in /out"), "EACCES");
    }
}

#[tokio::test]
async fn calls_that_reach_into_the_kernel_are_refused() {
    let told = Told::from_inside().await;
    let calls = told.all("syscall ");
    assert!(calls.len() > 30, "{calls:?}");
    for (call, outcome) in calls {
        // C libraries fall back to clone only on this answer.
        assert_eq!(outcome, if call == "clone3" { "ENOSYS" } else { "EPERM" }, "{call}");
    }
}
