//! What can be asked for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evaluate::{EvaluateArgs, EvaluateSpec};
use crate::finetune::{FinetuneArgs, FinetuneSpec};
use crate::option::InvalidOptions;
use crate::quantize::{QuantizeArgs, QuantizeSpec};
use crate::recipe::Recipe;
use crate::train::{TrainArgs, TrainSpec};

/// A job as somebody wrote it: options may be missing or wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobArgs {
    /// Finetune a model on a dataset.
    Finetune(FinetuneArgs),
    /// Train a model from nothing.
    Train(TrainArgs),
    /// Quantize a model into a GGUF file.
    Quantize(QuantizeArgs),
    /// Measure how good a model is.
    Evaluate(EvaluateArgs),
}

impl JobArgs {
    /// Parses the options once; what comes out is valid.
    pub fn parse(self) -> Result<JobSpec, InvalidOptions> {
        match self {
            Self::Finetune(args) => args.parse().map(JobSpec::Finetune),
            Self::Train(args) => args.parse().map(JobSpec::Train),
            Self::Quantize(args) => args.parse().map(JobSpec::Quantize),
            Self::Evaluate(args) => args.parse().map(JobSpec::Evaluate),
        }
    }
}

/// A job whose options are complete and within range. Deserializing parses again, so a `JobSpec` is always valid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobSpec {
    /// Finetune a model on a dataset.
    Finetune(FinetuneSpec),
    /// Train a model from nothing.
    Train(TrainSpec),
    /// Quantize a model into a GGUF file.
    Quantize(QuantizeSpec),
    /// Measure how good a model is.
    Evaluate(EvaluateSpec),
}

impl JobSpec {
    /// The kind's name, as in tools, tables and labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Finetune(_) => "finetune",
            Self::Train(_) => "train",
            Self::Quantize(_) => "quantize",
            Self::Evaluate(_) => "evaluate",
        }
    }

    /// What is done to what, in a few words for people: `finetune tiny on sums`.
    #[must_use]
    pub fn about(&self) -> String {
        match self {
            Self::Finetune(spec) => format!("finetune {} on {}", spec.model, spec.dataset),
            Self::Train(spec) => format!("train on {}", spec.dataset),
            Self::Quantize(spec) => format!("quantize {} to {}", spec.model, spec.quant_type.name()),
            Self::Evaluate(spec) => match spec.compare_with.len() {
                0 => format!("evaluate {} on {}", spec.model, spec.dataset),
                1 => format!("evaluate {} and another on {}", spec.model, spec.dataset),
                more => format!("evaluate {} and {more} others on {}", spec.model, spec.dataset),
            },
        }
    }

    /// The model that the job starts from, as the caller named it.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Finetune(spec) => Some(&spec.model),
            Self::Train(_) => None,
            Self::Quantize(spec) => Some(&spec.model),
            Self::Evaluate(spec) => Some(&spec.model),
        }
    }

    /// The adapter over that model, as the caller named it.
    #[must_use]
    pub fn adapter(&self) -> Option<&str> {
        match self {
            Self::Finetune(spec) => spec.adapter.as_deref(),
            Self::Train(_) => None,
            Self::Quantize(spec) => spec.adapter.as_deref(),
            Self::Evaluate(spec) => spec.adapter.as_deref(),
        }
    }

    /// The dataset that the job reads, as the caller named it.
    #[must_use]
    pub fn dataset(&self) -> Option<&str> {
        match self {
            Self::Finetune(spec) => Some(&spec.dataset),
            Self::Train(spec) => Some(&spec.dataset),
            Self::Quantize(spec) => spec.imatrix_dataset.as_deref(),
            Self::Evaluate(spec) => Some(&spec.dataset),
        }
    }

    /// Whether drydock's worker computes it on a GPU where it has one; everything else it computes on the CPU.
    #[must_use]
    pub fn computes_on_gpu(&self) -> bool {
        match self {
            Self::Finetune(_) | Self::Train(_) | Self::Evaluate(_) => true,
            Self::Quantize(_) => false,
        }
    }

    /// How the job trains, if it does.
    #[must_use]
    pub fn recipe(&self) -> Option<&Recipe> {
        match self {
            Self::Finetune(spec) => Some(&spec.recipe),
            Self::Train(spec) => Some(&spec.recipe),
            Self::Quantize(_) | Self::Evaluate(_) => None,
        }
    }
}

/// Jobs of a higher priority leave the queue first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i8", into = "i8")]
pub struct Priority(i8);

impl JsonSchema for Priority {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Priority".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "integer",
            "minimum": -10,
            "maximum": 10,
            "description": "Jobs of a higher priority leave the queue first."
        })
    }
}

impl Priority {
    /// A priority from -10 (whenever there is room) to 10 (before everything else).
    pub fn new(value: i8) -> Result<Self, PriorityOutOfRange> {
        if (-10..=10).contains(&value) { Ok(Self(value)) } else { Err(PriorityOutOfRange(value)) }
    }

    #[must_use]
    pub fn get(self) -> i8 {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("priority = {0}: out of range; choose a value from -10 to 10")]
pub struct PriorityOutOfRange(i8);

impl TryFrom<i8> for Priority {
    type Error = PriorityOutOfRange;

    fn try_from(value: i8) -> Result<Self, Self::Error> {
        Self::new(value)
    }
}

impl From<Priority> for i8 {
    fn from(value: Priority) -> Self {
        value.0
    }
}
