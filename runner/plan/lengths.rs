//! What is known of the lengths of a job's rows: whose tokenizer counted them, and how full batches become of them.

use drydock_gpu::estimate::{Batch, Draws, fullest_batch};
use drydock_spec::finetune::Objective;
use drydock_spec::lengths::RowLengths;
use drydock_spec::recipe::Recipe;
use drydock_spec::{FinetuneSpec, JobSpec};
use serde_json::json;

use super::inputs::{ModelSource, ResolvedInputs};

/// Which rows were counted, by whom, and how they were read. What a finetune's rows come to follows from these alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counting {
    /// Its digest.
    pub dataset: String,
    /// Where the model is whose tokenizer counts, as JSON.
    pub model: String,
    /// The objective and the columns, as JSON.
    pub reading: String,
}

impl Counting {
    /// Of a job's rows; nothing of jobs other than finetunes, and of models that are not there yet.
    #[must_use]
    pub fn of(spec: &JobSpec, inputs: &ResolvedInputs) -> Option<Self> {
        let (JobSpec::Finetune(spec), Some(model), Some(dataset)) = (spec, &inputs.model, &inputs.dataset) else {
            return None;
        };
        Self::by(spec, &model.source, &dataset.digest)
    }

    pub(super) fn by(spec: &FinetuneSpec, model: &ModelSource, dataset: &str) -> Option<Self> {
        let reading = json!([spec.objective, spec.columns]).to_string();
        match model {
            ModelSource::Awaited { .. } => None,
            ModelSource::Stored { .. } | ModelSource::Hub { .. } => {
                Some(Self { dataset: dataset.to_owned(), model: json!(model).to_string(), reading })
            }
        }
    }
}

/// What the batches of a training are filled from.
#[derive(Debug, Clone, Default)]
pub(super) struct Supply {
    /// Rows that are learnt from; nothing where texts are joined to rows of one length.
    rows: Option<u64>,
    /// What a tokenizer has counted of them.
    lengths: Option<RowLengths>,
    /// Rows that go through the model in the whole training.
    passed: u64,
    /// Answers of a row.
    sides: u64,
    /// Whether rows are joined to packs, which are full.
    packs: bool,
}

impl Supply {
    /// Of a finetune that learns from `rows` rows.
    pub(super) fn of(spec: &FinetuneSpec, rows: u64, lengths: Option<RowLengths>) -> Self {
        let recipe: &Recipe = &spec.recipe;
        let sides = if matches!(spec.objective, Objective::Dpo | Objective::Orpo) { 2 } else { 1 };
        let passed = recipe.steps(rows).1.saturating_mul(recipe.rows_per_step());
        Self { rows: Some(rows), lengths, passed, sides, packs: recipe.packing }
    }

    /// What the fullest batch holds: no more rows than there are, and where these were counted, no more tokens than they
    /// bring together.
    pub(super) fn fullest(&self, batch: Batch) -> Batch {
        let most = self.rows.map_or(u32::MAX, |rows| u32::try_from(rows.max(1)).unwrap_or(u32::MAX));
        let batch = Batch::new(batch.rows.min(most), batch.length);
        let Some(lengths) = &self.lengths else { return batch };
        if self.packs {
            return batch.of_tokens(lengths.tokens);
        }
        let batches = self.passed.div_ceil(batch.rows.max(1).into());
        let draws = Draws { rows: batch.rows, sides: self.sides, cut: batch.length.into(), batches };
        batch.of_tokens(fullest_batch(lengths, draws).div_ceil(self.sides))
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::FinetuneArgs;

    use super::*;

    fn spec(change: impl FnOnce(&mut FinetuneArgs)) -> FinetuneSpec {
        let mut args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        change(&mut args);
        args.parse().unwrap()
    }

    fn counted(rows: u64, tokens: u64) -> RowLengths {
        let mut lengths = RowLengths::default();
        (0..rows).for_each(|_| lengths.add(tokens, tokens));
        lengths
    }

    #[test]
    fn a_batch_has_no_more_rows_than_there_are_and_no_more_tokens_than_they_have() {
        let wide = Batch::new(16, 512);
        let supply = |rows, lengths| Supply::of(&spec(|_| {}), rows, lengths);
        assert_eq!(supply(100, None).fullest(wide), wide);
        assert_eq!(supply(10, None).fullest(wide), Batch::new(10, 512));
        let short = supply(100, Some(counted(100, 64))).fullest(Batch::new(16, 64));
        assert_eq!(short, Batch::new(16, 64));
        let shorter = supply(100, Some(counted(100, 40))).fullest(wide);
        assert_eq!(shorter, wide.of_tokens(640));
        assert_eq!(supply(100, Some(counted(100, 40))).fullest(shorter), shorter, "it is full already");
        assert_eq!(Supply::default().fullest(wide), wide);
    }

    #[test]
    fn packs_are_full_as_long_as_there_are_rows() {
        let packing = spec(|args| args.packing = Some(true));
        let of = |rows: u64| Supply::of(&packing, rows, Some(counted(rows, 40))).fullest(Batch::new(4, 512));
        assert_eq!(of(1000), Batch::new(4, 512));
        assert_eq!(of(20), Batch::new(4, 512).of_tokens(800));
    }

    #[test]
    fn the_model_that_counts_and_the_way_of_reading_tell_lengths_apart() {
        let stored = ModelSource::Stored { digest: "a".into() };
        let of = |spec: &FinetuneSpec, model: &ModelSource| Counting::by(spec, model, "d");
        assert_eq!(of(&spec(|_| {}), &stored), of(&spec(|args| args.lora_r = Some(4)), &stored));
        assert_ne!(of(&spec(|_| {}), &stored), of(&spec(|args| args.objective = Some(Objective::Dpo)), &stored));
        assert_ne!(of(&spec(|_| {}), &stored), of(&spec(|_| {}), &ModelSource::Stored { digest: "b".into() }));
        let awaited = ModelSource::Awaited { job: drydock_spec::JobId::from_parts(1, 1) };
        assert_eq!(of(&spec(|_| {}), &awaited), None);
    }
}
