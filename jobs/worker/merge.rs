//! A model and an adapter made into one, by hand.

use std::path::Path;

use crate::ending::Result;
use crate::model::ModelFiles;
use crate::model::decoder::Decoder;
use crate::model::lora::SavedAdapter;
use crate::save::model::WholeModel;
use crate::save::shards::SavedAs;

/// Writes the model, with the adapter worked in where there is one, as a Hugging Face folder. Without `dtype` the
/// weights are saved in what they were saved in before, those of a GGUF file in f16.
pub fn merge(model: &Path, adapter: Option<&Path>, dtype: Option<SavedAs>, out: &Path) -> Result<()> {
    let files = ModelFiles::open(model)?;
    let text = files.text()?;
    // Not a row will pass through it.
    let mut decoder = Decoder::load(&files, 1, |_| Ok(()))?;
    if let Some(folder) = adapter {
        SavedAdapter::open(folder)?.load(&mut decoder)?;
    }
    let description = files.description(&text)?;
    let dtype = dtype.or(description.dtype()).unwrap_or(SavedAs::F16);
    WholeModel { decoder: &decoder, description: &description, text: &text }.write(out, dtype, |_| Ok(()))
}
