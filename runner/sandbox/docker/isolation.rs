//! What the engine says of its own walls: its runtimes, and whom it takes a container's users for.

use bollard::models::{SystemInfo, SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum};

use crate::sandbox::users::IdMap;
use crate::sandbox::{Isolation, SandboxError};

/// Names that the engine need not know beforehand: it looks for a program of that name.
const SHIM: &str = "io.containerd.";

/// The runtime that containers get: the configured one if the engine has it, otherwise its own.
pub(super) fn runtime(system: &SystemInfo, configured: Option<&str>) -> Result<String, SandboxError> {
    let Some(name) = configured else {
        return Ok(system.default_runtime.clone().unwrap_or_else(|| "the engine's own".to_owned()));
    };
    let known = system.runtimes.as_ref().is_none_or(|runtimes| runtimes.contains_key(name));
    if known || name.starts_with(SHIM) {
        Ok(name.to_owned())
    } else {
        Err(SandboxError::RuntimeMissing(name.to_owned()))
    }
}

/// What the engine and its runtime add to every container's walls.
pub(super) fn isolation(system: &SystemInfo, runtime: Option<&str>) -> Result<Isolation, SandboxError> {
    let has = |name: &str| option(system, name).is_some();
    let mandatory = [("apparmor", "AppArmor"), ("selinux", "SELinux")];
    Ok(Isolation {
        ids: if has("userns") {
            id_map(system.docker_root_dir.as_deref().unwrap_or_default())?
        } else {
            IdMap::default()
        },
        append_only: runtime.is_some_and(|runtime| ["runc", "crun"].iter().any(|known| runtime.contains(known))),
        seccomp: has("seccomp"),
        rootless: has("rootless"),
        mandatory: mandatory.iter().filter(|(name, _)| has(name)).map(|(_, shown)| (*shown).to_owned()).collect(),
        cgroup: match system.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_1) => "1".to_owned(),
            Some(SystemInfoCgroupVersionEnum::_2) => "2".to_owned(),
            Some(SystemInfoCgroupVersionEnum::EMPTY) | None => "unknown".to_owned(),
        },
        systemd: system.cgroup_driver == Some(SystemInfoCgroupDriverEnum::SYSTEMD),
    })
}

/// One of the engine's options, which it writes as `name=seccomp,profile=default`.
fn option<'a>(system: &'a SystemInfo, name: &str) -> Option<&'a str> {
    let options = system.security_options.as_deref().unwrap_or_default();
    options
        .iter()
        .map(String::as_str)
        .find(|option| option.split(',').any(|part| part.strip_prefix("name=") == Some(name)))
}

/// An engine that remaps users says that it does and not to whom. But it keeps what is theirs apart, in a folder that
/// is called by the host's user and group that are 0 inside: `/var/lib/docker/100000.100000`.
fn id_map(root: &str) -> Result<IdMap, SandboxError> {
    let parsed = || {
        let (uid, gid) = root.rsplit('/').next()?.split_once('.')?;
        Some(IdMap { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    };
    parsed().ok_or_else(|| SandboxError::Refused {
        action: "say to whom it remaps users",
        message: format!("its folder `{root}` does not end in a user and a group, such as 100000.100000"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn system() -> SystemInfo {
        let options = ["name=apparmor", "name=seccomp,profile=default", "name=userns"].map(str::to_owned).to_vec();
        SystemInfo {
            security_options: Some(options),
            docker_root_dir: Some("/var/lib/docker/200000.300000".to_owned()),
            cgroup_version: Some(SystemInfoCgroupVersionEnum::_2),
            default_runtime: Some("runc".to_owned()),
            runtimes: Some(HashMap::from([("runc".to_owned(), Default::default())])),
            ..Default::default()
        }
    }

    #[test]
    fn an_engine_that_remaps_users_tells_to_whom_by_its_folder() {
        let isolation = isolation(&system(), Some("runc")).unwrap();
        assert_eq!(isolation.ids, IdMap { uid: 200_000, gid: 300_000 });
        assert_eq!((isolation.seccomp, isolation.rootless), (true, false));
        assert_eq!((isolation.mandatory, isolation.cgroup), (vec!["AppArmor".to_owned()], "2".to_owned()));
    }

    #[test]
    fn an_engine_that_remaps_users_to_nobody_knows_whom_is_not_used() {
        let unclear = SystemInfo { docker_root_dir: Some("/var/lib/docker".into()), ..system() };
        let error = super::isolation(&unclear, None).unwrap_err();
        assert!(!error.leaves_doubt() && error.to_string().contains("/var/lib/docker"), "{error}");
        let unmapped = SystemInfo { security_options: Some(vec!["name=seccomp,profile=default".into()]), ..unclear };
        assert_eq!(super::isolation(&unmapped, None).unwrap().ids, IdMap::default());
    }

    #[test]
    fn files_are_append_only_where_containers_open_them_themselves() {
        let append_only = |name| super::isolation(&system(), Some(name)).unwrap().append_only;
        assert!(append_only("runc") && append_only("io.containerd.runc.v2") && append_only("crun"));
        assert!(!append_only("runsc") && !append_only("io.containerd.kata.v2"));
    }

    #[test]
    fn a_runtime_that_the_engine_does_not_have_is_named_with_its_setting() {
        assert_eq!(runtime(&system(), None).unwrap(), "runc");
        assert_eq!(runtime(&system(), Some("runc")).unwrap(), "runc");
        assert_eq!(runtime(&system(), Some("io.containerd.kata.v2")).unwrap(), "io.containerd.kata.v2");
        let error = runtime(&system(), Some("runsc")).unwrap_err().to_string();
        assert!(error.contains("`runsc`") && error.contains("sandbox.runtime"), "{error}");
    }
}
