//! A job in the words of people: one sentence, how far it has come, and why it waits.

use drydock_spec::{JobId, JobState, Outcome, Report, ReportLine, TraceId};

use super::waits::{Start, Turn, in_words};
use super::{Desk, DeskError};
use crate::api::{AttemptReport, EntryView, JobView, LogLineView, Part, Progress, WaitsFor};
use crate::scores;
use crate::store::{Entry, Job, LogLine, Resumed, StoreError};

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
        let mut turns = self.turns(jobs).await?;
        let now = self.store.clock().now_ms();
        let view = |one: &Job| {
            let findings = glance.findings.remove(&one.id).unwrap_or_default();
            let newest = glance.newest.remove(&one.id).unwrap_or_default();
            job(one, (&findings, &newest), turns.remove(&one.id), glance.resumed.remove(&one.id), now)
        };
        Ok(jobs.iter().map(view).collect())
    }
}

fn ids(jobs: &[Job], which: impl Fn(&Job) -> bool) -> Vec<JobId> {
    jobs.iter().filter(|job| which(job)).map(|job| job.id).collect()
}

/// The job for everybody to see. `findings` and `newest` are its reports, oldest first.
fn job(
    job: &Job,
    (findings, newest): (&[ReportLine], &[ReportLine]),
    turn: Option<Turn>,
    resumed: Option<Resumed>,
    now_ms: i64,
) -> JobView {
    let progress = progress(newest, job.spec.recipe().is_some());
    // A worker that has spoken waits for nothing.
    let turn = turn.filter(|_| progress.is_none() || matches!(job.state, JobState::Queued { .. }));
    let start = turn.as_ref().map(|turn| turn.start).unwrap_or_default();
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
        starts_by_ms: start.by_ms,
        expected_start_ms: start.expected_ms,
        waits_for: turn.map(|turn| turn.waits_for),
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
    view.summary = summary(job, &view, start, now_ms);
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

fn summary(job: &Job, view: &JobView, start: Start, now_ms: i64) -> String {
    match &job.state {
        JobState::Queued { .. } => in_words(view.waits_for.as_ref(), start, now_ms),
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
                Some((None, _)) | None => match (&view.waits_for, &view.resumed_from) {
                    (Some(WaitsFor::Engine { problem }), _) => format!("attempt {attempt} waits: {problem}"),
                    (_, Some(from)) => format!("attempt {attempt} is starting from step {}", from.step),
                    (_, None) => format!("attempt {attempt} is starting"),
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
