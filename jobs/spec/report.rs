//! What a worker says: one JSON object a line, appended to the events file.
//!
//! A report is untrusted input to the runner: it is parsed strictly, capped in length and counted. Whatever does not
//! parse is kept as a broken line and never acted on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evaluate::Measure;
use crate::failure::{Failure, Stage};
use crate::quantize::QuantType;

/// The longest line that the runner reads, in bytes; a longer one breaks the contract.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// One line of the events file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportLine {
    /// Milliseconds since the worker started, by its monotonic clock.
    pub elapsed_ms: u64,
    #[serde(flatten)]
    pub report: Report,
}

/// Before, while or after training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Before,
    During,
    After,
}

/// What a worker has to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Report {
    /// The worker is up. Always the first report.
    Started(Started),
    /// A new part of the attempt begins.
    Stage { stage: Stage },
    /// The dataset is rendered and tokenized.
    Dataset(DatasetReport),
    /// The model is loaded.
    Model(ModelReport),
    /// Optimizer steps were taken.
    Metrics(Metrics),
    /// Something long that is not training has come this far.
    Progress { stage: Stage, done: u64, total: u64 },
    /// The held-out loss was measured.
    Evaluation(Evaluation),
    /// A sample prompt was answered.
    Sample(Sample),
    /// Something looks wrong but does not stop the job.
    Warning { code: String, message: String },
    /// A checkpoint under the output folder is complete: the attempt can go on from it.
    Checkpoint(Checkpoint),
    /// Something about a model was measured.
    Score(Score),
    /// A model was quantized.
    Quantized(Quantized),
    /// A file under the output folder is complete.
    Artifact { path: String, role: String },
    /// How the GPUs of the attempt are. The host says so, never a worker.
    Gpus { gpus: Vec<GpuReading> },
    /// The worker ends and knows why. Always the last report of such an attempt.
    Failed(Failure),
    /// The worker was asked to stop and has. Always the last report of such an attempt.
    Stopped { step: u64 },
    /// The worker has done everything. Always the last report of such an attempt.
    Finished(Finished),
}

/// Who is speaking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Name and version of the worker, such as `drydock-worker 0.1.0`.
    pub worker: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Threads that it computes with.
    pub threads: u32,
    /// Instruction sets that its kernels use, such as `avx512`.
    #[serde(default)]
    pub features: Vec<String>,
}

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetReport {
    /// Rows that are trained on.
    pub train_rows: u64,
    /// Rows that the held-out loss is measured on.
    pub eval_rows: u64,
    /// Rows left out because nothing in them could be learnt from.
    pub skipped_rows: u64,
    /// Rows cut to max_seq_length.
    pub truncated_rows: u64,
    /// Tokens of the training rows, without padding.
    pub train_tokens: u64,
    /// Those of them that count for the loss.
    pub supervised_tokens: u64,
    /// Tokens of the longest row after cutting.
    pub longest_row: u64,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelReport {
    pub architecture: String,
    pub parameters: u64,
    pub trainable_parameters: u64,
}

/// The state of training after an optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// Optimizer steps taken.
    pub step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Passes over the training rows so far.
    pub epoch: f64,
    /// Mean loss per supervised token since the last metrics report, in nats; per row, where answers are compared.
    pub loss: f64,
    /// Where answers are compared: their rewards since the last metrics report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Preferences>,
    pub learning_rate: f64,
    /// L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens (without padding) per second since the last metrics report.
    pub tokens_per_second: f64,
    /// Milliseconds that training will still take, by the pace so far.
    pub eta_ms: u64,
    /// Resident memory of the worker, in bytes.
    pub rss_bytes: u64,
}

/// The held-out loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evaluation {
    pub phase: Phase,
    /// Optimizer steps taken, where it was measured while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Mean loss per supervised token of the held-out rows, in nats; per row, where answers are compared.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Supervised tokens that were measured.
    pub tokens: u64,
    /// Where answers are compared: their rewards on the held-out rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Preferences>,
}

/// Means of the rewards that a model gives implicitly to answers, by the names that TRL has for them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preferences {
    /// Of better answers.
    #[serde(rename = "rewards/chosen")]
    pub chosen: f64,
    /// Of worse answers.
    #[serde(rename = "rewards/rejected")]
    pub rejected: f64,
    /// Share of the pairs whose better answer has the higher reward; there are none of single answers.
    #[serde(rename = "rewards/accuracies", default, skip_serializing_if = "Option::is_none")]
    pub accuracies: Option<f64>,
    /// By how much better answers are ahead of worse ones.
    #[serde(rename = "rewards/margins")]
    pub margins: f64,
}

/// An answer of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    pub phase: Phase,
    pub prompt: String,
    pub completion: String,
    /// Whether the model ended its answer itself.
    pub stopped: bool,
}

/// A place to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// Optimizer steps taken.
    pub step: u64,
    /// Its folder under the output folder.
    pub path: String,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// One number about a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Score {
    /// The model, as the caller named it; `model + adapter` with an adapter.
    pub model: String,
    pub measure: Measure,
    /// What the number is, such as `acc`, `exact_match`, `f1` or `perplexity`.
    pub metric: String,
    pub value: f64,
    /// Standard error of the mean over the rows, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// Rows that were measured.
    pub rows: u64,
}

/// What became of a model's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quantized {
    pub quant_type: QuantType,
    pub tensors: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
    pub bits_per_weight: f64,
    /// Root of the mean squared error over all quantized values, relative to the root of their mean square.
    pub relative_error: f64,
}

/// How a GPU of an attempt is, or a slice of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuReading {
    /// Such as `GPU-5a2e...` or `MIG-41b3...`.
    pub uuid: String,
    /// Bytes of its memory that the attempt holds; where the driver does not tell them apart, that anybody holds.
    pub memory_used_bytes: u64,
    /// The most that was seen of it since the attempt began.
    pub memory_peak_bytes: u64,
    /// Percent of the time in which it computes; a slice does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<u32>,
    /// What the whole GPU draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
}

/// The sum of an attempt that went well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finished {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Mean training loss of the last step, in nats, where something was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Tokens trained on or measured, without padding.
    pub tokens: u64,
    /// Largest resident memory of the worker, in bytes.
    pub peak_rss_bytes: u64,
}

impl Report {
    /// Whether nothing may follow this report.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Stopped { .. } | Self::Finished(_))
    }

    /// Whether it is the host's to say: from a worker it is a forgery.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::Gpus { .. })
    }

    /// The report's type, as it stands in the JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Stage { .. } => "stage",
            Self::Dataset(_) => "dataset",
            Self::Model(_) => "model",
            Self::Metrics(_) => "metrics",
            Self::Progress { .. } => "progress",
            Self::Evaluation(_) => "evaluation",
            Self::Sample(_) => "sample",
            Self::Warning { .. } => "warning",
            Self::Checkpoint(_) => "checkpoint",
            Self::Score(_) => "score",
            Self::Quantized(_) => "quantized",
            Self::Artifact { .. } => "artifact",
            Self::Gpus { .. } => "gpus",
            Self::Failed(_) => "failed",
            Self::Stopped { .. } => "stopped",
            Self::Finished(_) => "finished",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_flat_json() {
        let line = ReportLine { elapsed_ms: 7, report: Report::Stage { stage: Stage::Train } };
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(json, r#"{"elapsed_ms":7,"type":"stage","stage":"train"}"#);
        assert_eq!(serde_json::from_str::<ReportLine>(&json).unwrap(), line);
    }

    #[test]
    fn an_unknown_type_does_not_parse() {
        assert!(serde_json::from_str::<ReportLine>(r#"{"elapsed_ms":7,"type":"succeeded"}"#).is_err());
    }
}
