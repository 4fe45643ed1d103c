//! What a training holds of a GPU's memory: one formula, by which the worker's engine is tested and the gateway's
//! estimates count.
//!
//! ```text
//! frozen weights   2 or 4 bytes a number, as products compute in bf16 or f32; projections in quantized blocks stay what
//!                  they are, and those of one input are widened while a product takes them
//! trained values   16 bytes: value, gradient and two moments in f32; in bf16 a copy of 2 bytes more
//! the tape         2 or 4 bytes for each of the numbers of `LayerWidths::taped`, for every token of a forward pass
//! one layer        what its backward pass takes on the way: the larger of its MLP's and its attention's
//! the head         logits of some targets in f32, and their gradients
//! cuBLAS           32 MiB
//! ```
//! The driver, its context and the kernels take about 0.5 GiB more, and where several GPUs compute one training, which
//! each of them holds whole, NCCL takes [`EXCHANGE_BYTES`]; of both the worker knows nothing.

mod evaluation;

use crate::recipe::DType;
use crate::tape::LayerWidths;
pub use evaluation::DeviceEvaluation;

/// What cuBLAS computes in, bytes: as much as NVIDIA recommends for Hopper.
pub const WORKSPACE_BYTES: u64 = 32 << 20;
/// What NCCL takes of each of several GPUs that compute one training, bytes: its kernels, and around the ring 9.2 MiB a
/// channel by its own sizes of buffers, of which there are up to 32. Not measured on GPUs yet; the worker knows nothing of
/// it, as it sums gradients in their place.
pub const EXCHANGE_BYTES: u64 = 512 << 20;
/// Bytes of scores of attention (f32) that are held at once, as far as rows are not so long that a block of
/// [`LEAST_QUERIES`] takes more.
pub const SCORE_BYTES: u64 = 64 << 20;
/// Queries of a block at least, as far as a row has so many.
pub const LEAST_QUERIES: u64 = 64;
/// Tokens that are scored together, as far as a single row has not more; and of prompts that are read together.
pub const SCORED_TOKENS: u64 = 8192;
/// Bytes of logits (f32) that are held at once.
pub const LOGIT_BYTES: u64 = 128 << 20;

/// A training on a GPU, in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceTraining {
    pub dtype: DType,
    pub widths: LayerWidths,
    pub layers: u64,
    /// Heads that ask.
    pub query_heads: u64,
    pub vocabulary: u64,
    /// Numbers of frozen tensors, and of trained ones.
    pub frozen: u64,
    pub trained: u64,
    /// Of a forward pass.
    pub tokens: u64,
    /// Of the longest row among them.
    pub longest_row: u64,
    pub gradient_checkpointing: bool,
    /// Whether there are adapters with dropout.
    pub dropout: bool,
    /// Whether the rows of adapted weights have trained lengths (DoRA).
    pub dora: bool,
}

impl DeviceTraining {
    /// Bytes that the worker asks for at most; never less than it does, and at most a quarter more. Less
    /// [`DeviceTraining::saved_by_blocks`], where there are any.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let parts = [WORKSPACE_BYTES, self.weights(), self.taped(), self.at_once()];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Weights, and what the optimizer knows of those that are trained.
    #[must_use]
    pub fn weights(&self) -> u64 {
        let each = match self.dtype {
            DType::F32 => 16,
            DType::Bf16 => 18,
        };
        self.frozen.saturating_mul(self.number()).saturating_add(self.trained.saturating_mul(each))
    }

    /// By how much less is asked for where so many of the frozen numbers lie in quantized blocks of so many bytes: those
    /// of all projections of a layer, or of none.
    #[must_use]
    pub fn saved_by_blocks(&self, numbers: u64, bytes: u64) -> u64 {
        saved_by_blocks(self.widths, self.dtype, numbers, bytes)
    }

    /// What a forward pass keeps.
    fn taped(&self) -> u64 {
        let numbers = self.widths.taped(self.layers, self.gradient_checkpointing);
        // Ids, angles, targets, scales and losses.
        let batch = self.tokens.saturating_mul(40);
        self.of_tokens(numbers).saturating_add(batch)
    }

    /// What is held on the way, besides.
    fn at_once(&self) -> u64 {
        let again = if self.gradient_checkpointing { self.widths.kept() - self.widths.hidden } else { 0 };
        // The gradient of the stream is there all the time.
        let layer = self.of_tokens(self.widths.hidden + again).saturating_add(self.mlp().max(self.attention()));
        layer.max(self.of_tokens(self.widths.hidden).saturating_add(self.head()))
    }

    fn mlp(&self) -> u64 {
        let LayerWidths { hidden, ffn, norms_after, .. } = self.widths;
        let norm = if norms_after { hidden } else { 0 };
        let dropout = if self.dropout { 2 * ffn.max(hidden) } else { 0 };
        // Gradients before the gains, of gate and up together, and what one of them makes.
        let dora = if self.dora { (2 * ffn).max(hidden) + ffn.max(hidden) } else { 0 };
        self.of_tokens(norm + (2 * ffn).max(2 * hidden) + dropout + dora)
    }

    /// What the layer has kept for its MLP is let go by then.
    fn attention(&self) -> u64 {
        let LayerWidths { hidden, queries, keys, ffn, norms_after } = self.widths;
        let norm = if norms_after { hidden } else { 0 };
        // Heads turned, what comes to them and goes from them; a copy of them where they have norms of their own.
        let heads = (6 * queries + 4 * keys).saturating_sub(2 * ffn + hidden + queries) + norm;
        let sums = self.tokens.saturating_mul(2 * 4 * keys);
        let scores = self.scores().saturating_mul(2 * 4 + self.number());
        self.of_tokens(heads).saturating_add(sums).saturating_add(scores)
    }

    /// Scores that exist at once.
    #[must_use]
    pub fn scores(&self) -> u64 {
        scores(self.query_heads, self.longest_row)
    }

    fn head(&self) -> u64 {
        let targets = targets_at_once(self.vocabulary, self.tokens);
        let logits = targets.saturating_mul(self.vocabulary).saturating_mul(4 + self.number());
        // What goes into the head, normalised and not, and the gradients of both.
        logits.saturating_add(4 * targets * self.widths.hidden * self.number())
    }

    fn of_tokens(&self, numbers: u64) -> u64 {
        self.tokens.saturating_mul(numbers).saturating_mul(self.number())
    }

    fn number(&self) -> u64 {
        number(self.dtype)
    }
}

/// Bytes of a number that products take.
fn number(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 4,
        DType::Bf16 => 2,
    }
}

fn saved_by_blocks(widths: LayerWidths, dtype: DType, numbers: u64, bytes: u64) -> u64 {
    let LayerWidths { hidden, queries, keys, ffn, .. } = widths;
    // Projections of one input are widened together.
    let widened = hidden.saturating_mul((2 * ffn).max(queries + 2 * keys));
    let each = number(dtype);
    numbers.saturating_mul(each).saturating_sub(bytes.saturating_add(widened.saturating_mul(each)))
}

fn scores(query_heads: u64, row: u64) -> u64 {
    query_heads.saturating_mul(queries_at_once(query_heads, row)).saturating_mul(row)
}

/// Queries of a row of so many tokens whose scores are held at once.
#[must_use]
pub fn queries_at_once(query_heads: u64, row: u64) -> u64 {
    let row = row.max(1);
    let room = SCORE_BYTES / 4 / query_heads.saturating_mul(row).max(1);
    (room / LEAST_QUERIES * LEAST_QUERIES).max(LEAST_QUERIES).min(row)
}

/// Targets whose logits are held at once.
#[must_use]
pub fn targets_at_once(vocabulary: u64, targets: u64) -> u64 {
    (LOGIT_BYTES / 4 / vocabulary.max(1)).clamp(1, targets.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_8B: DeviceTraining = DeviceTraining {
        dtype: DType::Bf16,
        widths: LayerWidths { hidden: 4096, queries: 4096, keys: 1024, ffn: 14336, norms_after: false },
        layers: 32,
        query_heads: 32,
        vocabulary: 128_256,
        frozen: 8_030_000_000,
        trained: 42_000_000,
        tokens: 4096,
        longest_row: 2048,
        gradient_checkpointing: true,
        dropout: false,
        dora: false,
    };

    #[test]
    fn an_adapter_of_an_8b_model_fits_into_24_gib_and_its_full_training_does_not_fit_into_80() {
        let gib = |training: DeviceTraining| training.bytes() as f64 / f64::from(1 << 30);
        let adapter = gib(LLAMA_8B);
        assert!((17.0..20.0).contains(&adapter), "{adapter}");
        let full = gib(DeviceTraining { frozen: 0, trained: 8_030_000_000, ..LLAMA_8B });
        assert!((134.0..140.0).contains(&full), "{full}");
    }

    #[test]
    fn an_adapter_of_a_70b_model_in_four_bits_fits_into_80_gib() {
        let widths = LayerWidths { hidden: 8192, queries: 8192, keys: 1024, ffn: 28672, norms_after: false };
        let frozen = 70_550_000_000;
        let training = DeviceTraining { widths, layers: 80, query_heads: 64, frozen, tokens: 2048, ..LLAMA_8B };
        // Embedding and head stay in 16 bits; a block of Q4_0 has 32 numbers in 18 bytes.
        let in_blocks = frozen - 2 * 128_256 * 8192;
        let bytes = training.bytes() - training.saved_by_blocks(in_blocks, in_blocks / 32 * 18);
        assert!((40..46).contains(&(bytes >> 30)), "{}", bytes >> 30);
    }

    #[test]
    fn scores_and_logits_keep_to_their_bytes() {
        assert_eq!(LLAMA_8B.scores() * 4, SCORE_BYTES);
        assert_eq!((queries_at_once(32, 40), queries_at_once(32, 1 << 20)), (40, LEAST_QUERIES));
        assert_eq!((targets_at_once(128_256, 4096), targets_at_once(100, 7)), (261, 7));
    }
}
