//! A line of a job's log as one sentence for people.

use std::time::Duration;

use drydock_spec::report::{DatasetReport, GpuReading, Metrics, Phase, Quantized};
use drydock_spec::{JobEvent, Outcome, Report};

use super::text::{count, one_line, size, span};
use crate::api::{EntryView, LogLineView};
use crate::scores;

/// The line in words. What a job wrote itself stays on one line.
pub(super) fn line(line: &LogLineView) -> String {
    match &line.entry {
        EntryView::Event(event) => self::event(event),
        EntryView::Report(report) => self::report(&report.line.report),
    }
}

fn event(event: &JobEvent) -> String {
    match event {
        JobEvent::Submitted => "queued".into(),
        JobEvent::Claimed { attempt } => format!("attempt {attempt} begins"),
        JobEvent::InputFailed { failure } => one_line(&failure.to_string()),
        JobEvent::CancelRequested => "asked to stop".into(),
        JobEvent::Ended { attempt, outcome } => match outcome {
            Outcome::Succeeded => format!("attempt {attempt} succeeded"),
            Outcome::Failed(failure) => one_line(&format!("attempt {attempt} failed: {failure}")),
            Outcome::Cancelled => format!("attempt {attempt} was cancelled"),
        },
        JobEvent::Remedied { attempt, failure, remedy, .. } => {
            one_line(&format!("attempt {attempt} failed: {failure}; the next one is made with a remedy: {remedy}"))
        }
    }
}

/// The rows of a training, or of an evaluation, which learns from none.
fn dataset(rows: &DatasetReport) -> String {
    let mut text = match rows.train_rows {
        0 => format!("{} rows to measure on", count(rows.eval_rows)),
        train => format!(
            "{} rows to learn from, {} held out, {} tokens, {} of them learnt",
            count(train),
            count(rows.eval_rows),
            count(rows.train_tokens),
            count(rows.supervised_tokens)
        ),
    };
    for (rows, what) in [(rows.skipped_rows, "left out"), (rows.truncated_rows, "cut to length")] {
        if rows > 0 {
            text.push_str(&format!("; {} rows {what}", count(rows)));
        }
    }
    text
}

fn report(report: &Report) -> String {
    let said = match report {
        Report::Started(started) => {
            let features = match started.features.as_slice() {
                [] => String::new(),
                features => format!(", {}", features.join(" ")),
            };
            format!("{} on {}, {} threads{features}", started.worker, started.device, started.threads)
        }
        Report::Stage { stage } => format!("stage {stage}"),
        Report::Dataset(rows) => dataset(rows),
        Report::Model(model) => {
            let trained = match model.trainable_parameters {
                0 => String::new(),
                trained => format!(", {} of them trained", count(trained)),
            };
            format!("{} with {} parameters{trained}", model.architecture, count(model.parameters))
        }
        Report::Metrics(metrics) => {
            format!("step {}/{}  {}", metrics.step, metrics.total_steps, self::metrics(metrics))
        }
        Report::Progress { stage, done, total } => format!("{stage} {}/{}", count(*done), count(*total)),
        Report::Evaluation(evaluation) => format!(
            "held-out loss {}: {:.4} (perplexity {:.2}, {} tokens)",
            phase(evaluation.phase, evaluation.step),
            evaluation.loss,
            evaluation.perplexity,
            count(evaluation.tokens)
        ),
        Report::Sample(sample) => {
            format!("answer {} to \"{}\": {}", phase(sample.phase, None), sample.prompt, sample.completion)
        }
        Report::Warning { message, .. } => format!("warning: {message}"),
        Report::Checkpoint(checkpoint) => {
            format!("checkpoint after step {}, {}", count(checkpoint.step), size(checkpoint.bytes))
        }
        Report::Score(score) => {
            format!("{}: {} {} on {} rows", score.model, score.metric, scores::number(score), count(score.rows))
        }
        Report::Quantized(made) => quantized(made),
        Report::Artifact { path, role } => format!("wrote {path} ({role})"),
        Report::Gpus { gpus } => gpus.iter().map(gpu).collect::<Vec<_>>().join("; "),
        Report::Failed(failure) => format!("worker: {failure}"),
        Report::Stopped { step } => format!("worker stopped after step {step}"),
        Report::Finished(finished) => {
            let (tokens, peak) = (count(finished.tokens), size(finished.peak_rss_bytes));
            match finished.train_loss {
                Some(loss) => {
                    let steps = count(finished.steps);
                    format!("worker finished: {steps} steps, {tokens} tokens, last loss {loss:.4}, peak memory {peak}")
                }
                None => format!("worker finished: {tokens} tokens, peak memory {peak}"),
            }
        }
    };
    one_line(&said)
}

/// What stands beside a progress bar.
pub(super) fn metrics(metrics: &Metrics) -> String {
    let left = match metrics.eta_ms {
        0 => String::new(),
        ms => format!("  {} left", span(Duration::from_millis(ms))),
    };
    let margin = metrics.preferences.map_or_else(String::new, |rewards| format!("  margin {:.4}", rewards.margins));
    format!(
        "loss {:.4}{margin}  learning rate {:.2e}  {:.0} tokens/s{left}",
        metrics.loss, metrics.learning_rate, metrics.tokens_per_second
    )
}

/// What an attempt holds of a GPU.
pub(super) fn gpu(reading: &GpuReading) -> String {
    let (held, peak) = (size(reading.memory_used_bytes), size(reading.memory_peak_bytes));
    let busy = reading.utilization_percent.map_or_else(String::new, |percent| format!(", {percent} % busy"));
    let power = reading.power_watts.map_or_else(String::new, |watts| format!(", {watts:.0} W"));
    format!("{}: {held} held, {peak} at most{busy}{power}", reading.uuid)
}

/// What became of a model's weights.
pub(super) fn quantized(made: &Quantized) -> String {
    format!(
        "{} tensors as {}: {} instead of {}, {:.2} bits a weight, relative error {:.4}",
        count(made.tensors),
        made.quant_type.name(),
        size(made.bytes_after),
        size(made.bytes_before),
        made.bits_per_weight,
        made.relative_error
    )
}

/// When something was measured.
pub(super) fn phase(phase: Phase, step: Option<u64>) -> String {
    match (phase, step) {
        (Phase::Before, _) => "before training".into(),
        (Phase::During, Some(step)) => format!("at step {}", count(step)),
        (Phase::During, None) => "while training".into(),
        (Phase::After, _) => "after training".into(),
    }
}
