//! From a lost attempt to the next one: a training goes on where its last whole checkpoint is.

use std::path::PathBuf;

use drydock_spec::{JobId, OnFailure, Outcome};

use super::{AttemptError, Attempts, hold, stopping};
use crate::artifacts::Caps;
use crate::checkpoints::Kept;
use crate::remedy::rules::checkpoint_holds;
use crate::store::Lease;

/// Announced checkpoints that are looked for, the newest first: a worker removes the one before when the next is whole.
const CANDIDATES: u32 = 3;

impl Attempts {
    /// Keeps the last whole checkpoint of an attempt that failed: for the next attempt, or for a job that does it better.
    /// A checkpoint that cannot be kept costs the time since the beginning, never the job.
    pub(super) async fn keep_checkpoint(&self, lease: &Lease, outcome: &Outcome) -> Result<(), AttemptError> {
        let job = lease.job();
        let Outcome::Failed(failure) = outcome else { return Ok(()) };
        let is_followed = failure.kind.retryable() && lease.attempt() < job.last_attempt();
        let may_be_done_better = job.on_failure != OnFailure::Never && checkpoint_holds(failure.kind);
        if stopping(lease) || !(is_followed || may_be_done_better) {
            return Ok(());
        }
        let announced = lease.announced_checkpoints(CANDIDATES).await?;
        let Ok(Some(dir)) = self.open_dir(job.id, lease.attempt()).await else { return Ok(()) };
        for announced in announced {
            let (checkpoints, output, wanted) = (self.checkpoints.clone(), dir.output_path(), announced.clone());
            let (id, attempt, caps) = (job.id, lease.attempt(), Caps::of_disk(job.limits.disk_bytes));
            let kept = tokio::task::spawn_blocking(move || checkpoints.keep(id, attempt, &output, &wanted, caps));
            match hold::renewing(lease, self.lease_ms, kept).await?? {
                Ok(Some(kept)) => {
                    tracing::info!(step = kept.step, bytes = kept.bytes, "checkpoint kept");
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
        let job = lease.job();
        let mut of = job.id;
        let mut kept = self.store.checkpoint(job.id).await?.filter(|kept| kept.attempt < lease.attempt());
        if let (None, Some(failed), true) = (&kept, job.remedy_of, job.resumes) {
            (of, kept) = (failed, self.store.checkpoint(failed).await?);
        }
        let found = match kept {
            Some(kept) => self.verified(lease, of, kept).await?,
            None => None,
        };
        lease.resuming(found.as_ref().map(|(kept, _)| (of, kept))).await?;
        Ok(found.map(|(_, folder)| folder))
    }

    async fn verified(&self, lease: &Lease, id: JobId, kept: Kept) -> Result<Option<(Kept, PathBuf)>, AttemptError> {
        let (checkpoints, looked_for) = (self.checkpoints.clone(), kept.clone());
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
