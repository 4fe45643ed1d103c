//! What a job will need, from the model's shape and the options alone: pure rules, one file a kind of job.
//!
//! The numbers are those of drydock's own worker: f32 sums and activations, layers that keep only what their backward
//! passes read, and a head that never holds all logits at once.

use drydock_spec::finetune::TargetModule;
use drydock_spec::tape::LayerWidths;
use serde::{Deserialize, Serialize};

mod base;
mod evaluate;
mod interval;
mod lengths;
mod names;
mod needs;
mod quantize;
mod rows;
mod shipped;
mod together;
mod training;
mod work;

pub use base::Base;
pub use evaluate::{Answering, evaluate_beside_gpu, evaluate_gpu_memory, evaluate_memory};
pub use interval::{CONFIDENCE_PERCENT, ENOUGH, Interval, Ratios};
pub use lengths::{Draws, fullest_batch};
pub use names::matches;
pub use needs::{Needs, Part};
pub use quantize::{file_bytes, quantize_memory};
pub use rows::Rows;
pub use shipped::{shipped_disk, shipped_memory};
pub use together::{beside_gpus, of_each_gpu};
pub use training::{Fit, Training, shrink};
pub use work::{Phase, Tokens, Traffic, Work};

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
    /// Whether what attention and MLP give goes through a norm before it joins the stream.
    #[serde(default)]
    pub norms_after: bool,
}

/// What a batch is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Rows whose activations are held at once.
    pub rows: u32,
    /// Tokens of a row at most.
    pub length: u32,
    /// Of all rows together at most.
    tokens: u64,
}

impl Batch {
    /// Rows of which each may be as long as the longest.
    #[must_use]
    pub fn new(rows: u32, length: u32) -> Self {
        Self { rows, length, tokens: u64::from(rows) * u64::from(length) }
    }

    /// The same of rows that are known to have so many tokens together at most.
    #[must_use]
    pub fn of_tokens(self, tokens: u64) -> Self {
        Self { tokens: self.tokens.min(tokens.max(self.length.into())), ..self }
    }

    fn tokens(self) -> u64 {
        self.tokens
    }

    /// Tokens that are predicted: nothing predicts a row's first.
    fn targets(self) -> u64 {
        self.tokens.saturating_sub(self.rows.into()).max(1)
    }
}

const F32: u64 = 4;
/// The worker's program as far as it is read, and its threads' stacks and the heap's first pages.
const PROGRAM_BYTES: u64 = 16 << 20;
/// What each thread of the worker has for itself: tiles, packed strips and a stack.
const THREAD_BYTES: u64 = 1 << 20;
/// What the worker holds of each token of a vocabulary: its text both ways, and its merge.
const TOKEN_MEMORY: u64 = 400;
/// Logits that are held at once; their gradients take their place.
const LOGIT_BYTES: u64 = 64 << 20;
/// Tokens that go through the model at once where no gradient is asked for; a longer row goes alone.
const SCORED_TOKENS: u64 = 1024;
/// The left operand of a product is packed for so many rows and so much depth at a time.
const PACKED: (u64, u64) = (1024, 2048);
/// What a vocabulary's token takes in the longest form of a tokenizer's files.
const TOKEN_BYTES: u64 = 128;
/// What a GPU's driver, its context and the libraries' kernels take for a process: about half a GiB, as NVIDIA's tools
/// show it for others' programs; ours was not measured on a GPU yet. The host is taken to give as much.
const CONTEXT_BYTES: u64 = 512 << 20;
/// Configurations, reports and what else is small.
const SMALL_FILES: u64 = 1 << 20;

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

    /// Numbers in the matrix of a projection.
    fn projection_size(&self, module: TargetModule) -> u64 {
        let (inputs, outputs) = self.projection(module);
        u64::from(inputs) * u64::from(outputs)
    }

    /// Numbers in the projections of all layers together.
    fn projections(&self) -> u64 {
        let layer: u64 = TargetModule::ALL.iter().map(|module| self.projection_size(*module)).sum();
        u64::from(self.layers).saturating_mul(layer)
    }

    /// Numbers in the embedding, or in a head of its own.
    fn embedding(&self) -> u64 {
        u64::from(self.vocabulary) * u64::from(self.hidden)
    }

    /// Numbers in all weights; a tied head counts once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let hidden = u64::from(self.hidden);
        let embeddings = if self.tied { 1 } else { 2 } * self.embedding();
        let vectors = u64::from(self.layers) * (2 * hidden + u64::from(self.layer_vectors)) + hidden;
        self.projections().saturating_add(embeddings).saturating_add(vectors)
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

    /// What goes through a layer.
    fn widths(&self) -> LayerWidths {
        let [hidden, queries, keys, ffn] = [self.hidden, self.query_width(), self.kv_width(), self.ffn].map(u64::from);
        LayerWidths { hidden, queries, keys, ffn, norms_after: self.norms_after }
    }

    /// Bytes of a forward pass of so many tokens through one layer of which nothing is kept, and of the losses of those
    /// that are scored behind it.
    fn scoring(&self, tokens: u64, scored: u64) -> Needs {
        self.passing(tokens, scored, self.packed(tokens))
    }

    /// The same with so many bytes for what products make of their left operand.
    fn passing(&self, tokens: u64, scored: u64, operands: u64) -> Needs {
        let LayerWidths { hidden, queries, keys, ffn, .. } = self.widths();
        let under_way = F32.saturating_mul(tokens).saturating_mul(4 * hidden + 2 * queries + 2 * keys + 3 * ffn);
        let head = F32.saturating_mul(scored).saturating_mul(3 * hidden);
        self.around_the_head(under_way.saturating_add(operands), head, scored)
    }

    /// Logits of so many tokens, and the wider of what is under way through a layer and beside the logits. The two moments
    /// are not the same, but their memory adds up: the worker's heap keeps what layers have used (`process` says why),
    /// and logits are one block, which finds no room between what layers have left of it.
    fn around_the_head(&self, layer: u64, head: u64, tokens: u64) -> Needs {
        Needs::default().with(Part::Logits, self.logits(tokens)).with(Part::Workspace, layer.max(head))
    }

    /// Bytes that a product has packed of its left operand.
    fn packed(&self, tokens: u64) -> u64 {
        let LayerWidths { hidden, queries, ffn, .. } = self.widths();
        F32 * tokens.min(PACKED.0) * hidden.max(queries).max(ffn).min(PACKED.1)
    }

    /// Bytes of what an integer product has rounded of its left operand: a byte for each number, and for every 32 of them a
    /// scale and two sums.
    fn rounded(&self, tokens: u64) -> u64 {
        let LayerWidths { hidden, queries, ffn, .. } = self.widths();
        let numbers = tokens * hidden.max(queries).max(ffn);
        numbers.saturating_add(numbers / 32 * 12)
    }

    /// Bytes of the logits of so many tokens that are held at once.
    fn logits(&self, tokens: u64) -> u64 {
        F32.saturating_mul(tokens).saturating_mul(u64::from(self.vocabulary)).min(LOGIT_BYTES)
    }

    /// Bytes of the worker before it has read anything of a model but its tokenizer.
    fn worker(&self, threads: u32) -> Needs {
        Needs::default()
            .with(Part::Program, PROGRAM_BYTES + THREAD_BYTES.saturating_mul(u64::from(threads)))
            .with(Part::Tokenizer, u64::from(self.vocabulary) * TOKEN_MEMORY)
    }

    /// Bytes of the tokenizer's files, with room for their longest form.
    fn tokenizer(&self) -> u64 {
        u64::from(self.vocabulary) * TOKEN_BYTES
    }
}

/// The memory limit of a job whose worker peaks at `peak` bytes at most: what a container's limit counts beside that. The
/// kernel's tables for those pages, and files that are being read and written, some of which should stay where they are.
#[must_use]
pub fn limit_for(peak: u64) -> u64 {
    let wanted = peak.saturating_add(peak / 256).saturating_add(64 << 20);
    wanted.div_ceil(1 << 20).saturating_mul(1 << 20)
}

#[cfg(test)]
pub(crate) const SMOLLM2_135M: Decoder = Decoder {
    layers: 30,
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    ffn: 1536,
    vocabulary: 49152,
    tied: true,
    layer_vectors: 0,
    norms_after: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_as_the_published_models_count_them() {
        assert_eq!(SMOLLM2_135M.parameters(), 134_515_008);
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
            norms_after: false,
        };
        assert_eq!(llama3_8b.parameters(), 8_030_261_248);
    }

    #[test]
    fn the_rank_is_bounded_by_the_narrowest_projection() {
        assert_eq!(SMOLLM2_135M.largest_rank(&TargetModule::ALL), 192);
        assert_eq!(SMOLLM2_135M.largest_rank(&[TargetModule::QProj]), 576);
    }
}
