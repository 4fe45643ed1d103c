//! What an evaluation needs.

mod on_gpu;

use super::{Base, Batch, Decoder, F32, Needs, Part, SCORED_TOKENS};
pub use on_gpu::{evaluate_beside_gpu, evaluate_gpu_memory};

/// How a model answers while it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answering {
    /// Rows at once, and their tokens at most.
    pub batch: Batch,
    /// Tokens that are written behind each of them; 0 where none are.
    pub new_tokens: u32,
    /// Whether it chooses among answers that are given.
    pub chooses: bool,
    /// Rows with their answers that stand before each question.
    pub solved: u32,
    /// Whether products with quantized weights are taken in integers.
    pub in_integers: bool,
}

/// Peak memory of the worker while it measures one model, without its rows.
///
/// ```text
/// worker + weights                                as they lie in their file; once more, turned, where in integers
///        + 4 * tokens * (one layer, nothing kept)
///        + 4 * 2 * kv * layers * rows * (length + new)   keys and values, where answers are written
///        + 4 * tokens * vocabulary                logits, 64 MiB of them at a time
/// ```
#[must_use]
pub fn evaluate_memory(model: &Decoder, base: Base, answering: Answering, threads: u32) -> Needs {
    let Answering { batch, new_tokens, chooses, solved, in_integers } = answering;
    // Texts and choices are scored so many tokens at a time; questions are read as they come.
    let scored_at_once = SCORED_TOKENS.max(batch.length.into());
    // What the choices of questions share goes first, and each choice behind it: a quarter of a question, about.
    let of_choices = scored_at_once / 4;
    let tokens = match new_tokens {
        0 if chooses => scored_at_once - of_choices / (u64::from(solved) + 1),
        0 => scored_at_once,
        _ => batch.tokens(),
    };
    let remembered = match new_tokens {
        0 if chooses => scored_at_once,
        0 => 0,
        new => u64::from(batch.rows).saturating_mul(u64::from(batch.length) + u64::from(new)),
    };
    // Of a question that is chosen for only the answers are scored, one after the other.
    let scored = if chooses && new_tokens == 0 { of_choices } else { tokens };
    let cache = (2 * F32 * u64::from(model.kv_width())).saturating_mul(u64::from(model.layers));
    let weights = if in_integers { base.scored(model) } else { base.held() };
    let rounds = in_integers && base.is_quantized();
    let operands = if rounds { model.rounded(tokens) } else { model.packed(tokens) };
    model
        .worker(threads)
        .and(&model.passing(tokens, scored, operands))
        .with(Part::Weights, weights)
        .with(Part::Cache, cache.saturating_mul(remembered))
}

#[cfg(test)]
mod tests {
    use drydock_spec::quantize::TensorType;

    use super::super::SMOLLM2_135M;
    use super::*;

    #[test]
    fn answers_take_a_cache_and_a_quantized_model_its_own_size() {
        let need = |kind, new_tokens| {
            let answering =
                Answering { batch: Batch::new(16, 512), new_tokens, chooses: false, solved: 0, in_integers: true };
            evaluate_memory(&SMOLLM2_135M, Base::of(&SMOLLM2_135M, kind), answering, 2)
        };
        // Keys and values of 192 numbers in 30 layers for 16 rows of 640 tokens.
        assert_eq!(need(TensorType::F32, 128).get(Part::Cache), 4 * 2 * 192 * 30 * 16 * 640);
        assert!(need(TensorType::Q4_0, 0).total() + (300 << 20) < need(TensorType::F32, 0).total());
    }
}
