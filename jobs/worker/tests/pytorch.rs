//! The trainer against PyTorch, Transformers and PEFT: fixtures made by `tests/reference/make_llama_lora.py`.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use drydock_spec::{FinetuneArgs, FinetuneSpec};
use drydock_worker::data::batch::Batch;
use drydock_worker::data::rows::Row;
use drydock_worker::finetune::train::{Step, Trainer};
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;
use drydock_worker::model::lora::{LoraShape, peft_name};
use drydock_worker::model::parameter::{Trainable, TrainedTensor};
use serde::Deserialize;

const CASES: [&str; 3] = ["tied", "untied", "llama3_rope"];

#[derive(Deserialize)]
struct Reference {
    options: serde_json::Map<String, serde_json::Value>,
    rows: Vec<ReferenceRow>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
}

#[derive(Deserialize)]
struct ReferenceRow {
    ids: Vec<u32>,
    counts: Vec<bool>,
}

struct Case {
    decoder: Decoder,
    trainables: Vec<Trainable>,
    spec: FinetuneSpec,
    rows: Vec<Row>,
    reference: Reference,
    tensors: HashMap<String, Tensor>,
}

fn case(name: &str) -> Case {
    case_with_dropout(name, 0.0)
}

fn case_with_dropout(name: &str, dropout: f32) -> Case {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/llama_lora").join(name);
    let reference: Reference =
        serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
    let mut options = reference.options.clone();
    options.extend([("model".into(), name.into()), ("dataset".into(), name.into())]);
    let args: FinetuneArgs = serde_json::from_value(options.into()).unwrap();
    let spec = args.parse().unwrap();
    let tensors = candle_core::safetensors::load(folder.join("lora.safetensors"), &Device::Cpu).unwrap();
    // The tensors of the folder's other file have other names, so the folder can be opened as a model as it is.
    let mut files = ModelFiles::open(&folder).unwrap();
    let mut decoder = Decoder::load(&mut files, 128, |_| Ok(())).unwrap();
    let shape =
        LoraShape { rank: spec.lora_r as usize, alpha: spec.lora_alpha, dropout, targets: spec.target_modules.clone() };
    let start = |name: String| tensors[&format!("start.{name}")].clone();
    let trainables = decoder
        .adapt(&shape, |layer, module, _| {
            Ok((start(peft_name(layer, module, 'A')), start(peft_name(layer, module, 'B'))))
        })
        .unwrap();
    let rows = reference.rows.iter().map(|row| Row { ids: row.ids.clone(), counts: row.counts.clone() }).collect();
    Case { decoder, trainables, spec, rows, reference, tensors }
}

impl Case {
    fn trainer(&self) -> Trainer<'_> {
        Trainer::new(&self.decoder, &self.spec.recipe, &self.trainables, &self.rows)
    }

    fn batches(&self, size: usize) -> Vec<Batch> {
        self.rows.chunks(size).map(Batch::of).collect()
    }
}

fn step(trainer: &mut Trainer<'_>, number: usize, batches: &[Batch]) -> Step {
    trainer.step(number as u64, batches, || Ok(())).unwrap()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn every_adapter_matrix_gets_the_gradient_that_pytorch_computes() {
    for name in CASES {
        let case = case(name);
        let mut trainer = case.trainer();
        step(&mut trainer, 0, &case.batches(3));
        let mut seen = 0;
        for (trainable, gradient) in case.trainables.iter().zip(trainer.gradients()) {
            for TrainedTensor { name: matrix, range, .. } in &trainable.tensors {
                let want = &case.tensors[&format!("gradient.{matrix}")];
                let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let size = norm(want.iter().copied());
                assert!(size > 0.0, "{name}: the reference has no gradient for {matrix}");
                let error = norm(gradient[range.clone()].iter().zip(&want).map(|(got, want)| got - want)) / size;
                assert!(error < 1e-4, "{name}: {matrix} is off by {error:e}");
                seen += 1;
            }
        }
        assert_eq!(seen, case.tensors.keys().filter(|name| name.starts_with("gradient.")).count());
    }
}

#[test]
fn steps_with_clipping_and_a_schedule_give_pytorchs_losses() {
    for name in CASES {
        let case = case(name);
        let mut trainer = case.trainer();
        let batches = case.batches(3);
        for (number, want) in case.reference.losses.iter().enumerate() {
            let taken = step(&mut trainer, number, &batches);
            assert!((taken.mean_loss() - want).abs() < 1e-5 * want, "{name}, step {number}: {taken:?}, not {want}");
            assert!((taken.grad_norm / case.reference.grad_norms[number] - 1.0).abs() < 1e-4, "{name}: {taken:?}");
            assert!((taken.learning_rate - case.reference.learning_rates[number]).abs() < 1e-12, "{name}: {taken:?}");
        }
    }
}

#[test]
fn several_small_batches_are_one_big_one() {
    let losses_and_gradients = |size: usize| {
        let case = case("tied");
        let mut trainer = case.trainer();
        let taken = step(&mut trainer, 0, &case.batches(size));
        (taken.mean_loss(), trainer.gradients().concat())
    };
    let (big_loss, big) = losses_and_gradients(6);
    for size in [1, 2, 4] {
        let (loss, gradients) = losses_and_gradients(size);
        assert!((loss - big_loss).abs() < 1e-6 * big_loss);
        let error = norm(gradients.iter().zip(&big).map(|(a, b)| a - b)) / norm(big.iter().copied());
        assert!(error < 1e-5, "batches of {size}: {error:e}");
    }
}

#[test]
fn the_same_seed_gives_the_same_losses_bit_for_bit() {
    let losses = |dropout| {
        let case = case_with_dropout("tied", dropout);
        let mut trainer = case.trainer();
        let batches = case.batches(2);
        (0..3).map(|number| step(&mut trainer, number, &batches).loss.to_bits()).collect::<Vec<_>>()
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
            let logits = conversation.take_in(&ids[from..to]).unwrap();
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
        let mut files = ModelFiles::open(folder).unwrap();
        let decoder = Decoder::load(&mut files, 16, |_| Ok(())).unwrap();
        decoder.logits(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(logits(&single), logits(folder.path()));
}
