//! A job in the words of people: one sentence, how far it has come, and why it waits.

use std::collections::HashMap;

use drydock_gpu::{Capacity, Shortage};
use drydock_spec::{JobId, JobState, Outcome, Report, ReportLine, TraceId};

use super::{Desk, DeskError};
use crate::api::{AttemptReport, EntryView, JobView, LogLineView, Part, Progress, WaitsFor};
use crate::disk::Room;
use crate::scores;
use crate::store::{Entry, Job, LogLine, MOST_AHEAD, Resumed, StoreError};

impl Desk {
    /// The job for everybody to see.
    pub(super) async fn view(&self, job: &Job) -> Result<JobView, DeskError> {
        let views = self.views(std::slice::from_ref(job)).await?;
        Ok(views.into_iter().next().ok_or(StoreError::NoSuchJob(job.id))?)
    }

    /// The jobs for everybody to see, in the same order. However many they are, the database is asked as often.
    pub(super) async fn views(&self, jobs: &[Job]) -> Result<Vec<JobView>, DeskError> {
        // Before its first attempt a job has said nothing.
        let begun = ids(jobs, |job| job.started_ms.is_some());
        let mut glance = self.store.glance(&begun).await?;
        let mut waits_for = self.waits_for(jobs).await?;
        let view = |one: &Job| {
            let findings = glance.findings.remove(&one.id).unwrap_or_default();
            let newest = glance.newest.remove(&one.id).unwrap_or_default();
            job(one, &findings, &newest, waits_for.remove(&one.id), glance.resumed.remove(&one.id))
        };
        Ok(jobs.iter().map(view).collect())
    }

    /// Why each of the queued jobs does not run yet: the first reason that holds, in the order in which they would be
    /// lifted.
    async fn waits_for(&self, jobs: &[Job]) -> Result<HashMap<JobId, WaitsFor>, DeskError> {
        let now = self.store.clock().now_ms();
        let is_queued = |job: &Job| matches!(job.state, JobState::Queued { .. });
        let is_retry = |job: &Job| is_queued(job) && job.waits_ms(now) > 0;
        let mut awaited = self.store.awaited(&ids(jobs, is_queued)).await?;
        let mut failures = self.store.last_failures(&ids(jobs, is_retry)).await?;
        let mut reasons = HashMap::new();
        for job in jobs.iter().filter(|job| is_queued(job)) {
            if let Some(input) = awaited.remove(&job.id) {
                reasons.insert(job.id, WaitsFor::Job { id: input.id, state: input.state });
            } else if is_retry(job) {
                let failure = failures.remove(&job.id).map(|failure| failure.to_string()).unwrap_or_default();
                reasons.insert(job.id, WaitsFor::Retry { at_ms: job.not_before_ms, failure });
            }
        }
        let in_line: Vec<_> = jobs.iter().filter(|job| is_queued(job) && !reasons.contains_key(&job.id)).collect();
        let in_line = self.holds_up(&in_line).await?;
        reasons.extend(in_line);
        Ok(reasons)
    }

    /// The same of jobs that stand in line and wait for no other job and no time.
    async fn holds_up(&self, jobs: &[&Job]) -> Result<Vec<(JobId, WaitsFor)>, DeskError> {
        let all = |reason: WaitsFor| jobs.iter().map(|job| (job.id, reason.clone())).collect();
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        if let Err(error) = self.engine.ready() {
            return Ok(all(WaitsFor::Engine { problem: error.to_string() }));
        }
        let room = self.disk.now();
        if let Some(shortage) = &room.shortage {
            let (needs, free) = (shortage.least_bytes, shortage.free_bytes);
            return Ok(all(WaitsFor::Disk { needs, free, problem: shortage.to_string() }));
        }
        let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
        let ahead = self.store.ahead_of(&ids).await?;
        let (_, free) = self.capacity().await?;
        let reason = |job: &&Job| match ahead.get(&job.id) {
            Some(&jobs) if jobs > 0 => WaitsFor::JobsAhead { jobs },
            _ => head_waits_for(job, free, &room),
        };
        Ok(jobs.iter().map(|job| (job.id, reason(job))).collect())
    }
}

/// Why the first job in line does not run yet.
fn head_waits_for(job: &Job, free: Capacity, room: &Room) -> WaitsFor {
    match free.fits(need(job)) {
        Err(Shortage::Cpu { needs, free }) => WaitsFor::Cpu { needs, free },
        Err(Shortage::Memory { needs, free }) => WaitsFor::Memory { needs, free },
        Ok(()) if job.limits.disk_bytes > room.free_bytes => WaitsFor::Disk {
            needs: job.limits.disk_bytes,
            free: room.free_bytes,
            problem: format!(
                "its output may take {}, {} are free; free disk space, or lower limits.disk_mib",
                size(job.limits.disk_bytes),
                size(room.free_bytes)
            ),
        },
        Ok(()) => WaitsFor::Dispatch,
    }
}

fn ids(jobs: &[Job], which: impl Fn(&Job) -> bool) -> Vec<JobId> {
    jobs.iter().filter(|job| which(job)).map(|job| job.id).collect()
}

/// What a job takes of the host while it runs.
#[must_use]
pub(crate) fn need(job: &Job) -> Capacity {
    Capacity { cpu_millis: u64::from(job.limits.cpu_millis), memory_bytes: job.limits.memory_bytes }
}

/// The job for everybody to see. `findings` and `newest` are its reports, oldest first.
fn job(
    job: &Job,
    findings: &[ReportLine],
    newest: &[ReportLine],
    waits_for: Option<WaitsFor>,
    resumed: Option<Resumed>,
) -> JobView {
    let progress = progress(newest, job.spec.recipe().is_some());
    let mut view = JobView {
        id: job.id,
        kind: job.spec.kind().to_owned(),
        state: job.state.word().to_owned(),
        summary: String::new(),
        about: job.spec.about(),
        model: job.spec.model().map(str::to_owned),
        dataset: job.spec.dataset().map(str::to_owned),
        owner: job.owner.0.clone(),
        trace_id: job.trace_id.0.clone(),
        priority: job.priority,
        attempt: job.attempt.0,
        max_attempts: job.limits.max_attempts,
        resumed_from: resumed,
        seq: job.last_seq,
        submitted_ms: job.submitted_ms,
        started_ms: job.started_ms,
        ended_ms: job.ended_ms,
        waits_for,
        progress,
        evaluations: Vec::new(),
        samples: Vec::new(),
        scores: Vec::new(),
        quantized: None,
        warnings: Vec::new(),
        on_failure: job.on_failure,
        remedy_of: job.remedy_of,
        failure: match &job.state {
            JobState::Done(Outcome::Failed(failure)) => Some(failure.clone()),
            _ => None,
        },
    };
    for line in findings {
        match &line.report {
            Report::Evaluation(evaluation) => view.evaluations.push(evaluation.clone()),
            Report::Sample(sample) => view.samples.push(sample.clone()),
            Report::Score(score) => view.scores.push(score.clone()),
            Report::Quantized(quantized) => view.quantized = Some(quantized.clone()),
            Report::Warning { message, .. } => view.warnings.push(message.clone()),
            _ => {}
        }
    }
    view.summary = summary(job, &view);
    view
}

/// How far the newest attempt has come; nothing before its worker has spoken.
fn progress(newest: &[ReportLine], trains: bool) -> Option<Progress> {
    let mut progress = Progress {
        stage: None,
        fraction: 0.0,
        part: None,
        metrics: None,
        dataset: None,
        checkpoint: None,
        gpus: vec![],
    };
    for line in newest {
        match &line.report {
            Report::Stage { stage } => {
                progress.stage = Some(*stage);
                progress.part = None;
            }
            Report::Progress { done, total, .. } => {
                progress.part = Some(Part { done: *done, total: *total });
                if !trains {
                    progress.fraction = *done as f64 / (*total).max(1) as f64;
                }
            }
            Report::Checkpoint(checkpoint) => progress.checkpoint = Some(checkpoint.clone()),
            Report::Metrics(metrics) => {
                progress.fraction = metrics.step as f64 / metrics.total_steps.max(1) as f64;
                progress.metrics = Some(metrics.clone());
            }
            Report::Gpus { gpus } => progress.gpus = gpus.clone(),
            Report::Dataset(dataset) => progress.dataset = Some(dataset.clone()),
            Report::Finished(_) => progress.fraction = 1.0,
            _ => {}
        }
    }
    (!newest.is_empty()).then_some(progress)
}

fn summary(job: &Job, view: &JobView) -> String {
    match &job.state {
        JobState::Queued { .. } => match &view.waits_for {
            None | Some(WaitsFor::Dispatch) => "queued, about to start".into(),
            Some(WaitsFor::Job { id, state }) => format!("queued: waits for job {id}, which is {state}"),
            Some(WaitsFor::JobsAhead { jobs }) if *jobs >= MOST_AHEAD => {
                format!("queued behind {jobs} or more other jobs")
            }
            Some(WaitsFor::JobsAhead { jobs }) => format!("queued behind {jobs} other job(s)"),
            Some(WaitsFor::Cpu { needs, free }) => {
                format!("queued: needs {:.1} CPUs, {:.1} are free", *needs as f64 / 1e3, *free as f64 / 1e3)
            }
            Some(WaitsFor::Memory { needs, free }) => {
                format!("queued: needs {} of memory, {} are free", size(*needs), size(*free))
            }
            Some(WaitsFor::Retry { failure, .. }) => format!("queued to be tried again after: {failure}"),
            Some(WaitsFor::Engine { problem } | WaitsFor::Disk { problem, .. }) => format!("queued: {problem}"),
        },
        JobState::Running { attempt } => match view.progress.as_ref().and_then(|progress| progress.metrics.as_ref()) {
            Some(metrics) if metrics.step < metrics.total_steps => format!(
                "step {} of {}, loss {:.4}, {:.0} tokens/s, about {} s of training left",
                metrics.step,
                metrics.total_steps,
                metrics.loss,
                metrics.tokens_per_second,
                metrics.eta_ms.div_ceil(1000)
            ),
            _ => match view.progress.as_ref().map(|progress| (progress.stage, progress.part)) {
                Some((Some(stage), Some(part))) => {
                    format!("attempt {attempt} is at stage {stage}, {} of {}", part.done, part.total)
                }
                Some((Some(stage), None)) => format!("attempt {attempt} is at stage {stage}"),
                Some((None, _)) | None => match &view.resumed_from {
                    Some(from) => format!("attempt {attempt} is starting from step {}", from.step),
                    None => format!("attempt {attempt} is starting"),
                },
            },
        },
        JobState::Stopping { attempt } => format!("attempt {attempt} was asked to stop"),
        JobState::Done(Outcome::Succeeded) => match achieved(view) {
            Some(what) => format!("succeeded: {what}"),
            None => "succeeded".into(),
        },
        JobState::Done(Outcome::Failed(failure)) => failure.to_string(),
        JobState::Done(Outcome::Cancelled) => "cancelled".into(),
    }
}

/// What came of a job that went well.
fn achieved(view: &JobView) -> Option<String> {
    if let Some(made) = &view.quantized {
        return Some(format!(
            "{}, {} instead of {}, {:.2} bits a weight, relative error {:.4}",
            made.quant_type.name(),
            size(made.bytes_after),
            size(made.bytes_before),
            made.bits_per_weight,
            made.relative_error
        ));
    }
    if !view.scores.is_empty() {
        return Some(scores::verdict(&view.scores));
    }
    match (view.evaluations.first(), view.evaluations.last()) {
        (Some(before), Some(after)) if view.evaluations.len() > 1 => {
            Some(format!("held-out loss {:.4} before, {:.4} after", before.loss, after.loss))
        }
        _ => None,
    }
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A line of the log for everybody to see.
#[must_use]
pub fn log_line(line: LogLine, trace_id: &TraceId) -> LogLineView {
    LogLineView {
        seq: line.seq,
        at_ms: line.at_ms,
        trace_id: trace_id.clone(),
        entry: match line.entry {
            Entry::Event(event) => EntryView::Event(event),
            Entry::Report { attempt, line } => EntryView::Report(AttemptReport { attempt: attempt.0, line }),
        },
    }
}
