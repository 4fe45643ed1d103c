//! From a lost attempt to the next one: a training goes on where its last whole checkpoint is.

use std::path::PathBuf;

use drydock_spec::{JobState, Outcome};

use super::{AttemptError, Attempts, hold};
use crate::artifacts::Caps;
use crate::checkpoints::Kept;
use crate::store::Lease;

/// Announced checkpoints that are looked for, the newest first: a worker removes the one before when the next is whole.
const CANDIDATES: u32 = 3;

impl Attempts {
    /// Keeps the last whole checkpoint of an attempt that will be followed by another. A checkpoint that cannot be kept
    /// costs the time since the beginning, never the job.
    pub(super) async fn keep_checkpoint(&self, lease: &Lease, outcome: &Outcome) -> Result<(), AttemptError> {
        if !is_followed(lease, outcome) {
            return Ok(());
        }
        let job = lease.job();
        let announced = lease.announced_checkpoints(CANDIDATES).await?;
        let Ok(Some(dir)) = self.open_dir(job.id, lease.attempt()).await else { return Ok(()) };
        for announced in announced {
            let (checkpoints, output, wanted) = (self.checkpoints.clone(), dir.output_path(), announced.clone());
            let (id, attempt, caps) = (job.id, lease.attempt(), Caps::of_disk(job.limits.disk_bytes));
            let kept = tokio::task::spawn_blocking(move || checkpoints.keep(id, attempt, &output, &wanted, caps));
            match hold::renewing(lease, self.lease_ms, kept).await?? {
                Ok(Some(kept)) => {
                    tracing::info!(step = kept.step, bytes = kept.bytes, "checkpoint kept for the next attempt");
                    return Ok(lease.keep_checkpoint(&kept).await?);
                }
                Ok(None) => tracing::debug!(step = announced.step, "an announced checkpoint is not there any more"),
                Err(error) => tracing::warn!(%error, step = announced.step, "a checkpoint is not kept"),
            }
        }
        Ok(())
    }

    /// What the attempt goes on from, with the folder that holds it; and writes down that it does.
    pub(super) async fn resume(&self, lease: &Lease) -> Result<Option<PathBuf>, AttemptError> {
        let found = match self.store.checkpoint(lease.job().id).await? {
            Some(kept) if kept.attempt < lease.attempt() => self.verified(lease, kept).await?,
            _ => None,
        };
        lease.resuming(found.as_ref().map(|(kept, _)| kept)).await?;
        Ok(found.map(|(_, folder)| folder))
    }

    async fn verified(&self, lease: &Lease, kept: Kept) -> Result<Option<(Kept, PathBuf)>, AttemptError> {
        let (checkpoints, id, looked_for) = (self.checkpoints.clone(), lease.job().id, kept.clone());
        let verified = tokio::task::spawn_blocking(move || checkpoints.verified(id, &looked_for));
        match hold::renewing(lease, self.lease_ms, verified).await?? {
            Ok(Some(folder)) => Ok(Some((kept, folder))),
            Ok(None) => {
                tracing::warn!(step = kept.step, "the checkpoint is damaged or gone; the attempt begins anew");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, step = kept.step, "the checkpoint cannot be read; the attempt begins anew");
                Ok(None)
            }
        }
    }
}

/// Whether another attempt will come after one that ended like this.
fn is_followed(lease: &Lease, outcome: &Outcome) -> bool {
    let job = lease.job();
    let running = matches!(job.state, JobState::Running { .. });
    running
        && lease.attempt() < job.last_attempt()
        && matches!(outcome, Outcome::Failed(failure) if failure.kind.retryable())
}
