//! Whether containers get the host's GPUs, and how.

use std::path::Path;

use super::{Check, ok, warn};
use crate::config::Config;
use crate::sandbox::EngineInfo;
use crate::sandbox::docker::gpus::shut_nodes;
use crate::sandbox::gpus::{Injector, InjectorChoice};

const NAME: &str = "GPU access";

/// What can be said of it where there are GPUs; `root` is where the host's `/dev` lies.
pub(super) fn checks(config: &Config, info: &EngineInfo, root: &Path) -> Vec<Check> {
    if info.gpus.units == 0 {
        return Vec::new();
    }
    if config.sandbox.gpus == InjectorChoice::Off {
        return vec![ok(NAME, "off, as configured; jobs compute on the CPU")];
    }
    [Some(injection(info)), shut(root)].into_iter().flatten().collect()
}

fn injection(info: &EngineInfo) -> Check {
    match &info.gpus.injection {
        Err(why) if info.gpus.most_gpus == 0 => warn(NAME, why.clone(), "make image-cuda"),
        Err(why) => {
            let mend = "install nvidia-container-toolkit, run `sudo nvidia-ctk cdi generate --output /etc/cdi/nvidia.yaml`, \
                        and restart the engine";
            warn(NAME, why.clone(), mend)
        }
        Ok(Injector::Nvidia) if info.isolation.systemd => {
            let found = "by nvidia, and systemd keeps the engine's control groups: `systemctl daemon-reload` takes the GPUs \
                         from containers that run";
            warn(NAME, found, "set sandbox.gpus to \"cdi\" or \"devices\", or the engine's cgroup driver to cgroupfs")
        }
        Ok(injector) => {
            let refused: Vec<_> =
                info.gpus.refused.iter().map(|one| format!("; not by {}: {}", one.injector, one.why)).collect();
            ok(NAME, format!("by {injector}{}", refused.concat()))
        }
    }
}

fn shut(root: &Path) -> Option<Check> {
    let shut = shut_nodes(root);
    let names: Vec<_> = shut.iter().map(|node| format!("/dev/{} has {:o}", node.name, node.mode)).collect();
    let mend = "jobs are not root: load the driver with NVreg_DeviceFileMode=0666, or chmod 0666 these files";
    (!names.is_empty()).then(|| warn("GPU files", names.join(", "), mend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use crate::sandbox::Isolation;
    use crate::sandbox::gpus::{GpuAccess, RefusedInjector};

    fn engine(injection: Result<Injector, String>) -> EngineInfo {
        let refused = RefusedInjector { injector: Injector::Cdi, why: "not spoken".into() };
        let gpus = GpuAccess { units: 2, most_gpus: 1, injection, trying: false, refused: vec![refused] };
        EngineInfo {
            engine: "docker 1".into(),
            incarnation: "1".into(),
            cpus: 1,
            memory_bytes: 1 << 30,
            folder: None,
            image: Ok("sha256:abc".into()),
            runtime: Ok("runc".into()),
            isolation: Isolation::default(),
            gpus,
        }
    }

    #[test]
    fn the_injector_in_force_is_said_with_why_better_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let found = checks(&Config::default(), &engine(Ok(Injector::Devices)), folder.path());
        assert_eq!(found, [ok(NAME, "by devices; not by cdi: not spoken")]);
        let failing = checks(&Config::default(), &engine(Err("no injector works here".into())), folder.path());
        assert_eq!((failing[0].verdict, &*failing[0].found), (Verdict::Warn, "no injector works here"));
        let without = EngineInfo { gpus: GpuAccess::default(), ..engine(Ok(Injector::Cdi)) };
        assert_eq!(checks(&Config::default(), &without, folder.path()), []);
    }

    #[test]
    fn where_systemd_can_take_gpus_away_the_hook_is_worth_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        for (injector, verdict) in [(Injector::Nvidia, Verdict::Warn), (Injector::Cdi, Verdict::Ok)] {
            let mut engine = engine(Ok(injector));
            engine.isolation.systemd = true;
            assert_eq!(checks(&Config::default(), &engine, folder.path())[0].verdict, verdict);
        }
    }

    #[test]
    fn device_files_that_jobs_cannot_open_are_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/nvidia3"), "").unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(root.path().join("dev/nvidia3"), permissions).unwrap();
        let found = checks(&Config::default(), &engine(Ok(Injector::Cdi)), root.path());
        assert_eq!((found[1].verdict, &*found[1].found), (Verdict::Warn, "/dev/nvidia3 has 640"));
    }
}
