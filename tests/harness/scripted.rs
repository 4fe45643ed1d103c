//! A container engine that does what a test tells it to, and fails when it is told to.
//!
//! Its containers write real events files and real output, so that everything but the engine is the real thing.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use drydock::sandbox::gpus::{GpuAccess, Injector};
use drydock::sandbox::{ContainerName, EngineInfo, Exit, Found, Isolation, Launch, Sandbox, SandboxError, Status};
use drydock_spec::contract::{EVENTS_PATH, OUTPUT_PATH};
use drydock_spec::report::{Finished, Started};
use drydock_spec::{JobId, Report, ReportLine, Stage};
use tokio::sync::Notify;

/// What a container does, one step after the other.
#[derive(Debug, Clone)]
pub enum Step {
    /// Appends a report.
    Say(Report),
    /// Appends whatever it likes.
    Write(Vec<u8>),
    /// Writes a file into the output folder.
    Make { path: &'static str, content: &'static [u8] },
    /// Does nothing until it is told to go on with [`Scripted::go_on`].
    Pause,
    /// Prints to stderr.
    Print(String),
    /// Ends.
    Exit { code: i64, oom_killed: bool },
    /// Ends while the engine does not look. Asked to signal it, the engine notices, and says this exit code if any.
    ExitUnseen(Option<i64>),
    /// Is killed for memory, which the engine tells only when it has been looked at twice.
    OomToldLate,
}

/// What a well-behaved worker does.
pub fn success() -> Vec<Step> {
    vec![
        Step::Say(started()),
        Step::Say(Report::Stage { stage: Stage::Train }),
        Step::Make { path: "adapter/adapter_model.safetensors", content: b"weights" },
        Step::Say(Report::Artifact { path: "adapter/adapter_model.safetensors".into(), role: "adapter".into() }),
        Step::Say(finished()),
        Step::Exit { code: 0, oom_killed: false },
    ]
}

pub fn started() -> Report {
    Report::Started(Started { worker: "scripted".into(), device: "cpu".into(), threads: 1, features: vec![] })
}

pub fn finished() -> Report {
    Report::Finished(Finished { steps: 1, train_loss: Some(0.5), tokens: 1, peak_rss_bytes: 1 })
}

#[derive(Debug)]
struct Container {
    launch: Launch,
    status: Status,
    created_ms: i64,
    steps: VecDeque<Step>,
    printed: String,
    starts: u32,
    ignores_sigterm: bool,
    looks_until_oom: Option<u32>,
    /// What a signal brings to light.
    unseen: Option<i64>,
}

/// What a container will do, by what it is launched with.
type Answer = dyn Fn(&Launch) -> Vec<Step> + Send + Sync;

#[derive(Default)]
struct World {
    down: bool,
    incarnation: u32,
    /// Starts are not answered and take no effect.
    refuse_starts: bool,
    /// The next starts of this many leave containers without their GPUs.
    lose_gpus: u32,
    /// No container with GPUs can be made.
    no_injector: bool,
    /// Containers that were refused for that.
    refused: u32,
    /// The next calls of this many that change something take effect, and the reply is lost.
    lose_replies: u32,
    containers: BTreeMap<ContainerName, Container>,
    scripts: VecDeque<Vec<Step>>,
    /// The same for the containers of certain jobs, whoever is created first.
    scripts_of: BTreeMap<JobId, VecDeque<Vec<Step>>>,
    /// What containers do for which there is no script.
    usual: Option<Vec<Step>>,
    answer: Option<Arc<Answer>>,
    ignore_sigterm: bool,
    /// Containers ever started, by name: more than one start is a bug.
    starts: BTreeMap<ContainerName, u32>,
    /// How containers stood when they were removed.
    removed: BTreeMap<ContainerName, Status>,
}

/// The engine. Cloning shares it.
#[derive(Clone, Default)]
pub struct Scripted {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

impl Scripted {
    pub fn new() -> Self {
        Self::default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The next container that is created follows this script; without one it succeeds.
    pub fn script(&self, steps: Vec<Step>) {
        self.world().scripts.push_back(steps);
    }

    /// The job's next container follows this script, also where another job's is created before it.
    pub fn script_of(&self, job: JobId, steps: Vec<Step>) {
        self.world().scripts_of.entry(job).or_default().push_back(steps);
    }

    /// Containers without a script follow this one instead of [`success`].
    pub fn usually(&self, steps: Vec<Step>) {
        self.world().usual = Some(steps);
    }

    /// Containers without a script do what this says when they are created.
    pub fn answer(&self, answer: impl Fn(&Launch) -> Vec<Step> + Send + Sync + 'static) {
        self.world().answer = Some(Arc::new(answer));
    }

    /// Whether containers created from now on ignore SIGTERM.
    pub fn ignore_sigterm(&self) {
        self.world().ignore_sigterm = true;
    }

    /// The engine stops answering, or answers again; what runs, runs on.
    pub fn set_down(&self, down: bool) {
        self.world().down = down;
        self.changed.notify_waiters();
    }

    /// The next `count` changes take effect, but their replies are lost.
    pub fn lose_replies(&self, count: u32) {
        self.world().lose_replies = count;
    }

    /// Whether starts are left without an answer and without effect.
    pub fn refuse_starts(&self, refuse: bool) {
        self.world().refuse_starts = refuse;
    }

    /// The next `count` starts fail: the injector does not do its part.
    pub fn lose_gpus(&self, count: u32) {
        self.world().lose_gpus = count;
    }

    /// Whether no injector works.
    pub fn no_injector(&self, none: bool) {
        self.world().no_injector = none;
    }

    /// Containers that were refused because no injector works.
    pub fn refused(&self) -> u32 {
        self.world().refused
    }

    /// The engine dies and takes every container with it.
    pub fn crash(&self) {
        let mut world = self.world();
        world.incarnation += 1;
        for container in world.containers.values_mut() {
            if container.status.is_up() {
                container.status = Status::Exited(Exit { code: 137, oom_killed: false });
            }
        }
        drop(world);
        self.changed.notify_waiters();
    }

    /// The engine forgets every container, as if somebody had removed them by hand.
    pub fn forget_all(&self) {
        self.world().containers.clear();
        self.changed.notify_waiters();
    }

    /// The engine takes containers that run for ones that were never started, as after a death in the wrong moment.
    pub fn forget_starts(&self) {
        for container in self.world().containers.values_mut() {
            if container.status == Status::Running {
                container.status = Status::Created { error: None };
            }
        }
        self.changed.notify_waiters();
    }

    /// What is created cannot be started.
    pub fn fail_starts(&self, error: &str) {
        for container in self.world().containers.values_mut() {
            if container.status == (Status::Created { error: None }) {
                container.status = Status::Created { error: Some(error.to_owned()) };
            }
        }
        self.changed.notify_waiters();
    }

    /// The engine dies in the middle of a start, and when it is back it cannot start what it had not started yet.
    pub fn trip(&self, error: &str) {
        self.world().incarnation += 1;
        self.fail_starts(error);
    }

    /// Every paused container does its next steps.
    pub fn go_on(&self) {
        let mut world = self.world();
        for container in world.containers.values_mut() {
            if matches!(container.steps.front(), Some(Step::Pause)) {
                container.steps.pop_front();
            }
            container.act();
        }
        drop(world);
        self.changed.notify_waiters();
    }

    pub fn container_count(&self) -> usize {
        self.world().containers.len()
    }

    /// How often any container of this name was started.
    pub fn starts(&self) -> Vec<u32> {
        self.world().starts.values().copied().collect()
    }

    /// How the container stands, or stood when it was removed; nothing of one that is forgotten or was never there.
    pub fn last_seen(&self, name: &ContainerName) -> Option<Status> {
        let world = self.world();
        let there = world.containers.get(name).map(|container| container.status.clone());
        there.or_else(|| world.removed.get(name).cloned())
    }

    /// The fences of all containers, by name.
    pub fn fences(&self) -> BTreeMap<ContainerName, String> {
        let world = self.world();
        world.containers.iter().map(|(name, container)| (name.clone(), container.launch.labels.fence.clone())).collect()
    }

    /// The launch of the only container there is.
    pub fn launch(&self) -> Option<Launch> {
        self.world().containers.values().next().map(|container| container.launch.clone())
    }

    /// Puts a container there that nobody asked for.
    pub fn plant(&self, launch: Launch, created_ms: i64) {
        let name = launch.name.clone();
        let container = Container {
            launch,
            status: Status::Running,
            created_ms,
            steps: VecDeque::from([Step::Pause]),
            printed: String::new(),
            starts: 1,
            ignores_sigterm: true,
            looks_until_oom: None,
            unseen: None,
        };
        self.world().containers.insert(name, container);
    }

    fn ask(&self) -> Result<MutexGuard<'_, World>, SandboxError> {
        let world = self.world();
        if world.down { Err(SandboxError::Unreachable("switched off".into())) } else { Ok(world) }
    }

    fn change(&self, what: impl FnOnce(&mut World) -> Result<(), SandboxError>) -> Result<(), SandboxError> {
        let mut world = self.ask()?;
        let done = what(&mut world);
        let lost = world.lose_replies > 0;
        world.lose_replies = world.lose_replies.saturating_sub(1);
        drop(world);
        self.changed.notify_waiters();
        if lost { Err(SandboxError::TimedOut(Duration::from_secs(1), "reply")) } else { done }
    }
}

impl Container {
    fn source(&self, target: &str) -> PathBuf {
        self.launch.mounts.iter().find(|mount| mount.target == target).unwrap().source.clone()
    }

    fn append(&self, bytes: &[u8]) {
        let mut file = std::fs::OpenOptions::new().append(true).custom_flags(0).open(self.source(EVENTS_PATH)).unwrap();
        file.write_all(bytes).unwrap();
    }

    fn act(&mut self) {
        while self.status == Status::Running {
            match self.steps.front().cloned() {
                None | Some(Step::Pause) => return,
                Some(Step::Say(report)) => {
                    let line = ReportLine { elapsed_ms: 1, report };
                    self.append((serde_json::to_string(&line).unwrap() + "\n").as_bytes());
                }
                Some(Step::Write(bytes)) => self.append(&bytes),
                Some(Step::Print(text)) => self.printed.push_str(&text),
                Some(Step::Make { path, content }) => {
                    let path = self.source(OUTPUT_PATH).join(path);
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::write(path, content).unwrap();
                }
                Some(Step::Exit { code, oom_killed }) => self.status = Status::Exited(Exit { code, oom_killed }),
                Some(Step::ExitUnseen(code)) => {
                    self.status = Status::Lifeless;
                    self.unseen = code;
                }
                Some(Step::OomToldLate) => {
                    self.status = Status::Exited(Exit { code: 137, oom_killed: false });
                    self.looks_until_oom = Some(2);
                }
            }
            self.steps.pop_front();
        }
    }

    /// A signal finds nobody.
    fn be_looked_at(&mut self) {
        if let (Status::Lifeless, Some(code)) = (&self.status, self.unseen) {
            self.status = Status::Exited(Exit { code, oom_killed: false });
        }
    }

    fn found(&self) -> Found {
        Found {
            name: self.launch.name.clone(),
            id: format!("id-of-{}", self.launch.name),
            labels: self.launch.labels.clone(),
            status: self.status.clone(),
            created_ms: self.created_ms,
        }
    }
}

#[async_trait]
impl Sandbox for Scripted {
    async fn probe(&self) -> Result<EngineInfo, SandboxError> {
        let world = self.ask()?;
        Ok(EngineInfo {
            engine: "scripted 1".into(),
            incarnation: world.incarnation.to_string(),
            cpus: 4,
            memory_bytes: 16 << 30,
            folder: None,
            image: Ok("sha256:scripted".into()),
            runtime: Ok("scripted".into()),
            isolation: Isolation::default(),
            gpus: GpuAccess {
                units: 1,
                most_gpus: u32::MAX,
                trying: false,
                injection: if world.no_injector { Err("no injector works here".into()) } else { Ok(Injector::Cdi) },
                refused: Vec::new(),
            },
        })
    }

    async fn create(&self, launch: &Launch) -> Result<(), SandboxError> {
        if self.ask()?.no_injector {
            self.world().refused += 1;
            return Err(SandboxError::NoInjector("no injector works here".into()));
        }
        self.change(|world| {
            if world.containers.contains_key(&launch.name) {
                return Err(SandboxError::NameTaken(launch.name.clone()));
            }
            let own = world.scripts_of.get_mut(&launch.labels.job).and_then(VecDeque::pop_front);
            let told = own.or_else(|| world.scripts.pop_front()).or_else(|| world.usual.clone());
            let steps = told.or_else(|| world.answer.as_ref().map(|answer| answer(launch)));
            let container = Container {
                launch: launch.clone(),
                status: Status::Created { error: None },
                created_ms: 0,
                steps: steps.unwrap_or_else(success).into(),
                printed: String::new(),
                starts: 0,
                ignores_sigterm: world.ignore_sigterm,
                looks_until_oom: None,
                unseen: None,
            };
            world.containers.insert(launch.name.clone(), container);
            Ok(())
        })
    }

    async fn start(&self, name: &ContainerName) -> Result<(), SandboxError> {
        if self.ask()?.refuse_starts {
            return Err(SandboxError::TimedOut(Duration::from_secs(1), "start the container"));
        }
        let mut world = self.ask()?;
        if let Some(left) = world.lose_gpus.checked_sub(1) {
            world.lose_gpus = left;
            return Err(SandboxError::NoInjection { injector: Injector::Nvidia, message: "driver not loaded".into() });
        }
        drop(world);
        self.change(|world| {
            *world.starts.entry(name.clone()).or_default() += 1;
            let container = world.containers.get_mut(name).ok_or(SandboxError::NoContainer(name.clone()))?;
            assert_eq!(container.starts, 0, "{name} is started a second time");
            container.starts += 1;
            container.status = Status::Running;
            container.act();
            Ok(())
        })
    }

    async fn inspect(&self, name: &ContainerName) -> Result<Option<Found>, SandboxError> {
        Ok(self.ask()?.containers.get_mut(name).map(|container| {
            match &mut container.looks_until_oom {
                Some(0) => container.status = Status::Exited(Exit { code: 137, oom_killed: true }),
                Some(looks) => *looks -= 1,
                None => {}
            }
            container.found()
        }))
    }

    async fn wait(&self, name: &ContainerName, limit: Duration) -> Result<(), SandboxError> {
        let ended = async {
            loop {
                let changed = self.changed.notified();
                let running = self.ask()?.containers.get(name).is_some_and(|c| c.status.is_up());
                if !running {
                    return Ok(());
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, ended).await.unwrap_or(Ok(()))
    }

    async fn terminate(&self, name: &ContainerName) -> Result<(), SandboxError> {
        self.change(|world| {
            let Some(container) = world.containers.get_mut(name) else { return Ok(()) };
            container.be_looked_at();
            if container.status == Status::Running && !container.ignores_sigterm {
                container.steps = VecDeque::from([
                    Step::Say(Report::Stopped { step: 0 }),
                    Step::Exit { code: 143, oom_killed: false },
                ]);
                container.act();
            }
            Ok(())
        })
    }

    async fn kill(&self, name: &ContainerName) -> Result<(), SandboxError> {
        self.change(|world| {
            let Some(container) = world.containers.get_mut(name) else { return Ok(()) };
            container.be_looked_at();
            if container.status == Status::Running {
                container.status = Status::Exited(Exit { code: 137, oom_killed: false });
            }
            Ok(())
        })
    }

    async fn remove(&self, name: &ContainerName) -> Result<(), SandboxError> {
        self.change(|world| {
            if let Some(container) = world.containers.remove(name) {
                world.removed.insert(name.clone(), container.status);
            }
            Ok(())
        })
    }

    async fn list(&self) -> Result<Vec<Found>, SandboxError> {
        Ok(self.ask()?.containers.values().map(Container::found).collect())
    }

    async fn last_words(&self, name: &ContainerName, bytes: usize) -> Result<String, SandboxError> {
        let world = self.ask()?;
        let container = world.containers.get(name).ok_or(SandboxError::NoContainer(name.clone()))?;
        let from = container.printed.ceil_char_boundary(container.printed.len().saturating_sub(bytes));
        let printed = &container.printed[from..];
        Ok(if printed.is_empty() { "last words".to_owned() } else { printed.to_owned() })
    }
}
