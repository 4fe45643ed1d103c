//! What an evaluation needs that computes on a GPU: of the GPU, and of the host beside it.

use drydock_spec::device::{DeviceEvaluation, SCORED_TOKENS, WORKSPACE_BYTES};
use drydock_spec::finetune::TargetModule;
use drydock_spec::recipe::DType;

use super::super::{Base, CONTEXT_BYTES, Decoder, F32, Needs, Part};
use super::Answering;

/// Peak memory on a GPU while one model is measured, without its adapter, by the formula that the worker is tested
/// against ([`DeviceEvaluation`]); and what the driver takes for a process, about (not measured by us on a GPU yet).
/// `all` are the tokens of all rows together, of which no more go through the model at once.
#[must_use]
pub fn evaluate_gpu_memory(model: &Decoder, base: Base, answering: Answering, dtype: DType, all: u64) -> Needs {
    let Answering { batch, new_tokens, chooses, .. } = answering;
    let length = u64::from(batch.length);
    let tokens = all.clamp(1, SCORED_TOKENS).max(length);
    let answered = u64::from(batch.rows).saturating_mul(length.saturating_add(new_tokens.into()));
    let on_device = DeviceEvaluation {
        dtype,
        widths: model.widths(),
        layers: model.layers.into(),
        query_heads: model.heads.into(),
        vocabulary: model.vocabulary.into(),
        parameters: model.parameters(),
        tokens,
        longest_row: length,
        remembered: (if new_tokens > 0 { answered } else { 0 }).max(if chooses { tokens } else { 0 }),
    };
    let [numbers, bytes] = base.blocks_on_gpu(model);
    let weights = on_device.weights().saturating_sub(on_device.saved_by_blocks(numbers, bytes));
    Needs::default()
        .with(Part::Weights, weights)
        .with(Part::Cache, on_device.conversations())
        .with(Part::Activations, on_device.pass())
        .with(Part::Workspace, WORKSPACE_BYTES)
        .with(Part::Context, CONTEXT_BYTES)
}

/// Peak memory of the worker on the host meanwhile, without its rows: the weights as they are read, the largest
/// matrices of a layer on their way to the GPU, and what CUDA takes of the host (by formula alone: not measured on a
/// GPU yet).
#[must_use]
pub fn evaluate_beside_gpu(model: &Decoder, base: Base, threads: u32) -> Needs {
    model
        .worker(threads)
        .with(Part::Weights, base.bytes())
        .with(Part::Workspace, F32.saturating_mul(model.under_way_to_gpu()))
        .with(Part::Context, CONTEXT_BYTES)
}

impl Decoder {
    /// Numbers that are on their way to a GPU at once: gate and up go as one, and so do queries, keys and values.
    pub(in super::super) fn under_way_to_gpu(&self) -> u64 {
        let of = |modules: &[TargetModule]| modules.iter().map(|module| self.projection_size(*module)).sum();
        let gate_and_up: u64 = of(&[TargetModule::GateProj, TargetModule::UpProj]);
        let attention: u64 = of(&[TargetModule::QProj, TargetModule::KProj, TargetModule::VProj]);
        gate_and_up.max(attention).max(self.embedding())
    }
}

impl Base {
    /// Numbers and bytes that stay in quantized blocks on a GPU: the projections, where the file has them in such. Of a
    /// file they take their share by number, which is no less than they do: the head is in no smaller blocks.
    pub(in super::super) fn blocks_on_gpu(self, model: &Decoder) -> [u64; 2] {
        let numbers = model.projections();
        match self.is_quantized() {
            true => [numbers, (self.bytes() as f64 * numbers as f64 / model.parameters() as f64) as u64],
            false => [0, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::quantize::TensorType;

    use super::super::super::{Batch, SMOLLM2_135M};
    use super::*;

    #[test]
    fn answers_take_a_cache_of_a_gpu_and_a_quantized_model_fewer_weights() {
        let need = |kind, rows, new_tokens, dtype| {
            let answering =
                Answering { batch: Batch::new(rows, 512), new_tokens, chooses: false, solved: 0, in_integers: true };
            evaluate_gpu_memory(&SMOLLM2_135M, Base::of(&SMOLLM2_135M, kind), answering, dtype, 1 << 20)
        };
        let answers = need(TensorType::F32, 16, 128, DType::Bf16);
        assert_eq!(answers.get(Part::Cache), 2 * 2 * 192 * 30 * 16 * 640);
        assert_eq!(need(TensorType::F32, 16, 0, DType::Bf16).get(Part::Cache), 0);
        let [whole, blocks] =
            [TensorType::F32, TensorType::Q4_0].map(|kind| need(kind, 16, 0, DType::Bf16).get(Part::Weights));
        assert!(blocks < whole / 2 && whole == 2 * SMOLLM2_135M.parameters(), "{blocks} of {whole}");
    }
}
