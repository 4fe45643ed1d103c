//! What an evaluation holds of a GPU's memory, by the formula that the worker's speaker is tested against.
//!
//! ```text
//! weights          2 or 4 bytes a number, as products compute in bf16 or f32; projections in quantized blocks as in a
//!                  training
//! conversations    2 or 4 bytes for keys and values of every layer, for as many tokens as there is room for
//! one layer        of a forward pass: the stream before, within and after it, what its projections make, and what goes
//!                  through its MLP or its attention
//! the head         logits of some targets in f32
//! cuBLAS           32 MiB
//! ```

use super::{WORKSPACE_BYTES, number, saved_by_blocks, scores, targets_at_once};
use crate::recipe::DType;
use crate::tape::LayerWidths;

/// A model that is measured on a GPU, in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceEvaluation {
    pub dtype: DType,
    pub widths: LayerWidths,
    pub layers: u64,
    /// Heads that ask.
    pub query_heads: u64,
    pub vocabulary: u64,
    /// Numbers of the model's tensors.
    pub parameters: u64,
    /// Of a forward pass.
    pub tokens: u64,
    /// Of the longest row among them.
    pub longest_row: u64,
    /// Tokens that conversations have room for, all of them together.
    pub remembered: u64,
}

impl DeviceEvaluation {
    /// Bytes that the worker asks for at most, without an adapter; never less than it does, and at most a quarter more.
    /// Less [`DeviceEvaluation::saved_by_blocks`], where there are any.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let parts = [WORKSPACE_BYTES, self.weights(), self.conversations(), self.pass()];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    #[must_use]
    pub fn weights(&self) -> u64 {
        self.parameters.saturating_mul(number(self.dtype))
    }

    /// By how much less is asked for where so many of the numbers lie in quantized blocks of so many bytes.
    #[must_use]
    pub fn saved_by_blocks(&self, numbers: u64, bytes: u64) -> u64 {
        saved_by_blocks(self.widths, self.dtype, numbers, bytes)
    }

    /// Keys and values that are remembered.
    #[must_use]
    pub fn conversations(&self) -> u64 {
        let each = 2 * self.widths.keys * number(self.dtype);
        self.remembered.saturating_mul(self.layers).saturating_mul(each)
    }

    /// What is held on the way.
    #[must_use]
    pub fn pass(&self) -> u64 {
        // Ids, angles, targets and losses; and where a token is remembered.
        let batch = self.tokens.saturating_mul(40);
        self.layer().max(self.head()).saturating_add(batch)
    }

    fn layer(&self) -> u64 {
        let LayerWidths { hidden, queries, keys, ffn, norms_after } = self.widths;
        // The stream, what queries, keys and values are made of, what attention gives, and the stream behind that.
        let before = hidden + queries + 2 * keys;
        let mlp = before + queries + hidden + 2 * ffn + ffn + hidden * if norms_after { 3 } else { 1 };
        // Heads turned, what comes to them, and what they give; a copy of those that have norms of their own.
        let attention = before + 4 * queries + 2 * keys;
        let scores = scores(self.query_heads, self.longest_row).saturating_mul(4 + number(self.dtype));
        self.of_tokens(mlp).max(self.of_tokens(attention).saturating_add(scores))
    }

    fn head(&self) -> u64 {
        let targets = targets_at_once(self.vocabulary, self.tokens);
        let some = 2 * targets.saturating_mul(self.widths.hidden).saturating_mul(number(self.dtype));
        let logits = targets.saturating_mul(self.vocabulary).saturating_mul(4);
        self.of_tokens(self.widths.hidden).saturating_add(some).saturating_add(logits)
    }

    fn of_tokens(&self, numbers: u64) -> u64 {
        self.tokens.saturating_mul(numbers).saturating_mul(number(self.dtype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_8B: DeviceEvaluation = DeviceEvaluation {
        dtype: DType::Bf16,
        widths: LayerWidths { hidden: 4096, queries: 4096, keys: 1024, ffn: 14336, norms_after: false },
        layers: 32,
        query_heads: 32,
        vocabulary: 128_256,
        parameters: 8_030_000_000,
        tokens: 8192,
        longest_row: 512,
        remembered: 16 * 640,
    };

    #[test]
    fn an_8b_model_is_measured_on_24_gib_and_in_four_bits_on_12() {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let whole = gib(LLAMA_8B.bytes());
        assert!((16.5..18.5).contains(&whole), "{whole}");
        let in_blocks = LLAMA_8B.parameters - 2 * 128_256 * 4096;
        let blocks = gib(LLAMA_8B.bytes() - LLAMA_8B.saved_by_blocks(in_blocks, in_blocks / 32 * 18));
        assert!((7.0..9.0).contains(&blocks), "{blocks}");
        // A token of this model is 128 KiB in a conversation.
        assert_eq!(LLAMA_8B.conversations(), 16 * 640 * (128 << 10));
    }
}
