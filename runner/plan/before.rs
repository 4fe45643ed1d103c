//! Whether a job like this has been tried before and failed by its own doing: pure rules over what was asked for and how
//! it ended.
//!
//! Jobs are compared when they are of one kind on the same models and rows. What differs between them then either has no
//! bearing on the failure, or makes it more likely, or less likely; of whatever is not known to do one of these, anything
//! may come.

use drydock_spec::recipe::DEFAULT_MAX_SEQ_LENGTH;
use drydock_spec::{Attempt, Change, Failure, FailureKind, JobId, JobSpec, Limits, Outcome};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::BestRemedy;
use crate::diagnose::difference;

/// A job like this one, which has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    pub job: JobId,
    /// Its last attempt.
    pub attempt: Attempt,
    pub spec: JobSpec,
    pub limits: Limits,
    pub outcome: Outcome,
}

/// A failure that is to be expected, as a job that asked for no more ended so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Foreseen {
    /// The job that failed.
    pub job: JobId,
    /// What makes its failure the same as others.
    pub fingerprint: String,
    pub failure: Failure,
    /// Where this job makes the failure more likely than that one did; nothing where they ask for the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worse: Vec<Change>,
    /// What helps best against it, as far as is known, with its record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestRemedy>,
    /// The same as a sentence, with the next step.
    pub text: String,
}

/// How a past job tells of a failure to come.
#[derive(Debug, Clone, PartialEq)]
pub struct Omen<'a> {
    pub past: &'a Past,
    pub failure: &'a Failure,
    pub worse: Vec<Change>,
}

/// What a difference does to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Nothing,
    MoreLikely,
    LessLikely,
    Unknown,
}

/// What makes a failure more likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bearing {
    Nothing,
    More,
    Less,
    Unknown,
}

/// The newest of the `past` jobs, which come newest first, that failed by its own doing and asked for no more than this
/// one does; unless a job that asked for as much has succeeded since.
#[must_use]
pub fn foresee<'a>(spec: &JobSpec, limits: &Limits, past: &'a [Past]) -> Option<Omen<'a>> {
    let now = document(spec, limits);
    let mut succeeded: Vec<Vec<Change>> = Vec::new();
    for past in past {
        let changes = difference::between(&document(&past.spec, &past.limits), &now);
        match &past.outcome {
            Outcome::Succeeded => succeeded.push(changes),
            Outcome::Failed(failure) if is_its_own(failure.kind) => {
                let kind = failure.kind;
                let refuted = succeeded.iter().any(|changes| only(kind, changes, Effect::LessLikely));
                if !refuted && only(kind, &changes, Effect::MoreLikely) {
                    let worse = changes.into_iter().filter(|change| effect(kind, change) == Effect::MoreLikely);
                    return Some(Omen { past, failure, worse: worse.collect() });
                }
            }
            Outcome::Failed(_) | Outcome::Cancelled => {}
        }
    }
    None
}

impl Omen<'_> {
    /// What is foreseen, under the fingerprint of the past failure.
    #[must_use]
    pub fn foreseen(self, fingerprint: String) -> Foreseen {
        let text = self.text();
        let Self { past, failure, worse } = self;
        Foreseen { job: past.job, fingerprint, failure: failure.clone(), worse, best: None, text }
    }

    fn text(&self) -> String {
        let Failure { kind, stage, message, hint } = self.failure;
        let place = stage.map(|stage| format!(" at {stage}")).unwrap_or_default();
        let ended = format!("ended: {kind}{place} ({message})");
        let job = self.past.job;
        if self.worse.is_empty() {
            return format!("job {job} with the same options {ended}; {hint}");
        }
        let changes: Vec<_> = self.worse.iter().map(in_words).collect();
        format!("job {job} {ended}, and this one differs for the worse: {}; {hint}", changes.join(", "))
    }
}

/// A change by the name and in the unit in which it would be asked for.
fn in_words(change: &Change) -> String {
    let (name, unit) = match change.name.as_str() {
        "limits.memory_bytes" => ("limits.memory_mib", 1_048_576.0),
        "limits.disk_bytes" => ("limits.disk_mib", 1_048_576.0),
        "limits.time_ms" => ("limits.time_limit_s", 1000.0),
        "limits.silence_ms" => ("limits.silence_limit_s", 1000.0),
        "limits.cpu_millis" => ("limits.cpus", 1000.0),
        name => (name.strip_prefix("options.").unwrap_or(name), 1.0),
    };
    let shown = |value: &Value| match (value, value.as_f64()) {
        (Value::Null, _) => "unset".to_owned(),
        (_, Some(number)) => (number / unit).to_string(),
        _ => value.to_string(),
    };
    format!("{name} = {} rather than {}", shown(&change.now), shown(&change.before))
}

/// What was asked for, as one document.
fn document(spec: &JobSpec, limits: &Limits) -> Value {
    json!({"options": difference::options(spec), "limits": limits})
}

/// Whether all differences have this effect or none.
fn only(kind: FailureKind, changes: &[Change], wanted: Effect) -> bool {
    changes.iter().map(|change| effect(kind, change)).all(|effect| effect == Effect::Nothing || effect == wanted)
}

/// Whether a failure was brought about by what was asked for, and not by the host, the hub or another job, which may be
/// otherwise by now.
fn is_its_own(kind: FailureKind) -> bool {
    match kind {
        FailureKind::OutOfMemory
        | FailureKind::DiskFull
        | FailureKind::TimeLimit
        | FailureKind::Silent
        | FailureKind::BadDataset
        | FailureKind::NothingToLearn
        | FailureKind::BadModel
        | FailureKind::UnsupportedModel
        | FailureKind::BadOption
        | FailureKind::Diverged
        | FailureKind::GpuOutOfMemory
        | FailureKind::NotPermitted
        | FailureKind::Crashed
        | FailureKind::Unexplained
        | FailureKind::ContractBroken
        | FailureKind::ArtifactRejected => true,
        FailureKind::InputFailed
        | FailureKind::NotFound
        | FailureKind::AccessDenied
        | FailureKind::HubUnavailable
        | FailureKind::ImageMissing
        | FailureKind::StartFailed
        | FailureKind::EngineLost
        | FailureKind::NoRoom
        | FailureKind::GpuMissing
        | FailureKind::GpuDriver
        | FailureKind::GpuFault
        | FailureKind::GpuHardware
        | FailureKind::GpuLost
        | FailureKind::Internal => false,
    }
}

/// What a difference does to a failure of this kind.
fn effect(kind: FailureKind, change: &Change) -> Effect {
    let bearing = match change.name.split_once('.') {
        Some(("limits", limit)) => of_limit(kind, limit),
        Some(("options", option)) => of_option(kind, option),
        _ => Bearing::Unknown,
    };
    let grows = match (number(&change.name, &change.before), number(&change.name, &change.now)) {
        (Some(before), Some(now)) => Some(now > before),
        _ => None,
    };
    match (bearing, grows) {
        (Bearing::Nothing, _) => Effect::Nothing,
        (Bearing::More, Some(true)) | (Bearing::Less, Some(false)) => Effect::MoreLikely,
        (Bearing::More, Some(false)) | (Bearing::Less, Some(true)) => Effect::LessLikely,
        (Bearing::More | Bearing::Less, None) | (Bearing::Unknown, _) => Effect::Unknown,
    }
}

/// The value as a number; what is left out stands for its default.
fn number(name: &str, value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(set) => Some(f64::from(u8::from(*set))),
        Value::Null => match name {
            "options.max_seq_length" => Some(f64::from(DEFAULT_MAX_SEQ_LENGTH)),
            // All there are.
            "options.max_steps" | "options.limit" => Some(f64::INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn of_limit(kind: FailureKind, limit: &str) -> Bearing {
    match (kind, limit) {
        (FailureKind::OutOfMemory, "memory_bytes")
        | (FailureKind::DiskFull, "disk_bytes")
        | (FailureKind::TimeLimit, "time_ms" | "cpu_millis")
        | (FailureKind::Silent, "silence_ms" | "cpu_millis") => Bearing::Less,
        // Of these it is not known what they came from.
        (FailureKind::Crashed | FailureKind::Unexplained, "memory_bytes" | "pids") => Bearing::Unknown,
        _ => Bearing::Nothing,
    }
}

fn of_option(kind: FailureKind, option: &str) -> Bearing {
    match option {
        // Names: what they stand for is the same.
        "model" | "adapter" | "tokenizer" | "dataset" | "eval_dataset" | "imatrix_dataset" | "compare_with" => {
            Bearing::Nothing
        }
        "seed" | "logging_steps" | "sample_prompts" => Bearing::Nothing,
        _ => match kind {
            FailureKind::OutOfMemory => of_memory(option),
            FailureKind::DiskFull => of_disk(option),
            FailureKind::TimeLimit | FailureKind::Silent => of_time(option),
            FailureKind::Diverged => of_divergence(option),
            FailureKind::NothingToLearn if option == "max_seq_length" => Bearing::Less,
            FailureKind::NothingToLearn | FailureKind::BadDataset if is_of_the_optimizer(option) => Bearing::Nothing,
            FailureKind::BadModel | FailureKind::UnsupportedModel if is_of_the_optimizer(option) => Bearing::Nothing,
            _ => Bearing::Unknown,
        },
    }
}

/// What only the optimizer looks at: neither what is held nor what is read.
fn is_of_the_optimizer(option: &str) -> bool {
    const OPTIONS: [&str; 16] = [
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "warmup_ratio",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "beta",
        "lora_alpha",
        "num_train_epochs",
        "max_steps",
        "early_stopping_patience",
        "early_stopping_threshold",
        "on_divergence",
    ];
    OPTIONS.contains(&option)
}

fn of_memory(option: &str) -> Bearing {
    match option {
        "per_device_train_batch_size"
        | "max_seq_length"
        | "lora_r"
        | "lora_dropout"
        | "batch_size"
        | "num_fewshot"
        | "max_new_tokens"
        | "imatrix_tokens"
        | "vocab_size" => Bearing::More,
        "gradient_checkpointing" => Bearing::Less,
        "gradient_accumulation_steps" | "eval_steps" | "save_steps" | "completion_only_loss" | "log_samples" => {
            Bearing::Nothing
        }
        _ if is_of_the_optimizer(option) => Bearing::Nothing,
        _ => Bearing::Unknown,
    }
}

fn of_disk(option: &str) -> Bearing {
    match option {
        "lora_r" | "log_samples" | "vocab_size" => Bearing::More,
        "per_device_train_batch_size"
        | "gradient_accumulation_steps"
        | "gradient_checkpointing"
        | "max_seq_length"
        | "lora_dropout"
        | "eval_steps"
        | "completion_only_loss"
        | "batch_size"
        | "dtype" => Bearing::Nothing,
        // It writes checkpoints to go back to.
        "on_divergence" => Bearing::Unknown,
        _ if is_of_the_optimizer(option) => Bearing::Nothing,
        _ => Bearing::Unknown,
    }
}

fn of_time(option: &str) -> Bearing {
    match option {
        "num_train_epochs"
        | "max_steps"
        | "max_seq_length"
        | "lora_r"
        | "gradient_checkpointing"
        | "limit"
        | "num_fewshot"
        | "max_new_tokens"
        | "imatrix_tokens"
        | "vocab_size" => Bearing::More,
        "eval_steps" | "save_steps" => Bearing::Less,
        "early_stopping_patience" | "early_stopping_threshold" | "on_divergence" => Bearing::Unknown,
        _ if is_of_the_optimizer(option) => Bearing::Nothing,
        _ => Bearing::Unknown,
    }
}

fn of_divergence(option: &str) -> Bearing {
    match option {
        "learning_rate" | "lora_alpha" => Bearing::More,
        "eval_steps" | "save_steps" | "gradient_checkpointing" | "max_new_tokens" | "keep" => Bearing::Nothing,
        _ => Bearing::Unknown,
    }
}

#[cfg(test)]
mod tests;
