//! What a Hugging Face folder says about a model beside its weights.

use serde_json::{Map, Value, json};

use super::tokenizer::Text;
use super::{ModelFiles, Weights, hf};
use crate::ending::Result;
use crate::save::shards::SavedAs;

/// The contents of `config.json` and `generation_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    config: Value,
    pub generation: Value,
}

impl ModelFiles {
    /// Whatever a folder's own files say is kept, known here or not; a GGUF's metadata is translated.
    pub fn description(&self, text: &Text) -> Result<Description> {
        match &self.weights {
            Weights::Gguf(_) | Weights::Start { .. } => {
                Ok(Description { config: self.config.to_hf(text.bos_id())?, generation: generation(text) })
            }
            Weights::Safetensors(_) => {
                let mut config = hf::read_json(&self.folder.join("config.json"))?;
                // What is left of a multimodal model is a text model.
                if let Some(text) = config.get_mut("text_config").map(Value::take) {
                    config = text;
                    config["architectures"] = json!([super::config::class(&self.config)?]);
                }
                let path = self.folder.join("generation_config.json");
                let generation = if path.exists() { hf::read_json(&path)? } else { generation(text) };
                Ok(Description { config, generation })
            }
        }
    }
}

/// Where texts begin and answers end.
fn generation(text: &Text) -> Value {
    let mut generation = Map::new();
    generation.insert("_from_model_config".into(), true.into());
    if let Some(bos) = text.bos_id() {
        generation.insert("bos_token_id".into(), bos.into());
    }
    if !text.stops.is_empty() {
        generation.insert("eos_token_id".into(), one_or_many(&text.stops));
    }
    Value::Object(generation)
}

/// A single token as a number, several as a list.
pub(super) fn one_or_many(ids: &[u32]) -> Value {
    match ids {
        [one] => json!(one),
        many => json!(many),
    }
}

impl Description {
    /// `config.json` for weights of this kind.
    pub fn config(&self, tied: bool, dtype: SavedAs) -> Value {
        let mut config = self.config.clone();
        // Transformers 5 calls it `dtype`, and reads the older name too.
        let name = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        config[name] = dtype.torch_name().into();
        config["tie_word_embeddings"] = tied.into();
        config
    }

    /// What the weights were saved in before, where that is said.
    pub fn dtype(&self) -> Option<SavedAs> {
        let name = self.config.get("dtype").or_else(|| self.config.get("torch_dtype"))?.as_str()?;
        [SavedAs::F32, SavedAs::F16, SavedAs::Bf16].into_iter().find(|dtype| dtype.torch_name() == name)
    }
}
