//! The world of a sequence: folders, a clock and an engine that outlive every runner, and the runner that is alive.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use drydock::clock::Clock;
use drydock::config::Config;
use drydock::disk::{Room, Shortage};
use drydock::house::House;
use drydock::plan::{AdapterInput, DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::sandbox::attempt_dir::OutputCap;
use drydock::store::{BY_DRYDOCK, Filter, Job, NewJob, Store, StoreError};
use drydock_gpu::inventory::{Gpu, Inventory, Memory};
use drydock_spec::{Attempt, FinetuneArgs, JobArgs, JobId, Limits, OnFailure, Owner, Priority, TraceId};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::runtime::Runtime;

use crate::harness::scripted::Scripted;
use crate::ops::{Gpus, Op, Story};

/// Longer than anything may wait: retries, leases, silence, time limits.
const AGE_MS: i64 = 700_000;
/// GPUs of the host, and the memory of each.
pub(crate) const GPUS: usize = 3;
pub(crate) const GPU_BYTES: u64 = 80;

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) clock: Clock,
    pub(crate) engine: Scripted,
    life: Option<Life>,
    pub(crate) ids: Vec<JobId>,
    /// Which job's result a job reads.
    pub(crate) reads: BTreeMap<JobId, JobId>,
    /// How jobs stood when they were looked at last.
    pub(crate) seen: BTreeMap<JobId, Job>,
    pub(crate) cancelled: Vec<JobId>,
    /// Whether somebody took containers away, so that nobody can know how they ended.
    pub(crate) forgotten: bool,
    /// GPUs that no job gets.
    pub(crate) cordoned: BTreeSet<String>,
    /// Whether one was ever damaged.
    pub(crate) damaged: bool,
    /// Attempts that had begun when it was looked last.
    pub(crate) begun: BTreeSet<(JobId, Attempt)>,
}

/// The file of a database that is up to date and empty.
static NEW_DATABASE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("drydock.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&path, Clock::System).await.unwrap();
        store.close().await;
    });
    std::fs::read(&path).unwrap()
});

/// A runner that is alive, on one thread.
struct Life {
    runtime: Runtime,
    house: House,
}

/// Gives up what only root may do, as mounting takes long; threads that this one starts have not got it, either.
pub(crate) fn be_nobody_special() {
    let mut sets = capabilities(None).unwrap();
    for power in [CapabilitySet::SYS_ADMIN, CapabilitySet::LINUX_IMMUTABLE] {
        sets.effective.remove(power);
        sets.permitted.remove(power);
        sets.inheritable.remove(power);
    }
    set_capabilities(None, sets).unwrap();
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_state(|_| ())
    }

    /// A world whose state folder `prepare` has had in its hands.
    pub(crate) fn with_state(prepare: impl FnOnce(&Path)) -> Self {
        // Nothing here is meant to outlive the power, so memory will do, and takes no time.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(folder.path().join("state")).unwrap();
        prepare(&folder.path().join("state"));
        for input in ["state/models/aa", "state/datasets/bb"] {
            std::fs::create_dir_all(folder.path().join(input)).unwrap();
        }
        // Bringing a new database up to date takes longer than all that follows.
        std::fs::write(folder.path().join("state/drydock.db"), &*NEW_DATABASE).unwrap();
        let mut world = Self {
            folder,
            clock: Clock::manual(1_700_000_000_000),
            engine: Scripted::new(),
            life: None,
            ids: Vec::new(),
            reads: BTreeMap::new(),
            seen: BTreeMap::new(),
            cancelled: Vec::new(),
            forgotten: false,
            cordoned: BTreeSet::new(),
            damaged: false,
            begun: BTreeSet::new(),
        };
        world.engine.usually(Story::Success.steps());
        world.begin_life();
        world
    }

    fn begin_life(&mut self) {
        // With a single thread for what blocks, something that blocks comes back when all before it has.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        let mut config = Config { state_dir: self.folder.path().join("state"), ..Config::default() };
        // What is kept for remedies is to go with everything else, so that nothing is overlooked.
        config.retention.checkpoints_age = Duration::ZERO;
        config.sandbox.output_cap = OutputCap::Watched;
        // Where a test runs there may be GPUs.
        config.sandbox.nvml = Some("/nowhere/libnvidia-ml.so.1".into());
        // A way to the hub takes long to open, and nobody goes it.
        config.hub.offline = true;
        config.sandbox.uid = rustix::process::geteuid().as_raw();
        config.sandbox.gid = rustix::process::getegid().as_raw();
        let engine = Arc::new(self.engine.clone());
        let house = runtime.block_on(async {
            let house = House::open(config, Some(engine), self.clock.clone()).await.unwrap();
            house.probe_once().await;
            house.reaper.adopt_once().await.unwrap();
            settle(&house.desk.store).await;
            house
        });
        self.life = Some(Life { runtime, house });
        // Where the test runs there may be little.
        self.disk(false);
        self.gpus().unwrap();
    }

    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    /// Does something with the house that is alive.
    pub(crate) fn with<T>(&self, ask: impl AsyncFnOnce(&House) -> T) -> T {
        let Life { runtime, house } = self.life.as_ref().unwrap();
        runtime.block_on(ask(house))
    }

    /// Lets something happen, and everything that follows from it before any time passes.
    pub(crate) fn happen(&mut self, op: Op) {
        match op {
            Op::Crash { polls } => return self.crash(polls),
            Op::Restart => return self.restart(),
            Op::Submit { story, reads, large, attempts, gpus } => self.submit(story, reads, (large, gpus), attempts),
            Op::Cancel(index) => {
                if let Some(&id) = self.ids.get(index % self.ids.len().max(1)) {
                    self.cancelled.push(id);
                    self.with(async |house| house.desk.store.request_cancel(id).await.map(drop).unwrap());
                }
            }
            Op::Dispatch => {
                // An attempt's end has the driver asked, and where the test runs there may be none.
                self.gpus().unwrap();
                self.with(async |house| house.reaper.dispatch.dispatch_once().await.map(drop).unwrap());
            }
            Op::Adopt => self.with(async |house| house.reaper.adopt_once().await.unwrap()),
            // It says so if the engine does not answer.
            Op::Sweep => drop(self.with(async |house| house.reaper.sweep_once().await)),
            Op::Probe => {
                let room = self.with(async |house| house.desk.disk.now());
                self.with(async |house| house.probe_once().await);
                self.with(async |house| house.disk.publish(room));
            }
            Op::GoOn => self.engine.go_on(),
            Op::Advance(ms) => self.clock.advance(ms),
            Op::SetClock(ms) => self.clock.step(ms),
            Op::LoseReplies(count) => self.engine.lose_replies(count),
            Op::EngineDown => self.engine.set_down(true),
            Op::EngineUp => self.engine.set_down(false),
            Op::EngineCrash => self.engine.crash(),
            Op::Forget => {
                self.forgotten = true;
                self.engine.forget_all();
            }
            Op::RefuseStarts(refuse) => self.engine.refuse_starts(refuse),
            Op::DiskFull(full) => self.disk(full),
            Op::Cordon(index) => {
                let uuid = uuid(index);
                self.with(async |house| house.gpus.cordon(&uuid, "the fan rattles", "a person").await.unwrap());
                self.cordoned.insert(uuid);
            }
            Op::Damage(index) => {
                let uuid = uuid(index);
                self.with(async |house| {
                    let store = &house.desk.store;
                    store.cordon(&uuid, "has told of Xid 79", BY_DRYDOCK, true).await.map(drop).unwrap();
                });
                self.cordoned.insert(uuid);
                self.damaged = true;
                self.gpus().unwrap();
            }
            Op::Mend => {
                for uuid in std::mem::take(&mut self.cordoned) {
                    self.with(async |house| house.gpus.uncordon(&uuid).await.unwrap());
                }
            }
        }
        self.settle();
    }

    /// The same where the runner's own passes may fail.
    pub(crate) fn happen_or_fail(&mut self, op: Op) {
        match op {
            Op::Dispatch => {
                drop(self.gpus());
                drop(self.with(async |house| house.reaper.dispatch.dispatch_once().await));
            }
            other => return self.happen(other),
        }
        self.settle();
    }

    fn disk(&mut self, full: bool) {
        let shortage = || Shortage {
            what: "the state folder",
            path: self.state(),
            free_bytes: 0,
            least_bytes: 1,
            key: "disk.min_free_state",
        };
        let room = match full {
            true => Room { free_bytes: 0, shortage: Some(shortage()) },
            false => Room { free_bytes: u64::MAX, shortage: None },
        };
        self.with(async |house| house.disk.publish(room));
    }

    fn settle(&self) {
        self.with(async |house| settle(&house.desk.store).await);
    }

    /// Tells the runner which GPUs the host has.
    fn gpus(&mut self) -> Result<(), StoreError> {
        let memory = Memory { total_bytes: GPU_BYTES, reserved_bytes: 0, free_bytes: GPU_BYTES };
        let gpu = |index: usize| Gpu {
            index: index as u32,
            uuid: uuid(index),
            name: "scripted".into(),
            memory,
            ..Gpu::default()
        };
        let inventory = Inventory { gpus: (0..GPUS).map(gpu).collect(), ..Inventory::default() };
        self.with(async |house| house.gpus.publish(Ok(inventory)).await)
    }

    fn submit(&mut self, story: Story, reads: Option<usize>, (large, gpus): (bool, Gpus), attempts: u32) {
        let reads = reads.and_then(|index| self.ids.get(index % self.ids.len().max(1)).copied());
        let id = JobId::from_parts(self.clock.now_ms(), self.ids.len() as u128);
        // Attempts come to the engine in no fixed order, so that a story belongs to its job: every second one has it in
        // all of its attempts, the others in the first.
        let told = if self.ids.len().is_multiple_of(2) { 1 } else { attempts };
        (0..told).for_each(|_| self.engine.script_of(id, story.steps()));
        let adapter =
            reads.map(|job| AdapterInput { name: format!("job:{job}"), source: ModelSource::Awaited { job } });
        let source = ModelSource::Stored { digest: "aa".into() };
        let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        let new = NewJob {
            id,
            owner: Owner::local(),
            trace_id: TraceId::from_bits(self.ids.len() as u128),
            spec: JobArgs::Finetune(args).parse().unwrap(),
            inputs: ResolvedInputs {
                model: Some(ModelInput { name: "m".into(), source, adapter }),
                dataset: Some(DatasetInput { name: "d".into(), digest: "bb".into() }),
                ..ResolvedInputs::default()
            },
            limits: Limits {
                memory_bytes: if large { 9 << 30 } else { 1 << 30 },
                cpu_millis: 1000,
                pids: 64,
                disk_bytes: 1 << 20,
                time_ms: 600_000,
                silence_ms: 300_000,
                grace_ms: 10_000,
                max_attempts: attempts,
                gpus: match gpus {
                    Gpus::None => 0,
                    Gpus::Own(count) => count,
                    Gpus::Share(_) => 1,
                },
                gpu_memory_bytes: match gpus {
                    Gpus::Share(bytes) => Some(bytes),
                    Gpus::None | Gpus::Own(_) => None,
                },
            },
            estimate: None,
            priority: Priority::default(),
            idempotency_key: None,
            request_digest: String::new(),
            on_failure: OnFailure::Ask,
            remedy: None,
        };
        self.with(async |house| house.desk.store.submit(new).await.map(drop).unwrap());
        self.reads.extend(reads.map(|input| (id, input)));
        self.ids.push(id);
    }

    /// The process dies, wherever its threads are after so many turns, and another one begins.
    fn crash(&mut self, polls: u32) {
        if polls > 0 {
            // Something is under way when it dies.
            self.engine.go_on();
            self.with(async |house| {
                let dispatch = house.reaper.dispatch.clone();
                tokio::spawn(async move { dispatch.dispatch_once().await.map(drop) });
                for _ in 0..polls {
                    tokio::task::yield_now().await;
                }
            });
        }
        let Life { runtime, house } = self.life.take().unwrap();
        drop(house);
        // What a thread is doing to the disk comes to its end, as it may when a process is killed.
        runtime.shutdown_timeout(Duration::from_secs(10));
        self.begin_life();
    }

    fn restart(&mut self) {
        let Life { runtime, house } = self.life.take().unwrap();
        runtime.block_on(house.close());
        self.begin_life();
    }

    /// The engine is well again, workers come to their end, and time passes until nothing can be waiting any more.
    pub(crate) fn all_faults_cease(&mut self) {
        self.engine.set_down(false);
        self.engine.lose_replies(0);
        self.engine.refuse_starts(false);
        self.disk(false);
        self.happen(Op::Mend);
        for _ in 0..60 {
            self.happen(Op::Probe);
            self.happen(Op::Adopt);
            self.happen(Op::Dispatch);
            self.happen(Op::GoOn);
            self.happen(Op::GoOn);
            self.happen(Op::Advance(20_000));
            if self.jobs().values().all(|job| job.state.is_done()) {
                break;
            }
            self.happen(Op::Advance(AGE_MS));
        }
        self.happen(Op::Advance(AGE_MS));
        self.happen(Op::Sweep);
    }

    /// Every job as it stands.
    pub(crate) fn jobs(&self) -> BTreeMap<JobId, Job> {
        let all = Filter { limit: 1000, ..Filter::default() };
        let page = self.with(async |house| house.desk.store.jobs(&all).await.unwrap());
        page.jobs.into_iter().map(|job| (job.id, job)).collect()
    }

    /// Where everything stands, in words.
    pub(crate) fn told(&self) -> Vec<String> {
        self.jobs().values().map(|job| format!("{:?} {}", job.state, job.last_seq)).collect()
    }
}

/// Returns when nothing goes on by itself any more: whoever is at work waits for the engine, for a file, or for time to
/// pass.
async fn settle(store: &Store) {
    /// Work that follows upon work without the database is less long than this.
    const CALM: u32 = 3;
    let mut calm = 0;
    while calm < CALM {
        // It comes back when all that blocked before it has.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        calm += 1;
        while store.connections().0 > 0 {
            calm = 0;
            // The database has threads of its own, which want to get on.
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
    }
}

fn uuid(index: usize) -> String {
    format!("GPU-{index}")
}

impl World {
    /// How much time has passed in all, in milliseconds.
    pub(crate) fn waited_ms(&self) -> i64 {
        self.clock.steady_ms()
    }
}
