//! A fixture: a model, rows, and what PyTorch made of them.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use drydock_spec::{FinetuneArgs, FinetuneSpec};
use drydock_worker::data::lesson::{Lesson, Matter};
use drydock_worker::data::rows::Row;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;
use drydock_worker::model::parameter::{Trainable, TrainedTensor};
use drydock_worker::schedule::Schedule;
use drydock_worker::training::engine::Cpu;
use drydock_worker::training::objective::{Aim, Material, Portion};
use drydock_worker::training::step::{Measured, Stepper};
use serde::Deserialize;

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

/// A case with its model, of which nothing is trained yet.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) decoder: Decoder,
    pub(crate) trainables: Vec<Trainable>,
    pub(crate) spec: FinetuneSpec,
    pub(crate) rows: Vec<Row>,
    /// What the script has written beside the model.
    pub(crate) tensors: HashMap<String, Tensor>,
    reference: Reference,
}

impl Case {
    /// `family` is a folder of `tests/reference`, `tensors` the name of the file that lies beside the model there.
    pub(crate) fn open(family: &str, name: &str, tensors: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference").join(family).join(name);
        let reference: Reference =
            serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
        let mut options = reference.options.clone();
        options.extend([("model".into(), name.into()), ("dataset".into(), name.into())]);
        let args: FinetuneArgs = serde_json::from_value(options.into()).unwrap();
        let rows = reference.rows.iter().map(|row| Row { ids: row.ids.clone(), counts: row.counts.clone() }).collect();
        Self {
            name: format!("{family}/{name}"),
            // The tensors of the folder's other file have other names, so the folder can be opened as a model as it is.
            decoder: Decoder::load(&ModelFiles::open(&folder).unwrap(), 128, |_| Ok(())).unwrap(),
            trainables: Vec::new(),
            spec: args.parse().unwrap(),
            rows,
            tensors: candle_core::safetensors::load(folder.join(tensors), &Device::Cpu).unwrap(),
            folder,
            reference,
        }
    }

    pub(crate) fn stepper(&self) -> Stepper<'_> {
        let recipe = &self.spec.recipe;
        Stepper::new(Box::new(Cpu::new(&self.decoder, recipe, &self.trainables)), recipe, Aim::TEXT)
    }

    /// All rows, in passes of so many.
    pub(crate) fn passes(&self, size: usize) -> Vec<Portion> {
        let lesson = |row: &Row| Lesson { matter: Matter::Text(row.clone()), place: String::new() };
        let lessons: Vec<Lesson> = self.rows.iter().map(lesson).collect();
        let material = Material::new(&lessons, Aim::TEXT, &[], usize::MAX);
        let indices: Vec<usize> = (0..lessons.len()).collect();
        indices.chunks(size).map(|pass| material.portion(Aim::TEXT, pass)).collect()
    }

    /// Each group's tensors against the reference's, which must name no others.
    fn assert_gradients(&self, groups: &[Vec<f32>]) {
        let mut seen = 0;
        assert_eq!(self.trainables.len(), groups.len());
        for (trainable, gradient) in self.trainables.iter().zip(groups) {
            for TrainedTensor { name: tensor, range, .. } in &trainable.tensors {
                let want = &self.tensors[&format!("gradient.{tensor}")];
                let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let error = relative_error(&gradient[range.clone()], &want);
                assert!(error < 1e-4, "{}: {tensor} is off by {error:e}", self.name);
                seen += 1;
            }
        }
        assert_eq!(seen, self.tensors.keys().filter(|name| name.starts_with("gradient.")).count(), "{}", self.name);
    }

    /// The gradients of the first step, taken in batches of so many rows.
    pub(crate) fn assert_first_gradients(&self, batch_size: usize) {
        let mut stepper = self.stepper();
        measure(&mut stepper, 0, &self.passes(batch_size));
        self.assert_gradients(&stepper.engine.gradients().unwrap());
    }

    pub(crate) fn assert_steps(&self) {
        let mut stepper = self.stepper();
        let schedule = Schedule::new(&self.spec.recipe, self.rows.len() as u64);
        let (passes, reference, name) = (self.passes(3), &self.reference, &self.name);
        for (number, want) in reference.losses.iter().enumerate() {
            let measured = measure(&mut stepper, number, &passes);
            let (loss, norm) = (measured.mean_loss(), measured.grad_norm);
            assert!((loss - want).abs() < 1e-5 * want, "{name}, step {number}: {loss}, not {want}");
            let wanted_norm = reference.grad_norms[number];
            assert!((norm / wanted_norm - 1.0).abs() < 1e-4, "{name}, step {number}: {norm}, not {wanted_norm}");
            let (rate, wanted_rate) = (schedule.learning_rate(number as u64), reference.learning_rates[number]);
            assert!((rate - wanted_rate).abs() < 1e-12, "{name}, step {number}: {rate}, not {wanted_rate}");
            stepper.apply(&measured, rate).unwrap();
        }
    }
}

pub(crate) fn measure(stepper: &mut Stepper<'_>, step: usize, passes: &[Portion]) -> Measured {
    stepper.measure(step as u64, passes, || Ok(())).unwrap()
}

/// The L2 norm of the difference, relative to that of `want`, which must not be zero: nothing would be shown by it.
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = norm(want.iter().copied());
    assert!(size > 0.0, "the reference is zero");
    norm(got.iter().zip(want).map(|(got, want)| got - want)) / size
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}
