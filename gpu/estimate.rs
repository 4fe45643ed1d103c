//! What a finetune will need, from the model's shape and the options alone.
//!
//! The numbers are those of a decoder that is trained in f32, whose frozen weights have no gradients, whose layers
//! keep only what their backward passes read, and whose head never holds all logits at once.

use drydock_spec::finetune::{FinetuneSpec, TargetModule};
use serde::{Deserialize, Serialize};

/// The shape of a Llama-like decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoder {
    pub layers: u32,
    /// Width of the stream that runs through the layers.
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Width inside the MLP.
    pub ffn: u32,
    pub vocabulary: u32,
    /// Whether the head's weight is the embedding's.
    pub tied: bool,
    /// Values that a layer has beside its projections' weights and the norms before attention and MLP: biases, and
    /// further norms.
    #[serde(default)]
    pub layer_vectors: u32,
}

/// What a batch is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Rows whose activations are held at once.
    pub rows: u32,
    /// Tokens of a row at most.
    pub length: u32,
}

/// A change that makes a finetune fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub per_device_train_batch_size: u32,
    /// Raised as the batch shrinks, so that a step still learns from as many rows.
    pub gradient_accumulation_steps: u32,
    pub max_seq_length: u32,
}

impl Batch {
    #[must_use]
    pub fn new(rows: u32, length: u32) -> Self {
        Self { rows, length }
    }
}

const F32: u64 = 4;
/// The program, its threads' stacks, the tokenizer and what the allocator holds back.
const BASE_BYTES: u64 = 64 << 20;
/// Logits that are held at once; their gradients take their place.
const LOGIT_BYTES: u64 = 64 << 20;
/// Rows are not cut shorter than this by a suggestion; what is left would teach nothing.
const SHORTEST_SUGGESTION: u32 = 32;

impl Decoder {
    /// Width of all query heads together.
    #[must_use]
    pub fn query_width(&self) -> u32 {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Width of all key heads, or all value heads, together.
    #[must_use]
    pub fn kv_width(&self) -> u32 {
        self.kv_heads.saturating_mul(self.head_dim)
    }

    /// Inputs and outputs of a projection.
    #[must_use]
    pub fn projection(&self, module: TargetModule) -> (u32, u32) {
        match module {
            TargetModule::QProj => (self.hidden, self.query_width()),
            TargetModule::KProj | TargetModule::VProj => (self.hidden, self.kv_width()),
            TargetModule::OProj => (self.query_width(), self.hidden),
            TargetModule::GateProj | TargetModule::UpProj => (self.hidden, self.ffn),
            TargetModule::DownProj => (self.ffn, self.hidden),
        }
    }

    /// Numbers in all weights; a tied head counts once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let hidden = u64::from(self.hidden);
        let projections: u64 = TargetModule::ALL
            .iter()
            .map(|module| {
                let (inputs, outputs) = self.projection(*module);
                u64::from(inputs) * u64::from(outputs)
            })
            .sum();
        let embeddings = if self.tied { 1 } else { 2 };
        let layer = projections + 2 * hidden + u64::from(self.layer_vectors);
        embeddings * u64::from(self.vocabulary) * hidden + u64::from(self.layers) * layer + hidden
    }

    /// Numbers in a LoRA adapter of rank `lora_r` on these projections.
    #[must_use]
    pub fn trainable(&self, modules: &[TargetModule], lora_r: u32) -> u64 {
        let widths: u64 = modules
            .iter()
            .map(|module| {
                let (inputs, outputs) = self.projection(*module);
                u64::from(inputs) + u64::from(outputs)
            })
            .sum();
        u64::from(self.layers) * u64::from(lora_r) * widths
    }

    /// The rank beyond which an adapter has no use: the smallest side of the matrices that it would sit on.
    #[must_use]
    pub fn largest_rank(&self, modules: &[TargetModule]) -> u32 {
        let side = |module: &TargetModule| {
            let (inputs, outputs) = self.projection(*module);
            inputs.min(outputs)
        };
        modules.iter().map(side).min().unwrap_or(0)
    }
}

/// Peak memory of the worker in bytes.
///
/// ```text
/// base + 4 * parameters                      frozen weights
///      + 16 * trainable                      adapter, gradient, two moments
///      + 4 * tokens * layers * saved         what the backward pass reads again, with
///          saved = 6 * hidden                stream before, normed input to and output of attention and MLP
///                + 2 * queries + 2 * kv      queries, attention's output; keys, values
///                + heads                     log-sum of the attention weights
///                + 3 * ffn                   gate, up and their product
///                + modules * lora_r          what the adapters' first halves give; dropout's masks are drawn again
///      + 4 * tokens * (3 * ffn + 3 * hidden) gradients under way through one layer
///      + 4 * tokens * vocabulary             logits, 64 MiB of them at a time
/// ```
#[must_use]
pub fn finetune_memory(model: &Decoder, spec: &FinetuneSpec, batch: Batch) -> u64 {
    let tokens = u64::from(batch.rows) * u64::from(batch.length);
    let [hidden, queries, kv, ffn] = [model.hidden, model.query_width(), model.kv_width(), model.ffn].map(u64::from);
    let modules = spec.target_modules.len() as u64;
    let saved = 6 * hidden + 2 * queries + 2 * kv + u64::from(model.heads) + 3 * ffn + modules * u64::from(spec.lora_r);
    let weights = F32.saturating_mul(model.parameters());
    let adapter = 4 * F32 * model.trainable(&spec.target_modules, spec.lora_r);
    let activations = F32.saturating_mul(tokens).saturating_mul(u64::from(model.layers) * saved);
    let passing = F32.saturating_mul(tokens).saturating_mul(3 * ffn + 3 * hidden);
    let logits = F32.saturating_mul(tokens).saturating_mul(u64::from(model.vocabulary)).min(LOGIT_BYTES);
    [weights, adapter, activations, passing, logits].into_iter().fold(BASE_BYTES, u64::saturating_add)
}

/// What the worker holds of its rows, in bytes: the files as they are read, and their text, tokens and marks after.
#[must_use]
pub fn rows_memory(file_bytes: u64, text_bytes: u64) -> u64 {
    file_bytes.saturating_mul(2).saturating_add(text_bytes.saturating_mul(3))
}

/// Size of the artifacts in bytes: the adapter, and a copy of the tokenizer with room for its longest form.
#[must_use]
pub fn finetune_disk(model: &Decoder, spec: &FinetuneSpec) -> u64 {
    let tokenizer = u64::from(model.vocabulary) * 128;
    F32 * model.trainable(&spec.target_modules, spec.lora_r) + tokenizer + (1 << 20)
}

/// The memory limit that a job gets whose worker is expected to peak at `peak` bytes: a quarter and 256 MiB more, in
/// whole MiB.
#[must_use]
pub fn with_margin(peak: u64) -> u64 {
    let wanted = peak.saturating_add(peak / 4).saturating_add(256 << 20);
    wanted.div_ceil(1 << 20).saturating_mul(1 << 20)
}

/// The largest batch, and then the longest rows, that fit when halved until `fits` says yes; nothing if not even the
/// smallest do.
#[must_use]
pub fn shrink(spec: &FinetuneSpec, length: u32, fits: impl Fn(Batch) -> bool) -> Option<Fit> {
    let mut rows = spec.per_device_train_batch_size;
    let mut accumulation = spec.gradient_accumulation_steps;
    let mut length = length;
    while !fits(Batch::new(rows, length)) {
        if rows > 1 {
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
mod tests {
    use drydock_spec::FinetuneArgs;
    use proptest::prelude::*;

    use super::*;

    const SMOLLM2_135M: Decoder = Decoder {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocabulary: 49152,
        tied: true,
        layer_vectors: 0,
    };

    fn spec(change: impl FnOnce(&mut FinetuneArgs)) -> FinetuneSpec {
        let mut args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        change(&mut args);
        args.parse().unwrap()
    }

    #[test]
    fn parameters_are_counted_as_the_published_models_count_them() {
        assert_eq!(SMOLLM2_135M.parameters(), 134_515_008);
        assert_eq!(SMOLLM2_135M.trainable(&TargetModule::ALL, 8), 2_442_240);
        let llama3_8b = Decoder {
            layers: 32,
            hidden: 4096,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            ffn: 14336,
            vocabulary: 128_256,
            tied: false,
            layer_vectors: 0,
        };
        assert_eq!(llama3_8b.parameters(), 8_030_261_248);
    }

    /// Peaks of resident memory on SmolLM2-135M, of steps of so many tokens in all.
    #[test]
    fn the_estimate_is_at_least_what_was_measured_and_a_tenth_more_at_most() {
        for (tokens, rank, dropout, measured) in [
            (97, 8, 0.0, 0.751e9),
            (783, 8, 0.0, 1.565e9),
            (1024, 8, 0.0, 1.78e9),
            (1867, 8, 0.0, 2.870e9),
            (783, 64, 0.1, 1.916e9),
        ] {
            let spec = spec(|args| {
                args.lora_r = Some(rank);
                args.lora_dropout = Some(dropout);
            });
            let estimate = finetune_memory(&SMOLLM2_135M, &spec, Batch::new(1, tokens)) as f64;
            let ratio = estimate / measured;
            assert!((1.0..1.1).contains(&ratio), "{tokens} tokens, rank {rank}: {estimate} is {ratio} of {measured}");
        }
    }

    #[test]
    fn the_rank_is_bounded_by_the_narrowest_projection() {
        assert_eq!(SMOLLM2_135M.largest_rank(&TargetModule::ALL), 192);
        assert_eq!(SMOLLM2_135M.largest_rank(&[TargetModule::QProj]), 576);
    }

    #[test]
    fn a_job_that_never_fits_gets_no_suggestion() {
        assert_eq!(shrink(&spec(|_| {}), 512, |_| false), None);
    }

    #[test]
    fn the_batch_is_halved_before_the_length_and_a_step_keeps_its_rows() {
        let spec = spec(|args| args.per_device_train_batch_size = Some(8));
        let fit = shrink(&spec, 512, |batch| batch.rows * batch.length <= 2 * 512);
        let expected = Fit { per_device_train_batch_size: 2, gradient_accumulation_steps: 4, max_seq_length: 512 };
        assert_eq!(fit, Some(expected));
        let fit = shrink(&spec, 512, |batch| batch.rows * batch.length <= 200).unwrap();
        assert_eq!((fit.per_device_train_batch_size, fit.max_seq_length), (1, 128));
    }

    proptest! {
        #[test]
        fn more_of_anything_never_needs_less(
            rows in 1..64u32, length in 8..4096u32, rank in 1..128u32, more in 1..64u32, layers in 1..80u32,
        ) {
            let model = Decoder { layers, ..SMOLLM2_135M };
            let deeper = Decoder { layers: layers + more, ..SMOLLM2_135M };
            let batch = Batch::new(rows, length);
            let small = spec(|args| args.lora_r = Some(rank));
            let wide = spec(|args| args.lora_r = Some(rank + more));
            let need = finetune_memory(&model, &small, batch);
            prop_assert!(finetune_memory(&model, &small, Batch::new(rows + more, length)) > need);
            prop_assert!(finetune_memory(&model, &small, Batch::new(rows, length + more)) > need);
            prop_assert!(finetune_memory(&model, &wide, batch) > need);
            prop_assert!(finetune_memory(&deeper, &small, batch) > need);
            prop_assert!(with_margin(need) > need && with_margin(need).is_multiple_of(1 << 20));
        }

        #[test]
        fn a_suggestion_fits(rows in 1..512u32, length in 32..8192u32, budget in 1u64 << 28..1u64 << 36) {
            let spec = spec(|args| args.per_device_train_batch_size = Some(rows));
            let fits = |batch| finetune_memory(&SMOLLM2_135M, &spec, batch) <= budget;
            if let Some(fit) = shrink(&spec, length, fits) {
                prop_assert!(fits(Batch::new(fit.per_device_train_batch_size, fit.max_seq_length)));
                prop_assert!(fit.per_device_train_batch_size <= rows && fit.max_seq_length <= length);
            }
        }

        #[test]
        fn absurd_shapes_do_not_overflow(layers: u16, width in 0..1u32 << 22, rows: u32, length: u32) {
            let model = Decoder {
                layers: u32::from(layers), hidden: width, heads: 64, kv_heads: 64, head_dim: width / 64, ffn: width,
                vocabulary: 1 << 24, tied: false, layer_vectors: 0,
            };
            let need = finetune_memory(&model, &spec(|_| {}), Batch::new(rows, length));
            prop_assert!(need > 0);
        }
    }
}
