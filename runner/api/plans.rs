//! Plans, as whoever is about to submit a job sees them.

use std::collections::BTreeMap;

use drydock_spec::dataset::Format;
use drydock_spec::report::DatasetReport;
use drydock_spec::{JobSpec, Limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::ResolvedInputs;
use crate::plan::before::Foreseen;
use crate::plan::cut::CutRows;
use crate::plan::forecast::Quantity;
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
    /// Peak memory of the worker, in bytes.
    pub memory_bytes: u64,
    /// Room for the artifacts and for what may lie beside them on the way, in bytes.
    pub disk_bytes: u64,
    /// What must be fetched first, in bytes.
    pub download_bytes: u64,
    /// Numbers that are trained; 0 where nothing is.
    pub trainable_parameters: u64,
    /// Milliseconds of a nominal machine, by which jobs are compared.
    #[serde(default)]
    pub work_ms: u64,
    /// By part and with their ranges: memory, GPU memory and disk in bytes, time in milliseconds.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Need>")]
    pub needs: BTreeMap<Quantity, Need>,
}

impl Estimate {
    /// Where a quantity is expected to lie.
    #[must_use]
    pub fn range(&self, quantity: Quantity) -> Option<Range> {
        self.needs.get(&quantity).and_then(|need| need.range)
    }
}

/// What a job is expected to need of something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Need {
    pub expected: u64,
    /// Where it should lie; absent where nothing like it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    pub parts: BTreeMap<String, u64>,
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
