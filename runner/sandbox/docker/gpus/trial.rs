//! Trying an injector: a container of the worker's image, sealed like any other, with every GPU that jobs can be given. It
//! asks the worker whether it finds one, which takes a second, and is gone afterwards.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bollard::models::SystemInfo;
use drydock_gpu::inventory::Inventory;
use drydock_spec::contract::{EXIT_FINISHED, EXIT_MISUSED};
use drydock_spec::{Attempt, JobId, Limits, TraceId};
use tokio::time::Instant;

use super::{CdiDevices, Circumstances, GpuSettings, Knowledge, driver_version};
use crate::clock::Clock;
use crate::sandbox::docker::DockerSandbox;
use crate::sandbox::docker::image::Image;
use crate::sandbox::gpus::Injector;
use crate::sandbox::{ContainerName, Found, Labels, Launch, Sandbox, SandboxError, Status};

/// How long a trial's worker may take: the driver may have to wake the GPUs first.
const LIMIT: Duration = Duration::from_secs(20);
/// The age from which on no trial has a container.
const LEFT_BEHIND_MS: i64 = 120_000;
/// The fence of a trial's container.
const FENCE: &str = "gpus";
/// Bytes of a worker's last words that are shown.
const WORDS: usize = 300;

/// What came of a trial.
enum Verdict {
    Works,
    Fails(String),
    /// The engine did not do its part; nothing is known of the injector.
    Unknown(SandboxError),
}

impl DockerSandbox {
    pub(in super::super) fn knowledge(&self) -> MutexGuard<'_, Knowledge> {
        // What it holds is whole after every statement.
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the containers of trials that were killed before they had removed them: those of an installation that
    /// has no other containers, and nobody who sweeps.
    pub async fn sweep_trials(&self, clock: &Clock) -> Result<(), SandboxError> {
        for Found { name, created_ms, .. } in self.list().await? {
            // A younger one may be that of somebody else who is asking now.
            if (0..LEFT_BEHIND_MS).contains(&(clock.now_ms() - created_ms)) {
                continue;
            }
            tracing::info!(container = %name, "a container that a trial left is removed");
            self.remove(&name).await?;
        }
        Ok(())
    }

    async fn circumstances(&self) -> Result<Circumstances, SandboxError> {
        let system = self.system().await?;
        let incarnation = self.incarnation(system.id.as_deref().unwrap_or_default()).await?;
        Ok(self.circumstances_of(&system, incarnation, self.image().await.ok().as_ref()))
    }

    pub(in super::super) fn circumstances_of(
        &self,
        system: &SystemInfo,
        incarnation: String,
        image: Option<&Image>,
    ) -> Circumstances {
        let GpuSettings { choice, known, root, .. } = &self.settings.gpus;
        Circumstances {
            choice: *choice,
            incarnation,
            image: image.map(|image| image.id.clone()),
            most_gpus: image.map_or(0, Image::most_gpus),
            units: Circumstances::units(&known.now()),
            cdi: CdiDevices::of(system),
            driver: driver_version(root),
        }
    }

    /// The injector for a container with GPUs, found out now if need be.
    pub(in super::super) async fn injector(&self) -> Result<Injector, SandboxError> {
        if self.knowledge().access().injection.is_err() {
            self.find_injector().await;
        }
        self.knowledge().access().injection.map_err(SandboxError::NoInjector)
    }

    /// Remembers an injector that did not do its part.
    pub(in super::super) fn heed<T>(&self, done: Result<T, SandboxError>) -> Result<T, SandboxError> {
        if let Err(SandboxError::NoInjection { injector, message }) = &done {
            self.knowledge().refuse(*injector, message, Instant::now());
        }
        done
    }

    /// Tries injectors until one works, or all have been tried. Says whether anything was found out.
    pub(in super::super) async fn find_injector(&self) -> bool {
        let _one_at_a_time = self.trial.lock().await;
        match self.circumstances().await {
            Ok(now) => self.knowledge().is_about(now),
            Err(_) => return false,
        }
        let mut found_out = false;
        loop {
            let next = self.knowledge().next(Instant::now());
            let Some(injector) = next else { return found_out };
            found_out = true;
            match self.attempt(injector).await {
                Verdict::Works => {
                    tracing::info!(%injector, "containers get GPUs");
                    self.knowledge().works(injector);
                }
                Verdict::Fails(why) => {
                    tracing::warn!(%injector, why, "the injector does not work here");
                    self.knowledge().refuse(injector, &why, Instant::now());
                }
                Verdict::Unknown(error) => {
                    tracing::warn!(%injector, %error, "the injector could not be tried");
                    return found_out;
                }
            }
        }
    }

    async fn attempt(&self, injector: Injector) -> Verdict {
        let gpus = self.settings.gpus.known.now();
        let launch = launch(&gpus, &self.settings.instance, self.settings.gpus.user);
        let _in_hand = self.settings.gpus.trials.take(launch.labels.job, launch.labels.attempt);
        let verdict = match tokio::time::timeout(LIMIT, self.watch(&launch, injector)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(SandboxError::NoInjection { message, .. })) => Verdict::Fails(message),
            Ok(Err(error)) => Verdict::Unknown(error),
            // The driver may hang, and with it everybody who asks it.
            Err(_) => Verdict::Fails(format!("a container was not done looking for its GPUs after {LIMIT:?}")),
        };
        if let Err(error) = self.remove(&launch.name).await {
            tracing::warn!(%error, container = %launch.name, "a trial's container stays until the next sweep");
        }
        verdict
    }

    async fn watch(&self, launch: &Launch, injector: Injector) -> Result<Verdict, SandboxError> {
        self.create_by(launch, Some(injector)).await?;
        self.start_once(&launch.name).await?;
        self.wait(&launch.name, LIMIT).await?;
        let status = self.inspect(&launch.name).await?.map(|found| found.status);
        let Some(Status::Exited(exit)) = status else {
            return Ok(Verdict::Fails(format!("a container with GPUs did not end: {status:?}")));
        };
        // A worker that does not know the question had its GPUs all the same, as far as the engine goes.
        if [EXIT_FINISHED, EXIT_MISUSED].map(i64::from).contains(&exit.code) {
            return Ok(Verdict::Works);
        }
        let words = self.last_words(&launch.name, WORDS).await?;
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Verdict::Fails(format!("the worker finds no GPU in its container (exit code {}): {words}", exit.code)))
    }
}

fn launch(gpus: &Inventory, instance: &str, user: (u32, u32)) -> Launch {
    let job = JobId::from_parts(0, rand::random());
    Launch {
        name: ContainerName(format!("drydock-gpus-{}", job.to_string().to_lowercase())),
        labels: Labels {
            instance: instance.to_owned(),
            job,
            attempt: Attempt::FIRST,
            fence: FENCE.to_owned(),
            trace_id: TraceId::from_bits(rand::random()),
        },
        args: vec!["selfcheck".to_owned(), "--list-devices".to_owned()],
        mounts: Vec::new(),
        user,
        limits: limits(),
        gpus: Circumstances::units(gpus),
    }
}

/// The driver's part in a process takes some hundred MiB for each GPU that it opens.
fn limits() -> Limits {
    let time_ms = i64::try_from(LIMIT.as_millis()).unwrap_or(i64::MAX);
    Limits {
        memory_bytes: 4 << 30,
        cpu_millis: 1000,
        pids: 256,
        disk_bytes: 1 << 20,
        time_ms,
        silence_ms: time_ms,
        grace_ms: 0,
        max_attempts: 1,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}
