//! `config.json` of a Hugging Face folder.

use drydock_gpu::Decoder;
use drydock_spec::model::{ACTIVATIONS, Architecture, ROPE_SCALINGS};
use serde::Deserialize;
use serde_json::Value;

use super::tensors::{Biases, HUGGING_FACE, Layout, Tensors};
use super::{Unusable, architecture, tokenizer};

/// `config.json`, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Config {
    architecture: Architecture,
    fields: Fields,
}

#[derive(Debug, Clone, Deserialize)]
struct Fields {
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: Option<u32>,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    vocab_size: Option<u32>,
    max_position_embeddings: Option<u32>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_bidirectional_attention: Option<bool>,
    rope_scaling: Option<Rope>,
    /// What Transformers 5 writes instead.
    rope_parameters: Option<Rope>,
    /// The tokens that end texts, one or several.
    #[serde(default)]
    eos_token_id: Value,
}

#[derive(Debug, Clone, Deserialize)]
struct Rope {
    rope_type: Option<String>,
    /// Its older name; some files have both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    /// Gemma 3 has one for each kind of layer.
    full_attention: Option<Box<Rope>>,
}

impl Config {
    /// Reads `config.json`; refuses what the worker has no arithmetic for.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Unusable> {
        let mut json: Value = serde_json::from_slice(text)
            .map_err(|error| Unusable::damaged(format!("not JSON: {error}"), "download the file again"))?;
        // The architecture first: other architectures lack fields, and that is not what is wrong with them.
        let name = json.get("model_type").and_then(Value::as_str).unwrap_or("(no model_type)");
        let architecture = architecture::named(name)?;
        if let Some(quantized) = json.get("quantization_config").filter(|value| !value.is_null()) {
            let method = quantized.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
            let problem = format!("the weights are quantized with {method}");
            return Err(Unusable::unsupported(problem, "take the model it was quantized from, or a GGUF file"));
        }
        let sense = |name: &str| json.get(name).is_some_and(|value| !value.is_null());
        if let Some(other) = ["vision_config", "audio_config"].into_iter().find(|name| sense(name)) {
            let problem = format!("the model is multimodal (it has a `{other}`); models that only read text are known");
            return Err(Unusable::unsupported(problem, "take a text-only model of the family"));
        }
        if let Some(text) = json.get_mut("text_config") {
            json = text.take();
        }
        let fields: Fields = serde_json::from_value(json)
            .map_err(|error| Unusable::damaged(error.to_string(), "take the file from the model's own repository"))?;
        let config = Self { architecture, fields };
        config.check_whole()?;
        config.check_arithmetic()?;
        architecture::check_decoder(&config.decoder(true))?;
        Ok(config)
    }

    /// Refuses a file that leaves out what Transformers could not guess either.
    fn check_whole(&self) -> Result<(), Unusable> {
        let Fields { num_attention_heads, vocab_size, max_position_embeddings, .. } = self.fields;
        let needed = [
            ("num_attention_heads", num_attention_heads.or(self.architecture.usual_heads().map(|[heads, _]| heads))),
            ("vocab_size", vocab_size.or(self.usual_vocabulary())),
            ("max_position_embeddings", max_position_embeddings.or(self.usual_positions())),
        ];
        match needed.into_iter().find(|(_, value)| value.is_none()) {
            None => Ok(()),
            Some((name, _)) => {
                let problem = format!("missing field `{name}`");
                Err(Unusable::damaged(problem, "take the file from the model's own repository"))
            }
        }
    }

    fn check_arithmetic(&self) -> Result<(), Unusable> {
        let unsupported = |problem: String| Err(Unusable::unsupported(problem, "choose another model"));
        let fields = &self.fields;
        let activation = if self.architecture.is_gemma() { &fields.hidden_activation } else { &fields.hidden_act };
        if let Some(other) = activation.as_deref().filter(|name| !ACTIVATIONS.contains(name)) {
            return unsupported(format!("the activation is `{other}`; known are {}", ACTIVATIONS.join(", ")));
        }
        if self.architecture.is_gemma() && fields.use_bidirectional_attention == Some(true) {
            return unsupported("the model reads in both directions; models that read forwards are known".into());
        }
        let ropes = [&fields.rope_parameters, &fields.rope_scaling].into_iter().flatten();
        let kinds = ropes.filter_map(|rope| {
            let rope = rope.full_attention.as_deref().unwrap_or(rope);
            rope.rope_type.as_deref().or(rope.older_type.as_deref())
        });
        // The first Phi-3 files call LongRoPE by the name of its forerunner.
        let known =
            |kind: &str| ROPE_SCALINGS.contains(&kind) || kind == "su" && self.architecture == Architecture::Phi3;
        match kinds.into_iter().find(|kind| !known(kind)) {
            Some(other) => {
                unsupported(format!("the rope scaling is `{other}`; known are {}", ROPE_SCALINGS.join(", ")))
            }
            None => Ok(()),
        }
    }

    fn usual_vocabulary(&self) -> Option<u32> {
        self.architecture.usual_vocabulary_and_positions().map(|[vocabulary, _]| vocabulary)
    }

    fn usual_positions(&self) -> Option<u32> {
        self.architecture.usual_vocabulary_and_positions().map(|[_, positions]| positions)
    }

    /// What a layer's tensors are.
    pub(super) fn layout(&self) -> Layout {
        let attention = self.architecture.may_have_attention_bias() && self.fields.attention_bias == Some(true);
        let biases = Biases {
            query_key_value: attention || self.architecture.query_key_value_bias(),
            output: attention,
            mlp: self.architecture == Architecture::Llama && self.fields.mlp_bias == Some(true),
        };
        Layout { architecture: self.architecture, biases }
    }

    fn decoder(&self, tied: bool) -> Decoder {
        let fields = &self.fields;
        let usual = self.architecture.usual_heads();
        let heads = fields.num_attention_heads.or(usual.map(|[heads, _]| heads)).unwrap_or_default();
        let usual_dim = || self.architecture.usual_head_dim().unwrap_or(fields.hidden_size / heads.max(1));
        let decoder = Decoder {
            layers: fields.num_hidden_layers,
            hidden: fields.hidden_size,
            heads,
            kv_heads: fields.num_key_value_heads.or(usual.map(|[_, answering]| answering)).unwrap_or(heads),
            head_dim: fields.head_dim.unwrap_or_else(usual_dim),
            ffn: fields.intermediate_size,
            vocabulary: fields.vocab_size.or(self.usual_vocabulary()).unwrap_or_default(),
            tied,
            layer_vectors: 0,
            norms_after: self.architecture.norms_after(),
        };
        Decoder { layer_vectors: self.layout().layer_vectors(&decoder), ..decoder }
    }

    /// The decoder, before its weights are known.
    pub(super) fn announced(&self) -> Decoder {
        self.decoder(self.fields.tie_word_embeddings.unwrap_or(self.architecture.is_gemma()))
    }

    /// The decoder with these weights. A configuration that leaves the tie open is settled by the weights.
    pub(super) fn with(&self, tensors: &Tensors) -> Decoder {
        let tied = self.fields.tie_word_embeddings;
        self.decoder(tied.unwrap_or_else(|| !tensors.contains_key(&HUGGING_FACE.head())))
    }

    /// The tokens that end texts.
    pub(super) fn ends(&self) -> Vec<u64> {
        tokenizer::ids(&self.fields.eos_token_id)
    }

    pub(super) fn architecture(&self) -> String {
        self.architecture.name().to_owned()
    }

    pub(super) fn max_positions(&self) -> u32 {
        self.fields.max_position_embeddings.or(self.usual_positions()).unwrap_or_default()
    }
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
        let llama = config(json!({"sliding_window": 128})).unwrap();
        assert_eq!(llama.decoder(false).head_dim, 16);
        assert_eq!(llama.max_positions(), 256, "a window is no limit");
        let gemma = json!({"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2,
            "intermediate_size": 128});
        let gemma = Config::parse(gemma.to_string().as_bytes()).unwrap();
        let Decoder { heads, kv_heads, head_dim, vocabulary, tied, layer_vectors, .. } = gemma.announced();
        assert_eq!((heads, kv_heads, head_dim, vocabulary, tied), (8, 4, 256, 262_208, true));
        assert_eq!((layer_vectors, gemma.architecture().as_str()), (2 * 64 + 2 * 256, "gemma3"));
        let qwen = config(json!({"model_type": "qwen2"})).unwrap();
        assert_eq!(qwen.announced().layer_vectors, 64 + 32 + 32);
    }

    #[derive(Deserialize)]
    struct Published {
        name: String,
        published: Value,
        /// The same as Transformers 5 writes it.
        rewritten: Value,
        parameters: u64,
        max_positions: u32,
    }

    /// Against what Transformers counts (`tests/reference/make_configs.py`).
    #[test]
    fn published_files_are_planned_with_the_parameters_that_they_have() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/configs.json");
        let cases: Vec<Published> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in cases {
            let [old, new] =
                [&case.published, &case.rewritten].map(|json| Config::parse(json.to_string().as_bytes()).unwrap());
            assert_eq!(old.announced().parameters(), case.parameters, "{}", case.name);
            assert_eq!((old.announced(), old.max_positions()), (new.announced(), case.max_positions), "{}", case.name);
            let mut whole = json!({"model_type": "gemma3", "text_config": case.published, "vision_config": {}});
            if case.name == "gemma-3-4b-it" {
                let refusal = Config::parse(whole.to_string().as_bytes()).unwrap_err().to_string();
                assert!(refusal.contains("multimodal (it has a `vision_config`)"), "{refusal}");
                whole["vision_config"] = Value::Null;
                assert_eq!(Config::parse(whole.to_string().as_bytes()).unwrap().announced(), old.announced());
            }
        }
    }

    #[test]
    fn what_the_worker_does_not_have_is_refused_by_name() {
        for (change, said) in [
            (json!({"model_type": "mamba"}), "the architecture is `mamba`; known are llama, mistral, qwen2"),
            (json!({"hidden_act": "gelu"}), "the activation is `gelu`"),
            (json!({"rope_scaling": {"type": "axial", "factor": 4}}), "the rope scaling is `axial`"),
            (json!({"model_type": "gemma3", "vision_config": {}}), "multimodal (it has a `vision_config`)"),
            (json!({"model_type": "gemma2", "use_bidirectional_attention": true}), "both directions"),
            (json!({"vocab_size": null}), "missing field `vocab_size`"),
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
}
