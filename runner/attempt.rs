//! One attempt of a job: prepare, start, follow, diagnose, finish.
//!
//! An attempt can be taken up at any point by anybody who holds its lease: what to do next is read from the database
//! and from the engine, never remembered. So a gateway that was killed goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use drydock_spec::{Attempt, Failure, FailureKind, JobId, JobState, Outcome, Stage};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::artifacts::{Artifact, ArtifactError, ArtifactStore, Caps, Wanted};
use crate::checkpoints::Checkpoints;
use crate::config::Config;
use crate::datasets::Datasets;
use crate::diagnose::{Ending, diagnose};
use crate::engine::EngineWatch;
use crate::fail_point::{self, Step};
use crate::gpus::GpuProbe;
use crate::in_hand::InHand;
use crate::models::Models;
use crate::remedy::Remedies;
use crate::sandbox::attempt_dir::{AttemptDir, AttemptDirError};
use crate::sandbox::{ContainerName, Sandbox};
use crate::store::{Job, Lease, Store, StoreError};

mod explain;
mod follow;
mod gpus;
mod hold;
mod remedy;
pub mod reports;
mod resume;
mod start;

/// Characters of what a worker says that a file is.
const MOST_ROLE_CHARS: usize = 64;

/// What attempts are made with. Cloning shares it.
#[derive(Clone)]
pub struct Attempts {
    pub store: Store,
    pub sandbox: Arc<dyn Sandbox>,
    pub engine: EngineWatch,
    pub models: Models,
    pub datasets: Datasets,
    pub artifacts: ArtifactStore,
    pub checkpoints: Checkpoints,
    pub remedies: Remedies,
    pub gpus: GpuProbe,
    /// The attempts that this process is at work on.
    pub in_hand: InHand,
    pub config: Arc<Config>,
    /// The installation's name, which its containers are labelled with.
    pub instance: String,
    /// How long a lease is renewed for, in milliseconds.
    pub lease_ms: i64,
    /// When it is cancelled, attempts are left as they are for the next process to take up.
    pub shutdown: CancellationToken,
}

/// drydock could not do its own part. The attempt stays under way; when its lease has run out, somebody tries again.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read the events file: {0}")]
    Events(std::io::Error),
    #[error(transparent)]
    Dir(#[from] AttemptDirError),
    #[error("a blocking call did not return: {0}")]
    Join(#[from] tokio::task::JoinError),
}

/// Why an attempt goes no further here.
#[derive(Debug)]
enum Stop {
    /// It is over without a container having ended.
    Over(Outcome),
    /// We are shutting down; the container, if there is one, goes on.
    Detached,
    Broken(AttemptError),
}

impl<E: Into<AttemptError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

impl Stop {
    fn failed(kind: FailureKind, stage: Stage, message: impl std::fmt::Display) -> Self {
        Self::Over(Outcome::Failed(Failure::new(kind, message.to_string()).at(stage)))
    }
}

impl Attempts {
    /// Takes the attempt from wherever it stands to its end.
    pub async fn run(self, lease: Lease) {
        let job = lease.job();
        let Some(_in_hand) = self.in_hand.take(job.id, lease.attempt()) else { return };
        let span = tracing::info_span!("attempt", job = %job.id, attempt = %lease.attempt(), trace_id = %job.trace_id);
        async move {
            // Boxed: it holds all that an attempt comes to, for as long as that takes.
            match Box::pin(self.run_attempt(lease)).await {
                Ok(Some(job)) => tracing::info!(state = job.state.word(), "attempt ended"),
                Ok(None) => tracing::info!("attempt left to the next process"),
                Err(AttemptError::Store(StoreError::LeaseLost { .. })) => tracing::debug!("lease lost"),
                Err(error) => tracing::error!(%error, "attempt interrupted; it is taken up again when its lease ends"),
            }
        }
        .instrument(span)
        .await;
    }

    /// `None` if the attempt was left as it is because we are shutting down.
    async fn run_attempt(&self, mut lease: Lease) -> Result<Option<Job>, AttemptError> {
        let (mut outcome, ending) = match self.until_ended(&mut lease).await {
            Ok(ending) => (diagnose(&ending), Some(ending)),
            Err(Stop::Over(outcome)) => (outcome, None),
            Err(Stop::Detached) => {
                lease.leave().await?;
                return Ok(None);
            }
            Err(Stop::Broken(error)) => return Err(error),
        };
        // What kills one gateway after the other may be what it has left.
        let mut traces = None;
        if !is_given_up(&lease) {
            (outcome, traces) = self.look_at_output(&lease, outcome, ending.as_ref()).await?;
            self.keep_checkpoint(&lease, &outcome).await?;
        }
        fail_point::before(Step::Collect);
        let (outcome, artifacts) = self.collect(&lease, outcome).await?;
        fail_point::after(Step::Collect);
        let (job, attempt) = (lease.job().id, lease.attempt());
        let retry_at_ms = self.store.clock().now_ms() + backoff_ms(attempt.0, rand::random());
        if let Outcome::Failed(failure) = &outcome {
            tracing::warn!(%failure, stage = ?failure.stage, "attempt failed");
            let record = self.record_of(&lease, failure, ending.as_ref(), traces.as_ref()).await?;
            if let Some(cure) = self.cure_for(&lease, failure, &record).await? {
                lease.cure(cure);
            }
            lease.explain(record);
        }
        fail_point::before(Step::Commit);
        let after = lease.finish(outcome, &artifacts, retry_at_ms).await?;
        fail_point::after(Step::Commit);
        // Only now: until the end is written down, the container and its folder are what it can be read from.
        self.clean_up(&ContainerName::of(job, attempt), self.open_dir(job, attempt).await).await;
        Ok(Some(after))
    }

    async fn until_ended(&self, lease: &mut Lease) -> Result<Ending, Stop> {
        if is_given_up(lease) {
            let message = format!("{MOST_ORPHANED} gateways in a row died while they were at work on the attempt");
            return Err(Stop::failed(FailureKind::Internal, Stage::Start, message));
        }
        let gpus = self.gpus_from_here(lease).await?;
        let dir = self.start(lease).await?;
        let ending = self.follow(lease, dir, &gpus.mark).await?;
        self.add_gpus(lease, &gpus, ending).await
    }

    /// Takes the artifacts of a success over; what cannot be taken over turns it into a failure. Of a job that has
    /// failed for good, what its worker announced is kept where that is possible: the evidence of what went wrong.
    async fn collect(&self, lease: &Lease, outcome: Outcome) -> Result<(Outcome, Vec<Artifact>), AttemptError> {
        let mut roles = lease.announced_artifacts().await?;
        let wanted = match &outcome {
            Outcome::Succeeded => Wanted::AllButCheckpoints,
            Outcome::Failed(failure) if !failure.kind.retryable() && !roles.is_empty() => {
                Wanted::These(roles.keys().cloned().collect())
            }
            Outcome::Failed(_) | Outcome::Cancelled => return Ok((outcome, Vec::new())),
        };
        let job = lease.job();
        let Some(dir) = self.open_dir(job.id, lease.attempt()).await? else {
            let failure = Failure::new(FailureKind::Internal, "the attempt's output folder is gone").at(Stage::Collect);
            let lost = if outcome == Outcome::Succeeded { Outcome::Failed(failure) } else { outcome };
            return Ok((lost, Vec::new()));
        };
        let (store, id, caps) = (self.artifacts.clone(), job.id, Caps::of_disk(job.limits.disk_bytes));
        let collected = tokio::task::spawn_blocking(move || store.collect(id, &dir.output_path(), caps, &wanted));
        match hold::renewing(lease, self.lease_ms, collected).await?? {
            Ok(mut artifacts) => {
                for artifact in &mut artifacts {
                    let role = roles.remove(&artifact.path);
                    artifact.role = role.map(|role| role.chars().take(MOST_ROLE_CHARS).collect());
                }
                Ok((outcome, artifacts))
            }
            Err(error) if outcome != Outcome::Succeeded => {
                tracing::warn!(%error, "what the worker left before it failed is not kept");
                Ok((outcome, Vec::new()))
            }
            Err(error) => {
                let kind = match &error {
                    ArtifactError::Rejected { .. } => FailureKind::ArtifactRejected,
                    ArtifactError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                        FailureKind::NoRoom
                    }
                    ArtifactError::Io { .. } => FailureKind::Internal,
                };
                Ok((Outcome::Failed(Failure::new(kind, error.to_string()).at(Stage::Collect)), Vec::new()))
            }
        }
    }

    /// Removes what an attempt that is over has left. Whatever stays is swept up later.
    async fn clean_up(&self, name: &ContainerName, dir: Result<Option<AttemptDir>, AttemptError>) {
        fail_point::before(Step::Remove);
        if let Err(error) = self.sandbox.remove(name).await {
            tracing::warn!(%error, container = %name, "the container stays until the next sweep");
            return;
        }
        fail_point::after(Step::Remove);
        let removed = match dir {
            Ok(Some(dir)) => blocking(move || dir.remove()).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "the attempt's folder stays until the next sweep");
        }
    }

    /// The attempt's folder, if there is one.
    async fn open_dir(&self, job: JobId, attempt: Attempt) -> Result<Option<AttemptDir>, AttemptError> {
        let root = self.attempts_dir();
        blocking(move || AttemptDir::open(&root, job, attempt)).await
    }

    /// Where the folders of attempts lie.
    #[must_use]
    pub fn attempts_dir(&self) -> std::path::PathBuf {
        self.config.attempts_dir()
    }
}

/// Work on an attempt's folder, which may keep a thread busy: not one that answers requests.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttemptDirError> + Send + 'static,
) -> Result<T, AttemptError> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

/// Whether too many gateways have died over the attempt.
fn is_given_up(lease: &Lease) -> bool {
    lease.row().orphaned >= MOST_ORPHANED
}

/// Whether somebody has asked for the job's end.
fn stopping(lease: &Lease) -> bool {
    matches!(lease.job().state, JobState::Stopping { .. })
}

/// Gateways that may die over one attempt, without a report of its worker in between, before the attempt is given up:
/// whatever it is that kills them must not do so for ever.
const MOST_ORPHANED: u32 = 50;

const FIRST_BACKOFF: Duration = Duration::from_secs(2);
/// With its jitter it is [`LONGEST_WAIT_MS`](crate::store::LONGEST_WAIT_MS).
const LONGEST_BACKOFF: Duration = Duration::from_secs(240);

/// How long a job waits after its failed attempt number `attempt`, in milliseconds: doubling, with a quarter of jitter
/// so that jobs that failed together do not come back together.
fn backoff_ms(attempt: u32, random: u64) -> i64 {
    let doubled = FIRST_BACKOFF.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)));
    let most = doubled.min(LONGEST_BACKOFF).as_millis() as u64;
    let jitter = most / 4;
    (most - jitter + random % (2 * jitter + 1)) as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn backoff_doubles_within_its_jitter(attempt in 1..60u32, random: u64) {
            let wait = backoff_ms(attempt, random);
            let doubled = (2_000f64 * 2f64.powi(attempt as i32 - 1)).min(240_000.0);
            prop_assert!(wait as f64 >= doubled * 0.75 - 1.0 && wait as f64 <= doubled * 1.25 + 1.0);
            prop_assert!(wait <= crate::store::LONGEST_WAIT_MS);
        }
    }
}
