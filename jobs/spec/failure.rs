//! Why an attempt ended badly.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The part of an attempt in which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Models and datasets are brought into the store.
    Prepare,
    /// The container is created and started.
    Start,
    /// The worker reads model and tokenizer.
    Load,
    /// The worker renders and tokenizes the rows.
    Tokenize,
    /// The worker measures held-out loss or answers sample prompts.
    Evaluate,
    /// The worker trains.
    Train,
    /// The worker quantizes.
    Quantize,
    /// The worker writes its artifacts.
    Save,
    /// The runner takes the artifacts over.
    Collect,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Load => "load",
            Self::Tokenize => "tokenize",
            Self::Evaluate => "evaluate",
            Self::Train => "train",
            Self::Quantize => "quantize",
            Self::Save => "save",
            Self::Collect => "collect",
        })
    }
}

/// What kind of failure it is. Matched exhaustively wherever it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The memory limit was hit.
    OutOfMemory,
    /// A GPU's memory ran out.
    GpuOutOfMemory,
    /// The worker found no GPU, or not the driver's library.
    GpuMissing,
    /// The GPU's driver does not fit the worker: too old, of two versions at once, or no kernel for this GPU.
    GpuDriver,
    /// A program on the GPU touched what it must not or failed: mostly the program's own fault.
    GpuFault,
    /// A GPU is damaged, or lost to the host.
    GpuHardware,
    /// The same of one that the attempt was given, by what the host's driver counts: it is cordoned, and another attempt
    /// gets another one.
    GpuLost,
    /// The sandbox, or the rights of a file, refuse what the worker tried.
    NotPermitted,
    /// The job has written more than it may.
    DiskFull,
    /// The time limit passed.
    TimeLimit,
    /// No report came for too long.
    Silent,
    /// A row or a file of the dataset cannot be used.
    BadDataset,
    /// No token is left to learn from.
    NothingToLearn,
    /// The model's files are damaged or do not fit together.
    BadModel,
    /// The model's architecture is not one that the worker knows.
    UnsupportedModel,
    /// An option does not fit this model or dataset.
    BadOption,
    /// The loss or a gradient is no longer a number.
    Diverged,
    /// A job whose result was to be read has failed or was cancelled.
    InputFailed,
    /// The model or dataset is not on the hub, or not any more.
    NotFound,
    /// The hub refuses access.
    AccessDenied,
    /// The hub cannot be reached, or says to come back later.
    HubUnavailable,
    /// The worker's image is not on the host.
    ImageMissing,
    /// The container could not be started.
    StartFailed,
    /// The worker was killed by a signal or panicked.
    Crashed,
    /// The worker left without saying why.
    Unexplained,
    /// The worker wrote something that breaks the container contract.
    ContractBroken,
    /// An artifact cannot be taken over safely.
    ArtifactRejected,
    /// The container engine, or the host, was lost under the attempt.
    EngineLost,
    /// The host's disk is full.
    NoRoom,
    /// drydock itself could not do its part.
    Internal,
}

impl FailureKind {
    pub const ALL: [Self; 30] = [
        Self::OutOfMemory,
        Self::GpuOutOfMemory,
        Self::GpuMissing,
        Self::GpuDriver,
        Self::GpuFault,
        Self::GpuHardware,
        Self::GpuLost,
        Self::NotPermitted,
        Self::DiskFull,
        Self::TimeLimit,
        Self::Silent,
        Self::BadDataset,
        Self::NothingToLearn,
        Self::BadModel,
        Self::UnsupportedModel,
        Self::BadOption,
        Self::Diverged,
        Self::InputFailed,
        Self::NotFound,
        Self::AccessDenied,
        Self::HubUnavailable,
        Self::ImageMissing,
        Self::StartFailed,
        Self::Crashed,
        Self::Unexplained,
        Self::ContractBroken,
        Self::ArtifactRejected,
        Self::EngineLost,
        Self::NoRoom,
        Self::Internal,
    ];

    /// What a person calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::OutOfMemory => "out of memory",
            Self::GpuOutOfMemory => "out of GPU memory",
            Self::GpuMissing => "no GPU",
            Self::GpuDriver => "unfit GPU driver",
            Self::GpuFault => "fault on the GPU",
            Self::GpuHardware => "GPU hardware failed",
            Self::GpuLost => "GPU lost",
            Self::NotPermitted => "not permitted",
            Self::DiskFull => "disk full",
            Self::TimeLimit => "time limit reached",
            Self::Silent => "no sign of life",
            Self::BadDataset => "unusable dataset",
            Self::NothingToLearn => "nothing to learn from",
            Self::BadModel => "unusable model files",
            Self::UnsupportedModel => "unsupported model",
            Self::BadOption => "unusable option",
            Self::Diverged => "training diverged",
            Self::InputFailed => "an input job failed",
            Self::NotFound => "not found",
            Self::AccessDenied => "access denied",
            Self::HubUnavailable => "hub unavailable",
            Self::ImageMissing => "worker image missing",
            Self::StartFailed => "container did not start",
            Self::Crashed => "worker crashed",
            Self::Unexplained => "worker ended without a reason",
            Self::ContractBroken => "worker broke its contract",
            Self::ArtifactRejected => "artifact rejected",
            Self::EngineLost => "container engine lost",
            Self::NoRoom => "no room on the host",
            Self::Internal => "internal error",
        }
    }

    /// Whether the same job, unchanged, may well succeed on another attempt: true for failures of the infrastructure
    /// only, never for what the job itself brings about.
    #[must_use]
    pub fn retryable(self) -> bool {
        match self {
            Self::GpuLost
            | Self::HubUnavailable
            | Self::StartFailed
            | Self::EngineLost
            | Self::NoRoom
            | Self::Internal => true,
            Self::OutOfMemory
            | Self::GpuOutOfMemory
            | Self::GpuMissing
            | Self::GpuDriver
            | Self::GpuFault
            | Self::GpuHardware
            | Self::NotPermitted
            | Self::DiskFull
            | Self::TimeLimit
            | Self::Silent
            | Self::BadDataset
            | Self::NothingToLearn
            | Self::BadModel
            | Self::UnsupportedModel
            | Self::BadOption
            | Self::Diverged
            | Self::InputFailed
            | Self::NotFound
            | Self::AccessDenied
            | Self::ImageMissing
            | Self::Crashed
            | Self::Unexplained
            | Self::ContractBroken
            | Self::ArtifactRejected => false,
        }
    }

    /// The next step for a person or an agent, where the failure itself has none that fits better.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::OutOfMemory => {
                "set gradient_checkpointing to true, or halve per_device_train_batch_size and double \
                 gradient_accumulation_steps (of an evaluation, halve batch_size), or raise limits.memory_mib"
            }
            Self::GpuOutOfMemory => {
                "set gradient_checkpointing to true, or halve per_device_train_batch_size and double \
                 gradient_accumulation_steps (of an evaluation, halve batch_size), or lower max_seq_length; see with \
                 `nvidia-smi` whether another program fills the GPU"
            }
            Self::GpuMissing => {
                "see with `nvidia-smi` whether the host has the GPU and its driver, and use a worker image that gets by \
                 without one where it has not"
            }
            Self::GpuDriver => {
                "update the host's NVIDIA driver and reboot the host, or use a worker image built for the driver and \
                 GPU that it has"
            }
            Self::GpuFault => "look at the job's logs and report them: mostly the program is at fault, rarely the GPU",
            Self::GpuHardware => {
                "take the GPU out of use and look for `NVRM: Xid` in the host's kernel log (`dmesg`); submit again on \
                 another GPU, from the last checkpoint"
            }
            Self::GpuLost => {
                "it is cordoned: look for `NVRM: Xid` in the host's kernel log (`dmesg`), and have it repaired or reset \
                 before `drydock gpus uncordon`"
            }
            Self::NotPermitted => {
                "see in the job's logs what was refused; a worker may write to its output folder and /tmp only, and has \
                 neither network nor privileges"
            }
            Self::DiskFull => "raise limits.disk_mib",
            Self::TimeLimit => "raise limits.time_limit_s, or lower num_train_epochs or max_steps",
            Self::Silent => "look at the job's logs; raise limits.silence_limit_s if a single step takes that long",
            Self::BadDataset => "mend the rows that the message names and load the dataset again",
            Self::NothingToLearn => "raise max_seq_length, or check the dataset's columns with load_dataset",
            Self::BadModel => "import the model again from a complete copy",
            Self::UnsupportedModel => "choose a model of a supported architecture",
            Self::BadOption => "change the option that the message names",
            Self::Diverged => "lower learning_rate, for example to a tenth",
            Self::InputFailed => "see why the job that the message names ended; then submit both again",
            Self::NotFound => "check the name and the revision",
            Self::AccessDenied => "accept the model's licence on the hub and give drydock a token that may read it",
            Self::HubUnavailable => "submit again later",
            Self::ImageMissing => "build or pull the worker image; `drydock doctor` says how",
            Self::StartFailed => "run `drydock doctor` on the host",
            Self::Crashed => "look at the job's logs and report them",
            Self::Unexplained => "look at the job's logs",
            Self::ContractBroken => "use a worker image that honours the container contract",
            Self::ArtifactRejected => "use a worker that writes plain files only",
            Self::NoRoom => "free disk space on the host, for example with `drydock gc`; submit again",
            Self::EngineLost => "check that the container engine is running; submit again",
            Self::Internal => "look at the gateway's log for the trace id",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Why an attempt ended badly: what is known, in the words of the one who knows it best.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    pub kind: FailureKind,
    /// Where in the attempt it happened, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Fact and value: what happened, with the numbers.
    pub message: String,
    /// The next step.
    pub hint: String,
}

impl Failure {
    /// A failure with the kind's own hint.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, stage: None, message: message.into(), hint: kind.hint().to_owned() }
    }

    #[must_use]
    pub fn at(mut self, stage: Stage) -> Self {
        self.stage = Some(stage);
        self
    }

    /// Replaces the kind's hint by one that fits better.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_label_and_a_next_step() {
        let mut labels: Vec<_> = FailureKind::ALL.iter().map(|kind| kind.label()).collect();
        assert!(FailureKind::ALL.iter().all(|kind| !kind.hint().is_empty()));
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), FailureKind::ALL.len());
    }

    #[test]
    fn what_a_job_or_a_gpu_brings_about_is_not_tried_again_unchanged() {
        use FailureKind::{EngineLost, GpuLost, HubUnavailable, Internal, NoRoom, StartFailed};
        let retryable: Vec<_> = FailureKind::ALL.into_iter().filter(|kind| kind.retryable()).collect();
        assert_eq!(retryable, [GpuLost, HubUnavailable, StartFailed, EngineLost, NoRoom, Internal]);
    }
}
