//! What an evaluation needs.

use drydock_spec::quantize::TensorType;

use super::{Batch, Decoder, F32, sum};

/// How a model answers while it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answering {
    /// Rows at once, and their tokens at most.
    pub batch: Batch,
    /// Tokens that are written behind each of them; 0 where none are.
    pub new_tokens: u32,
}

/// Peak memory of the worker in bytes while it measures one model, without its rows.
///
/// ```text
/// base + weights                                   in the form that they are stored in, where that is quantized
///      + 4 * tokens * (kept + passing)             one layer of a forward pass
///      + 4 * 2 * kv * layers * rows * (length + new)   keys and values, where answers are written
///      + 4 * tokens * vocabulary                   logits, 64 MiB of them at a time
/// ```
#[must_use]
pub fn evaluate_memory(model: &Decoder, stored: Option<TensorType>, answering: Answering) -> u64 {
    let Answering { batch, new_tokens } = answering;
    let tokens = batch.tokens();
    let layer = model.widths().kept() + model.passing_per_token();
    let remembered = match new_tokens {
        0 => 0,
        new => u64::from(batch.rows).saturating_mul(u64::from(batch.length) + u64::from(new)),
    };
    let cache = (2 * F32 * u64::from(model.kv_width())).saturating_mul(u64::from(model.layers));
    sum([
        model.weights(stored.unwrap_or(TensorType::F32)),
        F32.saturating_mul(tokens).saturating_mul(layer),
        cache.saturating_mul(remembered),
        model.logits(tokens),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::SMOLLM2_135M;
    use super::*;

    #[test]
    fn answers_take_a_cache_and_a_quantized_model_its_own_size() {
        let need = |stored, new_tokens| {
            evaluate_memory(&SMOLLM2_135M, stored, Answering { batch: Batch::new(16, 512), new_tokens })
        };
        // Keys and values of 192 numbers in 30 layers for 16 rows of 640 tokens.
        assert_eq!(need(None, 128) - need(None, 0), 4 * 2 * 192 * 30 * 16 * 640);
        assert!(need(Some(TensorType::Q4_0), 0) + (300 << 20) < need(None, 0));
    }
}
