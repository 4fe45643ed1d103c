//! GGUF files: llama.cpp's one-file models, quantized or not.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use drydock_spec::FailureKind::{BadModel, UnsupportedModel};

use super::config::{Config, RopeConfig, RopeScaling, check_architecture};
use super::tokenizer::{BpeParts, Text};
use crate::ending::{OrFail, Result, failed};
use crate::kernels::attention::Heads;

pub(super) struct GgufFile {
    reader: BufReader<File>,
    content: Content,
}

/// GGUF's names of a layer's tensors, and Hugging Face's.
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// GGUF's name of a tensor that Hugging Face calls `name`.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?.split_once('.')?;
    let (ours, _) = LAYER_NAMES.iter().find(|(_, theirs)| *theirs == part)?;
    Some(format!("blk.{layer}.{ours}.weight"))
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
struct Metadata<'a>(&'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key)?.to_string().ok().map(String::as_str)
    }

    fn count(&self, key: &str) -> Option<usize> {
        whole(self.0.get(key)?)?.try_into().ok()
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.count(key).ok_or("missing, or not a whole number").or_fail(BadModel, format_args!("GGUF metadata `{key}`"))
    }

    fn number(&self, key: &str) -> Option<f64> {
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
        let metadata = self.metadata();
        let architecture = metadata.text("general.architecture").unwrap_or("(none)");
        check_architecture(architecture)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let (hidden, query) =
            (metadata.required(&key("embedding_length"))?, metadata.required(&key("attention.head_count"))?);
        let head_dim = metadata.count(&key("attention.key_length")).or(metadata.count(&key("rope.dimension_count")));
        let dim = head_dim.unwrap_or(hidden / query.max(1));
        let embedding = self.content.tensor_infos.get("token_embd.weight").map(|info| info.shape.dims());
        let Some(&[vocabulary, _]) = embedding else {
            return failed(BadModel, "the GGUF file has no `token_embd.weight` of two dimensions");
        };
        Config {
            architecture: architecture.to_owned(),
            layers: metadata.required(&key("block_count"))?,
            hidden,
            heads: Heads { query, key_value: metadata.count(&key("attention.head_count_kv")).unwrap_or(query), dim },
            intermediate: metadata.required(&key("feed_forward_length"))?,
            vocabulary,
            norm_epsilon: metadata.number(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5) as f32,
            rope: RopeConfig {
                theta: metadata.number(&key("rope.freq_base")).unwrap_or(10_000.0),
                scaling: self.rope_scaling(architecture, dim)?,
            },
            max_positions: metadata.required(&key("context_length"))?,
            tied: !self.content.tensor_infos.contains_key("output.weight"),
            eos: metadata
                .count("tokenizer.ggml.eos_token_id")
                .into_iter()
                .chain(metadata.count("tokenizer.ggml.eot_token_id"))
                .filter_map(|id| u32::try_from(id).ok())
                .collect(),
        }
        .checked()
    }

    fn rope_scaling(&self, architecture: &str, dim: usize) -> Result<RopeScaling> {
        if self.content.tensor_infos.contains_key("rope_freqs.weight") {
            let mut reader = self.reader.get_ref().try_clone().or_fail(BadModel, "cannot read the GGUF file")?;
            let factors = self.content.tensor(&mut reader, "rope_freqs.weight", &Device::Cpu);
            let factors = factors.and_then(|factors| factors.dequantize(&Device::Cpu)?.to_vec1::<f32>());
            let factors = factors.or_fail(BadModel, "tensor `rope_freqs.weight`")?;
            if factors.len() != dim / 2 {
                return failed(BadModel, format!("`rope_freqs.weight` has {} values, not {}", factors.len(), dim / 2));
            }
            return Ok(RopeScaling::Factors(factors));
        }
        let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
        match self.metadata().text(&key("type")) {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => {
                let factor = self.metadata().number(&key("factor")).filter(|factor| *factor > 0.0);
                Ok(RopeScaling::Linear { factor: factor.unwrap_or(1.0) })
            }
            Some(other) => {
                let message = format!("the model's rope scaling is `{other}`; known are: none, linear, llama3");
                failed(UnsupportedModel, message)
            }
        }
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

    pub(super) fn has(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|name| self.content.tensor_infos.contains_key(&name))
    }

    /// The tensor that Hugging Face calls `name`, in f32. Only this one is held in both forms at a time.
    pub(super) fn tensor(&mut self, name: &str, config: &Config) -> Result<Tensor> {
        let Some(gguf) = gguf_name(name).filter(|gguf| self.content.tensor_infos.contains_key(gguf)) else {
            return failed(BadModel, format!("tensor `{name}` is missing from the GGUF file"));
        };
        let tensor = self.content.tensor(&mut self.reader, &gguf, &Device::Cpu);
        let tensor = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu));
        let tensor = tensor.or_fail(BadModel, format_args!("tensor `{gguf}`"))?;
        let heads = match name.rsplit('.').nth(1) {
            Some("q_proj") => config.heads.query,
            Some("k_proj") => config.heads.key_value,
            _ => return Ok(tensor),
        };
        halves_apart(&tensor, heads, config.heads.dim).or_fail(BadModel, format_args!("tensor `{gguf}`"))
    }
}

/// GGUF lays the two values that turn together side by side, Hugging Face half a head apart.
fn halves_apart(weight: &Tensor, heads: usize, dim: usize) -> candle_core::Result<Tensor> {
    let (rows, width) = weight.dims2()?;
    weight.reshape((heads, dim / 2, 2, width))?.transpose(1, 2)?.contiguous()?.reshape((rows, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names_are_translated() {
        assert_eq!(gguf_name("model.layers.7.mlp.down_proj.weight").unwrap(), "blk.7.ffn_down.weight");
        assert_eq!(gguf_name("lm_head.weight").unwrap(), "output.weight");
        assert_eq!(gguf_name("model.layers.7.mlp.router.weight"), None);
    }

    #[test]
    fn pairs_that_turn_together_are_moved_half_a_head_apart() {
        let rows = Tensor::from_iter(0u32..12, &Device::Cpu).unwrap().reshape((12, 1)).unwrap();
        let moved = halves_apart(&rows, 2, 6).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(moved, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
