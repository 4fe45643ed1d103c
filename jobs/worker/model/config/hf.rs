//! `config.json`, as Hugging Face's Transformers reads it: what a file leaves out has the default of its architecture.

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::model::{ACTIVATIONS, Architecture, ROPE_SCALINGS};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::architecture::{self, window_pattern};
use super::rope::{Yarn, long_sharpening};
use super::{Biases, Config, Features, RopeConfig, RopeScaling, checked_layers};
use crate::ending::{OrFail, Result, failed};
use crate::kernels::attention::Heads;
use crate::kernels::gated::Activation;

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

/// The fields of an object, asked by name.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn of(value: &'a Value) -> Result<Self> {
        value.as_object().map(Self).ok_or("not an object").or_fail(BadModel, "config.json")
    }

    fn read<T: DeserializeOwned>(self, name: &str, value: &Value) -> Result<T> {
        T::deserialize(value).or_fail(BadModel, format_args!("config.json: `{name}`"))
    }

    /// The value, or its default where the field is missing. A field that is null is nothing.
    fn optional<T: DeserializeOwned>(self, name: &str, default: Option<T>) -> Result<Option<T>> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => self.read(name, value).map(Some),
        }
    }

    fn or<T: DeserializeOwned>(self, name: &str, default: T) -> Result<T> {
        Ok(self.optional(name, None)?.unwrap_or(default))
    }

    fn required<T: DeserializeOwned>(self, name: &str) -> Result<T> {
        self.optional(name, None)?.ok_or("missing").or_fail(BadModel, format_args!("config.json: `{name}`"))
    }

    /// An object within; one that is empty says nothing.
    fn within(self, name: &str) -> Option<Fields<'a>> {
        self.0.get(name).and_then(Value::as_object).filter(|object| !object.is_empty()).map(Fields)
    }

    /// Tokens that end a text.
    fn ends(self) -> Result<Vec<u32>> {
        Ok(self.optional::<OneOrMany>("eos_token_id", None)?.map(Vec::from).unwrap_or_default())
    }
}

impl Config {
    /// From a Hugging Face `config.json`.
    pub fn from_hf(json: &Value) -> Result<Self> {
        // The architecture first: other architectures lack fields, and that is not what is wrong with them.
        let name = json.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        let architecture = architecture::architecture(name)?;
        match json.get("text_config") {
            None => Self::of_text(architecture, Fields::of(json)?),
            Some(text) => {
                check_text_only(name, json)?;
                let mut config = Self::of_text(architecture, Fields::of(text)?)?;
                if config.eos.is_empty() {
                    config.eos = Fields::of(json)?.ends()?;
                }
                Ok(config)
            }
        }
    }

    fn of_text(architecture: Architecture, fields: Fields<'_>) -> Result<Self> {
        // What some architectures' files leave out because Transformers knows it.
        let number = |name: &str, usual: Option<u32>| match usual {
            Some(usual) => fields.or(name, usual as usize),
            None => fields.required(name),
        };
        let (hidden, layers) =
            (fields.required("hidden_size")?, checked_layers(fields.required("num_hidden_layers")?)?);
        let usual_heads = architecture.usual_heads();
        let query = number("num_attention_heads", usual_heads.map(|[query, _]| query))?;
        let heads = Heads {
            query,
            key_value: fields
                .or("num_key_value_heads", usual_heads.map_or(query, |[_, answering]| answering as usize))?,
            dim: fields
                .or("head_dim", architecture.usual_head_dim().map_or(hidden / query.max(1), |dim| dim as usize))?,
        };
        let usual = architecture.usual_vocabulary_and_positions();
        let max_positions = number("max_position_embeddings", usual.map(|[_, positions]| positions))?;
        let (rope, window_rope) = ropes(architecture, fields, heads.dim, max_positions)?;
        let epsilon = if architecture == Architecture::Phi3 { 1e-5 } else { 1e-6 };
        let config = Self {
            architecture: architecture.name().to_owned(),
            layers,
            hidden,
            heads,
            intermediate: fields.required("intermediate_size")?,
            vocabulary: number("vocab_size", usual.map(|[vocabulary, _]| vocabulary))?,
            norm_epsilon: fields.or::<f64>("rms_norm_eps", epsilon)? as f32,
            rope,
            window_rope,
            windows: windows(architecture, fields, layers)?,
            features: features(architecture, fields, hidden, heads.dim)?,
            max_positions,
            tied: fields.or("tie_word_embeddings", architecture.is_gemma())?,
            eos: fields.ends()?,
        };
        config.checked()
    }
}

/// Refuses a model that sees or hears beside reading.
fn check_text_only(name: &str, json: &Value) -> Result<()> {
    let other =
        ["vision_config", "audio_config"].into_iter().find(|other| json.get(other).is_some_and(|v| !v.is_null()));
    let Some(other) = other else { return Ok(()) };
    let message =
        format!("the model `{name}` is multimodal (it has a `{other}`); models that only read text are known");
    let failure = drydock_spec::Failure::new(UnsupportedModel, message);
    Err(failure.with_hint("take a text-only model of the family, such as one of the type gemma3_text").into())
}

fn features(architecture: Architecture, fields: Fields<'_>, hidden: usize, head_dim: usize) -> Result<Features> {
    let mut features = architecture::features(architecture, hidden, head_dim);
    features.activation = match fields.optional::<String>(architecture.activation_field(), None)?.as_deref() {
        None => features.activation,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some(other) => {
            let known = ACTIVATIONS.join(", ");
            return failed(UnsupportedModel, format!("the model's activation is `{other}`; known are: {known}"));
        }
    };
    if architecture.may_have_attention_bias() {
        let attention = fields.or("attention_bias", false)?;
        features.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    }
    if architecture == Architecture::Llama {
        features.biases.mlp = fields.or("mlp_bias", false)?;
    }
    if architecture.is_gemma() {
        if fields.or("use_bidirectional_attention", false)? {
            return failed(UnsupportedModel, "the model reads in both directions; models that read forwards are known");
        }
        let scalar: f64 = fields.or("query_pre_attn_scalar", 256.0)?;
        features.attention_scale = scalar.powf(-0.5) as f32;
        let usual = (architecture == Architecture::Gemma2).then_some(30.0);
        features.logit_softcap = fields.optional("final_logit_softcapping", usual)?;
    }
    if architecture == Architecture::Gemma2 {
        features.attention_softcap = fields.optional("attn_logit_softcapping", Some(50.0))?;
    }
    Ok(features)
}

/// The window of each layer.
fn windows(architecture: Architecture, fields: Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let usual = (architecture.is_gemma() || architecture == Architecture::Mistral).then_some(4096);
    let mut window: Option<usize> = match architecture {
        Architecture::Llama => None,
        _ => fields.optional("sliding_window", usual)?,
    };
    let qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3);
    if qwen && !fields.or("use_sliding_window", false)? {
        window = None;
    }
    // Only these architectures have layers of different kinds.
    if !qwen && !architecture.is_gemma() {
        return Ok(vec![window; layers]);
    }
    let kinds: Option<Vec<String>> = fields.optional("layer_types", None)?;
    let slides: Vec<bool> = match kinds {
        Some(kinds) => {
            let known = |kind: &String| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => {
                    failed(UnsupportedModel, format!("a layer's attention is `{other}`; full and sliding are known"))
                }
            };
            kinds.iter().map(known).collect::<Result<_>>()?
        }
        None if qwen => {
            let first: usize = fields.or("max_window_layers", 28)?;
            (0..layers).map(|layer| layer >= first).collect()
        }
        None => {
            let pattern: usize = match architecture {
                Architecture::Gemma3 => fields.or("sliding_window_pattern", window_pattern(architecture))?,
                _ => window_pattern(architecture),
            };
            (1..=layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
        }
    };
    if slides.len() != layers {
        return failed(BadModel, format!("config.json: {} `layer_types` for {layers} layers", slides.len()));
    }
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// What turns the heads, and what those of layers with a window where that differs.
fn ropes(
    architecture: Architecture,
    fields: Fields<'_>,
    head_dim: usize,
    max_positions: usize,
) -> Result<(RopeConfig, Option<RopeConfig>)> {
    // Transformers 5 writes everything into `rope_parameters`, for Gemma 3 once for each kind of layer. Where a file has
    // both names, the older one counts there, too.
    let [older, newer] = ["rope_scaling", "rope_parameters"].map(|name| fields.within(name));
    let parameters = if architecture == Architecture::Gemma3 { newer.or(older) } else { older.or(newer) };
    let rope = |parameters: Option<Fields<'_>>, theta: f64| {
        RopeReader { architecture, fields, parameters, head_dim, max_positions }.rope(theta)
    };
    if architecture != Architecture::Gemma3 {
        return Ok((rope(parameters, fields.or("rope_theta", 10_000.0)?)?, None));
    }
    let kind = |kind: &str| parameters.and_then(|parameters| parameters.within(kind));
    let (full, sliding) = (kind("full_attention"), kind("sliding_attention"));
    let nested = full.is_some() || sliding.is_some();
    let global = rope(if nested { full } else { parameters }, fields.or("rope_theta", 1_000_000.0)?)?;
    let local = rope(sliding, fields.or("rope_local_base_freq", 10_000.0)?)?;
    Ok((global, Some(local)))
}

struct RopeReader<'a> {
    architecture: Architecture,
    fields: Fields<'a>,
    parameters: Option<Fields<'a>>,
    head_dim: usize,
    max_positions: usize,
}

impl RopeReader<'_> {
    fn rope(&self, theta: f64) -> Result<RopeConfig> {
        let theta = self.number("rope_theta")?.unwrap_or(theta);
        let share = match self.number("partial_rotary_factor")? {
            Some(share) => share,
            None => self.fields.or("partial_rotary_factor", 1.0)?,
        };
        // The others' code in Transformers turns whole heads whatever their files say.
        if share != 1.0 && self.architecture != Architecture::Phi3 {
            let message = format!("the model turns {share} of each head; in this architecture whole heads are known");
            return failed(UnsupportedModel, message);
        }
        let dim = (self.head_dim as f64 * share) as usize;
        Ok(RopeConfig { theta, dim, scaling: self.scaling()? })
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let Some(parameters) = self.parameters else { return Ok(RopeScaling::None) };
        let kind: Option<String> = match parameters.optional("rope_type", None)? {
            Some(kind) => Some(kind),
            None => parameters.optional("type", None)?,
        };
        match kind.as_deref() {
            // Only rows beyond the model's positions turn otherwise by dynamic NTK scaling, and there are none.
            None | Some("default" | "dynamic") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.above_zero("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.above_zero("factor")?,
                low_freq_factor: self.above_zero("low_freq_factor")?,
                high_freq_factor: self.above_zero("high_freq_factor")?,
                original_positions: self.original_positions()?,
            }),
            // The first Phi-3 files call it by the names of its forerunners.
            Some("su" | "yarn") if self.architecture == Architecture::Phi3 => self.long(parameters),
            Some("yarn") => self.yarn(parameters),
            Some("longrope") => self.long(parameters),
            Some(other) => {
                let known = ROPE_SCALINGS.join(", ");
                failed(UnsupportedModel, format!("the model's rope scaling is `{other}`; known are: {known}"))
            }
        }
    }

    fn yarn(&self, parameters: Fields<'_>) -> Result<RopeScaling> {
        let original_positions = self.original_positions()?;
        let factor = self.stretch(original_positions)?;
        let attention_factor =
            match (self.number("attention_factor")?, self.number("mscale")?, self.number("mscale_all_dim")?) {
                (Some(given), ..) => given,
                (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                    Yarn::sharpening(factor, one) / Yarn::sharpening(factor, all)
                }
                _ => Yarn::sharpening(factor, 1.0),
            };
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            original_positions,
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            attention_factor,
            truncate: parameters.or("truncate", true)?,
        }))
    }

    fn long(&self, parameters: Fields<'_>) -> Result<RopeScaling> {
        let original_positions = self.original_positions()?;
        let attention_factor = match self.number("attention_factor")? {
            Some(given) => given,
            None => long_sharpening(self.stretch(original_positions)?, original_positions),
        };
        Ok(RopeScaling::Long {
            short: parameters.required("short_factor")?,
            long: parameters.required("long_factor")?,
            original_positions: original_positions as usize,
            attention_factor,
        })
    }

    /// By how much the context was stretched.
    fn stretch(&self, original_positions: f64) -> Result<f64> {
        match self.number("factor")? {
            Some(_) => self.above_zero("factor"),
            None => Ok(self.max_positions as f64 / original_positions),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.parameters.map_or(Ok(None), |parameters| parameters.optional(name, None))
    }

    fn above_zero(&self, name: &str) -> Result<f64> {
        match self.number(name)? {
            Some(value) if value > 0.0 => Ok(value),
            _ => failed(BadModel, format!("config.json: the rope scaling has no `{name}` above 0")),
        }
    }

    /// Positions before the context was stretched; Phi-3 has them beside the scaling.
    fn original_positions(&self) -> Result<f64> {
        const NAME: &str = "original_max_position_embeddings";
        let usual = if self.architecture == Architecture::Phi3 { 4096.0 } else { self.max_positions as f64 };
        let beside = self.fields.optional::<f64>(NAME, None)?;
        match beside.map_or_else(|| self.number(NAME), |beside| Ok(Some(beside)))?.unwrap_or(usual) {
            positions if positions > 0.0 => Ok(positions),
            _ => failed(BadModel, format!("config.json: `{NAME}` is not above 0")),
        }
    }
}

#[cfg(test)]
mod published;
#[cfg(test)]
mod tests;
