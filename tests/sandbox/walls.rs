//! What a container sees and can do, told by a probe that ran as the worker would.

use std::collections::BTreeMap;

use crate::stage::contract_inputs;
use crate::told::Told;

#[tokio::test]
async fn there_is_no_network() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("interfaces"), "lo");
    assert_eq!(
        told.all("connect "),
        BTreeMap::from([
            ("somewhere", "EPERM"),
            ("metadata", "EPERM"),
            ("the host's engine", "EPERM"),
            ("the host's abstract socket", "ECONNREFUSED"),
        ])
    );
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
    assert_eq!(names, ["HOME", "HOSTNAME", "NVIDIA_VISIBLE_DEVICES", "PATH", "TMPDIR"]);
    assert!(told.get("environment").contains("NVIDIA_VISIBLE_DEVICES=void"), "which is none, to NVIDIA's runtime");
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
        assert!(["0 bytes", "ENOENT", "EACCES", "EPERM"].contains(&seen), "{path}: {seen}");
    }
    for (path, names) in told.all("list ") {
        assert!(["", "unreadable"].contains(&names), "{path}: {names}");
    }
}

#[tokio::test]
async fn nothing_of_the_kernels_can_be_written() {
    let told = Told::from_inside().await;
    for root in ["/proc", "/sys"] {
        let seen: u32 = told.get(&format!("looked at below {root}")).parse().unwrap();
        assert!(seen > 100, "only {seen} files below {root}");
        assert_eq!(told.get(&format!("writable below {root}")), "", "below {root}");
    }
}

#[tokio::test]
async fn nothing_of_other_jobs_can_be_seen() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("processes"), "docker-init drydock-worker");
    assert_eq!(told.get("control groups"), "/", "its own group is the root of all that it sees");
    for root in ["/proc", "/sys"] {
        assert_eq!(told.get(&format!("other jobs' files below {root}")), "");
    }
}

#[tokio::test]
async fn the_hosts_names_and_name_servers_are_not_told() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("resolv.conf"), "");
    assert_eq!(told.get("hosts"), "");
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
    assert_eq!(told.get("reports append"), "ok");
    assert_eq!(told.get("reports delete"), "EROFS");
    assert_eq!(told.get("reports move"), "EROFS");
    assert_eq!(told.get("reports move to out"), "EXDEV");
    assert_eq!(told.get("reports link"), "EXDEV");
    assert_ne!(told.get("reports replace by a link"), "ok");
    if told.append_only {
        for change in ["truncate", "cut", "overwrite", "make executable", "clear flags", "punch a hole"] {
            assert_eq!(told.get(&format!("reports {change}")), "EPERM", "{change}");
        }
        assert_eq!(told.get("reports map for writing"), "EACCES");
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
