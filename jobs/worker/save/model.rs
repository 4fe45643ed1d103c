//! A whole model as a Hugging Face folder.

use std::path::Path;

use drydock_spec::FailureKind;
use serde::Serialize;

use super::atomic::write_whole;
use super::shards::{Layout, Outline, SavedAs, ShardError, write_shard};
use crate::ending::{OrFail, Result, write_failed};
use crate::model::decoder::Decoder;
use crate::model::describe::Description;
use crate::model::tokenizer::Text;

/// What a file of weights holds at most, a little less than the 5 GB that Transformers writes.
const MOST_BYTES: u64 = 4_500_000_000;

/// Something that goes on while a model is written.
pub enum Writing<'a> {
    /// So many tensors of so many are written.
    Tensors(u64, u64),
    /// A file of this name and role is complete.
    File(&'a str, &'static str),
}

/// A model and what is said about it.
#[derive(Clone, Copy)]
pub struct WholeModel<'a> {
    pub decoder: &'a Decoder,
    pub description: &'a Description,
    pub text: &'a Text,
}

impl WholeModel<'_> {
    /// Weights, configuration and tokenizer as Transformers loads them; adapters are worked in. Tensors are made one at
    /// a time. `hear` may end it.
    pub fn write(&self, folder: &Path, dtype: SavedAs, mut hear: impl FnMut(Writing<'_>) -> Result<()>) -> Result<()> {
        let merged = self.decoder.merged();
        let tensors: Vec<Outline> =
            merged.iter().map(|tensor| Outline { name: tensor.name.clone(), shape: tensor.shape.clone() }).collect();
        let layout = Layout::new(&tensors, dtype, MOST_BYTES);
        let mut done = 0;
        for (file, shard) in &layout.files {
            let target = folder.join(file);
            let written = write_shard(&target, &tensors, shard, dtype, |index| {
                done += 1;
                hear(Writing::Tensors(done, tensors.len() as u64))?;
                merged[index].values()
            });
            written.map_err(|error| match error {
                ShardError::Io(error) => write_failed(&target, &error),
                ShardError::Values(ending) => ending,
            })?;
            hear(Writing::File(file, "model"))?;
        }
        let mut write = |file: &'static str, role: &'static str, bytes: &[u8]| {
            let target = folder.join(file);
            write_whole(&target, bytes).map_err(|error| write_failed(&target, &error))?;
            hear(Writing::File(file, role))
        };
        if let Some(index) = layout.index(&tensors) {
            write("model.safetensors.index.json", "model_index", &pretty(&index)?)?;
        }
        let Self { decoder, description, text } = self;
        write("config.json", "model_config", &pretty(&description.config(decoder.is_tied(), dtype))?)?;
        write("generation_config.json", "generation_config", &pretty(&description.generation)?)?;
        write("tokenizer.json", "tokenizer", text.tokenizer_json.as_bytes())?;
        write("tokenizer_config.json", "tokenizer", &pretty(&text.tokenizer_config)?)
    }
}

/// JSON for people to read.
pub(super) fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).or_fail(FailureKind::Crashed, "a file of JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}
