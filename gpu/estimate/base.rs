//! What the weights of a model take that is not trained, by the form that they are held in.

use drydock_spec::finetune::TargetModule;
use drydock_spec::quantize::TensorType;

use super::quantize::{better, bytes};
use super::{Decoder, F32};

/// What was let go of a file after it was read comes back in part, as the kernel maps the pages around those that are asked
/// for: one page of so many (measured: 17.7 of 271 MiB, and 4.9 of 96).
const COME_BACK: u64 = 20;

/// The weights of a model as they lie in its files. The worker maps files and computes with matrices where they lie,
/// whatever they are in: so what is frozen takes what its file takes, and no second copy exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What most of the matrices are in.
    kind: TensorType,
    /// Of all weights.
    bytes: u64,
    /// Of those that lie in memory once more, in another order than in their file.
    reordered: u64,
}

impl Base {
    /// Of a model whose matrices are in `kind`, by its shape.
    #[must_use]
    pub fn of(model: &Decoder, kind: TensorType) -> Self {
        Self { kind, bytes: weights(model, kind), reordered: 0 }
    }

    /// Of a model whose files are known to take so much, and nothing else is known of them.
    #[must_use]
    pub fn floats_of(bytes: u64) -> Self {
        Self { kind: TensorType::BF16, bytes, reordered: 0 }
    }

    /// The same of a Llama's or a Mistral's GGUF file, which lays the two values of a head that turn together side by side:
    /// the rows of queries and keys are put half a head apart as they are read. The kernel maps a file's pages in stretches
    /// that are larger than they are, so that what was forgotten of the file is there all the same (measured: 13 MiB of
    /// 113 beside a file that was in memory as a whole).
    #[must_use]
    pub fn with_heads_side_by_side(self, model: &Decoder) -> Self {
        let layer = [TargetModule::QProj, TargetModule::KProj].map(|module| {
            let (inputs, outputs) = model.projection(module);
            bytes(self.kind, inputs, outputs.into())
        });
        Self { reordered: u64::from(model.layers).saturating_mul(layer.iter().sum()), ..self }
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

    /// The same with what lies there in another order beside them.
    #[must_use]
    pub fn held(self) -> u64 {
        self.bytes.saturating_add(self.reordered)
    }

    /// The same, and where it is quantized once more: sixteen rows at a time, in the order in which integer products
    /// read them. An embedding that is no head is looked up and never multiplied.
    #[must_use]
    pub(super) fn scored(self, model: &Decoder) -> u64 {
        let multiplied = (model.projections() + model.embedding()) as f64 / model.parameters() as f64;
        let turned = if self.is_quantized() { (self.bytes as f64 * multiplied) as u64 } else { 0 };
        self.held().saturating_add(turned)
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
            return Blocks { rest: self.held(), blocks: 0 };
        }
        let rest = model.parameters() - model.projections();
        let share = rest as f64 / model.parameters() as f64;
        let (values, bytes) = kind.block();
        let blocks = model.projections().div_ceil(values as u64).saturating_mul(bytes as u64);
        let rest = (self.bytes as f64 * share) as u64;
        Blocks { rest: rest.saturating_add(self.bytes.saturating_sub(rest) / COME_BACK), blocks }
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
    let mixed = matches!(kind, TensorType::Q2_K | TensorType::Q3_K | TensorType::Q4_K | TensorType::Q5_K);
    let layer = TargetModule::ALL.iter().map(|module| {
        let (inputs, outputs) = model.projection(*module);
        let held = |kind| bytes(kind, inputs, outputs.into());
        match module {
            TargetModule::VProj | TargetModule::DownProj if mixed => u64::midpoint(held(kind), held(better(kind))),
            _ => held(kind),
        }
    });
    let layers = u64::from(model.layers).saturating_mul(layer.fold(0, u64::saturating_add));
    let of_vocabulary = |kind| bytes(kind, model.hidden, model.vocabulary.into());
    let head = of_vocabulary(if mixed { TensorType::Q6_K } else { kind });
    let embedding = if model.tied { 0 } else { of_vocabulary(kind) };
    let vectors = model.parameters() - model.projections() - if model.tied { 1 } else { 2 } * model.embedding();
    layers.saturating_add(head).saturating_add(embedding).saturating_add(vectors.saturating_mul(4))
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
    fn queries_and_keys_that_lie_side_by_side_in_their_file_are_held_once_more() {
        let file = Base::of(&SMOLLM2_135M, TensorType::Q8_0);
        let held = file.with_heads_side_by_side(&SMOLLM2_135M);
        // 30 layers with 576 rows of queries and 192 of keys, of 576 values in blocks of 34 bytes for 32.
        assert_eq!(held.held() - file.held(), 30 * (576 + 192) * 576 / 32 * 34);
        assert_eq!(held.bytes(), file.bytes(), "the file is no larger");
    }

    #[test]
    fn a_base_that_is_quantized_already_stays_as_it_is() {
        let q8 = Base::of(&SMOLLM2_135M, TensorType::Q8_0);
        assert_eq!(q8.quantized_to(&SMOLLM2_135M, TensorType::Q4_0), Blocks { rest: q8.bytes(), blocks: 0 });
        let held = Base::of(&SMOLLM2_135M, TensorType::F32).quantized_to(&SMOLLM2_135M, TensorType::Q4_0);
        assert_eq!(held.blocks, 30 * 3_538_944 / 32 * 18);
    }
}
