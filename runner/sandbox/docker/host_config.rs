//! A launch, in the engine's words: the whole of a container's walls, decided here and nowhere else.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::gpus::GpuRequest;
use super::{DockerSettings, found, seccomp};
use crate::sandbox::{Access, Launch};

/// What `/tmp` may hold in files and folders; its bytes are in [`DockerSettings::tmpfs_bytes`].
const TMPFS_INODES: u32 = 10_000;

/// What `/dev/shm` may hold where several GPUs compute together, in bytes: those that cannot reach each other's memory go
/// through the host's there, about 10 MiB for each neighbour and channel. Elsewhere it is as the engine has it, 64 MiB.
const SHARED_BY_GPUS: i64 = 1 << 30;

/// Paths that show more of the host than a job has to know. Naming any replaces the engine's own list, so that is
/// repeated first.
const MASKED: [&str; 23] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/kallsyms",
    "/proc/interrupts",
    "/proc/config.gz",
    "/proc/cmdline",
    "/proc/modules",
    "/proc/diskstats",
    "/proc/partitions",
    // Anybody may have the kernel watch the host's load there.
    "/proc/pressure",
    // Loop devices tell where the outputs of other jobs lie.
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/dmi",
    "/sys/module",
    "/sys/kernel",
];

/// What is decided about a container besides the launch and the settings.
pub(super) struct Resolved {
    /// The image's id, so that a tag moved meanwhile changes nothing.
    pub(super) image: String,
    /// CPUs of the engine's host; asking for more is an error to the engine.
    pub(super) host_cpus: u32,
    /// The sources of the launch's mounts, in its order, checked and free of symbolic links.
    pub(super) sources: Vec<PathBuf>,
    /// How it gets its GPUs, or that it has none.
    pub(super) gpus: GpuRequest,
}

/// The body of a create request.
pub(super) fn body(launch: &Launch, settings: &DockerSettings, mut resolved: Resolved) -> ContainerCreateBody {
    let environment =
        ["HOME=/tmp", "TMPDIR=/tmp"].map(str::to_owned).into_iter().chain(std::mem::take(&mut resolved.gpus.env));
    let mut labels = found::label_map(&launch.labels);
    labels.extend(resolved.gpus.injector.into_iter().flat_map(|injector| found::gpu_labels(injector, &launch.gpus)));
    ContainerCreateBody {
        image: Some(resolved.image.clone()),
        cmd: Some(launch.args.clone()),
        user: Some(format!("{}:{}", launch.user.0, launch.user.1)),
        hostname: Some("drydock".to_owned()),
        env: Some(environment.collect()),
        working_dir: Some("/".to_owned()),
        network_disabled: Some(true),
        attach_stdin: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        // The image's own would have the engine start programs in the container, again and again.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        labels: Some(labels),
        host_config: Some(host_config(launch, settings, resolved)),
        ..Default::default()
    }
}

fn host_config(launch: &Launch, settings: &DockerSettings, resolved: Resolved) -> HostConfig {
    let own = launch.mounts.iter().zip(&resolved.sources).map(|(mount, source)| bind(mount, source));
    let gpus = resolved.gpus;
    let memory = as_i64(launch.limits.memory_bytes);
    HostConfig {
        // What it may use.
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nano_cpus(launch.limits.cpu_millis, resolved.host_cpus)),
        pids_limit: Some(i64::from(launch.limits.pids)),
        ulimits: Some(vec![
            ulimit("core", 0),
            ulimit("nofile", 4096),
            ulimit("fsize", as_i64(launch.limits.disk_bytes)),
        ]),
        // When the host itself runs out of memory, a job goes before the engine and the gateway.
        oom_score_adj: Some(500),
        // What it sees.
        mounts: Some(own.chain(gpus.mounts).collect()),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmpfs_options(launch, settings))])),
        shm_size: (launch.gpus.len() > 1).then_some(SHARED_BY_GPUS),
        readonly_rootfs: Some(true),
        masked_paths: Some(MASKED.map(str::to_owned).to_vec()),
        devices: (!gpus.devices.is_empty()).then_some(gpus.devices),
        device_requests: (!gpus.device_requests.is_empty()).then_some(gpus.device_requests),
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        // What it may do.
        cap_drop: Some(vec!["ALL".to_owned()]),
        privileged: Some(false),
        security_opt: Some(vec![
            "no-new-privileges:true".to_owned(),
            format!("seccomp={}", seccomp::profile(launch.gpus.len())),
        ]),
        runtime: settings.runtime.clone(),
        // How it lives. A first process of the engine's hands signals on, which the kernel does not do for PID 1.
        init: Some(true),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        // It is looked at after its death, and removed by us.
        auto_remove: Some(false),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "1m".to_owned()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        ..Default::default()
    }
}

/// Thousandths of a CPU as the engine counts them, never more than the host has.
fn nano_cpus(cpu_millis: u32, host_cpus: u32) -> i64 {
    (i64::from(cpu_millis) * 1_000_000).min(i64::from(host_cpus) * 1_000_000_000)
}

fn ulimit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) }
}

/// A mount, not a "bind" of the older kind: that one makes a missing source as an empty folder of root's.
fn bind(mount: &crate::sandbox::Mount, source: &std::path::Path) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(mount.target.clone()),
        read_only: Some(match mount.access {
            Access::ReadOnly => true,
            Access::ReadWrite => false,
        }),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn tmpfs_options(launch: &Launch, settings: &DockerSettings) -> String {
    let (uid, gid) = launch.user;
    format!(
        "rw,noexec,nosuid,nodev,size={},nr_inodes={TMPFS_INODES},uid={uid},gid={gid},mode=700",
        settings.tmpfs_bytes
    )
}

fn as_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use drydock_spec::{Attempt, JobId, Limits, TraceId};

    use super::*;
    use crate::sandbox::gpus::Injector;
    use crate::sandbox::{ContainerName, Labels};

    fn launch() -> Launch {
        let job = JobId::from_parts(1, 2);
        Launch {
            name: ContainerName::of(job, Attempt::FIRST),
            labels: Labels {
                instance: "test".into(),
                job,
                attempt: Attempt::FIRST,
                fence: "f".into(),
                trace_id: TraceId::from_bits(3),
            },
            args: vec!["run".into(), "/job/spec.json".into()],
            mounts: vec![
                crate::sandbox::Mount {
                    source: "/state/spec.json".into(),
                    target: "/job/spec.json".into(),
                    access: Access::ReadOnly,
                },
                crate::sandbox::Mount { source: "/state/out".into(), target: "/out".into(), access: Access::ReadWrite },
            ],
            user: (65532, 65533),
            limits: Limits {
                memory_bytes: 512 << 20,
                cpu_millis: 1500,
                pids: 256,
                disk_bytes: 1 << 30,
                time_ms: 1,
                silence_ms: 1,
                grace_ms: 1,
                max_attempts: 1,
                gpus: 0,
                gpu_memory_bytes: None,
            },
            gpus: Vec::new(),
        }
    }

    fn made() -> ContainerCreateBody {
        let mut settings = DockerSettings::new("worker", "test", vec!["/state".into()]);
        settings.tmpfs_bytes = 64 << 20;
        let resolved = Resolved {
            image: "sha256:abc".into(),
            host_cpus: 2,
            sources: vec!["/real/spec.json".into(), "/real/out".into()],
            gpus: GpuRequest::none(),
        };
        body(&launch(), &settings, resolved)
    }

    fn host() -> HostConfig {
        made().host_config.unwrap()
    }

    #[test]
    fn image_user_and_arguments_are_ours() {
        let body = made();
        assert_eq!(body.image.as_deref(), Some("sha256:abc"));
        assert_eq!(body.user.as_deref(), Some("65532:65533"));
        assert_eq!(body.cmd.unwrap(), ["run", "/job/spec.json"]);
        assert_eq!(body.entrypoint, None, "the image's own");
        assert_eq!(body.env.unwrap(), ["HOME=/tmp", "TMPDIR=/tmp", "NVIDIA_VISIBLE_DEVICES=void"]);
        assert_eq!(body.labels.unwrap()["drydock.attempt"], "1");
        assert_eq!(body.healthcheck.unwrap().test.unwrap(), ["NONE"]);
    }

    #[test]
    fn gpus_change_nothing_but_what_gives_them() {
        let device = bollard::models::DeviceMapping { path_on_host: Some("/dev/nvidia0".into()), ..Default::default() };
        let request = bollard::models::DeviceRequest { driver: Some("cdi".into()), ..Default::default() };
        let library = Mount { target: Some("/usr/local/nvidia/lib64/libcuda.so.1".into()), ..Default::default() };
        let gpus = GpuRequest {
            env: vec!["NVIDIA_VISIBLE_DEVICES=void".into(), "LD_LIBRARY_PATH=/usr/local/nvidia/lib64".into()],
            devices: vec![device.clone()],
            device_requests: vec![request.clone()],
            mounts: vec![library.clone()],
            injector: Some(Injector::Devices),
        };
        let settings = DockerSettings::new("worker", "test", vec!["/state".into()]);
        let with = |gpus| {
            let sources = vec!["/real/spec.json".into(), "/real/out".into()];
            let resolved = Resolved { image: "sha256:abc".into(), host_cpus: 2, sources, gpus };
            body(&Launch { gpus: vec!["GPU-a".into(), "MIG-b".into()], ..launch() }, &settings, resolved)
        };
        let mut expected = with(GpuRequest::none());
        expected.env.as_mut().unwrap().push("LD_LIBRARY_PATH=/usr/local/nvidia/lib64".into());
        let labels = expected.labels.as_mut().unwrap();
        labels.insert("drydock.injector".into(), "devices".into());
        labels.insert("drydock.gpus".into(), "GPU-a,MIG-b".into());
        let host = expected.host_config.as_mut().unwrap();
        host.devices = Some(vec![device]);
        host.device_requests = Some(vec![request]);
        host.mounts.as_mut().unwrap().push(library);
        assert_eq!(with(gpus), expected);
        assert_eq!(expected.host_config.unwrap().privileged, Some(false));
    }

    #[test]
    fn several_gpus_may_speak_to_each_other_within_their_container_and_nothing_else_changes() {
        let with = |gpus: &[&str]| {
            let settings = DockerSettings::new("worker", "test", vec!["/state".into()]);
            let sources = vec!["/real/spec.json".into(), "/real/out".into()];
            let resolved = Resolved { image: "sha256:abc".into(), host_cpus: 2, sources, gpus: GpuRequest::none() };
            let gpus = gpus.iter().map(ToString::to_string).collect();
            body(&Launch { gpus, ..launch() }, &settings, resolved)
        };
        let (one, several) = (with(&["GPU-a"]), with(&["GPU-a", "GPU-b"]));
        let mut expected = one.clone();
        let host = expected.host_config.as_mut().unwrap();
        host.shm_size = Some(1 << 30);
        host.security_opt.as_mut().unwrap()[1] = format!("seccomp={}", seccomp::profile(2));
        assert_eq!(several, expected);
        assert_ne!(several, one);
    }

    #[test]
    fn there_is_no_network() {
        assert_eq!(made().network_disabled, Some(true));
        assert_eq!(host().network_mode.as_deref(), Some("none"));
        assert_eq!(host().port_bindings, None);
    }

    #[test]
    fn memory_has_no_swap_on_top() {
        assert_eq!(host().memory, Some(512 << 20));
        assert_eq!(host().memory_swap, host().memory);
        assert_eq!(host().oom_kill_disable, None);
        assert_eq!(host().oom_score_adj, Some(500));
    }

    #[test]
    fn cpus_never_exceed_the_hosts() {
        assert_eq!(host().nano_cpus, Some(1_500_000_000));
        assert_eq!(nano_cpus(64_000, 2), 2_000_000_000);
    }

    #[test]
    fn processes_files_and_core_dumps_are_limited() {
        assert_eq!(host().pids_limit, Some(256));
        assert_eq!(host().ulimits.unwrap(), [ulimit("core", 0), ulimit("nofile", 4096), ulimit("fsize", 1 << 30)]);
    }

    #[test]
    fn no_privilege_is_left_and_none_can_be_gained() {
        let host = host();
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add, None);
        assert_eq!(host.privileged, Some(false));
        assert_eq!(host.devices, None);
        assert_eq!(host.device_requests, None);
        let security = host.security_opt.unwrap();
        assert_eq!(security[0], "no-new-privileges:true");
        assert!(security[1].starts_with(r#"seccomp={""#), "the profile's text, not a path");
        assert_eq!(security.len(), 2);
    }

    #[test]
    fn mounts_are_the_launchs_and_nothing_else() {
        let mounts = host().mounts.unwrap();
        let seen: Vec<_> = mounts
            .iter()
            .map(|mount| (mount.source.as_deref().unwrap(), mount.target.as_deref().unwrap(), mount.read_only))
            .collect();
        assert_eq!(seen, [("/real/spec.json", "/job/spec.json", Some(true)), ("/real/out", "/out", Some(false))]);
        assert!(mounts.iter().all(|mount| mount.typ == Some(MountType::BIND)));
        assert_eq!(host().binds, None);
        assert_eq!(host().volumes_from, None);
    }

    #[test]
    fn the_root_is_read_only_and_tmp_is_small() {
        assert_eq!(host().readonly_rootfs, Some(true));
        assert_eq!(
            host().tmpfs.unwrap()["/tmp"],
            "rw,noexec,nosuid,nodev,size=67108864,nr_inodes=10000,uid=65532,gid=65533,mode=700"
        );
    }

    #[test]
    fn namespaces_are_private() {
        assert_eq!(host().ipc_mode.as_deref(), Some("private"));
        assert_eq!(host().cgroupns_mode, Some(HostConfigCgroupnsModeEnum::PRIVATE));
        assert_eq!(host().pid_mode, None);
        assert_eq!(host().uts_mode, None);
        assert_eq!(host().userns_mode, None);
    }

    #[test]
    fn what_shows_the_host_is_masked() {
        let masked = host().masked_paths.unwrap();
        for path in ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/kallsyms", "/sys/kernel", "/proc/cmdline"] {
            assert!(masked.iter().any(|masked| masked == path), "{path}");
        }
    }

    #[test]
    fn it_stays_dead_and_can_be_looked_at() {
        let host = host();
        assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::NO));
        assert_eq!(host.auto_remove, Some(false));
        assert_eq!(host.init, Some(true));
        assert_eq!(host.log_config.unwrap().config.unwrap()["max-size"], "1m");
    }
}
