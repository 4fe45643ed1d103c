//! Artifacts: complete or not there at all, and announced once they are complete.

pub mod atomic;
pub mod model;
pub mod shards;

use std::collections::BTreeMap;
use std::path::Path;

use drydock_spec::report::{DatasetReport, Evaluation, Sample};
use drydock_spec::{FailureKind, Report};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use crate::ending::{OrFail, Result, write_failed};
use crate::kernels::read;
use crate::model::lora::{AdapterConfig, LoraShape};
use crate::model::parameter::Trainable;
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::stop;
use crate::training::Trained;
use atomic::write_whole;
use model::{WholeModel, Writing, pretty};
use shards::SavedAs;

/// Writes below the output folder.
pub struct Saver<'a> {
    output: &'a Path,
    reporter: &'a Reporter,
}

/// `training.json`: what was done, for people and for the record.
#[derive(Serialize)]
pub struct Summary<'a, O> {
    pub worker: &'a str,
    pub model: &'a str,
    /// Every option in force.
    pub options: &'a O,
    /// Tokens that rows were cut to.
    pub max_seq_length: usize,
    pub dataset: &'a DatasetReport,
    /// Before, on the way and after.
    pub evaluations: &'a [Evaluation],
    /// Before and after.
    pub samples: &'a [Sample],
    pub training: &'a Trained,
}

impl<'a> Saver<'a> {
    pub fn new(output: &'a Path, reporter: &'a Reporter) -> Self {
        Self { output, reporter }
    }

    /// `adapter_model.safetensors` and `adapter_config.json`, as PEFT loads them.
    pub fn adapter(&self, shape: &LoraShape, model_name: &str, trainables: &[Trainable]) -> Result<()> {
        let mut tensors: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for trainable in trainables {
            for tensor in &trainable.tensors {
                let bytes = read(&trainable.var, |values| {
                    Ok(values[tensor.range.clone()].iter().flat_map(|value| value.to_le_bytes()).collect())
                })?;
                tensors.insert(&tensor.name, (tensor.shape.clone(), bytes));
            }
        }
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|view| (*name, view))
        });
        let views: Vec<_> = views.collect::<Result<_, _>>().or_fail(FailureKind::Crashed, "the adapter's tensors")?;
        // The library that wrote a file is what Transformers looks for first.
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let bytes = safetensors::serialize(views, Some(metadata)).or_fail(FailureKind::Crashed, "the adapter")?;
        self.write("adapter/adapter_model.safetensors", "adapter", &bytes)?;
        self.json("adapter/adapter_config.json", "adapter_config", &AdapterConfig::new(shape, model_name))
    }

    /// The tokenizer beside an adapter or a model, so that the folder is all that is needed.
    pub fn tokenizer(&self, folder: &str, text: &Text) -> Result<()> {
        self.write(&format!("{folder}/tokenizer.json"), "tokenizer", text.tokenizer_json.as_bytes())?;
        self.json(&format!("{folder}/tokenizer_config.json"), "tokenizer", &text.tokenizer_config)
    }

    /// The whole model, adapters worked in, as a Hugging Face folder.
    pub fn model(&self, folder: &str, model: WholeModel<'_>, dtype: SavedAs) -> Result<()> {
        model.write(&self.output.join(folder), dtype, |event| {
            match event {
                Writing::Tensors(done, all) => self.reporter.progress(done, all),
                Writing::File(file, role) => self.announce(&format!("{folder}/{file}"), role),
            }
            stop::check()
        })
    }

    pub fn summary(&self, summary: &Summary<'_, impl Serialize>) -> Result<()> {
        self.json("training.json", "training_summary", summary)
    }

    /// Writes JSON for people to read, and announces it.
    pub fn json(&self, path: &str, role: &str, value: &impl Serialize) -> Result<()> {
        self.write(path, role, &pretty(value)?)
    }

    /// Writes JSON, a value a line, and announces it.
    pub fn lines<V: Serialize>(&self, path: &str, role: &str, values: impl IntoIterator<Item = V>) -> Result<()> {
        let mut bytes = Vec::new();
        for value in values {
            serde_json::to_writer(&mut bytes, &value).or_fail(FailureKind::Crashed, path)?;
            bytes.push(b'\n');
        }
        self.write(path, role, &bytes)
    }

    fn write(&self, path: &str, role: &str, bytes: &[u8]) -> Result<()> {
        let target = self.output.join(path);
        write_whole(&target, bytes).map_err(|error| write_failed(&target, &error))?;
        self.announce(path, role);
        Ok(())
    }

    pub fn announce(&self, path: &str, role: &str) {
        self.reporter.report(Report::Artifact { path: path.to_owned(), role: role.to_owned() });
    }
}
