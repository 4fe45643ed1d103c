//! What a quantization needs, and how large its file becomes.

use drydock_spec::finetune::TargetModule;
use drydock_spec::quantize::{QuantType, QuantizeSpec, TensorType};

use super::{Base, Decoder, F32, Needs, Part, SMALL_FILES};

/// Tokens of a row that an importance matrix is measured on.
const IMATRIX_ROW: u64 = 512;
/// Values of a tensor that are encoded at a time.
const PIECE_VALUES: u64 = 1 << 23;

/// Peak memory of the worker, without its rows: tensors come and go one by one, so that the largest of them decides, as
/// it lies in its file, and a piece of it as it is written. An importance matrix is measured with the whole model, and an
/// adapter is worked into whole matrices in f32.
#[must_use]
pub fn quantize_memory(model: &Decoder, base: Base, spec: &QuantizeSpec, threads: u32) -> Needs {
    let largest =
        TargetModule::ALL.iter().map(|module| model.projection_size(*module)).fold(model.embedding(), u64::max);
    let share = largest as f64 / model.parameters() as f64;
    let read = (base.bytes() as f64 * share) as u64;
    let merged = if spec.adapter.is_some() { F32.saturating_mul(largest) } else { 0 };
    let (values, bytes) = spec.quant_type.main_type().block();
    let written = largest.min(PIECE_VALUES).div_ceil(values as u64) * bytes as u64;
    let worker = model.worker(threads);
    // Whatever packs for products has nothing to do here.
    let writing = model.worker(0).with(Part::Weights, read.saturating_add(merged)).with(Part::Workspace, written);
    let measuring = match &spec.imatrix_dataset {
        None => Needs::default(),
        Some(_) => {
            // Sums of the squares of each projection's inputs, in f64.
            let sums = model.projections().isqrt().saturating_mul(8);
            worker
                .and(&model.scoring(IMATRIX_ROW, IMATRIX_ROW))
                .with(Part::Weights, base.held())
                .with(Part::Workspace, sums)
        }
    };
    Needs::largest([writing, measuring])
}

/// Bytes of a GGUF file of this type, its tokenizer included; of a mix the most that it can come to.
#[must_use]
pub fn file_bytes(model: &Decoder, quant_type: QuantType) -> u64 {
    let main = quant_type.main_type();
    let small = matches!(main, TensorType::Q2_K | TensorType::Q3_K);
    let mixed = small || matches!(main, TensorType::Q4_K | TensorType::Q5_K);
    let layer: u64 = TargetModule::ALL
        .iter()
        .map(|module| {
            // Values and the MLP's outputs are what mixes spend their bits on, the small ones on attention's, too.
            let held = match module {
                TargetModule::VProj | TargetModule::DownProj if mixed => better(main),
                TargetModule::OProj if small => better(main),
                _ => main,
            };
            let (inputs, outputs) = model.projection(*module);
            bytes(held, inputs, u64::from(outputs))
        })
        .fold(0, u64::saturating_add);
    let head = if main.is_quantized() { widest(TensorType::Q6_K, main) } else { main };
    let heads = if model.tied { 1 } else { 2 } * bytes(head, model.hidden, u64::from(model.vocabulary));
    let norms = F32 * (2 * u64::from(model.layers) + 1) * u64::from(model.hidden);
    let layers = u64::from(model.layers).saturating_mul(layer);
    [heads, norms, model.tokenizer(), SMALL_FILES].into_iter().fold(layers, u64::saturating_add)
}

/// What a mix gives to the tensors that matter more.
pub(super) fn better(main: TensorType) -> TensorType {
    match main {
        TensorType::Q2_K | TensorType::Q3_K => TensorType::Q5_K,
        _ => TensorType::Q6_K,
    }
}

fn widest(one: TensorType, other: TensorType) -> TensorType {
    let bits = |kind: TensorType| {
        let (values, bytes) = kind.block();
        bytes * 256 / values
    };
    if bits(other) > bits(one) { other } else { one }
}

/// Bytes of so many rows of `width` values. Rows that no block of 256 fits get the type of blocks of 32 that llama.cpp
/// falls back to, and f16 where not even those fit.
pub(super) fn bytes(kind: TensorType, width: u32, rows: u64) -> u64 {
    let fits = |kind: TensorType| (width as usize).is_multiple_of(kind.block().0);
    let kind = if fits(kind) { kind } else { fallback(kind) };
    let kind = if fits(kind) { kind } else { TensorType::F16 };
    let (values, bytes) = kind.block();
    rows.saturating_mul(u64::from(width) / values as u64).saturating_mul(bytes as u64)
}

fn fallback(kind: TensorType) -> TensorType {
    match kind {
        TensorType::Q2_K | TensorType::Q3_K => TensorType::Q4_0,
        TensorType::Q4_K => TensorType::Q5_0,
        TensorType::Q5_K => TensorType::Q5_1,
        TensorType::Q6_K => TensorType::Q8_0,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::QuantizeArgs;

    use super::super::SMOLLM2_135M;
    use super::*;

    fn spec(change: impl FnOnce(&mut QuantizeArgs)) -> QuantizeSpec {
        let mut args =
            QuantizeArgs { model: "m".into(), quant_type: Some(QuantType::Q4_K_M), ..QuantizeArgs::default() };
        change(&mut args);
        args.parse().unwrap()
    }

    /// The file that llama.cpp made of SmolLM2-135M-Instruct as Q4_1.
    const LLAMA_CPPS_Q4_1: f64 = 98_362_432.0;

    #[test]
    fn a_file_is_at_least_as_large_as_that_of_llama_cpp_and_an_eighth_more_at_most() {
        let ratio = file_bytes(&SMOLLM2_135M, QuantType::Q4_1) as f64 / LLAMA_CPPS_Q4_1;
        assert!((1.0..1.125).contains(&ratio), "{ratio}");
    }

    #[test]
    fn more_bits_never_make_a_smaller_file() {
        let wide = Decoder { hidden: 2048, head_dim: 64, heads: 32, kv_heads: 8, ffn: 8192, ..SMOLLM2_135M };
        let order = [QuantType::Q2_K, QuantType::Q3_K_L, QuantType::Q4_K_M, QuantType::Q5_K_M, QuantType::Q6_K]
            .into_iter()
            .chain([QuantType::Q8_0, QuantType::F16, QuantType::F32]);
        let sizes: Vec<_> = order.map(|quant_type| file_bytes(&wide, quant_type)).collect();
        assert!(sizes.is_sorted(), "{sizes:?}");
    }

    #[test]
    fn only_an_importance_matrix_needs_the_whole_model() {
        let need = |spec: &QuantizeSpec| {
            quantize_memory(&SMOLLM2_135M, Base::of(&SMOLLM2_135M, TensorType::F32), spec, 2).total()
        };
        let plain = need(&spec(|_| {}));
        assert!(plain < 2 * SMOLLM2_135M.parameters(), "{plain}");
        let measured = need(&spec(|args| args.imatrix_dataset = Some("d".into())));
        assert!(measured > 4 * SMOLLM2_135M.parameters(), "{measured}");
    }
}
