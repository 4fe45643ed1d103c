use drydock_gpu::Decoder;
use drydock_gpu::estimate::{Base, Rows};
use drydock_spec::quantize::TensorType;
use proptest::prelude::*;

use super::super::margin::Margin;
use super::*;

const SMOLLM2_135M: Decoder = Decoder {
    layers: 30,
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    ffn: 1536,
    vocabulary: 49152,
    tied: true,
    layer_vectors: 0,
    norms_after: false,
};

fn spec(rows: u32) -> FinetuneSpec {
    let args = FinetuneArgs {
        model: "m".into(),
        dataset: "d".into(),
        per_device_train_batch_size: Some(rows),
        ..FinetuneArgs::default()
    };
    args.parse().unwrap()
}

fn base() -> Base {
    Base::of(&SMOLLM2_135M, TensorType::F32)
}

/// The job's refusal on a host where jobs may use `budget` bytes.
fn refusal(spec: &FinetuneSpec, length: u32, budget: u64) -> String {
    room(spec, length).refusal(budget, limit(spec, spec.recipe.per_device_train_batch_size, length)).to_string()
}

fn room(spec: &FinetuneSpec, length: u32) -> Room {
    let training = Training::finetune(&SMOLLM2_135M, spec, base());
    let qlora = FinetuneSpec { method: Method::Qlora, ..spec.clone() };
    Room {
        recipe: spec.recipe.clone(),
        smaller: Some(Training::finetune(&SMOLLM2_135M, &qlora, base())),
        decoder: SMOLLM2_135M,
        weights_bytes: base().bytes(),
        rows: Rows::default(),
        supply: Supply::default(),
        learns_tokenizer: false,
        terms: Terms { cpu_millis: 2000, ..Terms::default() },
        length,
        training,
    }
}

/// The memory limit of the job with another batch.
fn limit(spec: &FinetuneSpec, rows: u32, length: u32) -> u64 {
    let needs = Training::finetune(&SMOLLM2_135M, spec, base()).memory(Batch::new(rows, length), 2);
    let reading = Rows::default().then(needs, &SMOLLM2_135M, 2);
    Margin::default().limit(reading.total())
}

fn number_after(text: &str, words: &str) -> Option<u32> {
    let digits: String = text.split(words).nth(1)?.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[test]
fn the_refusal_names_need_budget_and_every_way_out() {
    let expected = "per_device_train_batch_size = 16: the job needs about 6.2 GiB, jobs may use 4.0 GiB on this host; \
                    set gradient_checkpointing to true, or lower per_device_train_batch_size to 8 and raise \
                    gradient_accumulation_steps to 2, or lower max_seq_length to 256";
    assert_eq!(refusal(&spec(16), 512, 4 << 30), expected);
}

#[test]
fn two_changes_are_offered_together_where_none_does_it_alone() {
    let next = refusal(&spec(1), 1024, 600 << 20);
    assert!(next.ends_with("; set method to \"qlora\" and set gradient_checkpointing to true"), "{next}");
}

#[test]
fn a_model_that_never_fits_is_refused_with_the_size_of_its_weights() {
    let refusal = refusal(&spec(1), 64, 400 << 20);
    assert!(
        refusal.contains("choose a smaller model (the weights take 513.1 MiB) or dataset (the rows take 0 B)"),
        "{refusal}"
    );
}

proptest! {
    #[test]
    fn every_change_that_is_offered_would_be_accepted(
        rows in 1..256u32, length in 64..4096u32, budget in 1u64 << 29..1 << 36,
    ) {
        let job = spec(rows);
        if limit(&job, rows, length) <= budget {
            return Ok(());
        }
        let text = refusal(&job, length, budget);
        if text.contains("choose a smaller model") {
            return Ok(());
        }
        let (_, next) = text.split_once("on this host; ").unwrap();
        for way in next.split(", or ") {
            let mut changed = job.clone();
            changed.recipe.gradient_checkpointing = way.contains("gradient_checkpointing to true");
            if way.contains("qlora") {
                changed.method = Method::Qlora;
            }
            let fewer = number_after(way, "batch_size to").unwrap_or(rows);
            let shorter = number_after(way, "max_seq_length to").unwrap_or(length);
            prop_assert!(limit(&changed, fewer, shorter) <= budget, "{}", way);
            let accumulated = number_after(way, "accumulation_steps to").unwrap_or(1);
            prop_assert!(fewer * accumulated <= rows, "{}", way);
        }
    }
}

#[test]
fn what_is_too_large_for_a_gpu_is_refused_with_what_fits_it_and_with_the_cpu() {
    let gpu = 4 << 30;
    let needs = |spec: &FinetuneSpec| {
        let training = Training::finetune(&SMOLLM2_135M, spec, base());
        training.gpu_memory(Batch::new(spec.recipe.per_device_train_batch_size, 2048)).total()
    };
    let asked = spec(64);
    let text = room(&asked, 2048).refusal_on_gpu(gpu, needs(&asked)).to_string();
    assert!(text.contains("of a GPU's memory and can have 4.0 GiB"), "{text}");
    assert!(text.ends_with("or set limits.gpus to 0 to compute on the CPU"), "{text}");
    let rows = number_after(&text, "lower per_device_train_batch_size to").unwrap();
    let smaller = spec(rows);
    assert!(needs(&smaller) <= gpu && needs(&spec(2 * rows)) > gpu, "{text}");
}

#[test]
fn what_may_fit_a_gpu_after_all_is_not_refused() {
    let asked = spec(8);
    let training = Training::finetune(&SMOLLM2_135M, &asked, base());
    let memory = training.gpu_memory(Batch::new(8, 512));
    let (expected, room) = (memory.total(), room(&asked, 512));
    let needs = Needs::new(
        [Default::default(), Default::default()],
        &Default::default(),
        Terms::default(),
        [0; 3],
        |_, _| unreachable!(),
    )
    .on_gpu(&memory, Margin::default(), move |has, needed| room.refusal_on_gpu(has, needed));
    assert!(needs.too_large_for_gpu(expected).is_none());
    assert!(needs.too_large_for_gpu(expected * 81 / 100).is_none(), "the formula may say a quarter too much");
    assert!(needs.too_large_for_gpu(expected * 79 / 100).is_some());
}
