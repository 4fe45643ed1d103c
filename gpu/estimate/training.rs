//! What a finetune or a training from nothing needs.

use drydock_spec::finetune::{FinetuneSpec, Method, Objective, TargetModule};
use drydock_spec::quantize::TensorType;
use drydock_spec::recipe::{OnDivergence, Recipe};

use super::names::{matches, tensors};
use super::{Batch, Decoder, F32, SMALL_FILES, sum};

/// A change that makes a training fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub per_device_train_batch_size: u32,
    /// Raised as the batch shrinks, so that a step still learns from as many rows.
    pub gradient_accumulation_steps: u32,
    pub max_seq_length: u32,
}

/// A trained number: itself, its gradient and two moments.
const TRAINED: u64 = 4 * F32;
/// A trained number in a checkpoint: itself and two moments.
const CHECKPOINTED: u64 = 3 * F32;
/// Rows are not cut shorter than this by a suggestion; what is left would teach nothing.
const SHORTEST_SUGGESTION: u32 = 32;

/// A training, as far as its needs go.
#[derive(Debug, Clone)]
pub struct Training {
    model: Decoder,
    trained: u64,
    frozen_bytes: u64,
    /// Numbers of one token that adapters have under way through a layer.
    passing_by_adapters: u64,
    /// What is held beside all that: one matrix with its adapter worked in, where its norm is needed.
    beside: u64,
    /// Rows of a pass for each row of the batch.
    sides: u64,
    /// Rows of a batch at least: KTO compares them.
    least_rows: u32,
    checkpointed: bool,
    /// What is left behind, checkpoints aside.
    kept_bytes: u64,
    checkpoints: u64,
}

impl Training {
    /// A finetune of `model`. Of a base that is quantized already, `stored` says in what.
    #[must_use]
    pub fn finetune(model: &Decoder, spec: &FinetuneSpec, stored: Option<TensorType>) -> Self {
        let trained = trainable(model, spec);
        let frozen_bytes = match spec.method {
            Method::Lora | Method::Dora => model.weights(TensorType::F32),
            Method::Qlora => model.weights(stored.unwrap_or(spec.base_quant_type)),
            Method::Full => F32.saturating_mul(model.parameters() - trained),
        };
        let adapter = if spec.keep.adapter() { F32.saturating_mul(trained) } else { 0 };
        let merged = if spec.keep.merged() { F32.saturating_mul(model.parameters()) } else { 0 };
        Self {
            model: *model,
            trained,
            frozen_bytes,
            passing_by_adapters: passing_by_adapters(model, spec),
            beside: if spec.method == Method::Dora { F32.saturating_mul(largest(model, spec)) } else { 0 },
            sides: match spec.objective {
                Objective::Sft | Objective::Kto => 1,
                Objective::Dpo | Objective::Orpo => 2,
            },
            least_rows: if spec.objective == Objective::Kto { 2 } else { 1 },
            checkpointed: spec.recipe.gradient_checkpointing,
            kept_bytes: sum_of([adapter, merged, model.tokenizer(), SMALL_FILES]),
            checkpoints: checkpoints(&spec.recipe),
        }
    }

    /// A training of `model` from nothing.
    #[must_use]
    pub fn from_nothing(model: &Decoder, recipe: &Recipe) -> Self {
        let weights = F32.saturating_mul(model.parameters());
        Self {
            model: *model,
            trained: model.parameters(),
            frozen_bytes: 0,
            passing_by_adapters: 0,
            beside: 0,
            sides: 1,
            least_rows: 1,
            checkpointed: recipe.gradient_checkpointing,
            kept_bytes: sum_of([weights, model.tokenizer(), SMALL_FILES]),
            checkpoints: checkpoints(recipe),
        }
    }

    /// Rows that a batch has at least.
    #[must_use]
    pub fn least_rows(&self) -> u32 {
        self.least_rows
    }

    /// Numbers that are trained.
    #[must_use]
    pub fn trained(&self) -> u64 {
        self.trained
    }

    /// Peak memory of the worker in bytes, without its rows.
    ///
    /// ```text
    /// base + frozen weights                  4 bytes a number, or what their quantized form takes
    ///      + 16 * trained                    value, gradient, two moments
    ///      + 4 * tokens * taped              what the backward pass reads again ([`LayerWidths::taped`]); with gradient
    ///                                        checkpointing also what one layer keeps
    ///      + 4 * tokens * passing            gradients under way through one layer
    ///      + 4 * tokens * vocabulary         logits, 64 MiB of them at a time
    /// ```
    ///
    /// DoRA (Liu et al. 2024) has one matrix at a time beside it, whose rows' norms it needs. DPO and ORPO pass two
    /// answers for each row of the batch.
    ///
    /// [`LayerWidths::taped`]: drydock_spec::tape::LayerWidths::taped
    #[must_use]
    pub fn memory(&self, batch: Batch) -> u64 {
        let tokens = batch.tokens().saturating_mul(self.sides);
        let widths = self.model.widths();
        let taped = widths.taped(u64::from(self.model.layers), self.checkpointed);
        let again = if self.checkpointed { widths.kept() } else { 0 };
        let passing = self.model.passing_per_token().saturating_add(self.passing_by_adapters);
        let activations = F32.saturating_mul(tokens);
        sum([
            self.frozen_bytes,
            TRAINED.saturating_mul(self.trained),
            self.beside,
            activations.saturating_mul(taped.saturating_add(again)),
            activations.saturating_mul(passing),
            self.model.logits(tokens),
        ])
    }

    /// Size of what is left behind in bytes, with the checkpoints that lie beside it on the way.
    #[must_use]
    pub fn disk(&self) -> u64 {
        let checkpoints = self.checkpoints.saturating_mul(CHECKPOINTED).saturating_mul(self.trained);
        self.kept_bytes.saturating_add(checkpoints)
    }

    /// The same with only the layers' inputs kept for the backward pass.
    #[must_use]
    pub fn with_gradient_checkpointing(&self) -> Self {
        Self { checkpointed: true, ..self.clone() }
    }
}

/// Checkpoints that lie on the disk at once: the last one goes when the next is whole. Without `save_steps` there is
/// one only when the worker is told to stop.
fn checkpoints(recipe: &Recipe) -> u64 {
    if recipe.save_steps.is_some() || recipe.on_divergence == OnDivergence::RollBack { 2 } else { 1 }
}

/// Numbers that a finetune trains: of an adapter `lora_r` for each input and output of its projections (and with DoRA
/// one more for each output), otherwise the weights themselves; in both cases those that `trainable` names.
fn trainable(model: &Decoder, spec: &FinetuneSpec) -> u64 {
    let chosen = |name: &str| {
        spec.trainable.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| matches(pattern, name)))
    };
    let rank = u64::from(spec.lora_r);
    let of_adapter = |module: TargetModule| {
        let (inputs, outputs) = model.projection(module);
        let magnitudes = if spec.method == Method::Dora { u64::from(outputs) } else { 0 };
        rank * (u64::from(inputs) + u64::from(outputs)) + magnitudes
    };
    tensors(model)
        .filter(|(name, _, _)| chosen(name))
        .map(|(_, module, numbers)| match (spec.method.has_adapter(), module) {
            (false, _) => numbers,
            (true, Some(module)) if spec.target_modules.contains(&module) => of_adapter(module),
            (true, _) => 0,
        })
        .fold(0, u64::saturating_add)
}

/// Numbers of one token that adapters have under way, of one projection at a time: what A makes of the input and its
/// gradient; with dropout what is left of the input, and its gradient; with DoRA what comes out, and its gradient.
fn passing_by_adapters(model: &Decoder, spec: &FinetuneSpec) -> u64 {
    if !spec.method.has_adapter() {
        return 0;
    }
    let (inputs, outputs) = spec.target_modules.iter().fold((0, 0), |(inputs, outputs), module| {
        let projection = model.projection(*module);
        (projection.0.max(inputs), projection.1.max(outputs))
    });
    let dropped = if spec.lora_dropout > 0.0 { inputs } else { 0 };
    let stretched = if spec.method == Method::Dora { outputs } else { 0 };
    2 * (u64::from(spec.lora_r) + u64::from(dropped) + u64::from(stretched))
}

/// Numbers in the largest matrix that an adapter sits on.
fn largest(model: &Decoder, spec: &FinetuneSpec) -> u64 {
    spec.target_modules.iter().map(|module| model.projection_size(*module)).max().unwrap_or(0)
}

fn sum_of<const N: usize>(parts: [u64; N]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// The largest batch, and then the longest rows, that fit when halved until `fits` says yes; nothing if not even the
/// smallest do. The batch keeps `least_rows`.
#[must_use]
pub fn shrink(recipe: &Recipe, least_rows: u32, length: u32, fits: impl Fn(Batch) -> bool) -> Option<Fit> {
    let mut rows = recipe.per_device_train_batch_size;
    let mut accumulation = recipe.gradient_accumulation_steps;
    let mut length = length;
    while !fits(Batch::new(rows, length)) {
        if rows / 2 >= least_rows {
            accumulation = accumulation.saturating_mul(2).min(4096);
            rows /= 2;
        } else if length / 2 >= SHORTEST_SUGGESTION {
            length /= 2;
        } else {
            return None;
        }
    }
    Some(Fit { per_device_train_batch_size: rows, gradient_accumulation_steps: accumulation, max_seq_length: length })
}

#[cfg(test)]
mod tests;
