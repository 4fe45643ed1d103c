//! The front desk: everything that a request may ask of the house, whatever protocol it came by.
//!
//! Nothing here lives longer than a request does. A job that was accepted is in the database before the answer is
//! given, and goes its way without anybody at the desk.

use std::sync::Arc;
use std::time::Duration;

use drydock_gpu::Capacity;
use drydock_spec::{JobId, Owner, TraceId};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::api::{
    ArtifactList, ArtifactView, BestRemedy, FailureGroupView, FailureList, HostView, JobList, JobView, Logs,
    MetricsPoint, MetricsView, PlanView, Submission, SubmittedView,
};
use crate::artifacts::ArtifactStore;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::datasets::{DatasetError, Datasets};
use crate::disk::DiskWatch;
use crate::engine::EngineWatch;
use crate::gpus::GpuProbe;
use crate::line::Line;
use crate::models::{ModelError, Models};
use crate::plan::forecast::{self, Accuracy};
use crate::plan::{PlanError, Planner};
use crate::preview::{PreviewError, Previews};
use crate::remedy::Remedies;
use crate::retention::{Retention, RetentionError};
use crate::sandbox::{ContainerName, Sandbox, SandboxError};
use crate::store::{Filter, NewJob, Store, StoreError, Subscription};

mod explain;
mod gpus;
mod knowledge;
mod remedies;
mod rows;
mod view;
mod waits;

pub use gpus::GpuError;
pub use knowledge::KnowledgeError;
pub use remedies::RemedyError;
pub use view::log_line;
pub use waits::Foresight;

/// A request cannot be granted. The gateway turns this into a message.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Preview(#[from] PreviewError),
    #[error(transparent)]
    Retention(#[from] RetentionError),
    #[error(transparent)]
    Remedy(#[from] RemedyError),
    #[error(transparent)]
    Knowledge(#[from] KnowledgeError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// What a submission leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// `dry_run`: nothing was queued.
    Planned(Box<PlanView>),
    Submitted(Box<SubmittedView>),
}

/// The parts of the house that requests may use.
#[derive(Clone)]
pub struct Desk {
    pub store: Store,
    pub blobs: Blobs,
    pub artifacts: ArtifactStore,
    pub models: Models,
    pub datasets: Datasets,
    pub planner: Planner,
    pub remedies: Remedies,
    pub retention: Retention,
    pub previews: Previews,
    pub engine: EngineWatch,
    pub disk: DiskWatch,
    pub gpus: GpuProbe,
    pub line: Line,
    pub foresight: Foresight,
    pub sandbox: Arc<dyn Sandbox>,
    pub config: Arc<Config>,
}

/// How much of what a container wrote to stdout and stderr is shown and kept.
pub const LAST_WORDS_BYTES: usize = 4096;

/// Longest wait that [`Desk::wait`] grants; popular hosts give up on a call after 60 s.
pub const LONGEST_WAIT: Duration = Duration::from_secs(45);

/// Shortest time between two answers of [`Wait::next`]: a tiny model takes hundreds of steps a second.
const PACE: Duration = Duration::from_millis(200);

/// Longest time until [`Wait::next`] answers: popular hosts give up on a call that stays silent.
const HEARTBEAT: Duration = Duration::from_secs(9);

impl Desk {
    /// Plans the job, and queues it unless it is a dry run.
    pub async fn submit(&self, owner: Owner, submission: Submission) -> Result<Answer, DeskError> {
        let digest = digest(&submission);
        // A repeated submission gets its job, even if it could not be planned again today.
        if let Some(key) = submission.idempotency_key.as_ref().filter(|_| !submission.dry_run)
            && let Some((job, before)) = self.store.job_by_key(&owner, key).await?
        {
            if before != digest {
                return Err(StoreError::KeyReused { key: key.clone(), job: job.id }.into());
            }
            return Ok(Answer::Submitted(Box::new(submitted(self.view(&job).await?, false, Vec::new()))));
        }
        if submission.dry_run {
            return Ok(Answer::Planned(Box::new(Box::pin(self.planned(submission)).await?)));
        }
        let plan = self.planner.plan(submission.job, &submission.limits).await?;
        let plan = self.with_remedies(plan).await?;
        let warnings = plan.warnings.into_iter().chain(plan.cut.map(|cut| cut.to_string())).collect();
        let new = NewJob {
            id: JobId::from_parts(self.store.clock().now_ms(), rand::random()),
            owner,
            trace_id: TraceId::from_bits(rand::random()),
            spec: plan.spec,
            inputs: plan.inputs,
            limits: plan.limits,
            estimate: Some(plan.estimate),
            priority: submission.priority,
            idempotency_key: submission.idempotency_key,
            request_digest: digest,
            on_failure: submission.on_failure.unwrap_or(self.config.remedies.on_failure),
            remedy: None,
        };
        let accepted = self.store.submit(new).await?;
        tracing::info!(job = %accepted.job.id, trace_id = %accepted.job.trace_id, created = accepted.created, "job accepted");
        let view = self.view(&accepted.job).await?;
        Ok(Answer::Submitted(Box::new(submitted(view, accepted.created, warnings))))
    }

    /// The job as it stands.
    pub async fn job(&self, id: JobId) -> Result<JobView, DeskError> {
        let job = self.store.job(id).await?;
        self.view(&job).await
    }

    /// Some jobs, newest first.
    pub async fn jobs(&self, filter: &Filter) -> Result<JobList, DeskError> {
        let page = self.store.jobs(filter).await?;
        let jobs = self.views(&page.jobs).await?;
        let next = if page.more { page.jobs.last().map(|job| job.id) } else { None };
        Ok(JobList { jobs, next })
    }

    /// A wait for the job's end that lasts `limit` at most, and [`LONGEST_WAIT`] whatever the caller says.
    pub async fn wait(&self, id: JobId, limit: Duration) -> Result<Wait, DeskError> {
        // Whoever waits for a job that does not exist must leave nothing behind in the table of subscriptions.
        self.store.job(id).await?;
        let news = self.store.changes().subscribe(id);
        Ok(Wait { desk: self.clone(), id, news, deadline: Instant::now() + limit.min(LONGEST_WAIT) })
    }

    /// Asks for the job's end; harmless if it has ended.
    pub async fn cancel(&self, id: JobId) -> Result<JobView, DeskError> {
        let job = self.store.request_cancel(id).await?;
        tracing::info!(job = %id, trace_id = %job.trace_id, state = job.state.word(), "cancel requested");
        self.view(&job).await
    }

    /// Lines of the job's log after number `after` (or the last ones, if it is `None`), and its container's last words
    /// while there is a container.
    pub async fn logs(&self, id: JobId, after: Option<i64>, limit: u32) -> Result<Logs, DeskError> {
        let job = self.store.job(id).await?;
        let lines = match after {
            Some(after) => self.store.log(id, after, limit).await?,
            None => self.store.log_tail(id, limit).await?,
        };
        let next_after = lines.last().map_or(after.unwrap_or(0), |line| line.seq);
        let name = ContainerName::of(id, job.attempt);
        // Logs must not fail because the engine is away; what a container that is gone has said was kept.
        let last_words = match self.sandbox.last_words(&name, LAST_WORDS_BYTES).await {
            Ok(words) if !words.is_empty() => Some(words),
            _ => self.store.last_words(id).await?,
        };
        Ok(Logs {
            lines: lines.into_iter().map(|line| log_line(line, &job.trace_id)).collect(),
            last_words,
            next_after,
            removed_ms: job.reports_removed_ms,
        })
    }

    /// Metrics after line `after` of the job's log.
    pub async fn metrics(&self, id: JobId, after: i64, limit: u32) -> Result<MetricsView, DeskError> {
        let job = self.store.job(id).await?;
        let metrics = self.store.metrics(id, after, limit).await?;
        let next_after = metrics.last().map_or(after, |line| line.seq);
        let metrics = metrics
            .into_iter()
            .map(|line| MetricsPoint {
                seq: line.seq,
                at_ms: line.at_ms,
                attempt: line.attempt.0,
                metrics: line.metrics,
            })
            .collect();
        Ok(MetricsView { metrics, next_after, removed_ms: job.reports_removed_ms })
    }

    /// What the job has made.
    pub async fn artifacts(&self, id: JobId) -> Result<ArtifactList, DeskError> {
        let job = self.store.job(id).await?;
        let artifacts: Vec<_> = self
            .store
            .artifacts(id)
            .await?
            .into_iter()
            .map(|artifact| ArtifactView {
                href: format!("/v1/jobs/{id}/artifacts/{}", artifact.path),
                path: artifact.path,
                role: artifact.role,
                bytes: artifact.bytes,
                sha256: artifact.sha256,
            })
            .collect();
        let there = !artifacts.is_empty() && job.artifacts_removed_ms.is_none();
        let folder = there.then(|| self.artifacts.folder(id).display().to_string());
        Ok(ArtifactList { artifacts, folder, removed_ms: job.artifacts_removed_ms })
    }

    /// What has failed, those that are the same together, the newest first.
    pub async fn failures(&self, limit: u32) -> Result<FailureList, DeskError> {
        let mut failures = Vec::new();
        for group in self.store.failure_groups(limit).await? {
            let job = self.store.job(group.newest.job).await?;
            let best = self.remedies.best(&job, &group.newest).await?;
            let best = best.map(|(remedy, record, sure)| BestRemedy { remedy, record, sure });
            failures.push(FailureGroupView::new(group, best));
        }
        Ok(FailureList { failures })
    }

    /// What jobs may use of the host, and what of it is free. Without an engine there is nothing to give.
    pub async fn capacity(&self) -> Result<(Capacity, Capacity), DeskError> {
        let all = self.engine.now().map_or(Capacity::default(), |info| self.config.capacity.of(&info));
        let (cpu_millis, memory_bytes) = self.store.reserved().await?;
        Ok((all, all.less(Capacity { cpu_millis, memory_bytes })))
    }

    /// How well plans have predicted what jobs need.
    async fn forecasts(&self) -> Result<Vec<Accuracy>, StoreError> {
        let mut found = Vec::new();
        for (kind, method) in self.store.measured_kinds().await? {
            found.extend(forecast::judge(&self.store.forecasts(&kind, method.as_deref()).await?));
        }
        Ok(found)
    }

    /// The host, its engine, and what is wrong with them.
    pub async fn host(&self) -> Result<HostView, DeskError> {
        let (all, free) = self.capacity().await?;
        let mut problems = Vec::new();
        let info = self.engine.now().map_err(|error| problems.push(error.to_string())).ok();
        let image = info.as_ref().and_then(|info| match &info.image {
            Ok(id) => Some(id.clone()),
            Err(error) => {
                problems.push(error.to_string());
                None
            }
        });
        problems.extend(self.disk.now().shortage.map(|shortage| shortage.to_string()));
        Ok(HostView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: info.map(|info| info.engine),
            image,
            problems,
            cpu_millis: all.cpu_millis,
            cpu_millis_free: free.cpu_millis,
            memory_bytes: all.memory_bytes,
            memory_bytes_free: free.memory_bytes,
            jobs: self.store.counts().await?.into_iter().collect(),
            forecasts: self.forecasts().await?,
            state_dir: self.config.state_dir.display().to_string(),
        })
    }
}

/// Somebody waits for a job's end.
pub struct Wait {
    desk: Desk,
    id: JobId,
    news: Subscription,
    deadline: Instant,
}

impl Wait {
    /// Whether there is something left to wait for when the job stands like this.
    #[must_use]
    pub fn goes_on(&self, job: &JobView) -> bool {
        !job.is_done() && Instant::now() < self.deadline
    }

    /// The job after the next change, or as it is when [`HEARTBEAT`] or the wait is over. Changes that follow each other
    /// within [`PACE`] are one.
    pub async fn next(&mut self) -> Result<JobView, DeskError> {
        let soon = Instant::now() + PACE;
        // Whatever ended the sleep, the job is looked at.
        let _ = tokio::time::timeout_at(self.deadline.min(Instant::now() + HEARTBEAT), self.news.changed()).await;
        tokio::time::sleep_until(soon.min(self.deadline)).await;
        self.desk.job(self.id).await
    }
}

fn submitted(job: JobView, created: bool, warnings: Vec<String>) -> SubmittedView {
    let next = format!("call wait_for_job or get_job with id {}", job.id);
    SubmittedView { job, created, warnings, next }
}

/// What makes two submissions the same: everything but the key itself.
fn digest(submission: &Submission) -> String {
    let what = (&submission.job, submission.priority, &submission.limits);
    // The types are plain data; they always serialize.
    let mut text = serde_json::to_string(&what).unwrap_or_default();
    // What was submitted before there was a choice has the digest that it had.
    if let Some(on_failure) = submission.on_failure {
        text.push_str(&format!("{on_failure:?}"));
    }
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
