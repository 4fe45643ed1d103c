//! The one typed configuration: a file, the environment and flags, in rising order of precedence.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use drydock_spec::OnFailure;
use serde::{Deserialize, Serialize};

use crate::sandbox::Isolation;
use crate::sandbox::attempt_dir::{FolderSettings, OutputCap};
use crate::sandbox::gpus::InjectorChoice;
use crate::sandbox::users::{UserRange, Users};

mod address;
mod error;
mod gpus;
mod key;
mod load;

pub use address::{AddressFile, published};
pub use error::{BadKey, ConfigError};
pub use gpus::DefaultGpus;
pub use key::{KEYS, Key};
pub use load::{Flag, Loaded, Sources, load};

/// Everything that can be set. Every field has a default that is safe on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder for the database, models, datasets, attempts and artifacts.
    pub state_dir: PathBuf,
    /// Folders that `load_dataset` and model imports may read files from; files and folders whose names begin with a
    /// dot are never read.
    pub data_dirs: Vec<PathBuf>,
    pub gateway: GatewayConfig,
    pub capacity: CapacityConfig,
    pub sandbox: SandboxConfig,
    pub limits: LimitsConfig,
    pub queue: QueueConfig,
    pub disk: DiskConfig,
    pub retention: RetentionConfig,
    pub remedies: RemediesConfig,
    pub hub: HubConfig,
    pub wording: WordingConfig,
    pub log: LogConfig,
}

impl Config {
    /// What is allowed but should be known, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let listen = self.gateway.listen;
        let mut warnings = Vec::new();
        if !listen.ip().is_loopback() {
            warnings.push(format!(
                "gateway.listen = {listen}: other machines can reach the gateway and there is no authentication yet; \
                 let only machines that you trust reach this port"
            ));
        }
        warnings
    }

    /// Where the folders of attempts lie.
    #[must_use]
    pub fn attempts_dir(&self) -> PathBuf {
        self.state_dir.join("attempts")
    }

    /// Where the folders of previews lie.
    #[must_use]
    pub fn previews_dir(&self) -> PathBuf {
        self.state_dir.join("previews")
    }

    /// How attempts' folders are made for the containers of such an engine.
    #[must_use]
    pub fn folder_settings(&self, isolation: &Isolation) -> FolderSettings {
        FolderSettings {
            users: self.users().mapped(isolation.ids),
            output_cap: self.sandbox.output_cap,
            append_only: isolation.append_only,
        }
    }

    /// The users that containers run as.
    fn users(&self) -> Users {
        match self.sandbox.uids {
            Some(range) => Users::own(range, vec![self.attempts_dir(), self.previews_dir()]),
            None => Users::shared(self.sandbox.uid, self.sandbox.gid),
        }
    }
}

/// Where and to whom the gateway answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Values of the Host header that are accepted besides loopback's own, such as `gpu-box.lan:7717`.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may speak to the gateway, such as `https://example.org`.
    pub allowed_origins: Vec<String>,
    /// Largest request body, except for uploads of blobs.
    pub max_body: ByteSize,
    /// Largest blob that may be uploaded.
    pub max_upload: ByteSize,
}

/// What jobs may use of the host, all together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// CPUs; by default all that the engine has.
    pub cpus: Option<f64>,
    /// Memory; by default four fifths of what the engine has.
    pub memory: Option<ByteSize>,
}

/// How containers are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxConfig {
    /// The worker's image: an id, or a name that is resolved to an id before each attempt.
    pub image: String,
    /// Address of the engine, such as `unix:///run/user/1000/docker.sock`; by default `DOCKER_HOST` or Docker's own.
    pub docker_host: Option<String>,
    /// OCI runtime, such as `runsc`; by default the engine's own.
    pub runtime: Option<String>,
    /// User and group that the worker has inside. A gateway that is not root can give it none but its own.
    pub uid: u32,
    pub gid: u32,
    /// Users such as `70000-70999` of which every container has one to itself, as user and as group, instead of `uid`
    /// and `gid`. Needs a gateway that is root; no two gateways of a host may share any.
    pub uids: Option<UserRange>,
    /// File of NVIDIA's management library, by which GPUs are looked at; by default the one that comes with the driver.
    pub nvml: Option<PathBuf>,
    /// How containers get GPUs.
    pub gpus: InjectorChoice,
    /// Size of /tmp inside; it counts against the job's memory.
    pub tmp: ByteSize,
    /// How the output folder is capped.
    pub output_cap: OutputCap,
}

/// Limits of a job that does not say otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// CPUs of a job; by default all that jobs may use.
    pub cpus: Option<f64>,
    pub disk: ByteSize,
    pub pids: u32,
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// Time from SIGTERM to SIGKILL.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Attempts of a job, the first one included; only failures of the infrastructure are tried again.
    pub max_attempts: u32,
    /// GPUs of a job.
    pub gpus: DefaultGpus,
}

/// Who comes next where not everybody fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Time after which what an owner has had of the host counts half.
    #[serde(with = "humantime_serde")]
    pub half_life: Duration,
    /// Time after which an owner's oldest job goes to the front of the line.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// Jobs that may share a GPU or MIG slice.
    pub gpu_sharers: u32,
}

/// Room that is kept free: with less, no job starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// On the state folder's disk.
    pub min_free_state: ByteSize,
    /// On the disk of the container engine's own folder, where that is on this host.
    pub min_free_engine: ByteSize,
}

/// What is kept of jobs that have ended, and for how long. Without a limit it is kept for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Time after a job's end for which its artifacts are kept.
    #[serde(with = "humantime_serde")]
    pub artifacts_age: Option<Duration>,
    /// Jobs whose artifacts are kept, the newest.
    pub artifacts_jobs: Option<u64>,
    /// Bytes of artifacts that are kept, the newest.
    pub artifacts_bytes: Option<ByteSize>,
    /// Time after a job's end for which its metrics and the other reports on its course are kept.
    #[serde(with = "humantime_serde")]
    pub reports_age: Option<Duration>,
    /// Jobs of which they are kept, the newest.
    pub reports_jobs: Option<u64>,
    /// Time after a job's failure for which its last checkpoint is kept, for a remedy to go on from.
    #[serde(with = "humantime_serde")]
    pub checkpoints_age: Duration,
    /// Time for which files stay in the store that no model, no dataset and no job needs any more.
    #[serde(with = "humantime_serde")]
    pub unused_age: Duration,
}

/// What is done about failures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemediesConfig {
    /// What happens when an attempt fails for a reason of the job's own, where the job does not say.
    pub on_failure: OnFailure,
    /// Time after a job's first start in which drydock may still apply a remedy by itself.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
}

/// The model hub.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// Address of the hub; `HF_ENDPOINT` is honoured as well.
    pub endpoint: Option<String>,
    /// File that holds the token; `HF_TOKEN` is honoured as well.
    pub token_file: Option<PathBuf>,
    /// Never ask the hub for anything.
    pub offline: bool,
}

/// A language model that puts explanations into words, where somebody asks for that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WordingConfig {
    /// Address of an endpoint that speaks OpenAI's chat completions, with its version; without one nothing is asked.
    pub endpoint: Option<String>,
    /// Name of the model there.
    pub model: String,
    /// File that holds the key.
    pub key_file: Option<PathBuf>,
    /// Longest time that an answer may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl WordingConfig {
    /// The endpoint, if one is to be asked.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

/// The gateway's own log, on stderr.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// In the form of `RUST_LOG`.
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: default_state_dir(),
            data_dirs: vec![PathBuf::from(".")],
            gateway: GatewayConfig::default(),
            capacity: CapacityConfig::default(),
            sandbox: SandboxConfig::default(),
            limits: LimitsConfig::default(),
            queue: QueueConfig::default(),
            disk: DiskConfig::default(),
            retention: RetentionConfig::default(),
            remedies: RemediesConfig::default(),
            hub: HubConfig::default(),
            wording: WordingConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// `$XDG_DATA_HOME/drydock`, by default `~/.local/share/drydock`.
fn default_state_dir() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from)?;
        Some(home.join(".local/share"))
    });
    base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("drydock")
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7717)),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_body: ByteSize::mib(4),
            max_upload: ByteSize::gib(64),
        }
    }
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            image: "drydock-worker:latest".into(),
            docker_host: None,
            runtime: None,
            uid: 65532,
            gid: 65532,
            uids: None,
            nvml: None,
            gpus: InjectorChoice::Auto,
            tmp: ByteSize::mib(64),
            output_cap: OutputCap::Auto,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            cpus: None,
            disk: ByteSize::gib(10),
            pids: 512,
            time: Duration::from_secs(24 * 3600),
            silence: Duration::from_secs(600),
            grace: Duration::from_secs(30),
            max_attempts: 3,
            gpus: DefaultGpus::Auto,
        }
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { half_life: Duration::from_secs(24 * 3600), patience: Duration::from_secs(4 * 3600), gpu_sharers: 4 }
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { min_free_state: ByteSize::gib(1), min_free_engine: ByteSize::gib(1) }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            artifacts_age: None,
            artifacts_jobs: None,
            artifacts_bytes: None,
            reports_age: None,
            reports_jobs: None,
            checkpoints_age: Duration::from_secs(7 * 24 * 3600),
            unused_age: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Default for RemediesConfig {
    fn default() -> Self {
        Self { on_failure: OnFailure::Ask, time: Duration::from_secs(24 * 3600) }
    }
}

impl Default for WordingConfig {
    fn default() -> Self {
        Self { endpoint: None, model: String::new(), key_file: None, timeout: Duration::from_secs(20) }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,rmcp=warn".into() }
    }
}

impl CapacityConfig {
    /// What jobs may use of an engine's host.
    #[must_use]
    pub fn of(&self, engine: &crate::sandbox::EngineInfo) -> drydock_gpu::Capacity {
        let all = u64::from(engine.cpus) * 1000;
        drydock_gpu::Capacity {
            cpu_millis: self.cpus.map_or(all, |cpus| ((cpus * 1000.0) as u64).min(all)),
            memory_bytes: self.memory.map_or(engine.memory_bytes / 5 * 4, |memory| memory.0.min(engine.memory_bytes)),
        }
    }
}
