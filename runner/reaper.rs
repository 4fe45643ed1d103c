//! What nobody speaks for any more: expired leases are taken over, ownerless containers and folders removed.
//!
//! Every pass derives its work from the database and the engine, so it can be repeated, cut off, and done again by
//! another process.

use std::collections::HashMap;
use std::time::Duration;

use drydock_spec::{Attempt, JobId};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::artifacts::ArtifactError;
use crate::dispatch::Dispatch;
use crate::sandbox::attempt_dir::{self, AttemptDirError};
use crate::sandbox::{Found, SandboxError};
use crate::store::StoreError;

/// Something could not be swept; the next pass tries again.
#[derive(Debug, thiserror::Error)]
pub enum ReapError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Dir(#[from] AttemptDirError),
    #[error(transparent)]
    Checkpoints(#[from] ArtifactError),
    #[error("a blocking call did not return: {0}")]
    Join(#[from] tokio::task::JoinError),
}

/// Takes over and sweeps, again and again.
#[derive(Clone)]
pub struct Reaper {
    pub dispatch: Dispatch,
}

impl Reaper {
    /// Repeats both passes until shutdown.
    pub async fn run(self, every: Duration, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.adopt_once().await {
                tracing::error!(%error, "attempts could not be taken over");
            }
            match self.sweep_once().await {
                Ok(()) => {}
                // The watch on the engine has said so already.
                Err(ReapError::Sandbox(error)) if error.leaves_doubt() => {}
                Err(error) => tracing::warn!(%error, "sweep failed"),
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Takes up every attempt that another process left, or whose lease has run out.
    pub async fn adopt_once(&self) -> Result<(), StoreError> {
        let Dispatch { attempts, holder, tracker, .. } = &self.dispatch;
        for (job, attempt) in attempts.store.abandoned(holder).await? {
            if attempts.in_hand.has(job, attempt) {
                continue;
            }
            if let Some(lease) = attempts.store.take_over(job, attempt, holder).await? {
                tracing::info!(%job, %attempt, orphaned = lease.row().orphaned, "attempt taken over");
                tracker.spawn(attempts.clone().run(lease));
            }
        }
        Ok(())
    }

    /// Removes containers that no attempt under way owns, and then the folders of attempts that have no container.
    pub async fn sweep_once(&self) -> Result<(), ReapError> {
        let attempts = &self.dispatch.attempts;
        // First the containers, then the database: an attempt that begins in between is seen as under way.
        let found = attempts.sandbox.list().await?;
        let under_way: HashMap<(JobId, Attempt), String> = attempts
            .store
            .attempts_under_way()
            .await?
            .into_iter()
            .map(|row| ((row.job, row.attempt), row.fence))
            .collect();
        // Attempts whose containers stay, and with them their folders.
        let mut in_use = Vec::new();
        for Found { name, labels, .. } in &found {
            let attempt = (labels.job, labels.attempt);
            if under_way.get(&attempt) == Some(&labels.fence) {
                in_use.push(attempt);
                continue;
            }
            // Previews and trials are in no database. Whoever makes them has them in hand before the engine has.
            if !under_way.contains_key(&attempt) && attempts.in_hand.has(labels.job, labels.attempt) {
                in_use.push(attempt);
                continue;
            }
            tracing::info!(container = %name, "a container that nobody owns is removed");
            // One that cannot be removed must not keep the others.
            if let Err(error) = attempts.sandbox.remove(name).await {
                tracing::warn!(%error, container = %name, "the container stays until the next sweep");
                in_use.push(attempt);
            }
        }
        self.sweep_checkpoints().await?;
        let (root, store, runtime) = (attempts.attempts_dir(), attempts.store.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            // An attempt is claimed before its folder is made, so a folder whose attempt is not under way when asked
            // about now will never be needed again. When in doubt it stays.
            let under_way = |job, attempt| runtime.block_on(store.attempt_under_way(job, attempt)).unwrap_or(true);
            attempt_dir::sweep(&root, |job, attempt| in_use.contains(&(job, attempt)) || under_way(job, attempt))
        })
        .await??;
        Ok(())
    }

    /// Removes the checkpoints that no attempt will go on from.
    async fn sweep_checkpoints(&self) -> Result<(), ReapError> {
        let (checkpoints, store) = (self.dispatch.attempts.checkpoints.clone(), self.dispatch.attempts.store.clone());
        let runtime = Handle::current();
        let age = self.dispatch.attempts.config.retention.checkpoints_age;
        let kept_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        tokio::task::spawn_blocking(move || {
            // When in doubt it stays.
            checkpoints
                .sweep(|job, attempt| runtime.block_on(store.checkpoint_wanted(job, attempt, kept_ms)).unwrap_or(true))
        })
        .await??;
        Ok(())
    }
}
