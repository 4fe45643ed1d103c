//! Every architecture against Transformers: fixtures made by `tests/reference/make_architectures.py`.
//!
//! The fixtures hold no weights: those are a function of a tensor's name and the index, which both sides compute.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod gguf;
mod merged;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use drydock_spec::finetune::TargetModule;
use drydock_worker::data::batch::Batch;
use drydock_worker::data::rows::Row;
use drydock_worker::kernels::linear::mix;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::config::Config;
use drydock_worker::model::conversation::Piece;
use drydock_worker::model::decoder::Decoder;
use drydock_worker::model::fused;
use drydock_worker::model::lora::{AdapterStart, LORA_A, LORA_B, LORA_MAGNITUDE, LoraShape, peft_name};
use drydock_worker::model::parameter::{Gradients, Trainable};
use drydock_worker::model::tape::{Pass, Tape};
use serde::Deserialize;

const CASES: [&str; 8] = ["llama_linear", "llama_yarn", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

#[derive(Deserialize)]
struct Reference {
    rows: Vec<ReferenceRow>,
    logits_row: usize,
    loss: f64,
    adapter: Option<ReferenceAdapter>,
    /// What the `gguf` package calls the tensors.
    gguf: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ReferenceAdapter {
    r: usize,
    lora_alpha: f64,
    loss: f64,
}

#[derive(Deserialize)]
struct ReferenceRow {
    ids: Vec<u32>,
    counts: Vec<bool>,
}

struct Case {
    name: &'static str,
    reference: Reference,
    tensors: HashMap<String, Tensor>,
    /// Where the model lies.
    folder: tempfile::TempDir,
}

/// Multiples of 1/384, as the script makes them.
fn weight_values(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte)));
    (0..count as u64).map(|index| ((mix(seed ^ index) >> 56) as f32 - 128.0) / 384.0).collect()
}

fn model_values(name: &str, shape: &[usize], gemma: bool) -> Tensor {
    let mut values = weight_values(name, shape.iter().product());
    if name.contains("norm") && !gemma {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

impl Case {
    fn of(name: &'static str) -> Self {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/architectures").join(name);
        let reference = std::fs::read_to_string(fixture.join("reference.json")).unwrap();
        let tensors = candle_core::safetensors::load(fixture.join("reference.safetensors"), &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture.join("config.json"), folder.path().join("config.json")).unwrap();
        let case = Self { name, reference: serde_json::from_str(&reference).unwrap(), tensors, folder };
        candle_core::safetensors::save(&case.weights(), case.folder.path().join("model.safetensors")).unwrap();
        case
    }

    /// The model's tensors as the files have them: the reference has a gradient for each.
    fn weights(&self) -> HashMap<String, Tensor> {
        let names =
            self.tensors.iter().filter_map(|(name, gradient)| Some((name.strip_prefix("gradient.")?, gradient)));
        let gemma = self.name.starts_with("gemma");
        names.map(|(name, gradient)| (name.to_owned(), model_values(name, gradient.dims(), gemma))).collect()
    }

    fn decoder(&self) -> Decoder {
        load(self.folder.path())
    }

    fn batch(&self) -> Batch {
        let rows = self.reference.rows.iter();
        let rows: Vec<Row> = rows.map(|row| Row { ids: row.ids.clone(), counts: row.counts.clone() }).collect();
        Batch::of(&rows)
    }

    fn ids(&self) -> &[u32] {
        &self.reference.rows[self.reference.logits_row].ids
    }

    #[track_caller]
    fn check_logits(&self, decoder: &Decoder) {
        let want = self.tensors["logits"].to_vec2::<f32>().unwrap().concat();
        let got = decoder.logits(self.ids()).unwrap().to_vec2::<f32>().unwrap().concat();
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-5 && got.len() == want.len(), "{}: logits are off by {worst:e}", self.name);
    }
}

fn load(folder: &Path) -> Decoder {
    Decoder::load(&ModelFiles::open(folder).unwrap(), 32, |_| Ok(())).unwrap()
}

/// The mean loss and every gradient, under the names that the files have.
fn loss_and_gradients(decoder: &Decoder, trainables: &[Trainable], batch: &Batch) -> (f64, BTreeMap<String, Vec<f32>>) {
    let mut gradients = Gradients::of(trainables);
    let count = batch.targets.len();
    let tape = Tape::record(decoder, batch, Pass::default()).unwrap();
    let losses = tape.backward(&vec![1.0 / count as f32; count], &mut gradients).unwrap();
    let named = trainables.iter().zip(gradients.groups()).flat_map(|(trainable, gradient)| {
        trainable.tensors.iter().map(|tensor| (tensor.name.clone(), gradient[tensor.range.clone()].to_vec()))
    });
    (losses.iter().sum::<f64>() / count as f64, whole(named, &decoder.config))
}

/// Joins what the files hold in one tensor.
fn whole(parts: impl Iterator<Item = (String, Vec<f32>)>, config: &Config) -> BTreeMap<String, Vec<f32>> {
    let mut wholes: BTreeMap<String, BTreeMap<usize, Vec<f32>>> = BTreeMap::new();
    for (name, values) in parts {
        let (name, start) = fused::part(&name, config).map_or((name, 0), |part| (part.whole, part.rows.start));
        wholes.entry(name).or_default().insert(start, values);
    }
    wholes.into_iter().map(|(name, parts)| (name, parts.into_values().flatten().collect())).collect()
}

#[track_caller]
fn check_gradients(case: &Case, prefix: &str, got: &BTreeMap<String, Vec<f32>>) {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let mut seen = 0;
    for (name, want) in case.tensors.iter().filter_map(|(name, want)| Some((name.strip_prefix(prefix)?, want))) {
        let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = got.get(name).unwrap_or_else(|| panic!("{}: {name} has no gradient", case.name));
        let size = norm(&mut want.iter().copied());
        let error = norm(&mut got.iter().zip(&want).map(|(got, want)| got - want)) / size;
        assert!(size > 0.0 && got.len() == want.len() && error < 1e-4, "{}: {name} is off by {error:e}", case.name);
        seen += 1;
    }
    assert_eq!(seen, got.len(), "{}: as many tensors are trained as the reference trains", case.name);
}

#[test]
fn every_architecture_has_the_logits_that_transformers_computes() {
    for name in CASES {
        let case = Case::of(name);
        case.check_logits(&case.decoder());
    }
}

#[test]
fn full_finetuning_has_pytorchs_loss_and_the_gradient_of_every_tensor() {
    for name in CASES {
        let case = Case::of(name);
        let mut decoder = case.decoder();
        let names: Vec<String> = decoder.tensors().map(|tensor| tensor.name.clone()).collect();
        let trainables = decoder.train(&names).unwrap();
        let (loss, gradients) = loss_and_gradients(&decoder, &trainables, &case.batch());
        let want = case.reference.loss;
        assert!((loss - want).abs() < 1e-5 * want, "{name}: the loss is {loss}, not {want}");
        check_gradients(&case, "gradient.", &gradients);
    }
}

/// The case's model with the adapter that the reference has.
fn adapted(case: &Case, adapter: &ReferenceAdapter, dora: bool) -> (Decoder, Vec<Trainable>) {
    let mut decoder = case.decoder();
    let targets = fused::targets(&TargetModule::ALL, &decoder.config).unwrap();
    let shape = LoraShape { rank: adapter.r, alpha: adapter.lora_alpha, dropout: 0.0, dora, targets };
    let start = |name: &str, kind: &str, shape: [usize; 2]| {
        let values = weight_values(&peft_name(name, kind), shape[0] * shape[1]);
        Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap()
    };
    let trainables = decoder
        .adapt(&shape, |name, [rank, width, out]| {
            let (a, b) = (start(name, LORA_A, [rank, width]), start(name, LORA_B, [out, rank]));
            // Not the lengths that the adapted weight has anyway.
            let lengths = weight_values(&peft_name(name, LORA_MAGNITUDE), out).into_iter().map(|value| 1.0 + value);
            let lengths = Tensor::from_iter(lengths, &Device::Cpu).unwrap();
            Ok(AdapterStart { a, b, magnitude: dora.then_some(lengths) })
        })
        .unwrap();
    (decoder, trainables)
}

/// On Phi-3 over its fused projections, as PEFT has it.
#[test]
fn an_adapter_has_pefts_loss_and_gradients() {
    let mut seen = 0;
    for case in CASES.map(Case::of) {
        let Some(adapter) = &case.reference.adapter else { continue };
        let (decoder, trainables) = adapted(&case, adapter, false);
        let (loss, gradients) = loss_and_gradients(&decoder, &trainables, &case.batch());
        assert!((loss - adapter.loss).abs() < 1e-5 * loss, "{}: the loss is {loss}, not {}", case.name, adapter.loss);
        check_gradients(&case, "adapter.", &gradients);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn a_merged_model_has_the_logits_of_base_and_adapter_and_the_tensors_of_its_architecture() {
    for (case, dora) in CASES.into_iter().flat_map(|name| [(Case::of(name), false), (Case::of(name), true)]) {
        let adapter = ReferenceAdapter { r: 2, lora_alpha: 3.0, loss: 0.0 };
        let (decoder, _) = adapted(&case, &adapter, dora);
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(case.folder.path().join("config.json"), folder.path().join("config.json")).unwrap();
        let tensors = decoder.merged().into_iter().map(|tensor| {
            let values = Tensor::from_vec(tensor.values().unwrap(), tensor.shape.as_slice(), &Device::Cpu).unwrap();
            (tensor.name, values)
        });
        let tensors: HashMap<String, Tensor> = tensors.collect();
        let shapes = |tensors: &HashMap<String, Tensor>| -> BTreeMap<String, Vec<usize>> {
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
        };
        assert_eq!(shapes(&tensors), shapes(&case.weights()), "{}", case.name);
        candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        let logits = |decoder: &Decoder| decoder.logits(case.ids()).unwrap().to_vec2::<f32>().unwrap().concat();
        let (got, want, base) = (logits(&load(folder.path())), logits(&decoder), logits(&case.decoder()));
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance(&got, &want) < 2e-5, "{}: off by {:e}", case.name, distance(&got, &want));
        assert!(distance(&got, &base) > 0.05, "{}: the adapter does nothing", case.name);
    }
}

#[test]
fn a_conversation_has_the_logits_of_the_whole_row() {
    for name in CASES {
        let case = Case::of(name);
        let decoder = case.decoder();
        let ids = case.ids();
        let mut conversation = decoder.conversation();
        let mut from = 0;
        for to in [3, 4, 9, 15, 16, 17, 18, ids.len()] {
            let mut piece = [Piece { conversation: &mut conversation, ids: &ids[from..to] }];
            let got = decoder.next_logits(&mut piece).unwrap();
            // Not the row of all of them: how Phi-3 turns heads depends on how many tokens there are.
            let want = decoder.logits(&ids[..to]).unwrap().to_vec2::<f32>().unwrap().pop().unwrap();
            let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{name}: off by {worst:e} after {to} tokens");
            from = to;
        }
    }
}
