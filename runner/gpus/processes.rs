//! Who a process on a GPU is, by what the kernel tells of it. Nothing is ever done to a process here.
//!
//! The driver counts processes as the host does. A gateway in a container of its own, without the host's processes,
//! knows their numbers only.

use std::collections::HashMap;
use std::path::Path;

use drydock_gpu::inventory::{Inventory, Process};
use drydock_spec::{Attempt, JobId};

use crate::legible::legible;
use crate::sandbox::Sandbox;

/// Whose each container is that computes on a GPU: a job's attempt, or somebody else's.
pub(super) type Owners = HashMap<String, Option<(JobId, Attempt)>>;

/// Adds what the kernel tells of the process, as far as it does.
pub(super) fn describe(process: &mut Process) {
    described(process, Path::new("/proc"));
}

fn described(process: &mut Process, root: &Path) {
    let folder = root.join(process.pid.to_string());
    let read = |file: &str| Some(String::from_utf8_lossy(&std::fs::read(folder.join(file)).ok()?).into_owned());
    // A program chooses its name itself.
    process.name = read("comm").map(|name| legible(name.trim_end_matches('\n')).into_owned());
    process.uid = read("status").as_deref().and_then(uid_of);
    process.container = read("cgroup").as_deref().and_then(container_of).map(str::to_owned);
}

/// The effective user of a process, from its `status`.
fn uid_of(status: &str) -> Option<u32> {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().nth(1)?.parse().ok()
}

/// Digits of a container's id.
const ID: usize = 64;

/// The innermost container that a process is in, from its `cgroup`: of the first version of control groups
/// (`4:memory:/docker/<id>`) or the second (`0::/system.slice/docker-<id>.scope`), of Docker, Podman, containerd or CRI-O.
fn container_of(cgroup: &str) -> Option<&str> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.rsplit('/').find_map(id_of)).next()
}

/// The id in one part of a path: all of it, or between the engine's name and `.scope`.
fn id_of(part: &str) -> Option<&str> {
    let scope = part.strip_suffix(".scope");
    let id = scope.and_then(|scope| scope.rsplit_once('-')).map_or(part, |(_, id)| id);
    (id.len() == ID && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// Marks the processes of attempts as such. The engine is asked only when there is a container that nobody has asked
/// about; while it does not answer, its containers stay strangers.
pub(super) async fn recognise(inventory: &mut Inventory, known: &mut Owners, sandbox: &dyn Sandbox) {
    let processes = || inventory.gpus.iter().flat_map(|gpu| &gpu.processes);
    known.retain(|id, _| processes().any(|process| process.container.as_ref() == Some(id)));
    let unknown: Vec<_> = processes().filter_map(|process| process.container.clone()).collect();
    let unknown: Vec<_> = unknown.into_iter().filter(|id| !known.contains_key(id)).collect();
    if !unknown.is_empty() {
        match sandbox.list().await {
            Ok(found) => {
                let ours = found.into_iter().map(|found| (found.id, (found.labels.job, found.labels.attempt)));
                let ours: HashMap<_, _> = ours.collect();
                known.extend(unknown.into_iter().map(|id| (id.clone(), ours.get(&id).copied())));
            }
            Err(error) => tracing::debug!(%error, "whose containers compute on GPUs is not known"),
        }
    }
    for process in inventory.gpus.iter_mut().flat_map(|gpu| &mut gpu.processes) {
        let owner = process.container.as_ref().and_then(|id| known.get(id).copied().flatten());
        (process.job, process.attempt) = owner.unzip();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_of_a_process_is_found_in_either_version_of_control_groups() {
        let id = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
        let outer = "f".repeat(ID);
        for (cgroup, found) in [
            (format!("12:pids:/docker/{id}\n4:memory:/docker/{id}\n0::/docker/{id}\n"), true),
            (format!("0::/system.slice/docker-{id}.scope\n"), true),
            (
                format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope/container\n"),
                true,
            ),
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice/cri-containerd-{id}.scope\n"
                ),
                true,
            ),
            (format!("11:devices:/kubepods/besteffort/pod0a0b0c0d-1111-2222-3333-444455556666/{id}\n"), true),
            (format!("0::/docker/{outer}/docker/{id}\n"), true),
            (format!("0::/../{id}\n"), true),
            (format!("1:name=systemd:/\n4:memory:/docker/{id}\n"), true),
            ("0::/user.slice/user-1000.slice/session-3.scope\n".into(), false),
            (format!("0::/system.slice/docker-{}.scope\n", &id[1..]), false),
            ("0::/system.slice/docker.service\n".into(), false),
            ("no colon\n4:memory\n\n".into(), false),
        ] {
            assert_eq!(container_of(&cgroup), found.then_some(id), "{cgroup}");
        }
    }

    #[test]
    fn a_process_is_described_by_what_the_kernel_tells_and_by_nothing_where_it_does_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("4711");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("comm"), "python3\x1b[2J\n").unwrap();
        std::fs::write(folder.join("status"), "Name:\tpython3\nUid:\t1000\t1001\t1000\t1000\n").unwrap();
        let mut process = Process { pid: 4711, ..Process::default() };
        described(&mut process, root.path());
        assert_eq!((process.name.as_deref(), process.uid), (Some("python3\\u{1b}[2J"), Some(1001)));
        assert_eq!(process.container, None);
        let mut gone = Process { pid: 4712, ..Process::default() };
        described(&mut gone, root.path());
        assert_eq!(gone, Process { pid: 4712, ..Process::default() });
    }
}
