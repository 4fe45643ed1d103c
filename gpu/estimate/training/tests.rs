use drydock_spec::quantize::TensorType;
use drydock_spec::{FinetuneArgs, TrainArgs};
use proptest::prelude::*;

use super::super::{SMOLLM2_135M, limit_for};
use super::*;

fn spec(change: impl FnOnce(&mut FinetuneArgs)) -> FinetuneSpec {
    let mut args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    change(&mut args);
    args.parse().unwrap()
}

const THREADS: u32 = 2;

fn base() -> Base {
    Base::of(&SMOLLM2_135M, TensorType::F32)
}

fn training(change: impl FnOnce(&mut FinetuneArgs)) -> Training {
    Training::finetune(&SMOLLM2_135M, &spec(change), base())
}

impl Training {
    fn total(&self, batch: Batch) -> u64 {
        self.memory(batch, THREADS).total()
    }
}

#[test]
fn what_is_trained_is_counted_as_peft_counts_it() {
    assert_eq!(training(|_| {}).trained(), 2_442_240);
    // One magnitude for each output: 576 + 192 + 192 + 576 + 1536 + 1536 + 576 in each of 30 layers.
    assert_eq!(training(|args| args.method = Some(Method::Dora)).trained(), 2_442_240 + 30 * 5184);
    assert_eq!(training(|args| args.method = Some(Method::Full)).trained(), SMOLLM2_135M.parameters());
    let one_layer = |args: &mut FinetuneArgs| args.trainable = Some(vec!["model.layers.28.*".into()]);
    assert_eq!(training(one_layer).trained(), 2_442_240 / 30);
}

#[test]
fn each_way_to_save_memory_saves_what_it_says() {
    let batch = Batch::new(4, 512);
    let of = |method| training(|args| args.method = Some(method)).memory(batch, THREADS);
    let (lora, qlora, dora, full) = (of(Method::Lora), of(Method::Qlora), of(Method::Dora), of(Method::Full));
    assert!(qlora.total() < lora.total() && lora.total() < dora.total() && dora.total() < full.total());
    // 30 layers with 3538944 numbers in their projections, in blocks of 18 bytes for 32 instead of 4 bytes each, of which a
    // twentieth comes back.
    let saved = 30 * (3_538_944 * 4 / 20 * 19 - 3_538_944 / 32 * 18);
    assert!((lora.get(Part::Weights) - qlora.get(Part::Weights)).abs_diff(saved) < 1 << 10);
    let trained = [Part::Trained, Part::Gradients, Part::Moments].map(|part| full.get(part));
    assert_eq!(trained, [4, 4, 8].map(|bytes| bytes * 134_515_008));
    assert_eq!(full.get(Part::Weights), 0, "what is trained is nowhere else");
    let checkpointing = training(|args| args.gradient_checkpointing = Some(true)).memory(batch, THREADS);
    assert!(checkpointing.get(Part::Activations) * 6 < lora.get(Part::Activations), "{checkpointing:?} of {lora:?}");
    assert_eq!(checkpointing, training(|_| {}).with_gradient_checkpointing().memory(batch, THREADS));
}

#[test]
fn a_quantized_base_takes_what_its_file_takes_and_no_floats_are_made_of_it() {
    let quantized = Base::of(&SMOLLM2_135M, TensorType::Q4_K);
    let on = |base| Training::finetune(&SMOLLM2_135M, &spec(|_| {}), base).memory(Batch::new(1, 512), THREADS);
    assert_eq!(on(quantized).get(Part::Weights), quantized.bytes());
    assert!(on(base()).total() - on(quantized).total() > 350 << 20);
}

#[test]
fn the_best_values_are_kept_beside_the_others() {
    let plain = training(|args| args.eval_steps = Some(5)).memory(Batch::new(4, 512), THREADS);
    let best = training(|args| {
        args.eval_steps = Some(5);
        args.load_best_model_at_end = Some(true);
    });
    assert_eq!(best.memory(Batch::new(4, 512), THREADS).total() - plain.total(), 4 * 2_442_240);
}

#[test]
fn pairs_take_the_room_of_two_rows() {
    let pairs = training(|args| args.objective = Some(Objective::Dpo));
    let one = training(|args| args.objective = Some(Objective::Sft));
    assert_eq!(pairs.total(Batch::new(2, 256)), one.total(Batch::new(4, 256)));
}

#[test]
fn the_disk_holds_what_is_kept_and_the_checkpoints() {
    let weights = 4 * SMOLLM2_135M.parameters();
    let adapter = training(|_| {});
    let merged = training(|args| args.keep = Some(drydock_spec::finetune::Keep::Both));
    assert_eq!(merged.disk().total() - adapter.disk().total(), weights);
    let saving = training(|args| args.save_steps = Some(10)).disk();
    let checkpoint = 12 * 2_442_240;
    assert_eq!((adapter.disk().get(Part::Checkpoints), saving.get(Part::Checkpoints)), (0, 2 * checkpoint));
    assert_eq!(adapter.disk_at_most() - adapter.disk().total(), checkpoint, "it may be told to stop");
    let recipe = TrainArgs { dataset: "d".into(), ..TrainArgs::default() }.parse().unwrap().recipe;
    let whole = Training::from_nothing(&SMOLLM2_135M, &recipe);
    assert_eq!(whole.disk_at_most(), 4 * weights + 49152 * 128 + (1 << 20));
    assert!(whole.total(Batch::new(1, 8)) > 4 * weights);
}

#[test]
fn a_job_that_never_fits_gets_no_suggestion() {
    assert_eq!(shrink(&spec(|_| {}).recipe, 1, 512, |_| false), None);
}

#[test]
fn the_batch_is_halved_before_the_length_and_a_step_keeps_its_rows() {
    let recipe = spec(|args| args.per_device_train_batch_size = Some(8)).recipe;
    let fit = shrink(&recipe, 1, 512, |batch| batch.rows * batch.length <= 2 * 512);
    let expected = Fit { per_device_train_batch_size: 2, gradient_accumulation_steps: 4, max_seq_length: 512 };
    assert_eq!(fit, Some(expected));
    let fit = shrink(&recipe, 1, 512, |batch| batch.rows * batch.length <= 200).unwrap();
    assert_eq!((fit.per_device_train_batch_size, fit.max_seq_length), (1, 128));
}

#[test]
fn a_base_in_blocks_takes_less_of_a_gpu_than_one_in_16_bits() {
    let needed = |method, base| {
        let spec = spec(|args| {
            args.method = Some(method);
            args.dtype = Some(DType::Bf16);
        });
        Training::finetune(&SMOLLM2_135M, &spec, base).gpu_memory(Batch::new(4, 512)).total()
    };
    let (floats, blocks) = (base(), Base::of(&SMOLLM2_135M, TensorType::Q4_0));
    let saved = needed(Method::Lora, floats) - needed(Method::Qlora, floats);
    // 106 million numbers in two bytes each, or 32 of them in 18; and a layer's widest weights are widened at a time.
    assert!((145_000_000..153_000_000).contains(&saved), "{saved}");
    assert!(needed(Method::Lora, blocks) < needed(Method::Lora, floats) - 140_000_000);
}

#[test]
fn rows_that_are_compared_keep_one_another() {
    let kto = spec(|args| {
        args.objective = Some(Objective::Kto);
        args.per_device_train_batch_size = Some(5);
    });
    let least = Training::finetune(&SMOLLM2_135M, &kto, base()).least_rows();
    let fit = shrink(&kto.recipe, least, 512, |batch| batch.rows * batch.length <= 300).unwrap();
    assert_eq!((fit.per_device_train_batch_size, fit.max_seq_length), (2, 128));
    assert_eq!(shrink(&kto.recipe, least, 512, |batch| batch.rows < 2), None);
    assert_eq!(training(|_| {}).least_rows(), 1);
}

proptest! {
    #[test]
    fn more_of_anything_never_needs_less(
        rows in 1..64u32, length in 8..4096u32, rank in 1..128u32, more in 1..64u32, layers in 1..80u32,
    ) {
        let model = Decoder { layers, ..SMOLLM2_135M };
        let deeper = Decoder { layers: layers + more, ..SMOLLM2_135M };
        let batch = Batch::new(rows, length);
        let small = spec(|args| args.lora_r = Some(rank));
        let wide = spec(|args| args.lora_r = Some(rank + more));
        let need = |model: &Decoder, spec: &FinetuneSpec, batch| Training::finetune(model, spec, base()).total(batch);
        let least = need(&model, &small, batch);
        prop_assert!(need(&model, &small, Batch::new(rows + more, length)) >= least);
        prop_assert!(need(&model, &small, Batch::new(rows, length + more)) >= least);
        prop_assert!(need(&model, &small, Batch::new(rows + 64, length + 1024)) > least);
        prop_assert!(need(&model, &wide, batch) > least);
        prop_assert!(need(&deeper, &small, batch) > least);
        prop_assert!(limit_for(least) > least && limit_for(least).is_multiple_of(1 << 20));
    }

    #[test]
    fn a_suggestion_fits(rows in 1..512u32, length in 32..8192u32, budget in 1u64 << 28..1u64 << 36) {
        let spec = spec(|args| args.per_device_train_batch_size = Some(rows));
        let training = Training::finetune(&SMOLLM2_135M, &spec, base());
        let fits = |batch| training.total(batch) <= budget;
        if let Some(fit) = shrink(&spec.recipe, training.least_rows(), length, fits) {
            prop_assert!(fits(Batch::new(fit.per_device_train_batch_size, fit.max_seq_length)));
            prop_assert!(fit.per_device_train_batch_size <= rows && fit.max_seq_length <= length);
        }
    }

    #[test]
    fn absurd_shapes_do_not_overflow(layers in 0..1u32 << 10, width in 0..1u32 << 22, rows: u32, length: u32) {
        let model = Decoder {
            layers, hidden: width, heads: 64, kv_heads: 64, head_dim: width / 64, ffn: width,
            vocabulary: 1 << 24, tied: false, layer_vectors: 0, norms_after: true,
        };
        for method in [Method::Lora, Method::Qlora, Method::Dora, Method::Full] {
            let training = Training::finetune(&model, &spec(|args| args.method = Some(method)), Base::of(&model, TensorType::Q4_K));
            prop_assert!(training.total(Batch::new(rows, length)) > 0 && training.disk().total() > 0);
            prop_assert!(training.gpu_memory(Batch::new(rows, length)).total() > 0);
        }
    }
}

#[test]
fn beside_a_gpu_the_host_holds_what_is_read_and_what_is_kept_and_no_activations() {
    let full = training(|args| args.method = Some(Method::Full));
    let beside = full.memory_beside_gpu(THREADS);
    assert_eq!(beside.get(Part::Trained), 4 * SMOLLM2_135M.parameters());
    assert_eq!(beside.get(Part::Moments), 8 * SMOLLM2_135M.parameters(), "a checkpoint has them");
    assert_eq!((beside.get(Part::Activations), beside.get(Part::Gradients)), (0, 0));
    let lora = training(|_| {});
    assert!(lora.memory_beside_gpu(THREADS).total() < lora.total(Batch::new(32, 2048)));
}
