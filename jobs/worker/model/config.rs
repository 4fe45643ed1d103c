//! What a model is like: the numbers in `config.json` or in a GGUF's metadata.

use drydock_spec::FailureKind;
use drydock_spec::model::ARCHITECTURES;
use serde::Deserialize;
use serde_json::Value;

use crate::ending::{OrFail, Result, failed};
use crate::kernels::attention::Heads;

/// The shape of a Llama-like decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub architecture: String,
    pub layers: usize,
    /// Width of the stream that runs through the layers.
    pub hidden: usize,
    pub heads: Heads,
    /// Width inside the MLP.
    pub intermediate: usize,
    pub vocabulary: usize,
    pub norm_epsilon: f32,
    pub rope: RopeConfig,
    /// Longest row, in tokens.
    pub max_positions: usize,
    /// Whether the head's weight is the embedding's.
    pub tied: bool,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How a model's context was stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions are divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3: slow frequencies are divided by the factor, fast ones kept, those between are blended.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_positions: f64,
    },
    /// Each frequency is divided by a factor of its own, as GGUF files store Llama 3's scaling.
    Factors(Vec<f32>),
}

impl RopeConfig {
    /// Angle per position for each pair of a head's `dim` values.
    pub fn inverse_frequencies(&self, dim: usize) -> Vec<f32> {
        let plain = (0..dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / dim as f64));
        match &self.scaling {
            RopeScaling::None => plain.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, &by)| (f / f64::from(by)) as f32).collect(),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => plain
                .map(|f| {
                    let turns = original_positions * f / std::f64::consts::TAU;
                    let blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    ((1.0 - blend) * f / factor + blend * f) as f32
                })
                .collect(),
        }
    }
}

/// `config.json`, as far as it matters here.
#[derive(Deserialize)]
struct HfConfig {
    model_type: Option<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    /// What Transformers 5 writes instead of the two above.
    rope_parameters: Option<RopeParameters>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize, Default, Clone)]
struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Hugging Face writes a single end token as a number, several as a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl From<OneOrMany> for Vec<u32> {
    fn from(value: OneOrMany) -> Self {
        match value {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// Refuses an architecture that the decoder does not have.
pub fn check_architecture(name: &str) -> Result<()> {
    if ARCHITECTURES.contains(&name) {
        return Ok(());
    }
    let known = ARCHITECTURES.join(", ");
    failed(FailureKind::UnsupportedModel, format!("the model's architecture is `{name}`; known are: {known}"))
}

impl Config {
    /// From a Hugging Face `config.json`.
    pub fn from_hf(json: &Value) -> Result<Self> {
        // The architecture first: other architectures lack fields, and that is not what is wrong with them.
        let name = json.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        check_architecture(name)?;
        let config: HfConfig = serde_json::from_value(json.clone()).or_fail(FailureKind::BadModel, "config.json")?;
        config.check()?;
        let heads = config.num_attention_heads;
        let rope = config.rope()?;
        let window = config.sliding_window.unwrap_or(usize::MAX);
        Self {
            architecture: config.model_type.unwrap_or_default(),
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: Heads {
                query: heads,
                key_value: config.num_key_value_heads.unwrap_or(heads),
                dim: config.head_dim.unwrap_or(config.hidden_size / heads.max(1)),
            },
            intermediate: config.intermediate_size,
            vocabulary: config.vocab_size,
            norm_epsilon: config.rms_norm_eps as f32,
            rope,
            // Within its window a sliding window changes nothing.
            max_positions: config.max_position_embeddings.min(window),
            tied: config.tie_word_embeddings.unwrap_or(false),
            eos: config.eos_token_id.map(Vec::from).unwrap_or_default(),
        }
        .checked()
    }

    /// Refuses numbers that cannot be those of a model; everything after this may divide by them.
    pub(super) fn checked(self) -> Result<Self> {
        let Heads { query, key_value, dim } = self.heads;
        let positive = [
            ("layers", self.layers),
            ("hidden size", self.hidden),
            ("attention heads", query),
            ("key-value heads", key_value),
            ("head dimension", dim),
            ("intermediate size", self.intermediate),
            ("vocabulary", self.vocabulary),
            ("positions", self.max_positions),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return failed(FailureKind::BadModel, format!("the model's configuration has 0 {name}"));
        }
        if !query.is_multiple_of(key_value) || !dim.is_multiple_of(2) {
            let message = format!("{query} attention heads of {dim} values do not fit {key_value} key-value heads");
            return failed(FailureKind::BadModel, message);
        }
        Ok(self)
    }
}

impl HfConfig {
    fn check(&self) -> Result<()> {
        let unsupported = |what: String| failed(FailureKind::UnsupportedModel, what);
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return unsupported(format!("the model's activation is `{other}`; `silu` is known")),
        }
        if self.attention_bias || self.mlp_bias {
            return unsupported("the model's projections have biases; projections without are known".into());
        }
        Ok(())
    }

    fn rope(&self) -> Result<RopeConfig> {
        let parameters = self.rope_parameters.clone().or_else(|| self.rope_scaling.clone()).unwrap_or_default();
        let theta = parameters.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let number = |name: &str, value: Option<f64>| match value {
            Some(value) if value > 0.0 => Ok(value),
            _ => failed(FailureKind::BadModel, format!("config.json: the rope scaling has no `{name}` above 0")),
        };
        let scaling = match parameters.rope_type.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: number("factor", parameters.factor)? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: number("factor", parameters.factor)?,
                low_freq_factor: number("low_freq_factor", parameters.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", parameters.high_freq_factor)?,
                original_positions: number(
                    "original_max_position_embeddings",
                    parameters.original_max_position_embeddings,
                )?,
            },
            Some(other) => {
                let message = format!("the model's rope scaling is `{other}`; known are: default, linear, llama3");
                return failed(FailureKind::UnsupportedModel, message);
            }
        };
        Ok(RopeConfig { theta, scaling })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ending::Ending;

    fn config() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256, "eos_token_id": [2, 3]})
    }

    fn failure(changes: Value) -> drydock_spec::Failure {
        let mut json = config();
        for (name, value) in changes.as_object().unwrap() {
            json[name] = value.clone();
        }
        match Config::from_hf(&json) {
            Err(Ending::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_config_json_leaves_out_has_the_defaults_of_llama() {
        let config = Config::from_hf(&config()).unwrap();
        assert_eq!(config.heads, Heads { query: 4, key_value: 2, dim: 16 });
        assert_eq!(config.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });
        assert_eq!((config.tied, config.eos), (false, vec![2, 3]));
    }

    #[test]
    fn what_the_decoder_does_not_have_is_refused_by_name() {
        let unknown = failure(json!({"model_type": "mamba"}));
        assert_eq!(unknown.kind, FailureKind::UnsupportedModel);
        assert_eq!(unknown.message, "the model's architecture is `mamba`; known are: llama, mistral");
        let yarn = failure(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}));
        assert_eq!(yarn.message, "the model's rope scaling is `yarn`; known are: default, linear, llama3");
        assert_eq!(failure(json!({"attention_bias": true})).kind, FailureKind::UnsupportedModel);
        assert_eq!(failure(json!({"hidden_act": "gelu"})).kind, FailureKind::UnsupportedModel);
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_a_bad_model() {
        assert_eq!(failure(json!({"num_key_value_heads": 3})).kind, FailureKind::BadModel);
        assert_eq!(failure(json!({"num_attention_heads": 0})).kind, FailureKind::BadModel);
        assert!(failure(json!({"hidden_size": "64"})).message.starts_with("config.json: "));
    }
}
