//! LoRA as PEFT does it, and what training promises besides; `tests/reference/make_llama_lora.py`.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use drydock_worker::data::batch::Batch;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::conversation::Piece;
use drydock_worker::model::decoder::Decoder;
use drydock_worker::model::lora::{AdapterStart, LORA_A, LORA_B, LoraShape, peft_name};
use drydock_worker::model::parameter::Gradients;
use drydock_worker::model::tape::{Pass, Tape};

use crate::reference::{Case, measure, relative_error};

const CASES: [&str; 3] = ["tied", "untied", "llama3_rope"];

pub(crate) fn case(name: &str) -> Case {
    case_with_dropout(name, 0.0)
}

fn case_with_dropout(name: &str, dropout: f32) -> Case {
    let mut case = Case::open("llama_lora", name, "lora.safetensors");
    let spec = &case.spec;
    let targets = spec.target_modules.iter().map(|module| module.name().to_owned()).collect();
    let shape = LoraShape { rank: spec.lora_r as usize, alpha: spec.lora_alpha, dropout, dora: false, targets };
    let trainables = case.decoder.adapt(&shape, |name, _| {
        let start = |tensor| case.tensors[&format!("start.{}", peft_name(name, tensor))].clone();
        Ok(AdapterStart { a: start(LORA_A), b: start(LORA_B), magnitude: None })
    });
    case.trainables = trainables.unwrap();
    case
}

#[test]
fn every_adapter_matrix_gets_the_gradient_that_pytorch_computes() {
    for case in CASES.map(case) {
        case.assert_first_gradients(3);
    }
}

#[test]
fn steps_with_clipping_and_a_schedule_give_pytorchs_losses() {
    for case in CASES.map(case) {
        case.assert_steps();
    }
}

/// Where only adapters are trained, the head's part of the backward pass is done together with the losses.
#[test]
fn losses_that_are_asked_for_first_leave_the_gradients_as_they_are() {
    for case in CASES.map(case) {
        let batch = Batch::of(&case.rows);
        let scales: Vec<f32> = (0..batch.targets.len()).map(|target| 0.1 * (target % 7) as f32 - 0.2).collect();
        let [(losses, at_once), (same, later)] = [false, true].map(|first| {
            let mut gradients = Gradients::of(&case.trainables);
            let mut tape = Tape::record(&case.decoder, &batch, Pass::default()).unwrap();
            let before = first.then(|| tape.losses().unwrap());
            let losses = tape.backward(&scales, &mut gradients).unwrap();
            assert!(before.is_none_or(|before| before == losses));
            (losses, gradients.groups().concat())
        });
        assert_eq!(losses, same);
        assert!(relative_error(&later, &at_once) < 1e-6, "{}", case.name);
    }
}

#[test]
fn several_small_batches_are_one_big_one() {
    let losses_and_gradients = |size: usize| {
        let case = case("tied");
        let mut stepper = case.stepper();
        let taken = measure(&mut stepper, 0, &case.passes(size));
        (taken.mean_loss(), stepper.engine.gradients().unwrap().concat())
    };
    let (big_loss, big) = losses_and_gradients(6);
    for size in [1, 2, 4] {
        let (loss, gradients) = losses_and_gradients(size);
        assert!((loss - big_loss).abs() < 1e-6 * big_loss);
        let error = relative_error(&gradients, &big);
        assert!(error < 1e-5, "batches of {size}: {error:e}");
    }
}

#[test]
fn the_same_seed_gives_the_same_losses_bit_for_bit() {
    let losses = |dropout| {
        let case = case_with_dropout("tied", dropout);
        let mut stepper = case.stepper();
        let passes = case.passes(2);
        let mut step = |number| {
            let measured = measure(&mut stepper, number, &passes);
            stepper.apply(&measured, 0.01).unwrap();
            measured.loss.to_bits()
        };
        (0..3).map(&mut step).collect::<Vec<_>>()
    };
    assert_eq!(losses(0.2), losses(0.2));
    assert_ne!(losses(0.2), losses(0.0));
}

#[test]
fn a_conversation_has_the_logits_of_the_whole_row() {
    for name in CASES {
        let case = case(name);
        let ids = &case.rows[1].ids;
        let whole = case.decoder.logits(ids).unwrap().to_vec2::<f32>().unwrap();
        let mut conversation = case.decoder.conversation();
        let mut from = 0;
        for to in [40, 41, 42, 65] {
            let mut piece = [Piece { conversation: &mut conversation, ids: &ids[from..to] }];
            let logits = case.decoder.next_logits(&mut piece).unwrap();
            let worst = logits.iter().zip(&whole[to - 1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name}: {worst:e} after {to} tokens");
            from = to;
        }
    }
}

/// The same weights in two shards with an index, and in f32 instead of bf16.
#[test]
fn a_sharded_folder_gives_the_logits_of_its_single_file() {
    let name = "untied";
    let single = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/llama_lora").join(name);
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(single.join("config.json"), folder.path().join("config.json")).unwrap();
    let tensors = candle_core::safetensors::load(single.join("model.safetensors"), &Device::Cpu).unwrap();
    let mut shards: [HashMap<String, Tensor>; 2] = Default::default();
    let mut index = serde_json::Map::new();
    for (number, (tensor, value)) in tensors.into_iter().enumerate() {
        let shard = number % 2;
        index.insert(tensor.clone(), format!("model-0000{}-of-00002.safetensors", shard + 1).into());
        shards[shard].insert(tensor, value.to_dtype(candle_core::DType::F32).unwrap());
    }
    for (number, shard) in shards.iter().enumerate() {
        let path = folder.path().join(format!("model-0000{}-of-00002.safetensors", number + 1));
        candle_core::safetensors::save(shard, path).unwrap();
    }
    let index = serde_json::json!({ "weight_map": index });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let logits = |folder: &std::path::Path| {
        let files = ModelFiles::open(folder).unwrap();
        let decoder = Decoder::load(&files, 16, |_| Ok(())).unwrap();
        decoder.logits(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(logits(&single), logits(folder.path()));
}
