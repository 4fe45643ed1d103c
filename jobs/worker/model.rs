//! Models: their files, their tokenizer, and the decoder that is trained.

pub mod config;
pub mod conversation;
pub mod decoder;
pub mod describe;
pub mod fused;
pub mod gguf;
pub mod head;
mod hf;
pub mod layer;
pub mod lora;
pub mod merge;
pub mod method;
pub mod names;
pub mod parameter;
pub mod speaker;
pub mod stored;
pub mod tape;
pub mod tokenizer;

use std::path::{Path, PathBuf};

use drydock_spec::FailureKind;

use crate::blocks::BlockKind;
use crate::ending::{OrFail, Result, failed};
use crate::train::start::start_values;
use config::Config;
use parameter::{Parameter, Place};
use stored::Stored;
use tokenizer::Text;

/// A model's files, opened but not read: configuration and tensors come on demand.
pub struct ModelFiles {
    weights: Weights,
    pub config: Config,
    folder: PathBuf,
}

enum Weights {
    Gguf(gguf::GgufFile),
    Safetensors(hf::Shards),
    /// There are no files: nothing has been learnt yet.
    Start {
        seed: u64,
    },
}

impl ModelFiles {
    /// Opens a folder with either one `.gguf`, or `config.json` and `*.safetensors`. Pickled files are never read:
    /// they can run code.
    pub fn open(folder: &Path) -> Result<Self> {
        let (weights, config) = match find_gguf(folder)? {
            Some(path) => {
                let file = gguf::GgufFile::open(&path)?;
                let config = file.config()?;
                (Weights::Gguf(file), config)
            }
            None => {
                let config = Config::from_hf(&hf::read_json(&folder.join("config.json"))?)?;
                (Weights::Safetensors(hf::Shards::open(folder)?), config)
            }
        };
        Ok(Self { weights, config, folder: folder.to_owned() })
    }

    /// A model before it has learnt anything: its tensors hold start values, which follow the seed.
    pub fn start(config: Config, seed: u64) -> Self {
        Self { weights: Weights::Start { seed }, config, folder: PathBuf::new() }
    }

    /// Tokenizer and chat template. A `tokenizer.json` beside a GGUF file wins: what is rebuilt from a GGUF's metadata
    /// is as good as can be, but not the original.
    pub fn text(&self) -> Result<Text> {
        let mut text = match &self.weights {
            Weights::Gguf(file) if !self.folder.join("tokenizer.json").exists() => file.text()?,
            Weights::Gguf(file) => {
                let mut text = Text::from_folder(&self.folder)?;
                if let (None, Some(template)) = (&text.chat_template, file.chat_template()) {
                    text.set_chat_template(&template);
                }
                text
            }
            Weights::Safetensors(_) => Text::from_folder(&self.folder)?,
            Weights::Start { .. } => return failed(FailureKind::BadModel, "a model at its start has no tokenizer"),
        };
        text.end_with(&self.config.eos);
        text.fit(self.config.vocabulary)?;
        Ok(text)
    }

    /// Whether the model has a tensor of this name (as Hugging Face names it).
    pub fn has(&self, name: &str) -> bool {
        match &self.weights {
            Weights::Gguf(file) => file.has(name, &self.config),
            Weights::Safetensors(shards) => shards.has(name),
            Weights::Start { .. } => true,
        }
    }

    /// The tensor of this name, frozen and in Hugging Face's order of rows; its shape must be the one that the
    /// configuration promises.
    pub fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter> {
        let stored = match fused::part(name, &self.config) {
            None => self.stored(name, shape)?,
            Some(part) => {
                let mut whole = shape.to_vec();
                whole[0] = part.of;
                self.stored(&part.whole, &whole)?.rows(part.rows)
            }
        };
        Ok(Parameter { name: name.to_owned(), shape: shape.to_vec(), place: Place::Frozen(stored) })
    }

    /// The GGUF file, where the model is one.
    pub fn gguf(&self) -> Option<&crate::gguf::GgufFile> {
        match &self.weights {
            Weights::Gguf(file) => Some(&file.0),
            Weights::Safetensors(_) | Weights::Start { .. } => None,
        }
    }

    /// The names of a checkpoint's tensors; none of a GGUF file's.
    pub fn names(&self) -> Vec<&str> {
        match &self.weights {
            Weights::Gguf(_) | Weights::Start { .. } => Vec::new(),
            Weights::Safetensors(shards) => shards.names().collect(),
        }
    }

    /// What a checkpoint's tensor is held in, and its shape.
    pub fn held(&self, name: &str) -> Result<(BlockKind, Vec<usize>)> {
        match &self.weights {
            Weights::Gguf(_) | Weights::Start { .. } => {
                failed(FailureKind::BadModel, format!("there is no checkpoint with a tensor `{name}`"))
            }
            Weights::Safetensors(shards) => shards.place(name).map(|(place, _)| (place.kind, place.shape.clone())),
        }
    }

    /// A checkpoint's tensor, in Hugging Face's order of rows.
    pub fn checkpoint(&self, name: &str) -> Result<Stored> {
        match &self.weights {
            Weights::Gguf(file) => file.stored(name, &self.config).map(|(stored, _)| stored),
            Weights::Safetensors(shards) => shards.stored(name).map(|(stored, _)| stored),
            Weights::Start { .. } => failed(FailureKind::BadModel, format!("there is no checkpoint with `{name}`")),
        }
    }

    /// A tensor of the files.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let (stored, found) = match &self.weights {
            Weights::Gguf(file) => file.stored(name, &self.config)?,
            Weights::Safetensors(shards) => shards.stored(name)?,
            Weights::Start { seed } => {
                let values = start_values(name, shape.iter().product(), self.config.layers, *seed);
                (Stored::f32(values, shape.last().copied().unwrap_or(1)), shape.to_vec())
            }
        };
        if found != shape {
            let message = format!("tensor `{name}` is {found:?}; the configuration asks for {shape:?}");
            return failed(FailureKind::BadModel, message);
        }
        Ok(stored)
    }
}

fn find_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    let what = || format!("cannot read the model folder {}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).or_fail(FailureKind::BadModel, what())? {
        let path = entry.or_fail(FailureKind::BadModel, what())?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        many => failed(FailureKind::BadModel, format!("the model folder holds {many} .gguf files; one is expected")),
    }
}

#[cfg(test)]
mod tests;
