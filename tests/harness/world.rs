//! A whole house on a scripted engine, in a folder that goes when the test does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use drydock::api::{Estimate, JobView};
use drydock::clock::Clock;
use drydock::config::Config;
use drydock::house::House;
use drydock::plan::{DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::sandbox::attempt_dir::OutputCap;
use drydock::store::{Entry, NewJob};
use drydock_spec::{FinetuneArgs, JobArgs, JobId, Limits, OnFailure, Owner, Priority, TraceId};

use super::folder::Folder;
use super::scripted::Scripted;

/// Longest that any test waits for anything; reached only when something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub engine: Scripted,
    pub house: House,
    folder: Folder,
}

impl World {
    /// A house that is open and at work.
    pub async fn new() -> Self {
        Self::with(Scripted::new()).await
    }

    /// The same on an engine that has been told what to do.
    pub async fn with(engine: Scripted) -> Self {
        Self::with_config(engine, |_| ()).await
    }

    /// The same with another configuration.
    pub async fn with_config(engine: Scripted, change: impl FnOnce(&mut Config)) -> Self {
        let world = Self::opened(engine, Clock::System, change).await;
        world.house.start().await.unwrap();
        world
    }

    /// The same, and nothing happens by itself but that the GPUs are watched: a test claims and runs attempts.
    pub async fn at_rest(engine: Scripted, clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        let world = Self::opened(engine, clock, change).await;
        world.house.probe_once().await;
        tokio::spawn(world.house.gpus.clone().run(world.house.shutdown()));
        world
    }

    async fn opened(engine: Scripted, clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        let folder = Folder::new();
        for input in ["models/aa", "datasets/bb"] {
            std::fs::create_dir_all(folder.state().join(input)).unwrap();
        }
        let mut config = config(&folder.state());
        change(&mut config);
        let house = open(config, &engine, clock).await;
        Self { engine, house, folder }
    }

    /// Begins the job's next attempt, on these GPUs.
    pub async fn begin_on(&self, id: JobId, gpus: &[&str]) {
        let dispatch = &self.house.reaper.dispatch;
        let gpus: Vec<_> = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
        let lease = self.house.desk.store.claim_on(id, &dispatch.holder, &gpus).await.unwrap().unwrap();
        tokio::spawn(dispatch.attempts.clone().run(lease));
    }

    /// The process ends, and another one opens the same state folder. Containers notice nothing.
    pub async fn restart(self) -> Self {
        let Self { engine, house, folder } = self;
        let config = (*house.desk.config).clone();
        house.close().await;
        let house = open(config, &engine, Clock::System).await;
        house.start().await.unwrap();
        Self { engine, house, folder }
    }

    /// Queues a finetune with these limits.
    pub async fn submit(&self, limits: Limits) -> JobId {
        let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        let inputs = ResolvedInputs {
            model: Some(ModelInput {
                name: "m".into(),
                source: ModelSource::Stored { digest: "aa".into() },
                adapter: None,
            }),
            dataset: Some(DatasetInput { name: "d".into(), digest: "bb".into() }),
            ..ResolvedInputs::default()
        };
        self.queue(JobArgs::Finetune(args), inputs, limits).await
    }

    /// Queues a job that reads this, with limits that are far away.
    pub async fn submit_job(&self, job: JobArgs, inputs: ResolvedInputs) -> JobId {
        self.queue(job, inputs, limits()).await
    }

    async fn queue(&self, job: JobArgs, inputs: ResolvedInputs, limits: Limits) -> JobId {
        let new = NewJob {
            id: JobId::from_parts(self.house.desk.store.clock().now_ms(), rand::random()),
            owner: Owner::local(),
            trace_id: TraceId::from_bits(rand::random()),
            spec: job.parse().unwrap(),
            inputs,
            limits,
            estimate: Some(estimate()),
            priority: Priority::default(),
            idempotency_key: None,
            request_digest: String::new(),
            on_failure: OnFailure::Ask,
            remedy: None,
        };
        self.house.desk.store.submit(new).await.unwrap().job.id
    }

    pub async fn job(&self, id: JobId) -> JobView {
        self.house.desk.job(id).await.unwrap()
    }

    /// The job as soon as `holds` holds for it.
    pub async fn until(&self, id: JobId, holds: impl Fn(&JobView) -> bool) -> JobView {
        let mut news = self.house.desk.store.changes().subscribe(id);
        let wait = async {
            loop {
                let job = self.job(id).await;
                if holds(&job) {
                    return job;
                }
                // Some conditions, such as why a job waits, change without the job.
                let _ = tokio::time::timeout(Duration::from_millis(100), news.changed()).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(job) => job,
            Err(_) => panic!("waited in vain; the job is {:#?}", self.job(id).await),
        }
    }

    pub async fn until_done(&self, id: JobId) -> JobView {
        self.until(id, |job| ["succeeded", "failed", "cancelled"].contains(&job.state.as_str())).await
    }

    /// The same of a house with a clock of its own, on which time passes meanwhile.
    pub async fn until_in_time(&self, id: JobId, holds: impl Fn(&JobView) -> bool) -> JobView {
        let clock = self.house.desk.store.clock();
        let passing = async {
            loop {
                clock.advance(500);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            job = self.until(id, holds) => job,
            () = passing => unreachable!(),
        }
    }

    /// Returns when there is a container.
    pub async fn until_created(&self) {
        let wait = async {
            while self.engine.container_count() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("no container is created");
    }

    /// Returns when no container is left.
    pub async fn until_tidy(&self) {
        let wait = async {
            while self.engine.container_count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("a container is left");
    }

    /// The types of all reports of the job, in order.
    pub async fn reports(&self, id: JobId) -> Vec<&'static str> {
        let log = self.house.desk.store.log(id, 0, 10_000).await.unwrap();
        log.into_iter()
            .filter_map(|line| match line.entry {
                Entry::Report { line, .. } => Some(line.report.name()),
                Entry::Event(_) => None,
            })
            .collect()
    }
}

/// What plans predict of the jobs that are submitted here.
pub fn estimate() -> Estimate {
    Estimate { memory_bytes: 2, disk_bytes: 14, trainable_parameters: 1, ..Estimate::default() }
}

/// Limits that are far away.
pub fn limits() -> Limits {
    Limits {
        memory_bytes: 1 << 30,
        cpu_millis: 1000,
        pids: 64,
        disk_bytes: 1 << 20,
        time_ms: 600_000,
        silence_ms: 600_000,
        grace_ms: 600_000,
        max_attempts: 3,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}

fn config(state: &Path) -> Config {
    let mut config = Config { state_dir: state.to_owned(), ..Config::default() };
    config.sandbox.output_cap = OutputCap::Watched;
    // The scripted engine's containers run as whoever runs the test.
    config.sandbox.uid = rustix::process::geteuid().as_raw();
    config.sandbox.gid = rustix::process::getegid().as_raw();
    // Where a test runs there may be GPUs.
    config.sandbox.nvml = Some("/nowhere/libnvidia-ml.so.1".into());
    // Where a test runs there may be little room.
    config.disk.min_free_state = bytesize::ByteSize(0);
    config
}

async fn open(config: Config, engine: &Scripted, clock: Clock) -> House {
    House::open(config, Some(Arc::new(engine.clone())), clock).await.unwrap()
}
