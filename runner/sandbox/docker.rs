//! The Docker engine behind the seam.
//!
//! The engine is spoken to over its unix socket. Every call is bounded in time; what it leaves in doubt
//! ([`SandboxError::leaves_doubt`]) is told apart from what it refuses. Decisions are made on `inspect` only.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::{
    InspectContainerOptions, InspectNetworkOptions, KillContainerOptions, ListContainersOptions, LogsOptions,
    RemoveContainerOptions, WaitContainerOptions,
};
use futures::StreamExt;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout, timeout_at};

use super::{ContainerName, EngineInfo, Exit, Found, Launch, Mount, Sandbox, SandboxError, Status};
use error::{is_status, translate, translate_for, unanswered};
use found::{FirstProcess, Lack, Seen};
pub use gpus::GpuSettings;
use gpus::Knowledge;

mod error;
mod found;
pub mod gpus;
mod host_config;
mod image;
mod incarnation;
mod isolation;
mod kernel_log;
mod launch;
mod lifeless;
mod seccomp;

/// Where the engine is, and what every container of this installation has in common.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// `unix:///path/to.sock`; `None` is `DOCKER_HOST` or, without it, Docker's usual socket.
    pub host: Option<String>,
    /// The worker image, by name or id.
    pub image: String,
    /// The installation's name, by which its containers are found among others.
    pub instance: String,
    /// Folders of the host below which a mount's source has to lie. The engine itself would mount anything.
    pub mount_roots: Vec<PathBuf>,
    /// The OCI runtime, such as `runsc`; `None` is the engine's default.
    pub runtime: Option<String>,
    /// Room in a container's `/tmp`, in bytes; what is used counts as memory of the job.
    pub tmpfs_bytes: u64,
    pub gpus: GpuSettings,
    pub timeouts: Timeouts,
}

/// How long the engine may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To answer a question.
    pub query: Duration,
    /// To create or start a container, or to send it a signal.
    pub change: Duration,
    /// To remove a container and its files.
    pub remove: Duration,
}

impl DockerSettings {
    #[must_use]
    pub fn new(image: impl Into<String>, instance: impl Into<String>, mount_roots: Vec<PathBuf>) -> Self {
        Self {
            host: None,
            image: image.into(),
            instance: instance.into(),
            mount_roots,
            runtime: None,
            tmpfs_bytes: 64 << 20,
            gpus: GpuSettings::default(),
            timeouts: Timeouts {
                query: Duration::from_secs(15),
                change: Duration::from_secs(60),
                remove: Duration::from_secs(120),
            },
        }
    }
}

/// A Docker engine.
pub struct DockerSandbox {
    settings: DockerSettings,
    client: OnceCell<bollard::Docker>,
    host_cpus: OnceCell<u32>,
    /// Which injectors work.
    knowledge: Mutex<Knowledge>,
    /// Held while injectors are tried.
    trial: tokio::sync::Mutex<()>,
}

impl DockerSandbox {
    /// Speaks to nobody yet: an engine that is down when the gateway starts may come up later.
    #[must_use]
    pub fn new(settings: DockerSettings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
            host_cpus: OnceCell::new(),
            knowledge: Mutex::default(),
            trial: tokio::sync::Mutex::default(),
        }
    }

    async fn client(&self) -> Result<&bollard::Docker, SandboxError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<bollard::Docker, SandboxError> {
        let Timeouts { query, change, remove } = self.settings.timeouts;
        let limited = async {
            bollard::Docker::connect_with_host(&self.host())?
                // The client's own limit would cut a call that ours still allows.
                .with_timeout(query.max(change).max(remove) + Duration::from_secs(5))
                .negotiate_version()
                .await
        };
        bounded(query, "agree on a version", limited).await.map_err(unanswered)
    }

    fn host(&self) -> String {
        let configured = self.settings.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
        configured.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned())
    }

    fn socket(&self) -> Option<PathBuf> {
        self.host().strip_prefix("unix://").map(PathBuf::from)
    }

    async fn system(&self) -> Result<bollard::models::SystemInfo, SandboxError> {
        bounded(self.settings.timeouts.query, "describe itself", self.client().await?.info()).await.map_err(unanswered)
    }

    async fn host_cpus(&self) -> Result<u32, SandboxError> {
        self.host_cpus.get_or_try_init(async || Ok(cpus(&self.system().await?))).await.copied()
    }

    async fn incarnation(&self, engine_id: &str) -> Result<String, SandboxError> {
        if let Some(process) = incarnation::process(self.socket().as_deref()).await {
            return Ok(process);
        }
        let limit = self.settings.timeouts.query;
        let network = self.client().await?.inspect_network("bridge", None::<InspectNetworkOptions>);
        match timeout(limit, network).await {
            Err(_) => Err(SandboxError::TimedOut(limit, "describe its networks")),
            Ok(Err(error)) if is_status(&error, 404) => Ok(format!("engine {engine_id}")),
            Ok(Err(error)) => Err(unanswered(translate(error, "describe its networks", limit))),
            Ok(Ok(network)) => Ok(format!("engine {engine_id}, networks of {}", network.created.unwrap_or_default())),
        }
    }

    /// The container as the engine shows it, with what is not for everybody to see.
    async fn look(&self, name: &ContainerName) -> Result<Option<Seen>, SandboxError> {
        let (limit, action) = (self.settings.timeouts.query, "inspect a container");
        let inspect = self.client().await?.inspect_container(&name.0, None::<InspectContainerOptions>);
        match bounded_for(name, limit, action, inspect).await {
            Err(SandboxError::NoContainer(_)) => Ok(None),
            Err(error) => Err(unanswered(error)),
            Ok(answer) => match found::read(answer) {
                Ok(seen) => Ok(Some(seen)),
                Err(Lack::Label(lack)) => {
                    Err(SandboxError::Refused { action, message: format!("`{name}` is not ours: {lack}") })
                }
                Err(Lack::Part(lack)) => {
                    Err(SandboxError::Unreachable(format!("its answer about `{name}` is not whole: {lack}")))
                }
            },
        }
    }

    async fn signal(&self, name: &ContainerName, signal: &str, action: &'static str) -> Result<(), SandboxError> {
        let limit = self.settings.timeouts.change;
        let options = KillContainerOptions { signal: signal.to_owned() };
        match timeout(limit, self.client().await?.kill_container(&name.0, Some(options))).await {
            Err(_) => Err(SandboxError::TimedOut(limit, action)),
            // It is not running, which is what was wanted.
            Ok(Err(error)) if is_status(&error, 409) => Ok(()),
            Ok(answer) => answer.map_err(|error| translate_for(name, error, action, limit)),
        }
    }

    /// Waits until the container is not running or not there, as far as the engine's stream of answers goes.
    async fn wait_once(&self, name: &ContainerName, condition: &str) -> Result<(), SandboxError> {
        let options = WaitContainerOptions { condition: condition.to_owned() };
        let mut answers = std::pin::pin!(self.client().await?.wait_container(&name.0, Some(options)));
        match answers.next().await {
            // A code other than 0 arrives as an error. What happened is read from `inspect` afterwards.
            None | Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(translate_for(name, error, "wait for a container", self.settings.timeouts.query)),
        }
    }
}

#[async_trait]
impl Sandbox for DockerSandbox {
    async fn probe(&self) -> Result<EngineInfo, SandboxError> {
        let system = self.system().await?;
        let image = match self.image().await {
            Err(error) if error.leaves_doubt() => return Err(error),
            known => known,
        };
        let incarnation = self.incarnation(system.id.as_deref().unwrap_or_default()).await?;
        let access = {
            let now = self.circumstances_of(&system, incarnation.clone(), image.as_ref().ok());
            let mut knowledge = self.knowledge();
            knowledge.is_about(now);
            knowledge.access()
        };
        let runtime = isolation::runtime(&system, self.settings.runtime.as_deref());
        Ok(EngineInfo {
            engine: format!("docker {}", system.server_version.as_deref().unwrap_or("of an unknown version")),
            incarnation,
            cpus: cpus(&system),
            memory_bytes: system.mem_total.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            folder: system.docker_root_dir.as_ref().map(PathBuf::from),
            image: image.map(|image| image.id),
            isolation: isolation::isolation(&system, runtime.as_deref().ok())?,
            runtime,
            gpus: access,
        })
    }

    async fn try_injectors(&self) -> bool {
        self.find_injector().await
    }

    async fn create(&self, launch: &Launch) -> Result<(), SandboxError> {
        let injector = match launch.gpus.is_empty() {
            true => None,
            false => Some(self.injector().await?),
        };
        self.heed(self.create_by(launch, injector).await)
    }

    async fn start(&self, name: &ContainerName) -> Result<(), SandboxError> {
        self.heed(self.start_once(name).await)
    }

    async fn inspect(&self, name: &ContainerName) -> Result<Option<Found>, SandboxError> {
        let Some(Seen { mut found, process, .. }) = self.look(name).await? else { return Ok(None) };
        found.status = seen_by_the_kernel(found.status, process).await;
        Ok(Some(found))
    }

    async fn wait(&self, name: &ContainerName, limit: Duration) -> Result<(), SandboxError> {
        let deadline = Instant::now() + limit;
        loop {
            match timeout_at(deadline, self.wait_once(name, "not-running")).await {
                Err(_) => return Ok(()),
                Ok(answer) => answer?,
            }
            // The stream also ends when the engine goes down, with the container still running.
            match self.inspect(name).await? {
                Some(found) if found.status.is_up() => {}
                Some(_) => return Ok(()),
                None => return Err(SandboxError::NoContainer(name.clone())),
            }
        }
    }

    async fn terminate(&self, name: &ContainerName) -> Result<(), SandboxError> {
        self.signal(name, "SIGTERM", "ask a container to end").await
    }

    async fn kill(&self, name: &ContainerName) -> Result<(), SandboxError> {
        self.signal(name, "SIGKILL", "kill a container").await
    }

    async fn remove(&self, name: &ContainerName) -> Result<(), SandboxError> {
        let (limit, action) = (self.settings.timeouts.remove, "remove a container");
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let removed = match timeout(limit, self.client().await?.remove_container(&name.0, Some(options))).await {
            Err(_) => return Err(SandboxError::TimedOut(limit, action)),
            // Somebody else is removing it: done when that is done.
            Ok(Err(error)) if is_status(&error, 409) => timeout(limit, self.wait_once(name, "removed"))
                .await
                .unwrap_or(Err(SandboxError::TimedOut(limit, action))),
            Ok(answer) => answer.map_err(|error| translate_for(name, error, action, limit)),
        };
        match removed {
            Err(SandboxError::NoContainer(_)) => Ok(()),
            other => other,
        }
    }

    async fn list(&self) -> Result<Vec<Found>, SandboxError> {
        let filters = Some(found::of_instance(&self.settings.instance));
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let limit = self.settings.timeouts.query;
        let list = self.client().await?.list_containers(Some(options));
        let listed = bounded(limit, "list containers", list).await.map_err(unanswered)?;
        let mut containers = Vec::with_capacity(listed.len());
        for id in listed.into_iter().filter_map(|container| container.id) {
            match self.inspect(&ContainerName(id)).await {
                Ok(found) => containers.extend(found),
                Err(error) if error.leaves_doubt() => return Err(error),
                Err(error) => tracing::warn!(%error, "a container carries our label but is left alone"),
            }
        }
        Ok(containers)
    }

    async fn last_words(&self, name: &ContainerName, bytes: usize) -> Result<String, SandboxError> {
        let (limit, action) = (self.settings.timeouts.query, "read a container's output");
        // What the engine keeps is bounded, see `host_config`; a line has a letter and its end at least.
        let lines = if bytes <= FEW_WORDS { MANY_LINES.to_owned() } else { "all".to_owned() };
        let options = LogsOptions { stdout: true, stderr: true, tail: lines, ..Default::default() };
        let mut chunks = std::pin::pin!(self.client().await?.logs(&name.0, Some(options)));
        let read = async {
            let mut words = Vec::new();
            while let Some(chunk) = chunks.next().await {
                words.extend_from_slice(&chunk?.into_bytes());
                // Not with every line: it moves all that is kept.
                if words.len() / 2 > bytes {
                    keep_last(&mut words, bytes);
                }
            }
            keep_last(&mut words, bytes);
            Ok(String::from_utf8_lossy(&words).into_owned())
        };
        bounded_for(name, limit, action, read).await
    }
}

async fn bounded<T>(
    limit: Duration,
    action: &'static str,
    call: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, SandboxError> {
    match timeout(limit, call).await {
        Err(_) => Err(SandboxError::TimedOut(limit, action)),
        Ok(answer) => answer.map_err(|error| translate(error, action, limit)),
    }
}

async fn bounded_for<T>(
    name: &ContainerName,
    limit: Duration,
    action: &'static str,
    call: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, SandboxError> {
    match timeout(limit, call).await {
        Err(_) => Err(SandboxError::TimedOut(limit, action)),
        Ok(answer) => answer.map_err(|error| translate_for(name, error, action, limit)),
    }
}

/// The container's status with what the engine may have missed and the host's kernel has not.
async fn seen_by_the_kernel(status: Status, process: FirstProcess) -> Status {
    match status {
        Status::Running => match lifeless::is_lifeless(process).await {
            true => Status::Lifeless,
            false => Status::Running,
        },
        Status::Exited(exit) if exit.code != 0 && !exit.oom_killed => {
            let told = tokio::task::spawn_blocking(move || kernel_log::tells_of_a_kill(&process.container)).await;
            Status::Exited(Exit { oom_killed: told.unwrap_or(false), ..exit })
        }
        other => other,
    }
}

fn cpus(system: &bollard::models::SystemInfo) -> u32 {
    system.ncpu.and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1)
}

/// The mounts' sources as the file system knows them, if every one lies below a root. Symbolic links are followed
/// first, so that none leads out.
fn resolve_sources(mounts: &[Mount], roots: &[PathBuf]) -> Result<Vec<PathBuf>, SandboxError> {
    let roots: Vec<_> = roots.iter().filter_map(|root| root.canonicalize().ok()).collect();
    let resolve =
        |source: &Path| source.canonicalize().ok().filter(|real| roots.iter().any(|root| is_below(real, root)));
    mounts
        .iter()
        .map(|mount| resolve(&mount.source).ok_or_else(|| SandboxError::MountRefused(mount.source.clone())))
        .collect()
}

/// Below, and not the root itself: that would show one job what another has.
fn is_below(path: &Path, root: &Path) -> bool {
    path != root && path.starts_with(root)
}

/// Bytes of a container's output for which its last [`MANY_LINES`] are asked for, and not all that the engine has kept.
const FEW_WORDS: usize = 64 << 10;
const MANY_LINES: &str = "1000";

fn keep_last(words: &mut Vec<u8>, most: usize) {
    if words.len() > most {
        words.drain(..words.len() - most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Access;

    fn mount(source: PathBuf) -> Mount {
        Mount { source, target: "/in/model".into(), access: Access::ReadOnly }
    }

    #[test]
    fn a_mount_has_to_lie_below_a_root_after_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("state");
        std::fs::create_dir_all(root.join("models/a")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("models/etc")).unwrap();
        let roots = [root.clone()];
        let inside = mount(root.join("models/../models/a"));
        assert_eq!(resolve_sources(&[inside], &roots).unwrap(), [root.canonicalize().unwrap().join("models/a")]);
        for outside in [root.clone(), root.join("models/etc"), root.join("missing"), "/var/run/docker.sock".into()] {
            assert_eq!(resolve_sources(&[mount(outside.clone())], &roots), Err(SandboxError::MountRefused(outside)));
        }
    }

    #[test]
    fn last_words_are_the_last() {
        let mut words = b"abcdef".to_vec();
        keep_last(&mut words, 4);
        assert_eq!(words, b"cdef");
    }
}
