//! What is kept of what has ended: artifacts and reports by age, number and size, and files that nothing needs any more.
//!
//! A pass first says what it would take, and takes exactly that. Nothing goes of a job that has not ended, nothing that
//! such a job reads, and nothing that the artifacts of another job stand on. Folders of attempts and containers are not
//! this pass's: they go with their attempt, see [`crate::reaper`].

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use drydock_spec::JobId;
use tokio_util::sync::CancellationToken;

use crate::api::{GcReport, Taken, TakenKind};
use crate::artifacts::{ArtifactError, ArtifactStore};
use crate::blobs::{BlobError, Blobs};
use crate::config::Config;
use crate::plan::ResolvedInputs;
use crate::store::{Store, StoreError};
use crate::{datasets, models};

mod ended;
mod unused;

use unused::{Needed, Unused};

/// Something could not be removed; the next pass tries again.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error("a blocking call did not return: {0}")]
    Join(#[from] tokio::task::JoinError),
}

/// Removes what the configuration says. Cloning shares it.
#[derive(Clone)]
pub struct Retention {
    pub store: Store,
    pub artifacts: ArtifactStore,
    pub blobs: Blobs,
    pub config: Arc<Config>,
}

impl Retention {
    /// Repeats the pass until shutdown.
    pub async fn run(self, every: Duration, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.cancelled() => return,
            }
            match self.gc_once(false).await {
                Ok(report) if report.taken.is_empty() => {}
                Ok(report) => {
                    tracing::info!(taken = report.taken.len(), bytes = report.bytes, "retention took its share")
                }
                Err(error) => tracing::warn!(%error, "retention came to no end; the next pass goes on"),
            }
        }
    }

    /// One pass; a dry one only says what it would take.
    pub async fn gc_once(&self, dry_run: bool) -> Result<GcReport, RetentionError> {
        if !dry_run {
            self.finish_removals().await?;
        }
        let mut taken = Vec::new();
        for planned in self.plan().await? {
            if dry_run || self.take(&planned).await? {
                taken.push(planned);
            }
        }
        Ok(GcReport { dry_run, bytes: taken.iter().map(|one| one.bytes).sum(), taken })
    }

    /// Everything that has had its time.
    async fn plan(&self) -> Result<Vec<Taken>, RetentionError> {
        let policy = &self.config.retention;
        let now = self.store.clock().now_ms();
        let in_use = self.store.inputs_in_use().await?;
        let mut artifacts = self.store.artifacts_left().await?;
        let named = ended::named_jobs(&in_use);
        artifacts.iter_mut().for_each(|left| left.wanted |= named.contains(&left.job));
        let limits = ended::Limits::of_artifacts(policy);
        let mut taken = ended::decide(TakenKind::Artifacts, &artifacts, &limits, now);
        let limits = ended::Limits::of_reports(policy);
        if limits.any() {
            taken.extend(ended::decide(TakenKind::Reports, &self.store.reports_left().await?, &limits, now));
        }
        let (unused, needed) = (self.unused(), self.needed(&in_use).await?);
        taken.extend(tokio::task::spawn_blocking(move || unused.find(&needed)).await??);
        Ok(taken)
    }

    /// Whether it was taken: what is wanted after all, or gone already, is not.
    async fn take(&self, planned: &Taken) -> Result<bool, RetentionError> {
        let name = planned.name.clone();
        match planned.what {
            TakenKind::Artifacts => {
                let Ok(job) = name.parse() else { return Ok(false) };
                Ok(self.store.remove_artifacts(job).await? && self.delete(job).await?)
            }
            TakenKind::Reports => {
                let Ok(job) = name.parse() else { return Ok(false) };
                Ok(self.store.remove_reports(job).await?)
            }
            kind @ (TakenKind::Model | TakenKind::Dataset | TakenKind::File) => {
                let unused = self.unused();
                Ok(tokio::task::spawn_blocking(move || unused.take(kind, &name)).await??)
            }
        }
    }

    async fn delete(&self, job: JobId) -> Result<bool, RetentionError> {
        let artifacts = self.artifacts.clone();
        tokio::task::spawn_blocking(move || artifacts.remove(job)).await??;
        Ok(true)
    }

    /// Deletes what an earlier pass wrote down as removed and came no further.
    async fn finish_removals(&self) -> Result<(), RetentionError> {
        let artifacts = self.artifacts.clone();
        let names = tokio::task::spawn_blocking(move || artifacts.names()).await??;
        for job in names.iter().filter_map(|name| name.parse::<JobId>().ok()) {
            if self.store.artifacts_removed(job).await? {
                self.delete(job).await?;
            }
        }
        Ok(())
    }

    fn unused(&self) -> Unused {
        Unused::new(self.blobs.clone(), &self.config)
    }

    /// What the catalogue and the jobs name.
    async fn needed(&self, in_use: &[ResolvedInputs]) -> Result<Needed, RetentionError> {
        let mut needed = Needed { folders: HashSet::new(), files: HashSet::new() };
        for entry in self.store.models::<models::Manifest>().await? {
            needed.folders.insert(entry.digest);
            needed.files.extend(entry.manifest.files.into_iter().map(|file| file.sha256));
        }
        for entry in self.store.datasets::<datasets::Manifest>().await? {
            needed.folders.insert(entry.digest);
            needed.files.extend(entry.manifest.files.into_iter().map(|file| file.sha256));
        }
        needed.folders.extend(in_use.iter().flat_map(ResolvedInputs::digests));
        Ok(needed)
    }
}

/// The folders of the state folder that hold what jobs read, one by content each.
fn folders(state_dir: &Path) -> [(TakenKind, std::path::PathBuf); 2] {
    [(TakenKind::Model, state_dir.join("models")), (TakenKind::Dataset, state_dir.join("datasets"))]
}
