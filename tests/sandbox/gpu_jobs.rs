//! Jobs on GPUs from the line to their end, on a real engine: the GPUs are known from a library that looks like NVIDIA's,
//! and their device files are other devices'.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use drydock::api::{JobView, WaitsFor};
use drydock::clock::Clock;
use drydock::config::Config;
use drydock::gpus::GpuProbe;
use drydock::house::House;
use drydock::plan::{DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::sandbox::attempt_dir::OutputCap;
use drydock::sandbox::docker::{DockerSandbox, DockerSettings, GpuSettings};
use drydock::sandbox::gpus::{Injector, InjectorChoice, KnownGpus};
use drydock::store::NewJob;
use drydock_spec::{FinetuneArgs, JobArgs, JobId, Limits, OnFailure, Owner, Priority, TraceId};

use crate::fake_nvml::FakeNvml;
use crate::gpus::{Rack, probe_with_gpus};
use crate::stage::{PATIENCE, limits};

/// What the library calls its GPUs.
fn uuid(index: u32) -> String {
    format!("GPU-00000000-0000-0000-0000-{index:012}")
}

struct Garage {
    house: House,
    instance: String,
    rack: Rack,
    _nvml: FakeNvml,
    _state: tempfile::TempDir,
}

impl Garage {
    /// A gateway without its faces on a host with two GPUs; `None` where there can be none.
    async fn open() -> Option<Self> {
        let rack = Rack::of(uuid)?;
        let nvml = FakeNvml::saying("count 2\n");
        let state = tempfile::tempdir().unwrap();
        for input in ["models/aa", "datasets/bb"] {
            std::fs::create_dir_all(state.path().join(input)).unwrap();
        }
        let mut config = Config { state_dir: state.path().to_owned(), ..Config::default() };
        config.sandbox.nvml = Some(nvml.library());
        config.sandbox.output_cap = OutputCap::Watched;
        let instance = format!("test-sb-{:032x}", rand::random::<u128>());
        let looks = Arc::new(OnceLock::<GpuProbe>::new());
        let engine = DockerSandbox::new(settings(&rack, &instance, state.path(), Arc::clone(&looks)));
        let house = House::open(config, Some(Arc::new(engine)), Clock::System).await.unwrap();
        let _ = looks.set(house.gpus.clone());
        house.start().await.unwrap();
        Some(Self { house, instance, rack, _nvml: nvml, _state: state })
    }

    /// Queues a job on one GPU whose worker does as these words of the probe's say.
    async fn submit(&self, words: &str) -> JobId {
        let args = FinetuneArgs {
            model: "m".into(),
            dataset: "d".into(),
            sample_prompts: Some(vec![words.to_owned()]),
            ..FinetuneArgs::default()
        };
        let inputs = ResolvedInputs {
            model: Some(ModelInput {
                name: "m".into(),
                source: ModelSource::Stored { digest: "aa".into() },
                adapter: None,
            }),
            dataset: Some(DatasetInput { name: "d".into(), digest: "bb".into() }),
            ..ResolvedInputs::default()
        };
        let new = NewJob {
            id: JobId::from_parts(self.house.desk.store.clock().now_ms(), rand::random()),
            owner: Owner::local(),
            trace_id: TraceId::from_bits(rand::random()),
            spec: JobArgs::Finetune(args).parse().unwrap(),
            inputs,
            limits: Limits { gpus: 1, cpu_millis: 100, max_attempts: 3, ..limits() },
            estimate: None,
            priority: Priority::default(),
            idempotency_key: None,
            request_digest: String::new(),
            on_failure: OnFailure::Ask,
            remedy: None,
        };
        self.house.desk.store.submit(new).await.unwrap().job.id
    }

    /// The job as soon as `holds` holds for it.
    async fn until(&self, id: JobId, holds: impl Fn(&JobView) -> bool) -> JobView {
        let wait = async {
            loop {
                let job = self.house.desk.job(id).await.unwrap();
                if holds(&job) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(job) => job,
            Err(_) => panic!("waited in vain; the job is {:#?}", self.house.desk.job(id).await),
        }
    }

    async fn until_done(&self, id: JobId) -> JobView {
        self.until(id, |job| ["succeeded", "failed", "cancelled"].contains(&job.state.as_str())).await
    }

    async fn until_spoken(&self, id: JobId) {
        self.until(id, |job| job.progress.is_some()).await;
    }

    /// The GPUs of the job's container, by their device files.
    fn device_files(&self, job: JobId) -> Vec<String> {
        let name = format!("drydock-{}-1", job.to_string().to_lowercase());
        let format = "{{range .HostConfig.Devices}}{{.PathInContainer}} {{end}}";
        let told = Command::new("docker").args(["inspect", "--format", format, &name]).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let is_gpu = |name: &&str| name.trim_start_matches("/dev/nvidia").parse::<u32>().is_ok();
        told.split_whitespace().filter(is_gpu).map(str::to_owned).collect()
    }
}

impl Drop for Garage {
    /// Also when a test has failed.
    fn drop(&mut self) {
        let filter = format!("label=drydock.instance={}", self.instance);
        let found = Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
        for id in String::from_utf8_lossy(&found.stdout).split_whitespace() {
            let _ = Command::new("docker").args(["rm", "--force", id]).output();
        }
    }
}

fn settings(rack: &Rack, instance: &str, state: &Path, looks: Arc<OnceLock<GpuProbe>>) -> DockerSettings {
    let known = move || looks.get().and_then(|looks| looks.now().gpus.clone().ok()).unwrap_or_default();
    let mut settings = DockerSettings::new(probe_with_gpus(), instance, vec![state.to_owned()]);
    settings.gpus = GpuSettings {
        choice: InjectorChoice::Auto,
        known: KnownGpus::asked(known),
        root: rack.root.path().to_owned(),
        ..GpuSettings::default()
    };
    settings
}

#[tokio::test]
async fn jobs_on_gpus_run_at_the_same_time_with_one_each_and_the_next_waits_for_one() {
    let Some(garage) = Garage::open().await else { return };
    let first = garage.submit("linger 6000 100").await;
    let second = garage.submit("linger 6000 100").await;
    garage.until_spoken(first).await;
    garage.until_spoken(second).await;
    assert_eq!(garage.house.desk.engine.now().unwrap().gpus.injection, Ok(Injector::Devices));
    let mut given = [garage.device_files(first), garage.device_files(second)].concat();
    given.sort();
    assert_eq!(given, ["/dev/nvidia0", "/dev/nvidia1"]);

    let third = garage.submit("finish 5 10").await;
    garage.until(third, |job| matches!(job.waits_for, Some(WaitsFor::Gpus { needs: 1, free: 0, .. }))).await;
    garage.house.desk.cancel(first).await.unwrap();
    assert_eq!(garage.until_done(third).await.state, "succeeded");
    garage.house.desk.cancel(second).await.unwrap();
    assert_eq!(garage.until_done(second).await.state, "cancelled");
}

#[tokio::test]
async fn jobs_wait_while_no_gpu_gets_into_a_container_and_go_on_when_the_driver_is_mended() {
    let Some(garage) = Garage::open().await else { return };
    let before = garage.submit("finish 5 10").await;
    assert_eq!(garage.until_done(before).await.state, "succeeded");
    // A driver whose module has another version than its libraries.
    garage.rack.put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.1  x\n");
    let during = garage.submit("finish 5 10").await;
    let waiting = garage.until(during, |job| matches!(job.waits_for, Some(WaitsFor::Engine { .. }))).await;
    assert!(waiting.summary.contains("libcuda.so.590.1 is in none of"), "{}", waiting.summary);
    assert_eq!(waiting.failure, None);
    garage.rack.load_driver("590.2");
    let job = garage.until_done(during).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 1), "{job:#?}");
}
