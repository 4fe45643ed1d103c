//! GGUF files: llama.cpp's one-file models, quantized or not.

pub mod names;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use drydock_spec::FailureKind::{BadModel, UnsupportedModel};

use super::config::{Asked, Config};
use super::stored::Stored;
use super::tokenizer::{BpeParts, Text};
use crate::blocks::BlockKind;
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

    /// The tensor that Hugging Face calls `name`, and its shape. Matrices stay in the form that the file has; vectors are
    /// widened to f32.
    pub(super) fn stored(&mut self, name: &str, config: &Config) -> Result<(Stored, Vec<usize>)> {
        let gguf = gguf_name(name, &config.features);
        let Some(gguf) = gguf.filter(|gguf| self.content.tensor_infos.contains_key(gguf)) else {
            return failed(BadModel, format!("tensor `{name}` is missing from the GGUF file"));
        };
        let what = format!("tensor `{gguf}`");
        let tensor = self.content.tensor(&mut self.reader, &gguf, &Device::Cpu).or_fail(BadModel, &what)?;
        let (shape, change) = (tensor.shape().dims().to_vec(), change(name, config));
        let kind = kind(tensor.dtype()).filter(|_| shape.len() == 2 && !matches!(change, Change::Offset(_)));
        if let (Some(kind), &[rows, width]) = (kind, &shape[..]) {
            let bytes = tensor.data().or_fail(BadModel, &what)?;
            let bytes = match change {
                Change::SideBySide(heads) => halves_apart(&bytes, rows, heads),
                _ => bytes.into_owned(),
            };
            return Ok((Stored::blocks(kind, bytes, width), shape));
        }
        let values = tensor.dequantize(&Device::Cpu).and_then(|values| values.flatten_all()?.to_vec1());
        let values: Vec<f32> = values.or_fail(BadModel, &what)?;
        let values = match change {
            Change::Nothing => values,
            Change::SideBySide(heads) => halves_apart(&values, shape[0], heads),
            Change::Offset(offset) => values.into_iter().map(|value| value - offset).collect(),
        };
        Ok((Stored::f32(values, shape.last().copied().unwrap_or(1)), shape))
    }
}

/// The form of a matrix that stays in its file's blocks; f32 has no need of them.
fn kind(dtype: GgmlDType) -> Option<BlockKind> {
    match dtype {
        GgmlDType::F32 | GgmlDType::Q8_1 | GgmlDType::Q8K => None,
        GgmlDType::F16 => Some(BlockKind::F16),
        GgmlDType::BF16 => Some(BlockKind::Bf16),
        GgmlDType::Q4_0 => Some(BlockKind::Q4_0),
        GgmlDType::Q4_1 => Some(BlockKind::Q4_1),
        GgmlDType::Q5_0 => Some(BlockKind::Q5_0),
        GgmlDType::Q5_1 => Some(BlockKind::Q5_1),
        GgmlDType::Q8_0 => Some(BlockKind::Q8_0),
        GgmlDType::Q2K => Some(BlockKind::Q2K),
        GgmlDType::Q3K => Some(BlockKind::Q3K),
        GgmlDType::Q4K => Some(BlockKind::Q4K),
        GgmlDType::Q5K => Some(BlockKind::Q5K),
        GgmlDType::Q6K => Some(BlockKind::Q6K),
    }
}

/// GGUF lays the two values that turn together side by side, Hugging Face half a head apart. What moves are whole rows,
/// in whatever form they are; of a bias, single values.
fn halves_apart<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
    let (row, half) = (values.len() / rows, rows / heads / 2);
    let from = |index: usize| {
        let (head, place) = (index / (2 * half), index % (2 * half));
        2 * half * head + 2 * (place % half) + place / half
    };
    (0..rows).flat_map(|index| &values[from(index) * row..(from(index) + 1) * row]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_turn_together_are_moved_half_a_head_apart() {
        let rows: Vec<u32> = (0..12).collect();
        assert_eq!(halves_apart(&rows, 12, 2), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(halves_apart(b"aabbccddeeff", 6, 1), b"aacceebbddff");
    }
}
