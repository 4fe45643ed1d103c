//! What a worker makes of a dataset before anything is trained: `drydock-worker preview`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Format;
use crate::lengths::RowLengths;
use crate::report::DatasetReport;

/// The preview's file, in the output folder.
pub const FILE: &str = "preview.json";

/// A dataset as one model would be trained on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preview {
    /// The form of the rows.
    pub format: Format,
    /// Rows of the dataset.
    pub rows: u64,
    /// Rows that were tokenized, from the first one on; `dataset` counts these only.
    pub tokenized_rows: u64,
    pub dataset: DatasetReport,
    /// Those rows before they were cut, without the rows of an eval_dataset; absent where the worker is older than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<RowLengths>,
    /// The first rows that would be trained on.
    pub rendered: Vec<RenderedRow>,
    /// Longest row that the model can take, in tokens.
    pub model_limit: u64,
}

/// A row exactly as it would be trained on: rendered, tokenized and cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RenderedRow {
    pub text: String,
    /// The part that counts for the loss.
    pub supervised: String,
    /// Tokens of the row.
    pub tokens: u64,
    /// Those of them that count for the loss.
    pub supervised_tokens: u64,
}
