//! Artifacts: complete or not there at all, and announced once they are complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use drydock_spec::report::{DatasetReport, Evaluation, Sample};
use drydock_spec::{FailureKind, FinetuneSpec, Report};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use crate::ending::{OrFail, Result, write_failed};
use crate::finetune::train::Trained;
use crate::kernels::read;
use crate::model::lora::{AdapterConfig, LoraShape};
use crate::model::parameter::Trainable;
use crate::model::tokenizer::Text;
use crate::report::Reporter;

/// Writes below the output folder.
pub struct Saver<'a> {
    output: &'a Path,
    reporter: &'a Reporter,
}

/// `training.json`: what was done, for people and for the record.
#[derive(Serialize)]
pub struct Summary<'a> {
    pub worker: &'a str,
    pub model: &'a str,
    /// Every option in force.
    pub options: &'a FinetuneSpec,
    /// Tokens that rows were cut to.
    pub max_seq_length: usize,
    pub dataset: &'a DatasetReport,
    /// Before and after.
    pub evaluations: Vec<Evaluation>,
    /// Before and after.
    pub samples: Vec<Sample>,
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

    /// The tokenizer beside the adapter, so that the folder is all that is needed besides the model.
    pub fn tokenizer(&self, text: &Text) -> Result<()> {
        self.write("adapter/tokenizer.json", "tokenizer", text.tokenizer_json.as_bytes())?;
        self.json("adapter/tokenizer_config.json", "tokenizer", &text.tokenizer_config)
    }

    pub fn summary(&self, summary: &Summary<'_>) -> Result<()> {
        self.json("training.json", "training_summary", summary)
    }

    /// Writes JSON for people to read, and announces it.
    pub fn json(&self, path: &str, role: &str, value: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).or_fail(FailureKind::Crashed, path)?;
        bytes.push(b'\n');
        self.write(path, role, &bytes)
    }

    /// Writes under another name first: whoever looks sees all of a file or nothing of it.
    fn write(&self, path: &str, role: &str, bytes: &[u8]) -> Result<()> {
        let target = self.output.join(path);
        write_whole(&target, bytes).map_err(|error| write_failed(&target, &error))?;
        self.reporter.report(Report::Artifact { path: path.to_owned(), role: role.to_owned() });
        Ok(())
    }
}

fn write_whole(target: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut partial = PathBuf::from(target).into_os_string();
    partial.push(".partial");
    let mut file = File::create(&partial)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&partial, target));
    written.inspect_err(|_| {
        // What is left over would look like an artifact; that it cannot be removed changes nothing about the failure.
        let _ = fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/file.json");
        write_whole(&target, b"{}").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"{}");
        // A folder stands where the file should go: the rename fails, and nothing is left behind.
        let blocked = folder.path().join("blocked");
        fs::create_dir_all(blocked.join("inside")).unwrap();
        assert!(write_whole(&blocked, b"{}").is_err());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
    }
}
