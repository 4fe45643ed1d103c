use drydock_spec::FinetuneArgs;
use proptest::prelude::*;

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
};

fn needs(rows: u32, length: u32) -> Needs {
    let args = FinetuneArgs {
        model: "m".into(),
        dataset: "d".into(),
        per_device_train_batch_size: Some(rows),
        max_seq_length: Some(length),
        ..FinetuneArgs::default()
    };
    let spec = args.parse().unwrap();
    Needs {
        memory_bytes: estimate::finetune_memory(&SMOLLM2_135M, &spec, Batch::new(rows, length)),
        disk_bytes: 0,
        download_bytes: 0,
        trainable: 0,
        decoder: SMOLLM2_135M,
        spec,
        rows_bytes: 0,
        length,
    }
}

fn number_after(text: &str, words: &str) -> Option<u32> {
    let digits: String = text.split(words).nth(1)?.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[test]
fn the_refusal_names_need_budget_and_both_ways_out() {
    let refusal = needs(16, 512).too_large(4 << 30).to_string();
    let expected = "per_device_train_batch_size = 16: the job needs about 12.4 GiB, jobs may use 4.0 GiB on this host; \
                    lower per_device_train_batch_size to 4 and raise gradient_accumulation_steps to 4, or lower \
                    max_seq_length to 128";
    assert_eq!(refusal, expected);
}

#[test]
fn a_model_that_never_fits_is_refused_with_the_size_of_its_weights() {
    let refusal = needs(1, 64).too_large(512 << 20).to_string();
    assert!(
        refusal.contains("choose a smaller model (the weights take 513.1 MiB) or dataset (the rows take 0 B)"),
        "{refusal}"
    );
}

proptest! {
    #[test]
    fn the_change_that_is_offered_would_be_accepted(rows in 1..256u32, length in 64..4096u32, budget in 1u64 << 30..1 << 36) {
        let job = needs(rows, length);
        if estimate::with_margin(job.memory_bytes) <= budget {
            return Ok(());
        }
        let next = job.too_large(budget).next;
        let fits = |rows, length| estimate::with_margin(needs(rows, length).memory_bytes) <= budget;
        let (first, other) = next.split_once(", or ").unwrap_or((&next, ""));
        if !next.contains("choose a smaller model") {
            let changed = number_after(first, "batch_size to").unwrap_or(rows);
            prop_assert!(fits(changed, number_after(first, "max_seq_length to").unwrap_or(length)), "{}", next);
            let accumulated = number_after(first, "accumulation_steps to").unwrap_or(1);
            prop_assert!(changed * accumulated <= rows, "{}", next);
        }
        if let Some(shorter) = number_after(other, "max_seq_length to") {
            prop_assert!(fits(rows, shorter), "{}", next);
        }
    }
}
