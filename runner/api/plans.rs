//! Plans, as whoever is about to submit a job sees them.

use drydock_gpu::estimate::Needs;
use drydock_spec::dataset::Format;
use drydock_spec::report::DatasetReport;
use drydock_spec::{JobSpec, Limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::ResolvedInputs;
use crate::plan::before::Foreseen;
use crate::plan::cut::CutRows;
use crate::plan::margin::Range;

/// What would be done for a submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanView {
    /// The job with every default filled in.
    pub job: JobSpec,
    /// The inputs, fixed to what they are now.
    pub inputs: ResolvedInputs,
    /// The limits that would be in force.
    pub limits: Limits,
    pub estimate: Estimate,
    /// How it will fail, if it ends as its like did; the warnings say the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreseen: Vec<Foreseen>,
    /// Rows that are longer than what they are cut to; the warnings say the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutRows>,
    /// What the worker would make of the rows; absent if the container engine does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowsPreview>,
    /// Optimizer steps in all, where the rows are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a job is expected to need.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// Peak memory of the worker, in bytes: the sum of its parts.
    pub memory_bytes: u64,
    /// What it is made of.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, u64>")]
    pub memory_parts: Needs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_range: Option<Range>,
    /// Size of the artifacts, and of what lies beside them on the way, in bytes.
    pub disk_bytes: u64,
    /// What must be fetched first, in bytes.
    pub download_bytes: u64,
    /// Numbers that are trained; 0 where nothing is.
    pub trainable_parameters: u64,
}

/// Rows as the worker would train on them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RowsPreview {
    pub format: Format,
    /// What becomes of the rows; absent without a model to tokenize with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetReport>,
    /// The first rows, at most three.
    pub rendered: Vec<RenderedRow>,
}

/// A row as text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RenderedRow {
    /// All of it, after the chat template where there is one.
    pub text: String,
    /// The part that counts for the loss.
    pub supervised: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised_tokens: Option<u64>,
}
