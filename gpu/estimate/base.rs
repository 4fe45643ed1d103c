//! What the weights of a model take that is not trained, by the form that they are held in.

use drydock_spec::finetune::TargetModule;
use drydock_spec::quantize::TensorType;

use super::quantize::better;
use super::{Decoder, F32};

/// The weights of a model as they lie in its files. The worker maps files and computes with matrices where they lie,
/// whatever they are in: so what is frozen takes what its file takes, and no second copy exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What most of the matrices are in.
    kind: TensorType,
    /// Of all weights.
    bytes: u64,
}

impl Base {
    /// Of a model whose matrices are in `kind`, by its shape.
    #[must_use]
    pub fn of(model: &Decoder, kind: TensorType) -> Self {
        Self { kind, bytes: weights(model, kind) }
    }

    /// Of a model whose files are known to take so much, and nothing else is known of them.
    #[must_use]
    pub fn floats_of(bytes: u64) -> Self {
        Self { kind: TensorType::BF16, bytes }
    }

    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.kind.is_quantized()
    }

    /// What the files take of the memory when all of them are read.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// The same, and where it is quantized once more: sixteen rows at a time, in the order in which integer products
    /// read them. An embedding that is no head is looked up and never multiplied.
    #[must_use]
    pub(super) fn scored(self, model: &Decoder) -> u64 {
        let multiplied = (model.projections() + model.embedding()) as f64 / model.parameters() as f64;
        let turned = if self.is_quantized() { (self.bytes as f64 * multiplied) as u64 } else { 0 };
        self.bytes.saturating_add(turned)
    }

    /// Bytes of the head's columns that a backward pass widens at once: blocks of 256 values are too long to be widened
    /// where a product packs them, so that a block of every row is.
    #[must_use]
    pub(super) fn widened(self, model: &Decoder) -> u64 {
        let (values, _) = self.kind.block();
        if values > 32 { F32 * u64::from(model.vocabulary) * values as u64 } else { 0 }
    }

    /// The same with its projections held in blocks of their own: the rest stays where it is.
    #[must_use]
    pub(super) fn quantized_to(self, model: &Decoder, kind: TensorType) -> Blocks {
        if self.is_quantized() {
            return Blocks { rest: self.bytes, blocks: 0 };
        }
        let rest = model.parameters() - model.projections();
        let share = rest as f64 / model.parameters() as f64;
        let (values, bytes) = kind.block();
        let blocks = model.projections().div_ceil(values as u64).saturating_mul(bytes as u64);
        Blocks { rest: (self.bytes as f64 * share) as u64, blocks }
    }
}

/// A base after its projections were quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    /// What stays in the file.
    pub(super) rest: u64,
    pub(super) blocks: u64,
}

/// Bytes of all weights. Of a mix, the projections that matter more are better in half of the layers, and the head is in
/// six bits, as llama.cpp does it.
fn weights(model: &Decoder, kind: TensorType) -> u64 {
    let bytes = |kind: TensorType, numbers: u64| {
        let (values, bytes) = kind.block();
        numbers.div_ceil(values as u64).saturating_mul(bytes as u64)
    };
    let mixed = matches!(kind, TensorType::Q2_K | TensorType::Q3_K | TensorType::Q4_K | TensorType::Q5_K);
    let layer = TargetModule::ALL.iter().map(|module| {
        let numbers = model.projection_size(*module);
        match module {
            TargetModule::VProj | TargetModule::DownProj if mixed => {
                u64::midpoint(bytes(kind, numbers), bytes(better(kind), numbers))
            }
            _ => bytes(kind, numbers),
        }
    });
    let layers = u64::from(model.layers).saturating_mul(layer.fold(0, u64::saturating_add));
    let head = if mixed { TensorType::Q6_K } else { kind };
    let embedding = if model.tied { 0 } else { bytes(kind, model.embedding()) };
    let vectors = model.parameters() - model.projections() - if model.tied { 1 } else { 2 } * model.embedding();
    let ends = bytes(head, model.embedding()).saturating_add(embedding);
    layers.saturating_add(ends).saturating_add(vectors.saturating_mul(4))
}

#[cfg(test)]
mod tests {
    use super::super::SMOLLM2_135M;
    use super::*;

    #[test]
    fn a_base_takes_what_its_file_takes() {
        // The file of SmolLM2-135M in bf16 on the Hugging Face hub, without its header; norms are in f32 here.
        let bf16 = Base::of(&SMOLLM2_135M, TensorType::BF16).bytes() as f64 / 269_030_016.0;
        assert!((1.0..1.001).contains(&bf16), "{bf16}");
        // The matrices of llama.cpp's Q4_1 file of it, whose head is in Q8_0.
        let q4_1 = Base::of(&SMOLLM2_135M, TensorType::Q4_1).bytes() as f64 / 98_362_432.0;
        assert!((0.8..1.0).contains(&q4_1), "{q4_1}");
    }

    #[test]
    fn what_is_quantized_is_there_twice_when_it_is_scored() {
        let of = |kind| Base::of(&SMOLLM2_135M, kind);
        assert_eq!(of(TensorType::F32).scored(&SMOLLM2_135M), of(TensorType::F32).bytes());
        let twice = of(TensorType::Q8_0).scored(&SMOLLM2_135M) as f64 / of(TensorType::Q8_0).bytes() as f64;
        assert!((1.99..=2.0).contains(&twice), "{twice}");
    }

    #[test]
    fn a_base_that_is_quantized_already_stays_as_it_is() {
        let q8 = Base::of(&SMOLLM2_135M, TensorType::Q8_0);
        assert_eq!(q8.quantized_to(&SMOLLM2_135M, TensorType::Q4_0), Blocks { rest: q8.bytes(), blocks: 0 });
        let held = Base::of(&SMOLLM2_135M, TensorType::F32).quantized_to(&SMOLLM2_135M, TensorType::Q4_0);
        assert_eq!(held.blocks, 30 * 3_538_944 / 32 * 18);
    }
}
