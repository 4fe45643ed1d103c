//! A configuration as GGUF's metadata, under the keys that llama.cpp reads.

use drydock_spec::FailureKind::UnsupportedModel;
use drydock_spec::model::Architecture;

use crate::ending::{Result, failed};
use crate::gguf::{Metadata, Value};
use crate::model::config::rope::Yarn;
use crate::model::config::{Config, RopeConfig, RopeScaling, architecture};

/// The tensors of f32 in which llama.cpp keeps scalings that have a factor for each frequency.
pub fn rope_factors(config: &Config) -> Vec<(&'static str, Vec<f32>)> {
    match &config.rope.scaling {
        RopeScaling::Llama3 { .. } => vec![("rope_freqs.weight", slowed(&config.rope))],
        RopeScaling::Factors(factors) => vec![("rope_freqs.weight", factors.clone())],
        RopeScaling::Long { short, long, .. } => {
            vec![("rope_factors_long.weight", long.clone()), ("rope_factors_short.weight", short.clone())]
        }
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn(_) => Vec::new(),
    }
}

/// How much slower than without a scaling each pair turns.
fn slowed(rope: &RopeConfig) -> Vec<f32> {
    let plain = RopeConfig { scaling: RopeScaling::None, ..rope.clone() }.frequencies().inverse;
    plain.iter().zip(rope.frequencies().inverse).map(|(plain, scaled)| plain / scaled).collect()
}

/// Everything but tokenizer and name.
pub fn metadata(config: &Config) -> Result<Metadata> {
    let family = architecture(&config.architecture)?;
    // llama.cpp has no architecture of Mistral's: it differs from Llama's in nothing but the window.
    let architecture = if family == Architecture::Mistral { Architecture::Llama.name() } else { family.name() };
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", Value::text(architecture));
    metadata.set("general.type", Value::text("model"));
    let mut keys = Keys { architecture, metadata: &mut metadata };
    keys.count("block_count", config.layers)?;
    keys.count("context_length", context(config, family))?;
    keys.count("embedding_length", config.hidden)?;
    keys.count("feed_forward_length", config.intermediate)?;
    keys.count("attention.head_count", config.heads.query)?;
    keys.count("attention.head_count_kv", config.heads.key_value)?;
    keys.count("attention.key_length", config.heads.dim)?;
    keys.count("attention.value_length", config.heads.dim)?;
    keys.number("attention.layer_norm_rms_epsilon", f64::from(config.norm_epsilon));
    keys.count("vocab_size", config.vocabulary)?;
    keys.count("rope.dimension_count", config.rope.dim)?;
    keys.number("rope.freq_base", config.rope.theta);
    keys.scaling(&config.rope.scaling)?;
    keys.windows(config, family)?;
    check_attention_scale(config, family)?;
    if let Some(cap) = config.features.attention_softcap {
        keys.number("attn_logit_softcapping", f64::from(cap));
    }
    if let Some(cap) = config.features.logit_softcap {
        keys.number("final_logit_softcapping", f64::from(cap));
    }
    Ok(metadata)
}

/// GGUF has no key for what the products of queries and keys are multiplied by: readers know it by the architecture, and
/// by the number of layers that the largest Gemmas have.
fn check_attention_scale(config: &Config, family: Architecture) -> Result<()> {
    let widest = matches!((family, config.layers), (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62));
    let scaled_by = if widest { config.hidden / config.heads.query } else { config.heads.dim };
    let (usual, found) = ((scaled_by as f32).powf(-0.5), config.features.attention_scale);
    if (found / usual - 1.0).abs() < 1e-5 {
        return Ok(());
    }
    let message =
        format!("the model multiplies what attention compares by {found}, not {usual}, which GGUF cannot say");
    failed(UnsupportedModel, message)
}

/// Whether llama.cpp knows of windows in this architecture.
fn has_windows(family: Architecture) -> bool {
    matches!(family, Architecture::Gemma2 | Architecture::Gemma3 | Architecture::Phi3)
}

/// Up to a window's length, a model with a window does as one without.
fn context(config: &Config, family: Architecture) -> usize {
    let shortest = config.windows.iter().flatten().copied().min();
    shortest.filter(|_| !has_windows(family)).map_or(config.max_positions, |window| window.min(config.max_positions))
}

struct Keys<'a> {
    architecture: &'a str,
    metadata: &'a mut Metadata,
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: Value) {
        self.metadata.set(&format!("{}.{key}", self.architecture), value);
    }

    fn count(&mut self, key: &str, count: usize) -> Result<()> {
        let Ok(count) = u32::try_from(count) else {
            return failed(UnsupportedModel, format!("the model's {key} is {count}, more than GGUF can say"));
        };
        self.set(key, Value::U32(count));
        Ok(())
    }

    fn number(&mut self, key: &str, number: f64) {
        self.set(key, Value::F32(number as f32));
    }

    fn scaling(&mut self, scaling: &RopeScaling) -> Result<()> {
        match scaling {
            RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => {}
            RopeScaling::Linear { factor } => {
                self.set("rope.scaling.type", Value::text("linear"));
                self.number("rope.scaling.factor", *factor);
            }
            RopeScaling::Yarn(yarn) => {
                if !yarn.truncate {
                    return failed(UnsupportedModel, "YaRN without truncation cannot be said in GGUF");
                }
                self.set("rope.scaling.type", Value::text("yarn"));
                self.number("rope.scaling.factor", yarn.factor);
                self.count("rope.scaling.original_context_length", yarn.original_positions as usize)?;
                self.number("rope.scaling.yarn_beta_fast", yarn.beta_fast);
                self.number("rope.scaling.yarn_beta_slow", yarn.beta_slow);
                // Readers multiply the usual sharpening by it.
                self.number("rope.scaling.attn_factor", yarn.attention_factor / Yarn::sharpening(yarn.factor, 1.0));
            }
            RopeScaling::Long { original_positions, attention_factor, .. } => {
                self.count("rope.scaling.original_context_length", *original_positions)?;
                self.number("rope.scaling.attn_factor", *attention_factor);
            }
        }
        Ok(())
    }

    fn windows(&mut self, config: &Config, family: Architecture) -> Result<()> {
        let Some(window) = config.windows.iter().flatten().copied().next().filter(|_| has_windows(family)) else {
            return Ok(());
        };
        let usual = |layer: usize| match family {
            Architecture::Phi3 => true,
            _ => !(layer + 1).is_multiple_of(if family == Architecture::Gemma2 { 2 } else { 6 }),
        };
        let as_usual = config.windows.iter().enumerate().all(|(layer, found)| *found == usual(layer).then_some(window));
        if !as_usual {
            return failed(UnsupportedModel, "the layers' sliding windows are not laid out as llama.cpp expects them");
        }
        self.count("attention.sliding_window", window)?;
        if let Some(rope) = &config.window_rope {
            self.number("rope.freq_base_swa", rope.theta);
        }
        Ok(())
    }
}
