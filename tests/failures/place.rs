//! A whole house on the real engine, in which cases are played.

use std::time::{Duration, Instant};

use drydock::api::{AddModel, DatasetView, JobView, LoadDataset, Submission};
use drydock::clock::Clock;
use drydock::config::Config;
use drydock::desk::{Answer, Desk};
use drydock::house::House;
use drydock::sandbox::ContainerName;
use drydock_spec::{Attempt, JobId, OnFailure, Owner};
use serde_json::{Value, json};

use crate::case::{Case, Deed, GUISES, Guise};
use crate::damage::Input;
use crate::harness::folder::Folder;
use crate::image_of_its_own::{Image, blocking};
use crate::mend::to_mend;
use crate::order::{Files, Meanwhile, Order};
use crate::small_hub::SmallHub;
use crate::table::{Finding, Played};

/// Longest that all cases of a place may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

pub(crate) struct Place {
    pub(crate) house: House,
    pub(crate) hub: SmallHub,
    folder: Folder,
}

/// What the model and the rows of a case are called.
pub(crate) fn label(case: &str, number: u32) -> String {
    let words: Vec<_> =
        case.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!("{}-{number}", words.join("-"))
}

impl Place {
    /// With the real worker.
    pub(crate) async fn of_the_worker() -> Self {
        Self::with("drydock-worker:latest", |_| ()).await
    }

    /// With the probe in its place.
    pub(crate) async fn of_the_probe() -> Self {
        let probe = tokio::task::spawn_blocking(crate::image::probe).await.unwrap();
        Self::with(probe, |config| {
            config.limits.pids = 40;
            config.sandbox.tmp = bytesize::ByteSize::mib(16);
        })
        .await
    }

    /// The house after a restart.
    pub(crate) async fn reopen(self) -> Self {
        self.reopen_with(|_| ()).await
    }

    /// The same with another configuration.
    pub(crate) async fn reopen_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let (mut config, hub) = (Config::clone(&self.house.desk.config), self.hub.clone());
        change(&mut config);
        let folder = self.close().await;
        let house = House::open(config, None, Clock::System).await.unwrap();
        house.probe_once().await;
        Self { house, hub, folder }
    }

    /// With a worker's image of this name. Jobs that are accepted wait until [`Self::begin`].
    pub(crate) async fn with(image: &str, change: impl FnOnce(&mut Config)) -> Self {
        let folder = Folder::new();
        std::fs::create_dir_all(folder.data()).unwrap();
        let hub = SmallHub::open().await;
        let mut config = Config { state_dir: folder.state(), data_dirs: vec![folder.data()], ..Config::default() };
        config.sandbox.image = image.to_owned();
        config.hub.endpoint = Some(hub.endpoint.clone());
        config.limits.grace = Duration::from_secs(2);
        // Where a test runs there may be little room.
        config.disk.min_free_state = bytesize::ByteSize(0);
        config.disk.min_free_engine = bytesize::ByteSize(0);
        change(&mut config);
        let house = House::open(config, None, Clock::System).await.unwrap();
        house.probe_once().await;
        Self { house, hub, folder }
    }

    /// Provokes each case in all its guises at once, mends what can be mended, and tells what was found.
    pub(crate) async fn play(mut self, cases: Vec<Case>) -> Played {
        let mut accepted = Vec::new();
        for case in cases {
            for number in 0..GUISES {
                accepted.push((case, number, self.accept_case(case, number).await));
            }
        }
        self.house.start().await.unwrap();
        let mut findings = Vec::new();
        for (case, number, job) in accepted {
            findings.push(self.finding(case, number, job).await);
        }
        let mut mended = self.mend(&to_mend(&findings, |deed| !deed.restarts())).await;
        let roomier = to_mend(&findings, |deed| deed == Deed::Configures);
        if !roomier.is_empty() {
            let change = |config: &mut Config| {
                config.limits.pids = 512;
                config.sandbox.tmp = bytesize::ByteSize::mib(64);
            };
            self = self.reopen_with(change).await;
            self.house.start().await.unwrap();
            mended.extend(self.mend(&roomier).await);
        }
        let faulty = to_mend(&findings, |deed| deed == Deed::MendsWorker);
        if !faulty.is_empty() {
            let image = blocking(Image::harmless).await;
            self = self.reopen_with(|config| config.sandbox.image.clone_from(&image.name)).await;
            self.house.start().await.unwrap();
            mended.extend(self.mend(&faulty).await);
            self.close().await;
            blocking(move || drop(image)).await;
        } else {
            self.close().await;
        }
        Played { findings, mended }
    }

    /// Hands in the case in this guise.
    pub(crate) async fn accept_case(&self, case: Case, number: u32) -> JobId {
        let order = (case.order)(Guise::of(case.name, number));
        let meanwhile = order.meanwhile;
        let job = self.accept(&label(case.name, number), order).await;
        match meanwhile {
            Meanwhile::Nothing => job,
            Meanwhile::Killed => {
                self.kill_when_it_has_spoken(job);
                job
            }
            Meanwhile::Awaited => self.await_result(case, number, job).await,
        }
    }

    /// Brings the house to rest. Containers go on.
    pub(crate) async fn close(self) -> Folder {
        self.house.close().await;
        self.folder
    }

    /// How the job ended.
    pub(crate) async fn finding(&self, case: Case, number: u32, job: JobId) -> Finding {
        let view = self.until(job, JobView::is_done).await;
        let kept = self.house.desk.store.failure_of(job, Attempt(view.attempt)).await.unwrap();
        Finding { case, number, kept, view }
    }

    /// Hands a job in under this name, and does to its inputs what is to be done to them.
    pub(crate) async fn accept(&self, name: &str, order: Order) -> JobId {
        let Order { model, rows, mut job, limits, damage, hub, on_failure, .. } = order;
        let options = job.as_object_mut().unwrap().values_mut().next().unwrap();
        let mut folders = Vec::new();
        if hub.is_some() {
            self.hub.commit(&format!("models/lab/{name}"), "main", model);
            options["model"] = json!(format!("hf:lab/{name}"));
        } else {
            let digest = self.add_model(name, model).await;
            options["model"] = json!(name);
            folders.push((Input::Model, self.stored("models", &digest)));
        }
        if options.get("quant_type").is_none() {
            let dataset = self.load_rows(name, rows).await;
            options["dataset"] = json!(dataset.name);
            folders.push((Input::Dataset, self.stored("datasets", &dataset.digest)));
        }
        let id = self.submit(name, job, limits, on_failure).await;
        for one in &damage {
            let (_, folder) = folders.iter().find(|(input, _)| *input == one.input).unwrap();
            one.strike(folder.as_ref());
        }
        if hub.is_some() {
            self.hub.spoil(&format!("models/lab/{name}"), hub);
        }
        id
    }

    /// Adds a model under this name, and gives its digest.
    pub(crate) async fn add_model(&self, name: &str, model: Files) -> String {
        let folder = self.folder.data().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (file, bytes) in model {
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        let request =
            AddModel { name: Some(name.into()), source: Some(folder.display().to_string()), files: Vec::new() };
        let added = self.house.desk.models.add(request).await;
        added.unwrap_or_else(|error| panic!("{name}: {error}")).digest
    }

    /// Loads rows from a file with this name: two cases of the same rows would share a folder.
    pub(crate) async fn load_rows(&self, name: &str, rows: String) -> DatasetView {
        let file = self.folder.data().join(format!("{name}.jsonl"));
        std::fs::write(&file, rows).unwrap();
        let source = Some(file.display().to_string());
        let loaded = self.house.desk.datasets.load(LoadDataset { source, ..LoadDataset::default() }).await;
        loaded.unwrap_or_else(|error| panic!("{name}: {error}")).dataset
    }

    async fn submit(&self, name: &str, job: Value, limits: Value, on_failure: OnFailure) -> JobId {
        let submission = json!({"job": job, "limits": limits, "on_failure": on_failure});
        let submission: Submission = serde_json::from_value(submission).unwrap();
        match self.house.desk.submit(Owner::local(), submission).await {
            Ok(Answer::Submitted(view)) => view.job.id,
            other => panic!("{name} is not accepted: {other:#?}"),
        }
    }

    fn stored(&self, kind: &str, digest: &str) -> String {
        self.folder.state().join(kind).join(digest).display().to_string()
    }

    /// Somebody kills the job's container from outside.
    fn kill_when_it_has_spoken(&self, job: JobId) {
        let desk = self.house.desk.clone();
        tokio::spawn(async move {
            until(&desk, job, has_spoken).await;
            let name = ContainerName::of(job, Attempt::FIRST).to_string();
            let mut docker = tokio::process::Command::new("docker");
            docker.args(["kill", "--signal=KILL", &name]).output().await.unwrap();
        });
    }

    /// A job that is to read what another leaves.
    async fn await_result(&self, case: Case, number: u32, job: JobId) -> JobId {
        let name = label(case.name, number);
        let quantize = json!({"model": &name, "adapter": format!("job:{job}"), "quant_type": "Q8_0"});
        self.submit(&name, json!({"quantize": quantize}), json!({"cpus": 0.5, "max_attempts": 1}), OnFailure::Ask).await
    }

    pub(crate) async fn until(&self, job: JobId, holds: impl Fn(&JobView) -> bool) -> JobView {
        until(&self.house.desk, job, holds).await
    }
}

/// Whether the job's worker has told of its progress.
pub(crate) fn has_spoken(view: &JobView) -> bool {
    view.progress.as_ref().is_some_and(|progress| progress.part.is_some())
}

/// The job as soon as it is like that.
async fn until(desk: &Desk, job: JobId, holds: impl Fn(&JobView) -> bool) -> JobView {
    let began = Instant::now();
    loop {
        let view = desk.job(job).await.unwrap();
        if holds(&view) {
            return view;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {view:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
