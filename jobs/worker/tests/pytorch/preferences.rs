//! Preferences against TRL's own trainers.

use std::path::Path;

use candle_core::Device;
use drydock_spec::FinetuneArgs;
use drydock_spec::finetune::Objective;
use drydock_worker::data::lesson::{Lesson, Matter};
use drydock_worker::data::rows::Row;
use drydock_worker::training::engine::Cpu;
use drydock_worker::training::objective::{Aim, Material};
use drydock_worker::training::step::Stepper;
use serde::Deserialize;

use crate::lora::case;
use crate::reference::relative_error;

#[derive(Deserialize)]
struct Reference {
    beta: f64,
    lessons: Vec<ReferenceLesson>,
    loss: f64,
    rewards: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ReferenceLesson {
    Pair { chosen: ReferenceRow, rejected: ReferenceRow },
    Answer { answer: ReferenceRow, good: bool },
}

#[derive(Deserialize)]
struct ReferenceRow {
    ids: Vec<u32>,
    counts: Vec<bool>,
}

impl From<ReferenceRow> for Row {
    fn from(row: ReferenceRow) -> Self {
        Self { ids: row.ids, counts: row.counts }
    }
}

impl From<ReferenceLesson> for Lesson {
    fn from(lesson: ReferenceLesson) -> Self {
        let matter = match lesson {
            ReferenceLesson::Pair { chosen, rejected } => {
                Matter::Pair { chosen: chosen.into(), rejected: rejected.into() }
            }
            ReferenceLesson::Answer { answer, good } => Matter::Answer { row: answer.into(), good },
        };
        Self { matter, place: String::new() }
    }
}

fn assert_as_trl(objective: Objective, name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/preferences");
    let reference: Reference =
        serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap();
    let gradients = candle_core::safetensors::load(folder.join("gradients.safetensors"), &Device::Cpu).unwrap();
    let lessons: Vec<Lesson> = reference.lessons.into_iter().map(Lesson::from).collect();
    let aim = Aim { objective, beta: reference.beta };
    let pass: Vec<usize> = (0..lessons.len()).collect();
    let mut material = Material::new(&lessons, aim, std::slice::from_ref(&pass), 128);
    // What preferences are compared with is the model without its adapter.
    if aim.needs_reference() {
        let decoder = crate::reference::Case::open("llama_lora", "tied", "lora.safetensors").decoder;
        material.refer(aim, &mut |batch| Ok(decoder.target_losses(batch)?), |_| Ok(())).unwrap();
    }
    let case = case("tied");
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    let recipe = args.parse().unwrap().recipe;
    let mut stepper = Stepper::new(Box::new(Cpu::new(&case.decoder, &recipe, &case.trainables)), &recipe, aim);
    let measured = stepper.measure(0, &[material.portion(aim, &pass)], || Ok(())).unwrap();
    let loss = measured.mean_loss();
    assert!((loss - reference.loss).abs() < 1e-5 * reference.loss, "{name}: {loss}, not {}", reference.loss);
    let rewards = serde_json::to_value(measured.rewards.means()).unwrap();
    for (what, want) in &reference.rewards {
        let (got, want) = (rewards[what].as_f64().unwrap(), want.as_f64().unwrap());
        assert!((got - want).abs() < 1e-4, "{name}: {what} is {got}, not {want}");
    }
    for (trainable, group) in case.trainables.iter().zip(&*stepper.engine.gradients().unwrap()) {
        for tensor in &trainable.tensors {
            let want = gradients[&format!("{name}.{}", tensor.name)].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let error = relative_error(&group[tensor.range.clone()], &want);
            assert!(error < 1e-4, "{name}: {} is off by {error:e}", tensor.name);
        }
    }
}

#[test]
fn pairs_have_the_losses_and_gradients_of_trls_dpo() {
    assert_as_trl(Objective::Dpo, "dpo");
}

#[test]
fn pairs_have_the_losses_and_gradients_of_trls_orpo() {
    assert_as_trl(Objective::Orpo, "orpo");
}

#[test]
fn judged_answers_have_the_losses_and_gradients_of_trls_kto() {
    assert_as_trl(Objective::Kto, "kto");
}
