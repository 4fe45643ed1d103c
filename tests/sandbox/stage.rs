//! What a test plays on: a sandbox, a state folder and an installation of its own, all gone when it ends.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drydock::sandbox::attempt_dir::{self, AttemptDir, FolderSettings, InputFolders, ModelFolders, OutputCap};
use drydock::sandbox::docker::{DockerSandbox, DockerSettings};
use drydock::sandbox::users::{IdMap, Users};
use drydock::sandbox::{ContainerName, Exit, Labels, Launch, Sandbox, SandboxError, Status};
use drydock_spec::{Attempt, AttemptSpec, FinetuneArgs, Inputs, JobArgs, JobId, Limits, TraceId, contract};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Stage {
    pub(crate) sandbox: DockerSandbox,
    pub(crate) settings: DockerSettings,
    /// How attempts' folders are made.
    pub(crate) how: FolderSettings,
    /// Who the containers' users are on the host.
    pub(crate) ids: IdMap,
    state: tempfile::TempDir,
}

/// One attempt: its folder, and how its container would be launched.
pub(crate) struct Act {
    pub(crate) dir: AttemptDir,
    pub(crate) launch: Launch,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(OutputCap::Auto, |_| {})
    }

    pub(crate) fn with(cap: OutputCap, change: impl FnOnce(&mut DockerSettings)) -> Self {
        Self::within(&std::env::temp_dir(), cap, change)
    }

    /// The same with its files below a folder that exists.
    pub(crate) fn within(folder: &Path, cap: OutputCap, change: impl FnOnce(&mut DockerSettings)) -> Self {
        let state = tempfile::tempdir_in(folder).unwrap();
        for input in contract_inputs() {
            let folder = on_host(state.path(), input);
            std::fs::create_dir_all(&folder).unwrap();
            // Each can be told from the others by its only file.
            std::fs::write(folder.join("weights"), input).unwrap();
        }
        let instance = format!("test-sb-{:032x}", rand::random::<u128>());
        let mut settings = DockerSettings::new(crate::image::probe(), instance, vec![state.path().to_owned()]);
        change(&mut settings);
        let how = FolderSettings { users: users(), output_cap: cap, append_only: true };
        Self { sandbox: DockerSandbox::new(settings.clone()), settings, how, ids: IdMap::default(), state }
    }

    pub(crate) fn attempts(&self) -> PathBuf {
        self.state.path().join("attempts")
    }

    /// An attempt that runs the probe with these arguments.
    pub(crate) fn act(&self, arguments: &[&str]) -> Act {
        self.act_within(limits(), arguments)
    }

    pub(crate) fn act_within(&self, limits: Limits, arguments: &[&str]) -> Act {
        let spec = spec();
        let dir = AttemptDir::create(&self.attempts(), &spec, &limits, &self.how).unwrap();
        let at = |input: &str| on_host(self.state.path(), input);
        let model = |model: &str, adapter: &str| ModelFolders {
            name: "m".into(),
            model: at(model),
            adapter: Some(at(adapter)),
        };
        let inputs = InputFolders {
            checkpoint: None,
            model: Some(model(contract::MODEL_PATH, contract::ADAPTER_PATH)),
            compared: vec![model("/in/compared/0/model", "/in/compared/0/adapter")],
            tokenizer: Some(at(contract::TOKENIZER_PATH)),
            dataset: Some(at(contract::DATASET_PATH)),
            eval_dataset: Some(at(contract::EVAL_DATASET_PATH)),
        };
        let launch = Launch {
            name: ContainerName(format!("drydock-test-sb-{}", spec.job.to_string().to_lowercase())),
            labels: Labels {
                instance: self.settings.instance.clone(),
                job: spec.job,
                attempt: spec.attempt,
                fence: "fence".into(),
                trace_id: spec.trace_id.clone(),
            },
            args: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            mounts: dir.mounts(&inputs),
            user: self.ids.inside(dir.owner().unwrap()),
            limits,
            gpus: Vec::new(),
        };
        Act { dir, launch }
    }

    /// Creates and starts the attempt's container.
    pub(crate) async fn begin(&self, act: &Act) {
        self.sandbox.create(&act.launch).await.unwrap();
        self.sandbox.start(&act.launch.name).await.unwrap();
    }

    /// How the attempt's container ends.
    pub(crate) async fn end(&self, act: &Act) -> Exit {
        self.sandbox.wait(&act.launch.name, PATIENCE).await.unwrap();
        match self.status(act).await.unwrap() {
            Some(Status::Exited(exit)) => exit,
            other => panic!("the container has not ended: {other:?}"),
        }
    }

    /// The same for a container in which the kernel kills something for memory: the engine may tell that after the end.
    pub(crate) async fn end_for_want_of_memory(&self, act: &Act) -> Exit {
        let told = async {
            loop {
                let exit = self.end(act).await;
                if exit.oom_killed {
                    return exit;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("the engine tells of the kill in time")
    }

    /// Creates and starts the attempt's container, and says how it ends.
    pub(crate) async fn play(&self, act: &Act) -> Exit {
        self.begin(act).await;
        self.end(act).await
    }

    pub(crate) async fn status(&self, act: &Act) -> Result<Option<Status>, SandboxError> {
        Ok(self.sandbox.inspect(&act.launch.name).await?.map(|found| found.status))
    }
}

impl Drop for Stage {
    /// Also when a test has failed. A runtime of its own, as the test's may be the one that is unwinding.
    fn drop(&mut self) {
        let sandbox = DockerSandbox::new(self.settings.clone());
        let clear = async move {
            for found in sandbox.list().await.unwrap_or_default() {
                let _ = sandbox.remove(&found.name).await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = std::thread::spawn(move || runtime.block_on(clear)).join();
        let _ = attempt_dir::sweep(&self.attempts(), |_, _| false);
    }
}

impl Act {
    /// What the probe has told, by fact.
    pub(crate) fn told(&self) -> BTreeMap<String, String> {
        let lines = std::fs::read_to_string(self.dir.events_path()).unwrap();
        let line = |line| serde_json::from_str::<BTreeMap<String, String>>(line).unwrap();
        lines.lines().map(line).map(|mut line| (line.remove("fact").unwrap(), line.remove("value").unwrap())).collect()
    }

    /// Returns when the probe has told a fact.
    pub(crate) async fn until_told(&self, fact: &str) {
        let told = async {
            while !self.told().contains_key(fact) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("the probe tells it in time");
    }
}

/// Says that a test was not run here, past the harness's capture of what tests print: `make test` counts these lines.
pub(crate) fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {}: {why}", std::thread::current().name().unwrap_or_default());
}

/// Everything that a job may read, as the inside sees it.
pub(crate) fn contract_inputs() -> [&'static str; 7] {
    [
        contract::MODEL_PATH,
        contract::ADAPTER_PATH,
        "/in/compared/0/model",
        "/in/compared/0/adapter",
        contract::TOKENIZER_PATH,
        contract::DATASET_PATH,
        contract::EVAL_DATASET_PATH,
    ]
}

/// Where an input lies below the state folder.
fn on_host(state: &Path, input: &str) -> PathBuf {
    state.join(input.trim_start_matches('/'))
}

/// The user of the containers: only root can hand files to another than itself.
fn users() -> Users {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if me.0 == 0 { Users::shared(65532, 65532) } else { Users::shared(me.0, me.1) }
}

pub(crate) fn limits() -> Limits {
    Limits {
        memory_bytes: 128 << 20,
        cpu_millis: 1000,
        pids: 256,
        disk_bytes: 32 << 20,
        time_ms: 60_000,
        silence_ms: 60_000,
        grace_ms: 1_000,
        max_attempts: 1,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}

fn spec() -> AttemptSpec {
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..Default::default() };
    AttemptSpec {
        contract: contract::VERSION,
        job: JobId::from_parts(0, rand::random()),
        attempt: Attempt::FIRST,
        trace_id: TraceId::from_bits(1),
        spec: JobArgs::Finetune(args).parse().unwrap(),
        inputs: Inputs::default(),
        output: contract::OUTPUT_PATH.into(),
        events: contract::EVENTS_PATH.into(),
        threads: 1,
        gpus: 0,
    }
}
