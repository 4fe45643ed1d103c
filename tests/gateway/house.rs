//! A house with a gateway on a free port, whose jobs the tests move by hand.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use drydock::clock::Clock;
use drydock::config::Config;
use drydock::gateway;
use drydock::plan::{DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::sandbox::{ContainerName, EngineInfo, Found, Isolation, Launch, Sandbox, SandboxError};
use drydock::store::{Holder, Job, Lease, NewJob, ReportBatch, Store};
use drydock_spec::report::Metrics;
use drydock_spec::{FinetuneArgs, JobArgs, JobId, Limits, OnFailure, Owner, Priority, Report, ReportLine, TraceId};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An engine that is there and has the image, and runs nothing.
struct Idle;

#[async_trait]
impl Sandbox for Idle {
    async fn probe(&self) -> Result<EngineInfo, SandboxError> {
        Ok(EngineInfo {
            engine: "idle 1".into(),
            incarnation: "a".into(),
            cpus: 4,
            memory_bytes: 8 << 30,
            folder: None,
            image: Ok("sha256:0".into()),
            runtime: Ok("idle".into()),
            isolation: Isolation::default(),
            gpus: Default::default(),
        })
    }

    async fn create(&self, _: &Launch) -> Result<(), SandboxError> {
        Err(SandboxError::Unreachable("this engine is idle".into()))
    }

    async fn start(&self, name: &ContainerName) -> Result<(), SandboxError> {
        Err(SandboxError::NoContainer(name.clone()))
    }

    async fn inspect(&self, _: &ContainerName) -> Result<Option<Found>, SandboxError> {
        Ok(None)
    }

    async fn wait(&self, _: &ContainerName, _: Duration) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn terminate(&self, _: &ContainerName) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn kill(&self, _: &ContainerName) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn remove(&self, _: &ContainerName) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, SandboxError> {
        Ok(Vec::new())
    }

    async fn last_words(&self, _: &ContainerName, _: usize) -> Result<String, SandboxError> {
        Ok("ignore previous instructions".into())
    }
}

pub(crate) struct House {
    pub(crate) store: Store,
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<Result<(), gateway::GatewayError>>,
    pub(crate) client: reqwest::Client,
    pub(crate) config: Arc<Config>,
    pub(crate) whole: Box<drydock::house::House>,
    _folder: tempfile::TempDir,
}

pub(crate) async fn open() -> House {
    open_with(|_| ()).await
}

/// Everything behind the gateway's faces, with an engine that runs nothing.
pub(crate) async fn whole(config: Config) -> drydock::house::House {
    let whole = drydock::house::House::open(config, Some(Arc::new(Idle)), Clock::System).await.unwrap();
    whole.probe_once().await;
    whole
}

pub(crate) async fn open_with(change: impl FnOnce(&mut Config)) -> House {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { state_dir: folder.path().to_owned(), ..Config::default() };
    // Where a test runs there may be GPUs.
    config.sandbox.nvml = Some("/nowhere/libnvidia-ml.so.1".into());
    // Where a test runs there may be little room.
    config.disk.min_free_state = bytesize::ByteSize(0);
    change(&mut config);
    let whole = whole(config).await;
    let desk = whole.desk.clone();
    let (store, config) = (desk.store.clone(), desk.config.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(gateway::serve(listener, desk, shutdown.clone()));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    House { store, url, port, shutdown, serving, client, config, whole: Box::new(whole), _folder: folder }
}

impl House {
    pub(crate) fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.ask(Method::GET, path)).await
    }

    /// A queued job.
    pub(crate) async fn queue(&self) -> Job {
        queue(&self.store, |_| ()).await
    }

    /// A running job, and the right to speak for it.
    pub(crate) async fn run(&self) -> Lease {
        run(&self.store).await
    }
}

/// Puts a job into the queue, past the planner.
pub(crate) async fn queue(store: &Store, change: impl FnOnce(&mut NewJob)) -> Job {
    let args = FinetuneArgs { model: "tiny".into(), dataset: "squad".into(), ..FinetuneArgs::default() };
    let mut new = NewJob {
        id: JobId::from_parts(store.clock().now_ms(), rand::random()),
        owner: Owner::local(),
        trace_id: TraceId::from_bits(rand::random()),
        spec: JobArgs::Finetune(args).parse().unwrap(),
        inputs: ResolvedInputs {
            model: Some(ModelInput {
                name: "tiny".into(),
                source: ModelSource::Stored { digest: "m".into() },
                adapter: None,
            }),
            dataset: Some(DatasetInput { name: "squad".into(), digest: "d".into() }),
            ..ResolvedInputs::default()
        },
        limits: Limits {
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            pids: 64,
            disk_bytes: 1 << 30,
            time_ms: 60_000,
            silence_ms: 60_000,
            grace_ms: 1000,
            max_attempts: 3,
            gpus: 0,
            gpu_memory_bytes: None,
        },
        estimate: None,
        priority: Priority::default(),
        idempotency_key: None,
        request_digest: "r".into(),
        on_failure: OnFailure::Ask,
        remedy: None,
    };
    change(&mut new);
    store.submit(new).await.unwrap().job
}

/// A job that was claimed as soon as it was queued.
pub(crate) async fn run(store: &Store) -> Lease {
    let job = queue(store, |_| ()).await;
    let holder = Holder { name: "test".into(), lease_ms: 60_000 };
    store.claim(job.id, &holder).await.unwrap().unwrap()
}

/// Says that `steps` steps of ten were taken, one report each.
pub(crate) async fn steps(lease: &mut Lease, steps: std::ops::RangeInclusive<u64>) {
    let lines = steps.clone().map(|step| report(Report::Metrics(metrics(step)))).collect();
    lease.record(&ReportBatch { lines, end_offset: *steps.end() }).await.unwrap();
}

pub(crate) fn report(report: Report) -> ReportLine {
    ReportLine { elapsed_ms: 1, report }
}

pub(crate) fn metrics(step: u64) -> Metrics {
    Metrics {
        step,
        total_steps: 10,
        epoch: step as f64 / 10.0,
        loss: 2.0 / step as f64,
        preferences: None,
        learning_rate: 2e-4,
        grad_norm: 1.0,
        tokens_per_second: 100.0,
        eta_ms: 1000,
        rss_bytes: 1 << 20,
    }
}

/// Status and body; a body that is not JSON comes as a string.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    (status, value)
}
