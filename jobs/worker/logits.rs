//! The logits of a given text, for comparing with other software.

use std::path::Path;

use drydock_spec::FailureKind::{BadModel, BadOption};

use crate::ending::{OrFail, Result, failed};
use crate::model::ModelFiles;
use crate::model::decoder::Decoder;
use crate::model::lora::SavedAdapter;

/// Writes the logits `[tokens, vocabulary]` in f32 as the tensor `logits`.
pub fn logits(model: &Path, adapter: Option<&Path>, ids: &[u32], out: &Path) -> Result<()> {
    let files = ModelFiles::open(model)?;
    let vocabulary = files.config.vocabulary;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        return failed(BadOption, format!("--ids has {id}; the model knows {vocabulary} tokens"));
    }
    if ids.is_empty() || ids.len() > files.config.max_positions {
        let limit = files.config.max_positions;
        return failed(BadOption, format!("--ids has {} tokens; from 1 to {limit} can be taken", ids.len()));
    }
    let mut decoder = Decoder::load(&files, ids.len(), |_| Ok(()))?;
    if let Some(folder) = adapter {
        SavedAdapter::open(folder)?.load(&mut decoder)?;
    }
    let logits = decoder.logits(ids)?;
    logits.save_safetensors("logits", out).or_fail(BadModel, format_args!("cannot write {}", out.display()))
}
