//! A configuration as Hugging Face's `config.json`, for models that have none.

use drydock_spec::FailureKind::UnsupportedModel;
use drydock_spec::model::Architecture;
use serde_json::{Value, json};

use super::architecture::architecture;
use super::{Config, RopeConfig, RopeScaling};
use crate::ending::{Result, failed};
use crate::kernels::gated::Activation;
use crate::model::describe::one_or_many;

/// The stretches of Llama 3.1 and its successors. A GGUF file holds what comes of them only.
const LLAMA3_FACTORS: [f64; 4] = [8.0, 32.0, 16.0, 4.0];

/// Transformers' class for a model.
pub(in crate::model) fn class(config: &Config) -> Result<&'static str> {
    Ok(match architecture(&config.architecture)? {
        Architecture::Llama => "LlamaForCausalLM",
        Architecture::Mistral => "MistralForCausalLM",
        Architecture::Qwen2 => "Qwen2ForCausalLM",
        Architecture::Qwen3 => "Qwen3ForCausalLM",
        Architecture::Gemma2 => "Gemma2ForCausalLM",
        Architecture::Gemma3 => "Gemma3ForCausalLM",
        Architecture::Phi3 => "Phi3ForCausalLM",
    })
}

impl Config {
    /// `config.json`; [`Config::from_hf`] makes the same configuration of it.
    pub fn to_hf(&self, bos: Option<u32>) -> Result<Value> {
        let architecture = architecture(&self.architecture)?;
        let mut json = json!({
            "architectures": [class(self)?],
            "model_type": if architecture == Architecture::Gemma3 { "gemma3_text" } else { architecture.name() },
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads.query,
            "num_key_value_heads": self.heads.key_value,
            "head_dim": self.heads.dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": decimal(self.norm_epsilon),
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied,
            "bos_token_id": bos,
            "eos_token_id": if self.eos.is_empty() { Value::Null } else { one_or_many(&self.eos) },
            // Transformers' own default for Phi-3 lies outside of smaller vocabularies.
            "pad_token_id": null,
        });
        let activation = match self.features.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        };
        json[architecture.activation_field()] = activation.into();
        if architecture.may_have_attention_bias() {
            json["attention_bias"] = self.features.biases.query_key_value.into();
        }
        if architecture == Architecture::Llama {
            json["mlp_bias"] = self.features.biases.mlp.into();
        }
        if architecture.is_gemma() {
            let scalar = f64::from(self.features.attention_scale).powi(-2);
            json["query_pre_attn_scalar"] = json!((scalar * 1000.0).round() / 1000.0);
            json["final_logit_softcapping"] = self.features.logit_softcap.map(decimal).into();
        }
        if architecture == Architecture::Gemma2 {
            json["attn_logit_softcapping"] = self.features.attention_softcap.map(decimal).into();
        }
        if let (Architecture::Gemma3, Some(local)) = (architecture, &self.window_rope) {
            json["rope_local_base_freq"] = local.theta.into();
        }
        self.write_windows(architecture, &mut json);
        self.write_scaling(architecture, &mut json)?;
        Ok(json)
    }

    fn write_windows(&self, architecture: Architecture, json: &mut Value) {
        let window = self.windows.iter().flatten().next();
        if architecture == Architecture::Llama {
            return;
        }
        json["sliding_window"] = json!(window);
        let qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3);
        if qwen {
            json["use_sliding_window"] = window.is_some().into();
        }
        if qwen || architecture.is_gemma() {
            let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
            json["layer_types"] = self.windows.iter().map(kind).collect();
        }
    }

    fn write_scaling(&self, architecture: Architecture, json: &mut Value) -> Result<()> {
        let scaling = match &self.rope.scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_positions}),
            RopeScaling::Factors(factors) => match self.llama3_of(factors) {
                Some(factor) => json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
                None => {
                    let message =
                        "the GGUF's rope factors are not Llama 3's, and config.json has no other form for them";
                    return failed(UnsupportedModel, message);
                }
            },
            RopeScaling::Yarn(yarn) => json!({
                "rope_type": "yarn", "factor": yarn.factor, "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow,
                "attention_factor": yarn.attention_factor, "truncate": yarn.truncate,
                "original_max_position_embeddings": yarn.original_positions}),
            RopeScaling::Long { short, long, original_positions, attention_factor } => {
                json["original_max_position_embeddings"] = json!(original_positions);
                let [short, long] = [short, long].map(|list| list.iter().copied().map(decimal).collect::<Vec<_>>());
                json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
                    "attention_factor": attention_factor})
            }
        };
        if !scaling.is_null() {
            json["rope_scaling"] = scaling;
        }
        if architecture == Architecture::Phi3 {
            json["partial_rotary_factor"] = json!(self.rope.dim as f64 / self.heads.dim as f64);
        }
        Ok(())
    }

    /// The factor of Llama 3's scaling that these divisors come from.
    fn llama3_of(&self, factors: &[f32]) -> Option<f64> {
        LLAMA3_FACTORS.into_iter().find(|&factor| {
            let with = |scaling| RopeConfig { scaling, ..self.rope.clone() }.frequencies().inverse;
            let scaling =
                RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_positions: 8192.0 };
            let (found, wanted) = (with(RopeScaling::Factors(factors.to_vec())), with(scaling));
            found.iter().zip(&wanted).all(|(found, wanted)| (found / wanted - 1.0).abs() < 1e-4)
        })
    }
}

/// The number that people write for an f32: 1e-5, not 9.99999974e-6.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(kind: &str) -> Value {
        json!({"model_type": kind, "hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "eos_token_id": [2, 3], "sliding_window": 4, "head_dim": 16})
    }

    #[test]
    fn what_is_written_is_read_again() {
        let changes = [
            ("llama", json!({"attention_bias": true, "eos_token_id": 2})),
            (
                "llama",
                json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}}),
            ),
            ("llama", json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 5e5})),
            ("mistral", json!({"sliding_window": null})),
            ("qwen2", json!({"use_sliding_window": true, "max_window_layers": 3})),
            ("qwen3", json!({"tie_word_embeddings": true})),
            ("gemma2", json!({"query_pre_attn_scalar": 144, "attn_logit_softcapping": null})),
            (
                "gemma3_text",
                json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 7e3}),
            ),
            (
                "phi3",
                json!({"partial_rotary_factor": 0.5, "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
                    "long_factor": [1.0, 2.1, 3.2, 4.3]}}),
            ),
        ];
        for (kind, changes) in changes {
            let mut json = plain(kind);
            changes.as_object().unwrap().iter().for_each(|(name, value)| json[name] = value.clone());
            let config = Config::from_hf(&json).unwrap();
            assert_eq!(Config::from_hf(&config.to_hf(Some(1)).unwrap()).unwrap(), config, "{kind}");
        }
    }

    #[test]
    fn the_stretch_of_llama_3_is_told_by_its_factors() {
        let mut config = Config::from_hf(&plain("llama")).unwrap();
        let plainly = config.rope.frequencies().inverse;
        config.rope.scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        };
        let stretched = config.clone();
        let divisors = plainly.iter().zip(config.rope.frequencies().inverse).map(|(plain, scaled)| plain / scaled);
        config.rope.scaling = RopeScaling::Factors(divisors.collect());
        assert_eq!(Config::from_hf(&config.to_hf(None).unwrap()).unwrap(), stretched);
        config.rope.scaling = RopeScaling::Factors(vec![3.0; 8]);
        assert!(config.to_hf(None).is_err());
    }
}
