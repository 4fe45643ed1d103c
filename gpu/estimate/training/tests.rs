use drydock_spec::{FinetuneArgs, TrainArgs};
use proptest::prelude::*;

use super::super::{SMOLLM2_135M, with_margin};
use super::*;

fn spec(change: impl FnOnce(&mut FinetuneArgs)) -> FinetuneSpec {
    let mut args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    change(&mut args);
    args.parse().unwrap()
}

fn training(change: impl FnOnce(&mut FinetuneArgs)) -> Training {
    Training::finetune(&SMOLLM2_135M, &spec(change), None)
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

/// Peaks of resident memory on SmolLM2-135M in f32, of steps of so many tokens in all. Where the values of the files are
/// copied or quantized, the files' own pages are taken off the peak: the kernel takes them back when it needs room.
#[test]
fn the_estimate_is_at_least_what_was_measured_and_a_tenth_more_at_most() {
    const FILE: f64 = 538.1e6;
    const PROJECTIONS: f64 = 424.7e6;
    let lora = |rank, dropout| {
        training(|args| {
            args.lora_r = Some(rank);
            args.lora_dropout = Some(dropout);
        })
    };
    let of = |method| training(|args| args.method = Some(method));
    for (tokens, training, measured) in [
        (97, lora(8, 0.0), 696.7e6),
        (512, lora(8, 0.0), 1060.4e6),
        (1024, lora(8, 0.0), 1445.5e6),
        (1867, lora(8, 0.0), 2078.3e6),
        (783, lora(64, 0.1), 1529.0e6),
        (1867, lora(8, 0.0).with_gradient_checkpointing(), 915.2e6),
        (783, of(Method::Dora), 1269.7e6),
        (783, of(Method::Qlora), 1323.6e6 - PROJECTIONS),
        (783, of(Method::Full), 3381.7e6 - FILE),
    ] {
        let estimate = training.memory(Batch::new(1, tokens)) as f64;
        let ratio = estimate / measured;
        assert!((1.0..1.1).contains(&ratio), "{tokens} tokens, {training:?}: {estimate} is {ratio} of {measured}");
    }
}

#[test]
fn each_way_to_save_memory_saves_what_it_says() {
    let batch = Batch::new(4, 512);
    let of = |method| training(|args| args.method = Some(method)).memory(batch);
    let (lora, qlora, dora, full) = (of(Method::Lora), of(Method::Qlora), of(Method::Dora), of(Method::Full));
    assert!(qlora < lora && lora < dora && lora < full);
    // 30 layers with 3538944 numbers in their projections, in blocks of 18 bytes for 32 instead of 4 bytes each.
    assert_eq!(lora - qlora, 30 * 3_538_944 * 4 - 30 * 3_538_944 / 32 * 18);
    assert_eq!(full - lora, 12 * 134_515_008 - 16 * 2_442_240 - 4 * 2048 * 2 * 8);
    let checkpointing = training(|args| args.gradient_checkpointing = Some(true)).memory(batch);
    assert!(checkpointing * 2 < lora, "{checkpointing} of {lora}");
    assert_eq!(checkpointing, training(|_| {}).with_gradient_checkpointing().memory(batch));
}

#[test]
fn pairs_take_the_room_of_two_rows() {
    let pairs = training(|args| args.objective = Some(Objective::Dpo));
    assert_eq!(pairs.memory(Batch::new(2, 256)), training(|_| {}).memory(Batch::new(4, 256)));
}

#[test]
fn the_disk_holds_what_is_kept_and_the_checkpoints() {
    let weights = 4 * SMOLLM2_135M.parameters();
    let adapter = training(|_| {}).disk();
    let merged = training(|args| args.keep = Some(drydock_spec::finetune::Keep::Both)).disk();
    assert_eq!(merged - adapter, weights);
    let saving = training(|args| args.save_steps = Some(10)).disk();
    assert_eq!(saving - adapter, 12 * 2_442_240);
    let recipe = TrainArgs { dataset: "d".into(), ..TrainArgs::default() }.parse().unwrap().recipe;
    let whole = Training::from_nothing(&SMOLLM2_135M, &recipe);
    assert_eq!(whole.disk(), 4 * weights + 49152 * 128 + (1 << 20));
    assert!(whole.memory(Batch::new(1, 8)) > 4 * weights);
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
fn rows_that_are_compared_keep_one_another() {
    let kto = spec(|args| {
        args.objective = Some(Objective::Kto);
        args.per_device_train_batch_size = Some(5);
    });
    let least = Training::finetune(&SMOLLM2_135M, &kto, None).least_rows();
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
        let need = |model: &Decoder, spec: &FinetuneSpec, batch| Training::finetune(model, spec, None).memory(batch);
        let least = need(&model, &small, batch);
        prop_assert!(need(&model, &small, Batch::new(rows + more, length)) > least);
        prop_assert!(need(&model, &small, Batch::new(rows, length + more)) > least);
        prop_assert!(need(&model, &wide, batch) > least);
        prop_assert!(need(&deeper, &small, batch) > least);
        prop_assert!(with_margin(least) > least && with_margin(least).is_multiple_of(1 << 20));
    }

    #[test]
    fn a_suggestion_fits(rows in 1..512u32, length in 32..8192u32, budget in 1u64 << 28..1u64 << 36) {
        let spec = spec(|args| args.per_device_train_batch_size = Some(rows));
        let training = Training::finetune(&SMOLLM2_135M, &spec, None);
        let fits = |batch| training.memory(batch) <= budget;
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
            let training = Training::finetune(&model, &spec(|args| args.method = Some(method)), None);
            prop_assert!(training.memory(Batch::new(rows, length)) > 0 && training.disk() > 0);
        }
    }
}
