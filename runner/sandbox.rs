//! The one seam to a container engine: what the runner asks for, in words that fit Docker, Slurm and Kubernetes alike.
//!
//! The engine's memory is the truth about containers, ours is not: an engine can start a container and still lose the
//! reply. So containers are named before they are created, carry everything that is needed to recognise them as
//! labels, and are looked up again rather than remembered.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use drydock_spec::{Attempt, JobId, Limits, TraceId};
use gpus::{GpuAccess, Injector};
use users::IdMap;

pub mod attempt_dir;
pub mod docker;
pub mod gpus;
pub mod users;

/// What a container is called: known before it exists, so that of two creates only one can win.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerName(pub String);

impl ContainerName {
    /// The container of an attempt.
    #[must_use]
    pub fn of(job: JobId, attempt: Attempt) -> Self {
        Self(format!("drydock-{}-{attempt}", job.to_string().to_lowercase()))
    }
}

impl std::fmt::Display for ContainerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a container carries, so that it can be recognised after everybody has forgotten it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// The installation that the container belongs to; several may share an engine.
    pub instance: String,
    pub job: JobId,
    pub attempt: Attempt,
    /// Changes whenever the attempt is started anew; a container with another fence is not ours to adopt.
    pub fence: String,
    pub trace_id: TraceId,
}

/// How the inside may use a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    /// Read and write, but nothing can be executed and no device or setuid bit counts.
    ReadWrite,
}

/// A file or folder of the host that the inside sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Must exist and lie below one of the folders that the sandbox was configured to mount from.
    pub source: PathBuf,
    pub target: String,
    pub access: Access,
}

/// A container to be.
#[derive(Debug, Clone)]
pub struct Launch {
    pub name: ContainerName,
    pub labels: Labels,
    /// Arguments to the image's entrypoint, such as `run /job/spec.json`.
    pub args: Vec<String>,
    pub mounts: Vec<Mount>,
    /// The user and group inside; never root.
    pub user: (u32, u32),
    pub limits: Limits,
    /// UUIDs of the GPUs and MIG slices that the inside gets, as NVML tells them; it sees no other.
    pub gpus: Vec<String>,
}

/// How a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Created and never started; `error` is the engine's word if a start was tried and failed.
    Created {
        error: Option<String>,
    },
    Running,
    /// The engine says that it runs, and its first process is gone: the engine has not noticed yet, and may never.
    Lifeless,
    Exited(Exit),
}

impl Status {
    /// Whether it was started and, for all that the engine knows, has not ended.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Running | Self::Lifeless)
    }
}

/// How a container ended, in facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; above 128 the number of a signal plus 128.
    pub code: i64,
    /// Whether the kernel killed a process of the container for memory. Sticky: a child's death counts too.
    pub oom_killed: bool,
}

/// A container as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: ContainerName,
    /// What the engine calls it in the control groups of its processes.
    pub id: String,
    pub labels: Labels,
    pub status: Status,
    /// When it was created, in milliseconds since 1970, by the engine's clock.
    pub created_ms: i64,
}

/// What the engine is and has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Name and version, such as `docker 20.10.24`.
    pub engine: String,
    /// Changes when the engine was restarted; containers that died across a change were not at fault.
    pub incarnation: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Where the engine keeps its data, as its own host calls it.
    pub folder: Option<PathBuf>,
    /// The id that the configured image resolves to.
    pub image: Result<String, SandboxError>,
    /// The OCI runtime that containers get, such as `runc`.
    pub runtime: Result<String, SandboxError>,
    pub isolation: Isolation,
    pub gpus: GpuAccess,
}

/// What an engine puts between its containers and the host, besides what each container is created with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Who containers' users are on the host.
    pub ids: IdMap,
    /// Whether containers can append to a file that is append-only on the host.
    pub append_only: bool,
    /// Whether the engine filters system calls.
    pub seccomp: bool,
    /// Whether the engine itself runs without root.
    pub rootless: bool,
    /// Such as `AppArmor` or `SELinux`.
    pub mandatory: Vec<String>,
    /// `1` or `2`, as the engine says.
    pub cgroup: String,
    /// Whether systemd keeps the engine's control groups, and may write their rules anew.
    pub systemd: bool,
}

/// The engine could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// Nothing is known about the container: it may or may not exist, run, or have ended.
    #[error("the container engine does not answer: {0}; is it running, and may this user reach it?")]
    Unreachable(String),
    #[error("the engine took longer than {0:?} to {1}")]
    TimedOut(Duration, &'static str),
    #[error(
        "worker image `{0}` is not on this host; build it with `make image` or name another one in the configuration"
    )]
    ImageMissing(String),
    #[error(
        "the engine has no OCI runtime `{0}`; register it under `runtimes` in the engine's daemon.json, or change \
         sandbox.runtime"
    )]
    RuntimeMissing(String),
    #[error(
        "worker image `{image}` declares volumes ({volumes}), where a job could fill the host's disk; build it without \
         VOLUME"
    )]
    ImageHasVolumes { image: String, volumes: String },
    #[error("container `{0}` exists already")]
    NameTaken(ContainerName),
    #[error("no container `{0}`")]
    NoContainer(ContainerName),
    #[error("mount source {0} is not below a folder that drydock may mount")]
    MountRefused(PathBuf),
    /// The container's GPUs did not get into it, which is no fault of the job's.
    #[error("the injector `{injector}` gives containers no GPU here: {message}")]
    NoInjection { injector: Injector, message: String },
    /// No injector is known to work.
    #[error("no container can have a GPU: {0}; see `drydock doctor`")]
    NoInjector(String),
    /// The engine says that something went wrong on its side. What it was asked for may have taken effect or not.
    #[error("the container engine failed to {action}: {message}")]
    Failed { action: &'static str, message: String },
    /// The same, for want of room on the engine's own disk.
    #[error("the container engine has no room on its disk to {action}: {message}")]
    NoRoom { action: &'static str, message: String },
    /// The engine understood and refused.
    #[error("the container engine refused to {action}: {message}")]
    Refused { action: &'static str, message: String },
}

impl SandboxError {
    /// Whether the engine's state is unknown after this error, so that nothing may be concluded from it.
    #[must_use]
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(..) | Self::Failed { .. } | Self::NoRoom { .. } => true,
            Self::ImageMissing(_)
            | Self::ImageHasVolumes { .. }
            | Self::RuntimeMissing(_)
            | Self::NameTaken(_)
            | Self::NoContainer(_)
            | Self::MountRefused(_)
            | Self::NoInjection { .. }
            | Self::NoInjector(_)
            | Self::Refused { .. } => false,
        }
    }
}

/// A container engine. Every call is bounded in time, and may be repeated.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// Whether the engine answers, and what it has.
    async fn probe(&self) -> Result<EngineInfo, SandboxError>;

    /// Finds out how containers get GPUs, where there are any and it is not known: what may work is tried with
    /// short-lived containers, which takes seconds. Says whether [`probe`](Self::probe) has something new to tell.
    async fn try_injectors(&self) -> bool {
        false
    }

    /// Creates the container without starting it.
    async fn create(&self, launch: &Launch) -> Result<(), SandboxError>;

    /// Starts a container that was never started. Engines restart ended containers without a word, so one that has
    /// ended is refused here; one that runs is no error, as the reply to an earlier start may have been lost.
    async fn start(&self, name: &ContainerName) -> Result<(), SandboxError>;

    /// The container as it is now, or `None` if there is none of that name.
    async fn inspect(&self, name: &ContainerName) -> Result<Option<Found>, SandboxError>;

    /// Returns when the container is not running (any more), or after at most `limit`; `inspect` tells which.
    async fn wait(&self, name: &ContainerName, limit: Duration) -> Result<(), SandboxError>;

    /// Asks the container to end: SIGTERM, nothing more. One that has ended already is no error, one that is gone is.
    async fn terminate(&self, name: &ContainerName) -> Result<(), SandboxError>;

    /// Ends the container now. One that has ended already is no error, one that is gone is.
    async fn kill(&self, name: &ContainerName) -> Result<(), SandboxError>;

    /// Removes the container, killing it if need be. One that is gone already is no error.
    async fn remove(&self, name: &ContainerName) -> Result<(), SandboxError>;

    /// Every container of this installation, as it is now.
    async fn list(&self) -> Result<Vec<Found>, SandboxError>;

    /// The end of what the container wrote to stdout and stderr, at most `bytes` and at most what the engine has kept:
    /// the last words of a program, for people to read, and to tell why it died where nothing better does.
    async fn last_words(&self, name: &ContainerName, bytes: usize) -> Result<String, SandboxError>;
}
