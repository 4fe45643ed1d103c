//! What a change does to the meaning of a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::apply::number;
use crate::change::Change;
use crate::finetune::Objective;
use crate::job::JobSpec;

/// How much of what was asked for is still done after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// The same is computed, up to the order of sums.
    Same,
    /// The same is learnt or measured, in another precision.
    Close,
    /// Something else is done.
    Different,
}

/// What bears on how something is computed, and not on what.
const SAME: [&str; 6] =
    ["gradient_checkpointing", "batch_size", "logging_steps", "save_steps", "log_samples", "sample_prompts"];
/// What bears on the precision.
const CLOSE: [&str; 4] = ["dtype", "base_quant_type", "imatrix_tokens", "pure"];
const BATCH: &str = "per_device_train_batch_size";
const ACCUMULATION: &str = "gradient_accumulation_steps";

impl Meaning {
    /// What these changes do to the meaning of `spec`, the job before them: what the gravest of them does.
    #[must_use]
    pub fn of(spec: &JobSpec, changes: &[Change]) -> Self {
        let rows_make_the_same_step = same_step(spec, changes);
        let of_one = |change: &Change| match change.name.as_str() {
            name if name.starts_with("limits.") || SAME.contains(&name) => Self::Same,
            BATCH | ACCUMULATION if rows_make_the_same_step => Self::Same,
            name if CLOSE.contains(&name) => Self::Close,
            // The base is held in fewer bits; what is trained is the same.
            "method" if change.before == "lora" && change.now == "qlora" => Self::Close,
            _ => Self::Different,
        };
        changes.iter().map(of_one).max().unwrap_or(Self::Same)
    }
}

/// Whether an optimizer step is still made of as many rows. KTO compares the rows of a forward pass with each other, so
/// that fewer of them are another objective.
fn same_step(spec: &JobSpec, changes: &[Change]) -> bool {
    let Some(recipe) = spec.recipe() else { return false };
    let compares = matches!(spec, JobSpec::Finetune(finetune) if finetune.objective == Objective::Kto);
    let now = |name: &str, before: u32| {
        let changed = changes.iter().find(|change| change.name == name);
        changed.map_or(Some(f64::from(before)), |change| number(&change.now))
    };
    let rows = f64::from(recipe.per_device_train_batch_size) * f64::from(recipe.gradient_accumulation_steps);
    let of_changed = now(BATCH, recipe.per_device_train_batch_size)
        .zip(now(ACCUMULATION, recipe.gradient_accumulation_steps))
        .map(|(batch, accumulation)| batch * accumulation);
    !compares && of_changed == Some(rows)
}
