//! What a finetune or a training from nothing needs.

use drydock_spec::device::{DeviceTraining, WORKSPACE_BYTES};
use drydock_spec::finetune::{FinetuneSpec, Method, Objective, TargetModule};
use drydock_spec::recipe::{DType, OnDivergence, Recipe};
use drydock_spec::tape::LayerWidths;

use super::names::{matches, tensors};
use super::{Base, Batch, CONTEXT_BYTES, Decoder, F32, Needs, Part, SCORED_TOKENS, SMALL_FILES};

/// A change that makes a training fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub per_device_train_batch_size: u32,
    /// Raised as the batch shrinks, so that a step still learns from as many rows.
    pub gradient_accumulation_steps: u32,
    pub max_seq_length: u32,
}

/// A trained number in a checkpoint: itself and two moments.
const CHECKPOINTED: u64 = 3 * F32;
/// Rows are not cut shorter than this by a suggestion; what is left would teach nothing.
const SHORTEST_SUGGESTION: u32 = 32;

/// A training, as far as its needs go.
#[derive(Debug, Clone)]
pub struct Training {
    model: Decoder,
    trained: u64,
    /// Bytes of what is not trained: as it lies in its file, and in blocks of its own.
    frozen: [u64; 2],
    /// Projections that stay in quantized blocks on a GPU: their numbers, and the bytes that those take.
    blocks_on_gpu: [u64; 2],
    /// Bytes of the head's columns that are widened at once.
    widened: u64,
    /// Numbers of one token that adapters have under way through a layer.
    passing_by_adapters: u64,
    /// Whether a pass without gradients is taken while the tape of one with them is there: KTO's other answers.
    scores_on_the_way: bool,
    /// Whether held-out rows are measured between steps.
    evaluates: bool,
    /// Copies of the trained values that are kept for being the best, between steps and at the end.
    best: [u64; 2],
    /// Rows of a pass for each row of the batch.
    sides: u64,
    /// Rows of a batch at least: KTO compares them.
    least_rows: u32,
    checkpointed: bool,
    dtype: DType,
    /// Whether adapters drop some of what they see.
    drops: bool,
    /// Whether the rows of adapted weights have trained lengths.
    dora: bool,
    /// What is left behind, checkpoints aside.
    kept_bytes: u64,
    checkpoints: u64,
}

impl Training {
    /// A finetune of `model`, whose weights lie in `base`.
    #[must_use]
    pub fn finetune(model: &Decoder, spec: &FinetuneSpec, base: Base) -> Self {
        let trained = trainable(model, spec);
        let adapter = if spec.keep.adapter() { F32.saturating_mul(trained) } else { 0 };
        let merged = if spec.keep.merged() { F32.saturating_mul(model.parameters()) } else { 0 };
        Self {
            model: *model,
            trained,
            frozen: frozen(model, spec, base, trained),
            blocks_on_gpu: blocks_on_gpu(model, spec, base),
            widened: if spec.method == Method::Full { 0 } else { base.widened(model) },
            passing_by_adapters: passing_by_adapters(model, spec),
            scores_on_the_way: spec.objective == Objective::Kto,
            evaluates: spec.recipe.eval_steps.is_some(),
            best: copies_of_the_best(&spec.recipe),
            sides: match spec.objective {
                Objective::Sft | Objective::Kto => 1,
                Objective::Dpo | Objective::Orpo => 2,
            },
            least_rows: if spec.objective == Objective::Kto { 2 } else { 1 },
            checkpointed: spec.recipe.gradient_checkpointing,
            dtype: spec.recipe.dtype,
            drops: spec.method.has_adapter() && spec.lora_dropout > 0.0,
            dora: spec.method == Method::Dora,
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
            frozen: [0, 0],
            blocks_on_gpu: [0, 0],
            widened: 0,
            passing_by_adapters: 0,
            scores_on_the_way: false,
            evaluates: recipe.eval_steps.is_some(),
            best: copies_of_the_best(recipe),
            sides: 1,
            least_rows: 1,
            checkpointed: recipe.gradient_checkpointing,
            dtype: recipe.dtype,
            drops: false,
            dora: false,
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

    /// Peak memory of the worker, without its rows.
    ///
    /// ```text
    /// worker + frozen weights                as they lie in their file, or in quantized blocks (see [`Base`])
    ///        + 16 * trained                  value, gradient, two moments
    ///        + 4 * tokens * taped            what the backward pass reads again ([`LayerWidths::taped`]); with gradient
    ///                                        checkpointing also what one layer keeps
    ///        + 4 * tokens * passing          under way through one layer
    ///        + 4 * targets * vocabulary      logits, 64 MiB of them at a time
    /// ```
    ///
    /// DPO and ORPO pass two answers for each row of the batch. Before and after training, rows are scored with all but
    /// the tape and the optimizer.
    ///
    /// [`LayerWidths::taped`]: drydock_spec::tape::LayerWidths::taped
    #[must_use]
    pub fn memory(&self, batch: Batch, threads: u32) -> Needs {
        let tokens = batch.tokens().saturating_mul(self.sides);
        let scored = SCORED_TOKENS.max(batch.length.into());
        let values = F32.saturating_mul(self.trained);
        let held = self
            .model
            .worker(threads)
            .with(Part::Weights, sum_of(self.frozen))
            .with(Part::Trained, values)
            .with(Part::Gradients, values)
            .with(Part::Moments, values.saturating_mul(2));
        let learning = held
            .clone()
            .with(Part::Activations, F32.saturating_mul(tokens).saturating_mul(self.taped()))
            .with(Part::Best, values.saturating_mul(self.best[0]))
            .and(&self.step([tokens, batch.targets().saturating_mul(self.sides)], scored));
        let measuring =
            held.with(Part::Best, values.saturating_mul(self.best[1])).and(&self.model.scoring(scored, scored));
        Needs::largest([learning, measuring])
    }

    /// Peak memory of the worker on the host while a GPU computes, without its rows: the weights as they are read, the
    /// trained values that are saved from here, the moments of a checkpoint, the largest matrices of a layer on their way
    /// to the GPU, and what CUDA takes of the host (by formula alone: not measured on a GPU yet).
    #[must_use]
    pub fn memory_beside_gpu(&self, threads: u32) -> Needs {
        let values = F32.saturating_mul(self.trained);
        self.model
            .worker(threads)
            .with(Part::Weights, sum_of(self.frozen))
            .with(Part::Trained, values)
            .with(Part::Moments, values.saturating_mul(2))
            .with(Part::Best, values.saturating_mul(self.best[1]))
            .with(Part::Workspace, F32.saturating_mul(self.model.under_way_to_gpu()))
            .with(Part::Context, CONTEXT_BYTES)
    }

    /// Numbers of one token that a step has on its tape when all layers are through.
    fn taped(&self) -> u64 {
        self.model.widths().taped(u64::from(self.model.layers), self.checkpointed)
    }

    /// What a step has under way, beside its tape: the wider of a layer's way back and of its losses.
    fn step(&self, [tokens, targets]: [u64; 2], scored: u64) -> Needs {
        let LayerWidths { hidden, queries, keys, ffn, .. } = self.model.widths();
        let numbers = |width: u64| F32.saturating_mul(tokens).saturating_mul(width);
        // The gradients of the gate, of what goes through it and of what comes out, beside the stream's; or those of
        // attention's four projections beside the norm's. KTO asks for its other answers while the tape is there.
        let mlp = 3 * ffn + hidden;
        let attention = 3 * hidden + 2 * queries + 2 * keys;
        let forward = 4 * hidden + 2 * queries + 2 * keys + 3 * ffn;
        let on_the_way = if self.scores_on_the_way { forward } else { 0 };
        let passing = mlp.max(attention).max(on_the_way).saturating_add(self.passing_by_adapters);
        let layer = numbers(passing).saturating_add(self.model.packed(tokens));
        let head = numbers(5 * hidden);
        let at_once = if self.evaluates { targets.max(scored) } else { targets };
        let both = self.model.around_the_head(layer, head, at_once).with(Part::Workspace, self.widened);
        // What a layer keeps when it is computed again leaves its room in the heap, and the next step's logits are beside it.
        let again = if self.checkpointed { numbers(self.model.widths().kept()) } else { 0 };
        both.with(Part::Activations, again)
    }

    /// Peak memory on a GPU, by the formula that the worker's engine is tested against
    /// ([`drydock_spec::device::DeviceTraining`]); and what the driver takes for a process, about (not measured by us on
    /// a GPU yet).
    #[must_use]
    pub fn gpu_memory(&self, batch: Batch) -> Needs {
        let on_device = DeviceTraining {
            dtype: self.dtype,
            widths: self.model.widths(),
            layers: self.model.layers.into(),
            query_heads: self.model.heads.into(),
            vocabulary: self.model.vocabulary.into(),
            frozen: if self.frozen == [0, 0] { 0 } else { self.model.parameters() },
            trained: self.trained,
            tokens: batch.tokens().saturating_mul(self.sides),
            longest_row: batch.length.into(),
            gradient_checkpointing: self.checkpointed,
            dropout: self.drops,
            dora: self.dora,
        };
        let copy = if self.dtype == DType::Bf16 { 2 } else { 0 };
        let values = F32.saturating_mul(self.trained);
        let weights = on_device.weights();
        let step = on_device.bytes().saturating_sub(weights).saturating_sub(WORKSPACE_BYTES);
        let [numbers, bytes] = self.blocks_on_gpu;
        let saved = on_device.saved_by_blocks(numbers, bytes);
        Needs::default()
            .with(Part::Weights, weights.saturating_sub(self.trained.saturating_mul(16 + copy)).saturating_sub(saved))
            .with(Part::Trained, self.trained.saturating_mul(4 + copy))
            .with(Part::Gradients, values)
            .with(Part::Moments, values.saturating_mul(2))
            .with(Part::Activations, step)
            .with(Part::Workspace, WORKSPACE_BYTES)
            .with(Part::Context, CONTEXT_BYTES)
    }

    /// What is left behind, with the checkpoints that lie beside it on the way.
    #[must_use]
    pub fn disk(&self) -> Needs {
        let checkpoints = self.checkpoints.saturating_mul(self.checkpoint());
        Needs::default().with(Part::Artifacts, self.kept_bytes).with(Part::Checkpoints, checkpoints)
    }

    /// The room that it must have, in bytes: whatever is asked for, there is a checkpoint when the worker is told to stop.
    #[must_use]
    pub fn disk_at_most(&self) -> u64 {
        self.disk().total().saturating_add(if self.checkpoints == 0 { self.checkpoint() } else { 0 })
    }

    fn checkpoint(&self) -> u64 {
        CHECKPOINTED.saturating_mul(self.trained)
    }

    /// The same with only the layers' inputs kept for the backward pass.
    #[must_use]
    pub fn with_gradient_checkpointing(&self) -> Self {
        Self { checkpointed: true, ..self.clone() }
    }
}

/// What stays in quantized blocks on a GPU: the projections under an adapter, where they are in such blocks.
fn blocks_on_gpu(model: &Decoder, spec: &FinetuneSpec, base: Base) -> [u64; 2] {
    let numbers = model.projections();
    match spec.method {
        Method::Full => [0, 0],
        _ if base.is_quantized() => base.blocks_on_gpu(model),
        Method::Qlora => [numbers, base.quantized_to(model, spec.base_quant_type).blocks],
        Method::Lora | Method::Dora => [0, 0],
    }
}

/// Checkpoints that lie on the disk at once: the last one goes when the next is whole. Without `save_steps` there is
/// none as a rule.
fn checkpoints(recipe: &Recipe) -> u64 {
    if recipe.save_steps.is_some() || recipe.on_divergence == OnDivergence::RollBack { 2 } else { 0 }
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

/// Bytes of what is not trained: as it lies in its file, and in blocks of its own.
fn frozen(model: &Decoder, spec: &FinetuneSpec, base: Base, trained: u64) -> [u64; 2] {
    match spec.method {
        Method::Full => {
            let share = 1.0 - trained as f64 / model.parameters() as f64;
            [(base.bytes() as f64 * share) as u64, 0]
        }
        Method::Qlora if !base.is_quantized() => {
            let held = base.quantized_to(model, spec.base_quant_type);
            [held.rest, held.blocks]
        }
        Method::Lora | Method::Dora | Method::Qlora => [base.held(), 0],
    }
}

/// Copies of the trained values that are kept: the best so far, and at the end those of the last step beside them while
/// the best are put in their place.
fn copies_of_the_best(recipe: &Recipe) -> [u64; 2] {
    if recipe.load_best_model_at_end { [1, 3] } else { [0, 0] }
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
