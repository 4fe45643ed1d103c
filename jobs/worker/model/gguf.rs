//! GGUF files: llama.cpp's one-file models, quantized or not.

pub mod names;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use drydock_spec::FailureKind::{BadModel, UnsupportedModel};

use super::config::{Asked, Config};
use super::tokenizer::{BpeParts, Text};
use crate::ending::{OrFail, Result, failed};
use names::{Change, change, gguf_name};

pub(super) struct GgufFile {
    reader: BufReader<File>,
    content: Content,
}

/// A whole number of any width.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::I8(v) => u64::try_from(*v).ok(),
        Value::I16(v) => u64::try_from(*v).ok(),
        Value::I32(v) => u64::try_from(*v).ok(),
        Value::I64(v) => u64::try_from(*v).ok(),
        other => other.to_u64().ok(),
    }
}

/// The metadata, asked by key.
pub(super) struct Metadata<'a>(&'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key)?.to_string().ok().map(String::as_str)
    }

    pub(super) fn count(&self, key: &str) -> Option<usize> {
        whole(self.0.get(key)?)?.try_into().ok()
    }

    pub(super) fn required(&self, key: &str) -> Result<usize> {
        self.count(key).ok_or("missing, or not a whole number").or_fail(BadModel, format_args!("GGUF metadata `{key}`"))
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match self.0.get(key)? {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            other => whole(other).map(|v| v as f64),
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.to_bool().ok()
    }

    fn list<T>(&self, key: &str, item: impl Fn(&'a Value) -> Option<T>) -> Result<Vec<T>> {
        let items = self.0.get(key).and_then(|value| value.to_vec().ok());
        items
            .and_then(|items| items.iter().map(item).collect())
            .ok_or("missing, or not the list that is expected")
            .or_fail(BadModel, format_args!("GGUF metadata `{key}`"))
    }
}

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file = File::open(path).or_fail(BadModel, format_args!("cannot read {name}"))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let content = Content::read(&mut reader).or_fail(BadModel, format_args!("{name} is no whole GGUF file"))?;
        Ok(Self { reader, content })
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata(&self.content.metadata)
    }

    pub(super) fn config(&self) -> Result<Config> {
        let shape = |tensor: &str| self.content.tensor_infos.get(tensor).map(|info| info.shape.dims().to_vec());
        let values = |tensor: &str| {
            let mut reader = self.reader.get_ref().try_clone().or_fail(BadModel, "cannot read the GGUF file")?;
            let values = self.content.tensor(&mut reader, tensor, &Device::Cpu);
            let values = values.and_then(|values| values.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>());
            values.or_fail(BadModel, format_args!("tensor `{tensor}`"))
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
        match metadata.text("tokenizer.ggml.model") {
            Some("gpt2") => {}
            other => {
                let message = format!(
                    "the GGUF's tokenizer is of the kind `{}`; known is `gpt2` (byte-level BPE)",
                    other.unwrap_or("(none)")
                );
                let failure = drydock_spec::Failure::new(UnsupportedModel, message);
                return Err(failure.with_hint("put the model's tokenizer.json beside the .gguf file").into());
            }
        }
        let string = |value: &Value| value.to_string().ok().cloned();
        BpeParts {
            pre_tokenizer: metadata.text("tokenizer.ggml.pre").unwrap_or("default").to_owned(),
            tokens: metadata.list("tokenizer.ggml.tokens", string)?,
            kinds: metadata.list("tokenizer.ggml.token_type", whole)?,
            merges: metadata.list("tokenizer.ggml.merges", string)?,
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
        gguf_name(name, &config.features).is_some_and(|name| self.content.tensor_infos.contains_key(&name))
    }

    /// The tensor that Hugging Face calls `name`, in f32. Only this one is held in both forms at a time.
    pub(super) fn tensor(&mut self, name: &str, config: &Config) -> Result<Tensor> {
        let gguf = gguf_name(name, &config.features);
        let Some(gguf) = gguf.filter(|gguf| self.content.tensor_infos.contains_key(gguf)) else {
            return failed(BadModel, format!("tensor `{name}` is missing from the GGUF file"));
        };
        let tensor = self.content.tensor(&mut self.reader, &gguf, &Device::Cpu);
        let tensor = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu));
        let tensor = tensor.or_fail(BadModel, format_args!("tensor `{gguf}`"))?;
        let unchanged = match change(name, config) {
            Change::Nothing => Ok(tensor),
            Change::SideBySide(heads) => halves_apart(&tensor, heads),
            Change::Offset(offset) => tensor - f64::from(offset),
        };
        unchanged.or_fail(BadModel, format_args!("tensor `{gguf}`"))
    }
}

/// GGUF lays the two values that turn together side by side, Hugging Face half a head apart; rows of a weight, or the
/// values of a bias.
fn halves_apart(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let rows = weight.dim(0)?;
    let pairs = weight.reshape((heads, rows / heads / 2, 2, ()))?;
    pairs.transpose(1, 2)?.contiguous()?.reshape(weight.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_turn_together_are_moved_half_a_head_apart() {
        for shape in [vec![12, 1], vec![12]] {
            let rows = Tensor::from_iter(0u32..12, &Device::Cpu).unwrap().reshape(shape).unwrap();
            let moved = halves_apart(&rows, 2).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
            assert_eq!(moved, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        }
    }
}
