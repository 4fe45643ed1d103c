//! What stands between jobs and the host here: the runtime, the engine's own walls, users, and the cap on output.

use std::path::Path;

use super::{Check, ok, problem, warn};
use crate::config::Config;
use crate::sandbox::EngineInfo;
use crate::sandbox::attempt_dir::OutputCap;

/// What this host lets the gateway do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means {
    /// It runs as root.
    pub(super) root: bool,
    /// It can make a file system in a file and mount it, were it root.
    pub(super) file_systems: bool,
}

impl Means {
    pub(super) fn of_process() -> Self {
        let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
        let has = |program: &str| folders.iter().any(|folder| folder.join(program).exists());
        Self {
            root: rustix::process::geteuid().is_root(),
            file_systems: has("mkfs.ext4") && has("mount") && Path::new("/dev/loop-control").exists(),
        }
    }
}

/// Every wall that can be looked at from here.
pub(super) fn checks(config: &Config, info: &EngineInfo, means: Means) -> [Check; 4] {
    [runtime(info), isolation(info), users(config, info, means), output_cap(config.sandbox.output_cap, means)]
}

fn runtime(info: &EngineInfo) -> Check {
    match &info.runtime {
        Ok(name) => ok("runtime", name.clone()),
        Err(error) => problem("runtime", error.to_string(), "see `drydock config` for where it is set"),
    }
}

fn isolation(info: &EngineInfo) -> Check {
    let isolation = &info.isolation;
    if !isolation.seccomp {
        let mend = "use an engine that was built with seccomp, on a kernel with CONFIG_SECCOMP_FILTER";
        return problem("isolation", "the engine filters no system calls", mend);
    }
    if isolation.rootless {
        let mend = "use an engine that runs as root; its `userns-remap` makes jobs' users nobody on the host";
        return problem("isolation", "the engine runs without root, and jobs cannot write where it maps them", mend);
    }
    let mut walls = vec!["system call filter".to_owned()];
    walls.extend(isolation.mandatory.iter().cloned());
    walls.push(match isolation.ids.uid {
        0 => "no user namespace".to_owned(),
        uid => format!("user namespace from host user {uid}"),
    });
    walls.push(format!("control groups version {}", isolation.cgroup));
    ok("isolation", walls.join(", "))
}

fn users(config: &Config, info: &EngineInfo, means: Means) -> Check {
    let remapped = info.isolation.ids.uid != 0;
    match (config.sandbox.uids, means.root) {
        (Some(range), false) => {
            let found = format!("sandbox.uids = {range}, and only root can give files to other users");
            problem("users", found, "run the gateway as root, or leave sandbox.uids out")
        }
        (None, false) if remapped => {
            let found = "the engine remaps users, and only root can give them files";
            problem("users", found, "run the gateway as root, or the engine without userns-remap")
        }
        (Some(range), true) => ok("users", format!("every job has one of {range} to itself")),
        (None, true) => ok("users", format!("all jobs are user {}", config.sandbox.uid)),
        (None, false) => warn("users", "jobs are the gateway's own user", "run the gateway as root"),
    }
}

fn output_cap(cap: OutputCap, means: Means) -> Check {
    let can = means.root && means.file_systems;
    let mend = "run the gateway as root, where there are loop devices and mkfs.ext4 (e2fsprogs)";
    match (cap, can) {
        (OutputCap::Auto | OutputCap::LoopMount, true) => {
            ok("output cap", "every job's output is a file system of its own")
        }
        (OutputCap::LoopMount, false) => problem("output cap", "no file system can be mounted here", mend),
        (OutputCap::Auto, false) => warn("output cap", "output is watched, and can grow for a second", mend),
        (OutputCap::Watched, _) => ok("output cap", "output is watched, and can grow for a second, as configured"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use crate::sandbox::users::IdMap;
    use crate::sandbox::{Isolation, SandboxError};

    const ROOT: Means = Means { root: true, file_systems: true };
    const NOBODY: Means = Means { root: false, ..ROOT };

    fn engine(isolation: Isolation) -> EngineInfo {
        EngineInfo {
            engine: "docker 1".into(),
            incarnation: "1".into(),
            cpus: 1,
            memory_bytes: 1 << 30,
            folder: None,
            image: Ok("sha256:abc".into()),
            runtime: Ok("runsc".into()),
            isolation: Isolation { seccomp: true, cgroup: "2".into(), ..isolation },
            gpus: Default::default(),
        }
    }

    #[test]
    fn what_is_in_force_is_said() {
        let ids = IdMap { uid: 200_000, gid: 200_000 };
        let engine = engine(Isolation { ids, mandatory: vec!["AppArmor".into()], ..Isolation::default() });
        let mut config = Config::default();
        config.sandbox.uids = Some("1000-1999".parse().unwrap());
        let found = checks(&config, &engine, ROOT).map(|check| (check.verdict, check.found));
        let walls = "system call filter, AppArmor, user namespace from host user 200000, control groups version 2";
        let expected = [
            "runsc",
            walls,
            "every job has one of 1000-1999 to itself",
            "every job's output is a file system of its own",
        ];
        assert_eq!(found, expected.map(|found| (Verdict::Ok, found.to_owned())));
    }

    #[test]
    fn a_wall_that_was_asked_for_and_cannot_stand_is_a_problem() {
        let mut config = Config::default();
        let plain = engine(Isolation::default());
        assert_eq!(
            checks(&config, &plain, NOBODY).map(|check| check.verdict),
            [Verdict::Ok, Verdict::Ok, Verdict::Warn, Verdict::Warn]
        );
        config.sandbox.uids = Some("1000-1999".parse().unwrap());
        config.sandbox.output_cap = OutputCap::LoopMount;
        let lacking = EngineInfo {
            runtime: Err(SandboxError::RuntimeMissing("runsc".into())),
            isolation: Isolation::default(),
            ..plain
        };
        assert_eq!(checks(&config, &lacking, NOBODY).map(|check| check.verdict), [Verdict::Problem; 4]);
    }
}
