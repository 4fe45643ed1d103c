//! The whole of drydock but its faces: put together from a configuration, set going, and brought to rest.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{getegid, geteuid};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::ArtifactStore;
use crate::attempt::Attempts;
use crate::blobs::Blobs;
use crate::checkpoints::Checkpoints;
use crate::clock::Clock;
use crate::config::Config;
use crate::datasets::Datasets;
use crate::desk::{Desk, Foresight};
use crate::disk::DiskProbe;
use crate::dispatch::Dispatch;
use crate::engine::EngineProbe;
use crate::gpus::{self, GpuProbe, Host};
use crate::hub::Hub;
use crate::in_hand::InHand;
use crate::line::Line;
use crate::models::Models;
use crate::plan::Planner;
use crate::preview::Previews;
use crate::reaper::Reaper;
use crate::remedy::Remedies;
use crate::retention::Retention;
use crate::sandbox::Sandbox;
use crate::sandbox::docker::{DockerSandbox, DockerSettings, GpuSettings};
use crate::sandbox::gpus::KnownGpus;
use crate::store::{Holder, Store, StoreError};

/// How long a lease holds without being renewed.
const LEASE: Duration = Duration::from_secs(30);
/// How often the engine is asked whether it is there, and the disks are looked at.
const PROBE: Duration = Duration::from_secs(5);
/// How often what has had its time is removed.
const TIDY: Duration = Duration::from_secs(3600);
/// How long the lock of a gateway that has ended may still be held, and how often it is looked at meanwhile.
const LET_GO: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often leases and leftovers are looked at.
const REAP: Duration = Duration::from_secs(10);

/// Everything that works when nobody asks.
pub struct House {
    pub desk: Desk,
    pub reaper: Reaper,
    probe: EngineProbe,
    /// Looks at the disks.
    pub disk: DiskProbe,
    /// Looks at the GPUs.
    pub gpus: GpuProbe,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    _lock: File,
}

impl House {
    /// Opens the state folder, which no other process may use meanwhile. Docker is the engine unless another one is
    /// given.
    pub async fn open(mut config: Config, engine: Option<Arc<dyn Sandbox>>, clock: Clock) -> anyhow::Result<Self> {
        let state = config.state_dir.clone();
        std::fs::create_dir_all(&state).with_context(|| format!("cannot make the state folder {}", state.display()))?;
        restrict(&state)?;
        if !geteuid().is_root() {
            if let Some(uids) = config.sandbox.uids {
                anyhow::bail!(
                    "sandbox.uids = {uids}: only root can give files to other users; run the gateway as root, or leave \
                     sandbox.uids out"
                );
            }
            // Only root can give files to somebody else, and the worker has to write its own.
            (config.sandbox.uid, config.sandbox.gid) = (geteuid().as_raw(), getegid().as_raw());
        }
        let lock = lock(&state).await?;
        let store = Store::open(&state.join("drydock.db"), clock).await?;
        let instance = store.instance(&format!("{:016x}", rand::random::<u64>())).await?;
        let gpu_news = gpus::news();
        let watch = gpu_news.watch();
        let known = KnownGpus::asked(move || watch.inventory());
        let in_hand = InHand::default();
        let sandbox = engine.unwrap_or_else(|| {
            let settings = docker(&config, &instance, known.clone(), in_hand.clone());
            Arc::new(DockerSandbox::new(settings))
        });
        let (probe, engine) = EngineProbe::new(Arc::clone(&sandbox));
        let blobs = Blobs::open(&state)?;
        let hub = Hub::open(&config.hub, blobs.clone())?;
        let artifacts = ArtifactStore::new(state.join("artifacts"));
        artifacts.sweep_unfinished()?;
        let models = Models::new(store.clone(), blobs.clone(), hub.clone(), artifacts.clone(), &config);
        let datasets = Datasets::new(store.clone(), blobs.clone(), hub, &config);
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let config = Arc::new(config);
        let host = Host::new(config.sandbox.nvml.clone());
        let line_gpus = gpu_news.watch();
        let gpus = GpuProbe::new(host, store.clone(), Arc::clone(&sandbox), gpu_news);
        let (disk, room) = DiskProbe::new(Arc::clone(&config), engine.clone());
        let line = Line { store: store.clone(), disk: room.clone(), gpus: line_gpus, config: Arc::clone(&config) };
        let planner =
            Planner::new(store.clone(), models.clone(), datasets.clone(), engine.clone(), known, Arc::clone(&config));
        let remedies = Remedies::new(store.clone(), planner.clone());
        let desk = Desk {
            store: store.clone(),
            blobs: blobs.clone(),
            artifacts: artifacts.clone(),
            models: models.clone(),
            datasets: datasets.clone(),
            planner,
            remedies: remedies.clone(),
            retention: Retention {
                store: store.clone(),
                artifacts: artifacts.clone(),
                blobs: blobs.clone(),
                config: Arc::clone(&config),
            },
            previews: Previews::new(
                Arc::clone(&sandbox),
                engine.clone(),
                Arc::clone(&config),
                instance.clone(),
                in_hand.clone(),
                tracker.clone(),
                shutdown.clone(),
            ),
            engine: engine.clone(),
            disk: room,
            gpus: gpus.clone(),
            line: line.clone(),
            foresight: Foresight::default(),
            sandbox: Arc::clone(&sandbox),
            config: Arc::clone(&config),
        };
        let lease_ms = LEASE.as_millis() as i64;
        let attempts = Attempts {
            store,
            sandbox,
            engine,
            models,
            datasets,
            artifacts,
            checkpoints: Checkpoints::new(state.join("checkpoints")),
            remedies,
            gpus: gpus.clone(),
            in_hand,
            config,
            instance,
            lease_ms,
            shutdown: shutdown.clone(),
        };
        let holder = Holder { name: format!("{:032x}", rand::random::<u128>()), lease_ms };
        let dispatch = Dispatch { attempts, line, holder, tracker: tracker.clone() };
        Ok(Self { desk, reaper: Reaper { dispatch }, probe, disk, gpus, shutdown, tracker, _lock: lock })
    }

    /// Cancelled when the house is being brought to rest.
    #[must_use]
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Asks the engine once and looks at the disks and GPUs, so that the desk knows of them before anything else is set
    /// going.
    pub async fn probe_once(&self) {
        // The engine is asked how it gives containers those GPUs that there are.
        if let Err(error) = self.gpus.look_once().await {
            tracing::error!(%error, "the GPUs could not be looked at");
        }
        self.probe.probe_once().await;
        self.disk.probe_once();
    }

    /// Sets everything going: the watch on the engine, the taking over of what was left, and the dispatch.
    pub async fn start(&self) -> Result<(), StoreError> {
        self.probe_once().await;
        if let Err(error) = self.desk.previews.sweep() {
            tracing::warn!(%error, "folders of earlier previews stay");
        }
        // Before anything new is claimed, what another process left is taken up, and its reservations count.
        self.reaper.adopt_once().await?;
        self.tracker.spawn(self.probe.clone().run(PROBE, self.shutdown.clone()));
        self.tracker.spawn(self.disk.clone().run(PROBE, self.shutdown.clone()));
        self.tracker.spawn(self.gpus.clone().run(self.shutdown.clone()));
        self.tracker.spawn(self.reaper.clone().run(REAP, self.shutdown.clone()));
        self.tracker.spawn(self.desk.retention.clone().run(TIDY, self.shutdown.clone()));
        self.tracker.spawn(self.reaper.dispatch.clone().run(self.shutdown.clone()));
        Ok(())
    }

    /// Brings everything to rest. Containers go on; the next process takes them up.
    pub async fn close(self) {
        self.shutdown.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        self.desk.store.close().await;
    }
}

/// What Docker is told by this configuration.
pub(crate) fn docker(config: &Config, instance: &str, known: KnownGpus, trials: InHand) -> DockerSettings {
    let mount_roots = ["attempts", "previews", "models", "datasets", "checkpoints"]
        .map(|folder| config.state_dir.join(folder))
        .to_vec();
    DockerSettings {
        host: config.sandbox.docker_host.clone(),
        runtime: config.sandbox.runtime.clone(),
        tmpfs_bytes: config.sandbox.tmp.0,
        gpus: GpuSettings {
            choice: config.sandbox.gpus,
            known,
            trials,
            user: config.sandbox.uids.map_or((config.sandbox.uid, config.sandbox.gid), |_| GpuSettings::default().user),
            ..GpuSettings::default()
        },
        ..DockerSettings::new(config.sandbox.image.clone(), instance, mount_roots)
    }
}

/// The state folder holds everybody's data: nobody else on the host has business there.
fn restrict(state: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot restrict the state folder {}", state.display()))
}

/// The kernel lets go of the lock when the process dies, however it dies. A child that the dead one was about to start
/// has the lock as well until its program begins, which takes a moment on a busy host.
async fn lock(state: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(state.join("lock"))?;
    let until = tokio::time::Instant::now() + LET_GO;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if tokio::time::Instant::now() >= until {
            return Err(StoreError::InUse(state.to_owned()).into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(file)
}
