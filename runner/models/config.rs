//! The text files of a Hugging Face folder: `config.json` and the tokenizer's.

use std::collections::BTreeMap;

use drydock_gpu::Decoder;
use serde::Deserialize;
use serde_json::Value;

use super::tensors::{HUGGING_FACE, Tensors};
use super::{Unusable, architecture};

/// `config.json`, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    model_type: Option<String>,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    vocab_size: u32,
    max_position_embeddings: u32,
    sliding_window: Option<u32>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    rope_scaling: Option<Rope>,
    /// What Transformers 5 writes instead.
    rope_parameters: Option<Rope>,
}

#[derive(Debug, Clone, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

impl Config {
    /// Reads `config.json`; refuses what the worker has no arithmetic for.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Unusable> {
        let json: Value = serde_json::from_slice(text)
            .map_err(|error| Unusable::damaged(format!("not JSON: {error}"), "download the file again"))?;
        // The architecture first: other architectures lack fields, and that is not what is wrong with them.
        let name = json.get("model_type").and_then(Value::as_str).unwrap_or("(no model_type)");
        architecture::check(name)?;
        if let Some(quantized) = json.get("quantization_config").filter(|value| !value.is_null()) {
            let method = quantized.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
            let problem = format!("the weights are quantized with {method}");
            return Err(Unusable::unsupported(problem, "take the model it was quantized from, or a GGUF file"));
        }
        let config: Self = serde_json::from_value(json)
            .map_err(|error| Unusable::damaged(error.to_string(), "take the file from the model's own repository"))?;
        config.check_arithmetic()?;
        architecture::check_decoder(&config.decoder(true))?;
        Ok(config)
    }

    fn check_arithmetic(&self) -> Result<(), Unusable> {
        let unsupported = |problem: String| Err(Unusable::unsupported(problem, "choose another model"));
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return unsupported(format!("the activation is `{other}`; `silu` is known")),
        }
        if self.attention_bias || self.mlp_bias {
            return unsupported("the projections have biases; models without are known".into());
        }
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        match rope.and_then(|rope| rope.rope_type.as_deref()) {
            None | Some("default" | "linear" | "llama3") => Ok(()),
            Some(other) => unsupported(format!("the rope scaling is `{other}`; default, linear and llama3 are known")),
        }
    }

    fn decoder(&self, tied: bool) -> Decoder {
        let heads = self.num_attention_heads;
        Decoder {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
            ffn: self.intermediate_size,
            vocabulary: self.vocab_size,
            tied,
        }
    }

    /// The decoder, before its weights are known.
    pub(super) fn announced(&self) -> Decoder {
        self.decoder(self.tie_word_embeddings.unwrap_or(false))
    }

    /// The decoder with these weights. A configuration that leaves the tie open is settled by the weights.
    pub(super) fn with(&self, tensors: &Tensors) -> Decoder {
        self.decoder(self.tie_word_embeddings.unwrap_or_else(|| !tensors.contains_key(&HUGGING_FACE.head())))
    }

    pub(super) fn architecture(&self) -> String {
        self.model_type.clone().unwrap_or_default()
    }

    /// Within its window a sliding window changes nothing.
    pub(super) fn max_positions(&self) -> u32 {
        self.max_position_embeddings.min(self.sliding_window.unwrap_or(u32::MAX))
    }
}

/// `tokenizer.json`, as far as its ids go.
#[derive(Deserialize)]
struct Tokenizer {
    model: Vocabulary,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
}

#[derive(Deserialize)]
struct Vocabulary {
    vocab: Ids,
}

/// Ids by token, or, in unigram models, tokens in the order of their ids.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    Named(BTreeMap<String, u64>),
    Listed(Vec<serde::de::IgnoredAny>),
}

/// Refuses a tokenizer whose ids lead beyond the embedding.
pub(super) fn check_tokenizer(text: &[u8], decoder: &Decoder) -> Result<(), Unusable> {
    let tokenizer: Tokenizer = serde_json::from_slice(text).map_err(|error| {
        let next = "save the fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...)";
        Unusable::damaged(format!("not a tokenizer: {error}"), next)
    })?;
    let named = match &tokenizer.model.vocab {
        Ids::Named(ids) => ids.values().max().copied(),
        Ids::Listed(tokens) => (tokens.len() as u64).checked_sub(1),
    };
    let largest = tokenizer.added_tokens.iter().map(|token| token.id).chain(named).max();
    match largest {
        Some(largest) if largest >= u64::from(decoder.vocabulary) => Err(Unusable::damaged(
            format!("token id {largest} lies beyond the model's vocabulary of {}", decoder.vocabulary),
            "take tokenizer and weights from the same model",
        )),
        Some(_) => Ok(()),
        None => Err(Unusable::damaged("no token inside", "take the file from the model's own repository")),
    }
}

/// Whether `tokenizer_config.json` has a chat template; several by name count as well.
pub(super) fn has_chat_template(text: &[u8]) -> Result<bool, Unusable> {
    let json: Value = serde_json::from_slice(text)
        .map_err(|error| Unusable::damaged(format!("not JSON: {error}"), "download the file again"))?;
    Ok(json.get("chat_template").is_some_and(|template| !template.is_null()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(change: Value) -> Result<Config, Unusable> {
        let mut json = json!({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
            "max_position_embeddings": 256});
        for (name, value) in change.as_object().unwrap() {
            json[name] = value.clone();
        }
        Config::parse(json.to_string().as_bytes())
    }

    #[test]
    fn what_is_left_out_has_the_defaults_of_llama() {
        let config = config(json!({"sliding_window": 128})).unwrap();
        assert_eq!(config.decoder(false).head_dim, 16);
        assert_eq!(config.max_positions(), 128);
    }

    #[test]
    fn what_the_worker_does_not_have_is_refused_by_name() {
        for (change, said) in [
            (json!({"model_type": "mamba"}), "the architecture is `mamba`; known are llama, mistral"),
            (json!({"hidden_act": "gelu"}), "the activation is `gelu`"),
            (json!({"attention_bias": true}), "biases"),
            (json!({"rope_scaling": {"type": "yarn", "factor": 4}}), "the rope scaling is `yarn`"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "quantized with gptq"),
            (json!({"num_key_value_heads": 3}), "4 attention heads of size 16 do not go with 3"),
            (json!({"num_attention_heads": 0}), "attention heads = 0"),
            (json!({"hidden_size": 4_000_000_000u32}), "hidden size = 4000000000; 1 to 1048576 is possible"),
            (json!({"hidden_size": "64"}), "invalid type: string"),
        ] {
            let error = config(change).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_tokenizer_that_is_larger_than_the_embedding_is_refused() {
        let decoder = config(json!({})).unwrap().decoder(false);
        let tokenizer = |vocab: Value, added: u64| {
            let json = json!({"model": {"type": "BPE", "vocab": vocab, "merges": []},
                "added_tokens": [{"id": added, "content": "<s>"}]});
            check_tokenizer(json.to_string().as_bytes(), &decoder)
        };
        assert_eq!(tokenizer(json!({"a": 0, "b": 511}), 3), Ok(()));
        assert_eq!(tokenizer(json!([["a", 0.0], ["b", -1.0]]), 3), Ok(()));
        let error = tokenizer(json!({"a": 512}), 3).unwrap_err().to_string();
        assert!(error.starts_with("token id 512 lies beyond the model's vocabulary of 512"), "{error}");
        assert!(tokenizer(json!({"a": 1}), 600).is_err());
        assert!(check_tokenizer(b"{}", &decoder).unwrap_err().to_string().contains("not a tokenizer"));
    }
}
