//! From a claimed job to a container that was started, whatever of it has been done before.

use std::time::Duration;

use drydock_spec::contract::{EVENTS_PATH, OUTPUT_PATH, SPEC_PATH, VERSION};
use drydock_spec::{AttemptSpec, FailureKind, Inputs, Outcome, Stage};

use super::{Attempts, Stop, hold, stopping};
use crate::fail_point::{self, Step};
use crate::inputs::bring;
use crate::sandbox::attempt_dir::{AttemptDir, AttemptDirError, FolderSettings, InputFolders};
use crate::sandbox::users::NoUser;
use crate::sandbox::{ContainerName, Labels, Launch, SandboxError, Status};
use crate::store::Lease;

/// How long to wait before an engine that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long to wait before GPUs are asked for again that no container could get: shorter than a lease is held.
const LOOK_FOR_GPUS: Duration = Duration::from_secs(5);
/// How long an engine that answers may go on failing to do what it is asked for. One that does not answer has all the
/// time in the world.
const FAILING: Duration = Duration::from_secs(30);

impl Attempts {
    /// Returns when the attempt's container runs or has ended. The only place that creates or starts one.
    pub(super) async fn start(&self, lease: &mut Lease) -> Result<AttemptDir, Stop> {
        let started = self.bring_up(lease).await;
        if let Err(Stop::Over(Outcome::Failed(failure))) = &started
            && failure.kind == FailureKind::StartFailed
            && self.engine_restarted(lease).await?
        {
            // One that dies in the middle of a start can come back and trip over what it left behind.
            let message = format!("the engine was restarted while it started the container: {}", failure.message);
            return Err(Stop::failed(FailureKind::EngineLost, Stage::Start, message));
        }
        started
    }

    async fn bring_up(&self, lease: &mut Lease) -> Result<AttemptDir, Stop> {
        let name = ContainerName::of(lease.job().id, lease.attempt());
        let mut failing = None;
        loop {
            if self.shutdown.is_cancelled() {
                return Err(Stop::Detached);
            }
            lease.renew(self.lease_ms).await?;
            match self.sandbox.inspect(&name).await {
                Ok(Some(found)) if found.labels.fence != lease.row().fence => {
                    tracing::warn!(container = %name, "a container of another life bears this attempt's name");
                    let removed = hold::renewing(lease, self.lease_ms, self.sandbox.remove(&name)).await?;
                    self.settle(removed, "remove", &mut failing).await?;
                }
                Ok(Some(found)) => match found.status {
                    Status::Created { error: Some(error) } => {
                        return Err(Stop::failed(FailureKind::StartFailed, Stage::Start, error));
                    }
                    Status::Created { error: None } => {
                        lease.refresh().await?;
                        if stopping(lease) {
                            return Err(Stop::Over(Outcome::Cancelled));
                        }
                        if self.has_spoken(lease).await? {
                            // An engine that dies while it starts a container can come back without knowing of it.
                            let message = "the engine has forgotten that it started the container";
                            return Err(Stop::failed(FailureKind::EngineLost, Stage::Start, message));
                        }
                        lease.starting().await?;
                        fail_point::before(Step::Start);
                        let started = hold::renewing(lease, self.lease_ms, self.sandbox.start(&name)).await?;
                        if started.is_ok() {
                            fail_point::after(Step::Start);
                        }
                        match started {
                            Err(error @ SandboxError::NoInjection { .. }) => {
                                self.start_over(lease, &name, &error, &mut failing).await?;
                            }
                            started => self.settle(started, "start", &mut failing).await?,
                        }
                    }
                    Status::Running | Status::Lifeless | Status::Exited(_) => return self.dir_of(lease).await,
                },
                Ok(None) if lease.row().starting_ms.is_some() => {
                    let message = "the container is gone and nobody saw how it ended";
                    return Err(Stop::failed(FailureKind::EngineLost, Stage::Start, message));
                }
                // Never started. Perhaps it was created, and the reply lost: its name makes sure that it is not there
                // twice.
                Ok(None) => self.create(lease, &name, &mut failing).await?,
                Err(error) => self.settle(Err(error), "look up", &mut failing).await?,
            }
        }
    }

    /// Brings the inputs into place and creates the container.
    async fn create(&self, lease: &mut Lease, name: &ContainerName, failing: &mut Option<i64>) -> Result<(), Stop> {
        let mut folders = self.prepare(lease).await?;
        folders.checkpoint = self.resume(lease).await?;
        let Ok(engine) = self.engine.now() else { return self.pause(ASK_AGAIN).await };
        let how = self.config.folder_settings(&engine.isolation);
        let Some(dir) = self.make_dir(lease, folders.inside(), how).await? else { return self.pause(ASK_AGAIN).await };
        lease.refresh().await?;
        if stopping(lease) {
            return Err(Stop::Over(Outcome::Cancelled));
        }
        lease.launching(&engine.incarnation).await?;
        let job = lease.job();
        let launch = Launch {
            name: name.clone(),
            labels: Labels {
                instance: self.instance.clone(),
                job: job.id,
                attempt: lease.attempt(),
                fence: lease.row().fence.clone(),
                trace_id: job.trace_id.clone(),
            },
            args: vec!["run".into(), SPEC_PATH.into()],
            mounts: dir.mounts(&folders),
            user: engine.isolation.ids.inside(dir.owner()?),
            limits: job.limits,
            gpus: lease.row().gpus.clone(),
        };
        fail_point::before(Step::Create);
        match hold::renewing(lease, self.lease_ms, self.sandbox.create(&launch)).await? {
            // Somebody was faster: perhaps ourselves, with a reply that was lost.
            Err(SandboxError::NameTaken(_)) => Ok(()),
            Ok(()) => {
                fail_point::after(Step::Create);
                Ok(())
            }
            failed => self.settle(failed, "create", failing).await,
        }
    }

    /// After a start without the GPUs that the attempt was given, which is no fault of its own: the container goes, and
    /// the next one gets them in the way that is then known to work.
    async fn start_over(
        &self,
        lease: &mut Lease,
        name: &ContainerName,
        error: &SandboxError,
        failing: &mut Option<i64>,
    ) -> Result<(), Stop> {
        tracing::warn!(%error, container = %name, "the container is made anew");
        // First: a container that is gone after it was about to start would be one whose end nobody saw.
        lease.not_started().await?;
        let removed = hold::renewing(lease, self.lease_ms, self.sandbox.remove(name)).await?;
        self.settle(removed, "remove", failing).await
    }

    /// Fetches what the attempt reads. Cancelling the job or shutting down interrupts it; what was fetched stays.
    async fn prepare(&self, lease: &mut Lease) -> Result<InputFolders, Stop> {
        let inputs = lease.job().inputs.clone();
        let mut news = self.store.changes().subscribe(lease.job().id);
        let mut fetch = std::pin::pin!(bring(&self.models, &self.datasets, &inputs));
        loop {
            lease.refresh().await?;
            if stopping(lease) {
                return Err(Stop::Over(Outcome::Cancelled));
            }
            tokio::select! {
                fetched = &mut fetch => return fetched.map_err(|failure| Stop::Over(Outcome::Failed(failure))),
                () = news.changed() => {}
                () = self.shutdown.cancelled() => return Err(Stop::Detached),
                () = tokio::time::sleep(hold::renewal(self.lease_ms)) => lease.renew(self.lease_ms).await?,
            }
        }
    }

    /// The attempt's folder, made anew; `None` while every user that it could belong to has a container.
    async fn make_dir(&self, lease: &Lease, inputs: Inputs, how: FolderSettings) -> Result<Option<AttemptDir>, Stop> {
        let job = lease.job();
        let spec = AttemptSpec {
            contract: VERSION,
            job: job.id,
            attempt: lease.attempt(),
            trace_id: job.trace_id.clone(),
            spec: job.spec.clone(),
            inputs,
            output: OUTPUT_PATH.into(),
            events: EVENTS_PATH.into(),
            threads: job.limits.cpu_millis.div_ceil(1000),
            gpus: u32::try_from(lease.row().gpus.len()).unwrap_or(u32::MAX),
        };
        let (root, limits) = (self.attempts_dir(), job.limits);
        let made = tokio::task::spawn_blocking(move || AttemptDir::create(&root, &spec, &limits, &how));
        match hold::renewing(lease, self.lease_ms, made).await?? {
            Ok(dir) => Ok(Some(dir)),
            Err(AttemptDirError::NoUser(error @ NoUser::AllTaken(_))) => {
                tracing::warn!(%error, "the attempt waits for a user");
                Ok(None)
            }
            Err(error) if error.is_disk_full() => Err(Stop::failed(FailureKind::NoRoom, Stage::Prepare, error)),
            Err(error) => Err(Stop::failed(FailureKind::Internal, Stage::Prepare, error)),
        }
    }

    /// The folder of an attempt whose container exists.
    async fn dir_of(&self, lease: &Lease) -> Result<AttemptDir, Stop> {
        match self.open_dir(lease.job().id, lease.attempt()).await? {
            Some(dir) => Ok(dir),
            None => {
                Err(Stop::failed(FailureKind::Internal, Stage::Start, "the attempt's folder is gone from the host"))
            }
        }
    }

    /// Whether a worker of this attempt has ever said anything: then it must not be started a second time.
    async fn has_spoken(&self, lease: &Lease) -> Result<bool, Stop> {
        if lease.row().launched_ms.is_none() {
            return Ok(false);
        }
        if lease.row().report_offset > 0 {
            return Ok(true);
        }
        let Some(dir) = self.open_dir(lease.job().id, lease.attempt()).await? else {
            return Ok(false);
        };
        Ok(std::fs::metadata(dir.events_path()).is_ok_and(|file| file.len() > 0))
    }

    /// Goes on after a call whose outcome will show at the next look; ends the attempt if the engine refused, or has
    /// been `failing` for too long to hope any more.
    async fn settle(
        &self,
        called: Result<(), SandboxError>,
        action: &str,
        failing: &mut Option<i64>,
    ) -> Result<(), Stop> {
        match called {
            Ok(()) => Ok(()),
            Err(error @ SandboxError::Failed { .. }) if self.fails_for(failing) >= FAILING => {
                Err(Stop::failed(FailureKind::StartFailed, Stage::Start, error))
            }
            // The line is held up by then, as far as the disk is ours to look at; this one goes back to it.
            Err(error @ SandboxError::NoRoom { .. }) if self.fails_for(failing) >= FAILING => {
                Err(Stop::failed(FailureKind::NoRoom, Stage::Start, error))
            }
            Err(error) if error.leaves_doubt() => {
                tracing::warn!(%error, action, "the engine did not do as asked; nothing is concluded from that");
                self.pause(ASK_AGAIN).await
            }
            // No job fails for that: it waits until the host is mended, or somebody cancels it.
            Err(error @ SandboxError::NoInjector(_)) => {
                tracing::warn!(%error, "the attempt waits for its GPUs");
                self.pause(LOOK_FOR_GPUS).await
            }
            // The next injector has not been tried.
            Err(error @ SandboxError::NoInjection { .. }) => {
                tracing::warn!(%error, "the attempt has no GPUs yet");
                self.pause(ASK_AGAIN).await
            }
            Err(error @ (SandboxError::ImageMissing(_) | SandboxError::ImageHasVolumes { .. })) => {
                Err(Stop::failed(FailureKind::ImageMissing, Stage::Start, error))
            }
            // It was there a moment ago; the next look tells.
            Err(SandboxError::NoContainer(_)) => Ok(()),
            Err(error) => Err(Stop::failed(FailureKind::StartFailed, Stage::Start, error)),
        }
    }

    /// How long the engine has been failing; `since` when, by the steady clock, is noted the first time.
    fn fails_for(&self, since: &mut Option<i64>) -> Duration {
        let now = self.store.clock().steady_ms();
        Duration::from_millis(u64::try_from(now - *since.get_or_insert(now)).unwrap_or_default())
    }

    /// A moment for an engine to come to itself.
    async fn pause(&self, time: Duration) -> Result<(), Stop> {
        tokio::select! {
            () = self.store.clock().sleep(time) => Ok(()),
            () = self.shutdown.cancelled() => Err(Stop::Detached),
        }
    }
}
