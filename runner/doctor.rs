//! What a host needs to run jobs, looked at piece by piece, each with the command that mends it.

use std::path::{Path, PathBuf};

use drydock_gpu::inventory::Inventory;
use drydock_gpu::nvml::NoGpus;
use serde::Serialize;

use crate::api::{GpuList, HostView};
use crate::config::{Config, Loaded};
use crate::sandbox::{EngineInfo, SandboxError};

mod gpus;
mod injection;
mod walls;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// Jobs run, but not as well as they could, or not all of them.
    Warn,
    /// No job can run.
    Problem,
}

/// One check and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// Fact and value.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What the gateway says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayView {
    pub url: String,
    pub host: HostView,
    pub gpus: GpuList,
    pub models: usize,
    pub datasets: usize,
}

/// Every check, in the order in which things depend on each other. `engine` is the engine's own answer, `looked` what the
/// GPUs' driver tells, `gateway` the gateway's answer or why there is none.
#[must_use]
pub fn examine(
    loaded: &Loaded,
    engine: &Result<EngineInfo, SandboxError>,
    looked: &Result<Inventory, NoGpus>,
    gateway: &Result<GatewayView, String>,
) -> Vec<Check> {
    let config = &loaded.config;
    let mut checks = vec![configuration(loaded), state_folder(config), disk(config), engine_answers(config, engine)];
    checks.extend([cgroup(Path::new("/sys/fs/cgroup")), seccomp(Path::new("/proc/sys/kernel/seccomp"))]);
    checks.extend(engine.as_ref().ok().map(image));
    checks.extend(engine.as_ref().ok().and_then(|info| engine_disk(config, info)));
    let means = walls::Means::of_process();
    checks.extend(engine.as_ref().ok().into_iter().flat_map(|info| walls::checks(config, info, means)));
    checks.extend(engine.as_ref().ok().into_iter().flat_map(|info| injection::checks(config, info, Path::new("/"))));
    checks.push(memory(config, engine));
    checks.push(cpu());
    checks.extend(gpus::checks(looked, gateway.as_ref().ok().map(|view| &view.gpus)));
    checks.extend(wording(config));
    checks.push(gateway_answers(gateway));
    checks.extend(gateway.as_ref().ok().into_iter().flat_map(stores));
    checks.extend(gateway.as_ref().ok().into_iter().flat_map(predictions));
    checks
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Ok, found: found.into(), mend: None }
}

fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Warn, found: found.into(), mend: Some(mend.into()) }
}

fn problem(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Problem, found: found.into(), mend: Some(mend.into()) }
}

fn configuration(loaded: &Loaded) -> Check {
    let set = loaded.origins.values().filter(|origin| *origin != "default").count();
    match loaded.config.warnings().first() {
        Some(warning) => warn("configuration", warning, "see `drydock config`"),
        None => ok("configuration", format!("{set} of {} values set, the others are defaults", loaded.origins.len())),
    }
}

fn state_folder(config: &Config) -> Check {
    let folder = &config.state_dir;
    let shown = folder.display();
    let there = nearest(folder);
    match tempfile::tempfile_in(&there) {
        Ok(_) if there == *folder => ok("state folder", format!("{shown} is writable")),
        Ok(_) => ok("state folder", format!("{shown} will be made below {}", there.display())),
        Err(error) => problem(
            "state folder",
            format!("{shown}: {}: {error}", there.display()),
            format!("sudo install -d -o \"$USER\" '{shown}', or set state_dir"),
        ),
    }
}

fn disk(config: &Config) -> Check {
    let least = config.disk.min_free_state.0;
    let there = nearest(&config.state_dir);
    let Ok(stat) = rustix::fs::statvfs(&there) else {
        return warn("disk", format!("free space below {} is unknown", there.display()), "look at `df`");
    };
    let free = stat.f_bavail * stat.f_frsize;
    let wanted = config.limits.disk.0;
    let found = format!("{} free below {}", size(free), there.display());
    if free < least {
        let mend = "free disk space, for example with `drydock gc`, or set state_dir to another disk";
        problem("disk", format!("{found}; no job starts with less than {}", size(least)), mend)
    } else if free < wanted {
        let mend = format!("a job may write {}: free disk space, or lower limits.disk", size(wanted));
        warn("disk", found, mend)
    } else {
        ok("disk", found)
    }
}

/// The disk of the engine's own folder, where it lies on this host.
fn engine_disk(config: &Config, info: &EngineInfo) -> Option<Check> {
    let folder = info.folder.as_ref()?;
    let stat = rustix::fs::statvfs(folder).ok()?;
    let (free, least) = (stat.f_bavail * stat.f_frsize, config.disk.min_free_engine.0);
    let found = format!("{} free below {}", size(free), folder.display());
    if free >= least {
        return Some(ok("engine's disk", found));
    }
    let mend = "free disk space, or lower disk.min_free_engine";
    Some(problem("engine's disk", format!("{found}; no job starts with less than {}", size(least)), mend))
}

/// The folder itself, or the closest one above it that exists.
fn nearest(folder: &Path) -> PathBuf {
    folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn engine_answers(config: &Config, engine: &Result<EngineInfo, SandboxError>) -> Check {
    let error = match engine {
        Ok(info) => {
            return ok("engine", format!("{} with {} CPUs, {}", info.engine, info.cpus, size(info.memory_bytes)));
        }
        Err(error) => error,
    };
    let host = config.sandbox.docker_host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
    let socket = match host.as_deref().map(|host| host.strip_prefix("unix://")) {
        None => Some(Path::new("/var/run/docker.sock")),
        Some(socket) => socket.map(Path::new),
    };
    let mend = match socket {
        Some(socket) if !socket.exists() => {
            "install and start Docker: sudo apt-get install docker.io && sudo systemctl start docker"
        }
        Some(socket) if rustix::fs::access(socket, rustix::fs::Access::WRITE_OK).is_err() => {
            "let this user reach Docker: sudo usermod -aG docker \"$USER\", then log in again"
        }
        Some(_) => "start it: sudo systemctl restart docker",
        None => "check sandbox.docker_host and DOCKER_HOST",
    };
    problem("engine", error.to_string(), mend)
}

fn cgroup(root: &Path) -> Check {
    if root.join("cgroup.controllers").exists() {
        return ok("cgroup", "version 2");
    }
    if !root.join("memory").is_dir() {
        return warn("cgroup", "no memory controller is in sight", "boot with cgroup_enable=memory");
    }
    if root.join("memory/memory.memsw.limit_in_bytes").exists() {
        return ok("cgroup", "version 1 with swap accounting");
    }
    warn(
        "cgroup",
        "version 1 without swap accounting: a job over its memory may swap before it is stopped",
        "boot with swapaccount=1, or turn swap off: sudo swapoff -a",
    )
}

fn seccomp(kernel: &Path) -> Check {
    match std::fs::read_to_string(kernel.join("actions_avail")) {
        Ok(actions) if actions.contains("errno") => ok("seccomp", "filters are available"),
        _ => problem("seccomp", "the kernel offers no system call filters", "use a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn image(info: &EngineInfo) -> Check {
    match &info.image {
        Ok(id) => ok("worker image", id.clone()),
        Err(error) => problem("worker image", error.to_string(), "make image"),
    }
}

fn memory(config: &Config, engine: &Result<EngineInfo, SandboxError>) -> Check {
    const LITTLE: u64 = 2 << 30;
    let Ok(info) = engine else {
        return warn("memory", "what jobs may use is unknown without the engine", "mend the engine first");
    };
    let usable = config.capacity.of(info).memory_bytes;
    let found = format!("jobs may use {} of {}", size(usable), size(info.memory_bytes));
    match usable {
        0..LITTLE => warn("memory", found, "raise capacity.memory; a model of 135 M parameters takes about 2 GiB"),
        _ => ok("memory", found),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu() -> Check {
    let has = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    let names: Vec<_> = has.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    match has {
        [(_, true), (_, true), _] => ok("cpu", names.join(" ")),
        _ => {
            warn("cpu", format!("no avx2 with fma (has: {})", names.join(" ")), "training works, several times slower")
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu() -> Check {
    ok("cpu", std::env::consts::ARCH)
}

/// What explanations in a language model's words need, where they are wanted.
fn wording(config: &Config) -> Option<Check> {
    let wording = &config.wording;
    let endpoint = wording.endpoint()?;
    let unreadable = |file: &PathBuf| Some(format!("{}: {}", file.display(), std::fs::read(file).err()?));
    if let Some(problem) = wording.key_file.as_ref().and_then(unreadable) {
        return Some(warn(
            "wording",
            problem,
            "let the gateway's user read it, or set wording.key_file to another file",
        ));
    }
    let found = format!("`drydock explain --in-words` tells {} at {endpoint} why a job failed", wording.model);
    if wording.key_file.is_some() && endpoint.starts_with("http://") {
        let mend = "use an endpoint with https://, unless it is on this host";
        return Some(warn("wording", format!("{found}, with the key unencrypted"), mend));
    }
    Some(ok("wording", found))
}

fn gateway_answers(gateway: &Result<GatewayView, String>) -> Check {
    match gateway {
        Err(reason) => warn("gateway", reason, "drydock serve"),
        Ok(view) => match view.host.problems.first() {
            None => ok("gateway", format!("drydock {} at {}", view.host.version, view.url)),
            Some(first) => problem("gateway", format!("{}: {first}", view.url), "mend what it says; it will notice"),
        },
    }
}

fn stores(view: &GatewayView) -> [Check; 2] {
    let there = |name, count: usize, command: &str| match count {
        0 => warn(name, "none yet", command),
        count => ok(name, format!("{count} in the store")),
    };
    [
        there("models", view.models, "drydock models add model.gguf, or hf:owner/name"),
        there("datasets", view.datasets, "drydock datasets add rows.jsonl"),
    ]
}

/// How well plans have predicted what jobs need.
fn predictions(view: &GatewayView) -> Vec<Check> {
    view.host.forecasts.iter().map(|known| ok("predictions", known.error())).collect()
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use crate::sandbox::Isolation;

    fn loaded(state_dir: &Path) -> Loaded {
        let mut loaded = load(&Sources { folder: "/".into(), ..Sources::default() }).unwrap();
        loaded.config.state_dir = state_dir.to_owned();
        loaded
    }

    fn engine() -> EngineInfo {
        EngineInfo {
            engine: "docker 20.10.24".into(),
            incarnation: "1".into(),
            cpus: 2,
            memory_bytes: 24 << 30,
            folder: None,
            image: Ok("sha256:abc".into()),
            runtime: Ok("runc".into()),
            isolation: Isolation { seccomp: true, cgroup: "2".into(), ..Isolation::default() },
            gpus: Default::default(),
        }
    }

    fn no_gpus() -> Result<Inventory, NoGpus> {
        Err(NoGpus::NoLibrary("no such file".into()))
    }

    fn find(checks: &[Check], name: &str) -> Check {
        checks.iter().find(|check| check.name == name).unwrap().clone()
    }

    #[test]
    fn a_missing_image_is_a_problem_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let engine = EngineInfo { image: Err(SandboxError::ImageMissing("drydock-worker".into())), ..engine() };
        let checks = examine(&loaded(folder.path()), &Ok(engine), &no_gpus(), &Err("nobody there".into()));
        let image = find(&checks, "worker image");
        assert_eq!((image.verdict, image.mend.as_deref()), (Verdict::Problem, Some("make image")));
        assert_eq!(find(&checks, "gateway").verdict, Verdict::Warn);
        assert_eq!(find(&checks, "engine").found, "docker 20.10.24 with 2 CPUs, 24.0 GiB");
        assert_eq!(find(&checks, "state folder").verdict, Verdict::Ok);
    }

    #[test]
    fn a_language_model_whose_key_cannot_be_read_is_worth_a_warning() {
        let mut config = Config::default();
        assert_eq!(wording(&config), None, "off is nothing to speak of");
        let key = tempfile::NamedTempFile::new().unwrap();
        config.wording.model = "small".into();
        config.wording.key_file = Some(key.path().to_owned());
        for (endpoint, verdict) in [("https://llm.example/v1", Verdict::Ok), ("http://llm.example/v1", Verdict::Warn)] {
            config.wording.endpoint = Some(endpoint.into());
            assert_eq!(wording(&config).unwrap().verdict, verdict);
        }
        key.close().unwrap();
        let check = wording(&config).unwrap();
        assert!(check.verdict == Verdict::Warn && check.found.contains("No such file"), "{}", check.found);
    }

    #[test]
    fn an_engine_that_is_not_there_is_told_from_one_that_may_not_be_reached() {
        let folder = tempfile::tempdir().unwrap();
        let mut loaded = loaded(folder.path());
        let engine = Err(SandboxError::Unreachable("no such file".into()));
        loaded.config.sandbox.docker_host = Some(format!("unix://{}/none.sock", folder.path().display()));
        let check = find(&examine(&loaded, &engine, &no_gpus(), &Err(String::new())), "engine");
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.mend.unwrap().starts_with("install and start Docker"));
    }

    #[test]
    fn a_state_folder_that_cannot_be_made_is_a_problem() {
        let check = state_folder(&loaded(Path::new("/proc/drydock")).config);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.starts_with("/proc/drydock: /proc: "), "{}", check.found);
    }

    #[test]
    fn the_first_cgroup_version_without_swap_accounting_is_worth_a_warning() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("memory")).unwrap();
        assert_eq!(cgroup(root.path()).verdict, Verdict::Warn);
        std::fs::write(root.path().join("memory/memory.memsw.limit_in_bytes"), "").unwrap();
        assert_eq!(cgroup(root.path()).verdict, Verdict::Ok);
        std::fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(cgroup(root.path()).found, "version 2");
    }
}
