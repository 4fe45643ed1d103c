//! GGUF files: llama.cpp's one-file models, quantized or not.

pub mod names;

use std::path::Path;

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::model::TOKENIZERS;

use super::config::{Asked, Config};
use super::stored::Stored;
use super::tokenizer::Text;
use super::tokenizer::gguf::{GgufTokenizer, Method};
use crate::blocks::BlockKind;
use crate::ending::{Result, failed};
use crate::forget;
use crate::gguf::{Metadata, Value};
use names::{Change, change, gguf_name};

/// A file, read as a decoder's.
pub(super) struct GgufFile(pub(super) crate::gguf::GgufFile);

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        crate::gguf::GgufFile::open(path).map(Self)
    }

    fn metadata(&self) -> &Metadata {
        self.0.metadata()
    }

    pub(super) fn config(&self) -> Result<Config> {
        let shape = |tensor: &str| self.0.tensor(tensor).map(|place| place.shape.clone());
        let values = |tensor: &str| match self.0.tensor(tensor) {
            Some(place) => Ok(self.0.values(place)),
            None => failed(BadModel, format!("tensor `{tensor}` is missing from the GGUF file")),
        };
        Config::from_gguf(&Asked { metadata: self.metadata(), shape: &shape, values: &values })
    }

    pub(super) fn chat_template(&self) -> Option<String> {
        self.metadata().text("tokenizer.chat_template").map(str::to_owned)
    }

    /// The tokenizer, rebuilt from the metadata.
    pub(super) fn text(&self) -> Result<Text> {
        let metadata = self.metadata();
        let id = |name: &str| {
            metadata.count(&format!("tokenizer.ggml.{name}_token_id")).and_then(|id| u32::try_from(id).ok())
        };
        let string = |value: &Value| value.as_text().map(str::to_owned);
        let method = match metadata.text("tokenizer.ggml.model") {
            Some("gpt2") => Method::Bytes {
                pre_tokenizer: metadata.text("tokenizer.ggml.pre").unwrap_or("default").to_owned(),
                merges: metadata.list("tokenizer.ggml.merges", string)?,
            },
            Some("llama") => Method::Pieces {
                scores: metadata.list("tokenizer.ggml.scores", |score| score.as_number().map(|score| score as f32))?,
                space_prefix: metadata.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true),
            },
            other => {
                let kinds = TOKENIZERS.join(", ");
                let message =
                    format!("the GGUF's tokenizer is of the kind `{}`; known are: {kinds}", other.unwrap_or("(none)"));
                let failure = drydock_spec::Failure::new(UnsupportedModel, message);
                return Err(failure.with_hint("put the model's tokenizer.json beside the .gguf file").into());
            }
        };
        GgufTokenizer {
            method,
            tokens: metadata.list("tokenizer.ggml.tokens", string)?,
            kinds: metadata.list("tokenizer.ggml.token_type", Value::as_whole)?,
            bos: id("bos"),
            eos: id("eos"),
            eot: id("eot"),
            pad: id("padding"),
            unknown: id("unknown"),
            add_bos: metadata.flag("tokenizer.ggml.add_bos_token"),
            chat_template: self.chat_template(),
        }
        .build()
    }

    pub(super) fn has(&self, name: &str, config: &Config) -> bool {
        gguf_name(name, &config.features).is_some_and(|name| self.0.tensor(&name).is_some())
    }

    /// The tensor that Hugging Face calls `name`, and its shape. Matrices stay in the form that the file has, and where
    /// they lie if their rows are in order; vectors are widened to f32.
    pub(super) fn stored(&self, name: &str, config: &Config) -> Result<(Stored, Vec<usize>)> {
        let gguf = gguf_name(name, &config.features);
        let Some(place) = gguf.and_then(|gguf| self.0.tensor(&gguf)) else {
            return failed(BadModel, format!("tensor `{name}` is missing from the GGUF file"));
        };
        let (shape, width) = (place.shape.clone(), place.shape.last().copied().unwrap_or(1));
        let change = change(name, config);
        let stored = match (place.kind, change) {
            (BlockKind::F32, Change::Nothing) => Stored::mapped_f32(self.0.map(), place.bytes.clone(), width),
            (kind, Change::Nothing) if shape.len() == 2 => {
                Stored::mapped_blocks(kind, self.0.map(), place.bytes.clone(), width)
            }
            (kind, Change::SideBySide(heads)) if shape.len() == 2 && kind != BlockKind::F32 => {
                let blocks = Stored::blocks(kind, halves_apart(self.0.bytes(place), shape[0], heads)?, width);
                forget::pages(self.0.map(), place.bytes.clone());
                blocks
            }
            (_, Change::Nothing) => Stored::f32(self.0.values(place), width),
            (_, Change::SideBySide(heads)) => Stored::f32(halves_apart(&self.0.values(place), shape[0], heads)?, width),
            (_, Change::Offset(offset)) => {
                Stored::f32(self.0.values(place).into_iter().map(|value| value - offset).collect(), width)
            }
        };
        Ok((stored, shape))
    }
}

/// GGUF lays the two values that turn together side by side, Hugging Face half a head apart. What moves are whole rows,
/// in whatever form they are; of a bias, single values.
fn halves_apart<T: Copy>(values: &[T], rows: usize, heads: usize) -> Result<Vec<T>> {
    if !rows.is_multiple_of(2 * heads) {
        return failed(BadModel, format!("{rows} rows of a projection do not fit {heads} heads"));
    }
    let (row, half) = (values.len() / rows, rows / heads / 2);
    let from = |index: usize| {
        let (head, place) = (index / (2 * half), index % (2 * half));
        2 * half * head + 2 * (place % half) + place / half
    };
    // At its size from the start: what a vector leaves behind as it grows stays in the heap between the weights.
    let mut apart = Vec::with_capacity(values.len());
    (0..rows).for_each(|index| apart.extend_from_slice(&values[from(index) * row..(from(index) + 1) * row]));
    Ok(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_turn_together_are_moved_half_a_head_apart() {
        let rows: Vec<u32> = (0..12).collect();
        assert_eq!(halves_apart(&rows, 12, 2).unwrap(), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(halves_apart(b"aabbccddeeff", 6, 1).unwrap(), b"aacceebbddff");
        assert!(halves_apart(&rows, 12, 5).is_err());
    }
}
