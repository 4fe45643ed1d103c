//! What a job's worker would make of its rows, without training: the worker itself says so, in a container of its own.
//!
//! Chat templates come with models and are programs; so they are rendered where jobs run, never in the gateway.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use drydock_spec::contract::{EVENTS_PATH, OUTPUT_PATH, SPEC_PATH, VERSION};
use drydock_spec::preview::FILE;
use drydock_spec::{Attempt, AttemptSpec, Failure, JobId, JobSpec, Limits, Preview, Report, TraceId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::reports::ReportReader;
use crate::config::Config;
use crate::engine::EngineWatch;
use crate::hostile;
use crate::in_hand::InHand;
use crate::legible::make_legible;
use crate::sandbox::attempt_dir::{self, AttemptDir, AttemptDirError, FolderSettings, InputFolders, OutputCap, Usage};
use crate::sandbox::{ContainerName, Labels, Launch, Sandbox, SandboxError, Status};

/// Previews that may be made at once.
const AT_ONCE: usize = 2;
/// How long a preview may take in all.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked at what a preview writes.
const LOOK: Duration = Duration::from_millis(250);
/// The longest preview that is read, in bytes.
const MOST_BYTES: u64 = 4 << 20;

/// There is no preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The worker says that the job would fail.
    #[error("{0}")]
    Refused(Failure),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Dir(#[from] AttemptDirError),
    #[error("the preview took longer than {LIMIT:?}; the dataset may be very large")]
    TooLong,
    #[error("the worker image made no preview: {0}")]
    Broken(String),
}

/// Makes previews. Cloning shares it.
#[derive(Clone)]
pub struct Previews {
    sandbox: Arc<dyn Sandbox>,
    engine: EngineWatch,
    config: Arc<Config>,
    instance: String,
    in_hand: InHand,
    at_once: Arc<Semaphore>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl Previews {
    pub fn new(
        sandbox: Arc<dyn Sandbox>,
        engine: EngineWatch,
        config: Arc<Config>,
        instance: String,
        in_hand: InHand,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            sandbox,
            engine,
            config,
            instance,
            in_hand,
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            tracker,
            shutdown,
        }
    }

    /// Removes what a process that died has left.
    pub fn sweep(&self) -> Result<(), AttemptDirError> {
        attempt_dir::sweep(&self.root(), |_, _| false).map(|_| ())
    }

    /// What the worker would make of the rows for `spec`, tokenized by the model in `folders`.
    pub async fn preview(&self, spec: JobSpec, folders: InputFolders) -> Result<Preview, PreviewError> {
        // Whoever asked may go away; the container and its folder are removed all the same.
        let previews = self.clone();
        let made = self.tracker.spawn(async move { previews.make_and_remove(spec, &folders).await });
        made.await.map_err(|error| PreviewError::Broken(error.to_string()))?
    }

    async fn make_and_remove(&self, spec: JobSpec, folders: &InputFolders) -> Result<Preview, PreviewError> {
        // Never closed, so there always is a permit to come.
        let _permit = self.at_once.acquire().await.map_err(|error| PreviewError::Broken(error.to_string()))?;
        let (job, limits) = (JobId::from_parts(0, rand::random()), limits());
        let _in_hand = self.in_hand.take(job, Attempt::FIRST);
        let spec = attempt_spec(job, spec, folders);
        let name = ContainerName(format!("drydock-preview-{}", job.to_string().to_lowercase()));
        let isolation = self.engine.now()?.isolation;
        let root = self.root();
        let launch_spec = spec.clone();
        // Its output is one small file: a file system of its own would take longer to make than the preview.
        let how = FolderSettings { output_cap: OutputCap::Watched, ..self.config.folder_settings(&isolation) };
        let make = move || AttemptDir::create(&root, &launch_spec, &limits, &how);
        let dir = blocking(make).await??;
        let launch = Launch {
            name: name.clone(),
            labels: Labels {
                instance: self.instance.clone(),
                job,
                attempt: Attempt::FIRST,
                fence: "preview".into(),
                trace_id: spec.trace_id.clone(),
            },
            args: vec!["preview".into(), SPEC_PATH.into()],
            mounts: dir.mounts(folders),
            user: isolation.ids.inside(dir.owner()?),
            limits,
            gpus: Vec::new(),
        };
        let made = tokio::select! {
            made = self.make(&launch, &dir) => made,
            () = tokio::time::sleep(LIMIT) => Err(PreviewError::TooLong),
            () = self.shutdown.cancelled() => Err(PreviewError::Broken("the gateway is shutting down".into())),
        };
        if let Err(error) = self.sandbox.remove(&name).await {
            tracing::warn!(%error, container = %name, "a preview's container stays until the next sweep");
        }
        blocking(move || dir.remove()).await??;
        made
    }

    async fn make(&self, launch: &Launch, dir: &AttemptDir) -> Result<Preview, PreviewError> {
        self.sandbox.create(launch).await?;
        self.sandbox.start(&launch.name).await?;
        loop {
            self.sandbox.wait(&launch.name, LOOK).await?;
            match self.sandbox.inspect(&launch.name).await?.map(|found| found.status) {
                Some(Status::Exited(exit)) if exit.code == 0 => return read(&dir.output_path()),
                Some(Status::Exited(exit)) => return Err(why(dir, exit.code)),
                Some(Status::Running | Status::Lifeless) => require_little(dir).await?,
                Some(Status::Created { error }) => return Err(PreviewError::Broken(error.unwrap_or_default())),
                None => return Err(PreviewError::Broken("its container is gone".into())),
            }
        }
    }

    fn root(&self) -> PathBuf {
        self.config.previews_dir()
    }
}

/// What a preview writes is watched, not capped: whoever takes over a worker must not have half a minute to fill the
/// host's disk.
async fn require_little(dir: &AttemptDir) -> Result<(), PreviewError> {
    let bytes = limits().disk_bytes;
    let most = Usage { bytes, files: 100, events_bytes: bytes };
    let dir = dir.clone();
    let used = blocking(move || dir.usage(most)).await??;
    if used.bytes > most.bytes || used.files > most.files || used.events_bytes > most.events_bytes {
        return Err(PreviewError::Broken(format!("it wrote more than {bytes} bytes or 100 files")));
    }
    Ok(())
}

/// A preview tokenizes text and holds no weights.
fn limits() -> Limits {
    Limits {
        memory_bytes: 1 << 30,
        cpu_millis: 1000,
        pids: 64,
        disk_bytes: 16 << 20,
        time_ms: LIMIT.as_millis() as i64,
        silence_ms: LIMIT.as_millis() as i64,
        grace_ms: 0,
        max_attempts: 1,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}

fn attempt_spec(job: JobId, spec: JobSpec, folders: &InputFolders) -> AttemptSpec {
    AttemptSpec {
        contract: VERSION,
        job,
        attempt: Attempt::FIRST,
        trace_id: TraceId::from_bits(rand::random()),
        spec,
        inputs: folders.inside(),
        output: OUTPUT_PATH.into(),
        events: EVENTS_PATH.into(),
        threads: 1,
        gpus: 0,
    }
}

/// The preview is hostile input like everything that comes out of a container.
fn read(output: &Path) -> Result<Preview, PreviewError> {
    let broken = |error: &dyn std::fmt::Display| PreviewError::Broken(format!("{FILE}: {error}"));
    let root = hostile::open_root(output).map_err(|errno| broken(&errno))?;
    let file = std::fs::File::from(hostile::open_file(&root, Path::new(FILE)).map_err(|errno| broken(&errno))?);
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text).map_err(|error| broken(&error))?;
    let mut value = serde_json::from_slice(&text).map_err(|error| broken(&error))?;
    make_legible(&mut value);
    serde_json::from_value(value).map_err(|error| broken(&error))
}

/// Why the worker gave none: its last report says so, if it honours the contract.
fn why(dir: &AttemptDir, code: i64) -> PreviewError {
    let last = ReportReader::open(&dir.events_path(), 0, false)
        .and_then(|mut reader| reader.read_once())
        .ok()
        .and_then(|reading| reading.batch.lines.into_iter().next_back());
    match last.map(|line| line.report) {
        Some(Report::Failed(failure)) => PreviewError::Refused(failure),
        _ => PreviewError::Broken(format!("exit code {code} and no reason")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PreviewError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| PreviewError::Broken(error.to_string()))
}
