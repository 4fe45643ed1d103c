//! What a job will need, from the model's shape and the options alone: pure rules, one file a kind of job.
//!
//! The numbers are those of drydock's own worker: f32 sums and activations, layers that keep only what their backward
//! passes read, and a head that never holds all logits at once.

use drydock_spec::finetune::TargetModule;
use drydock_spec::quantize::TensorType;
use drydock_spec::tape::LayerWidths;
use serde::{Deserialize, Serialize};

mod evaluate;
mod names;
mod quantize;
mod training;

pub use evaluate::{Answering, evaluate_memory};
pub use names::matches;
pub use quantize::{file_bytes, quantize_memory};
pub use training::{Fit, Training, shrink};

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
}

impl Batch {
    #[must_use]
    pub fn new(rows: u32, length: u32) -> Self {
        Self { rows, length }
    }

    fn tokens(self) -> u64 {
        u64::from(self.rows) * u64::from(self.length)
    }
}

const F32: u64 = 4;
/// The program, its threads' stacks, the tokenizer and what the allocator holds back.
const BASE_BYTES: u64 = 64 << 20;
/// Logits that are held at once; their gradients take their place.
const LOGIT_BYTES: u64 = 64 << 20;
/// What a vocabulary's token takes in the longest form of a tokenizer's files.
const TOKEN_BYTES: u64 = 128;
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

    /// Numbers of one token that are under way through a layer, beside those that it keeps: five of each width. About
    /// three of them are alive at once; the rest is what the allocator holds back between buffers of different sizes
    /// (measured, see the tests of `training`).
    fn passing_per_token(&self) -> u64 {
        let LayerWidths { hidden, queries, keys, ffn, .. } = self.widths();
        5 * (hidden + queries + keys + ffn)
    }

    /// Bytes of the logits of so many tokens that are held at once.
    fn logits(&self, tokens: u64) -> u64 {
        F32.saturating_mul(tokens).saturating_mul(u64::from(self.vocabulary)).min(LOGIT_BYTES)
    }

    /// Bytes of the weights, whose projections are held in `stored` and all else in f32.
    fn weights(&self, stored: TensorType) -> u64 {
        let (values, bytes) = stored.block();
        let rest = self.parameters() - self.projections();
        let projections = self.projections().div_ceil(values as u64).saturating_mul(bytes as u64);
        projections.saturating_add(F32.saturating_mul(rest))
    }

    /// Bytes of the tokenizer's files, with room for their longest form.
    fn tokenizer(&self) -> u64 {
        u64::from(self.vocabulary) * TOKEN_BYTES
    }
}

/// What the worker holds of its rows, in bytes: the files as they are read, and their text, tokens and marks after.
#[must_use]
pub fn rows_memory(file_bytes: u64, text_bytes: u64) -> u64 {
    file_bytes.saturating_mul(2).saturating_add(text_bytes.saturating_mul(3))
}

/// The memory limit that a job gets whose worker is expected to peak at `peak` bytes: a quarter and 256 MiB more, in
/// whole MiB.
#[must_use]
pub fn with_margin(peak: u64) -> u64 {
    let wanted = peak.saturating_add(peak / 4).saturating_add(256 << 20);
    wanted.div_ceil(1 << 20).saturating_mul(1 << 20)
}

fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(BASE_BYTES, u64::saturating_add)
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
