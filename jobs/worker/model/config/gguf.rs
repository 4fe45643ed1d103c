//! A GGUF's metadata, as llama.cpp reads it: what a file does not say is told by its tensors or by the architecture.

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::model::Architecture;

use super::architecture::{self, window_pattern};
use super::rope::Yarn;
use super::{Biases, Config, Features, RopeConfig, RopeScaling, checked_layers};
use crate::ending::{Result, failed};
use crate::gguf::Metadata;
use crate::kernels::attention::Heads;

/// A GGUF file, as far as the configuration asks.
pub(in crate::model) struct Asked<'a> {
    pub metadata: &'a Metadata,
    /// A tensor's shape, rows first; nothing where there is no such tensor.
    pub shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    /// A tensor's values.
    pub values: &'a dyn Fn(&str) -> Result<Vec<f32>>,
}

impl Config {
    pub(in crate::model) fn from_gguf(file: &Asked<'_>) -> Result<Self> {
        let metadata = file.metadata;
        let name = metadata.text("general.architecture").unwrap_or("(none)");
        let architecture = architecture::architecture(name)?;
        let keys = Keys { file, name, architecture };
        let (hidden, query) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
        let embedding = (file.shape)("token_embd.weight");
        let Some(&[vocabulary, _]) = embedding.as_deref() else {
            return failed(BadModel, "the GGUF file has no `token_embd.weight` of two dimensions");
        };
        let turning = keys.count("rope.dimension_count");
        // Phi-3 may turn a part of each head only; elsewhere old files have no other trace of the heads' dimension.
        let dim = keys.count("attention.key_length").or(turning.filter(|_| architecture != Architecture::Phi3));
        let dim = dim.unwrap_or(hidden / query.max(1));
        let layers = checked_layers(keys.required("block_count")?)?;
        let max_positions = keys.required("context_length")?;
        let rope = RopeConfig {
            theta: keys.number("rope.freq_base").unwrap_or(if architecture == Architecture::Gemma3 {
                1_000_000.0
            } else {
                10_000.0
            }),
            dim: turning.unwrap_or(dim),
            scaling: keys.rope_scaling(max_positions)?,
        };
        let local_theta = keys.number("rope.freq_base_swa").unwrap_or(10_000.0);
        let window_rope = (architecture == Architecture::Gemma3).then_some(RopeConfig {
            theta: local_theta,
            dim: rope.dim,
            scaling: RopeScaling::None,
        });
        Self {
            architecture: architecture.name().to_owned(),
            layers,
            hidden,
            heads: Heads { query, key_value: keys.count("attention.head_count_kv").unwrap_or(query), dim },
            intermediate: keys.required("feed_forward_length")?,
            vocabulary,
            norm_epsilon: keys.number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32,
            rope,
            window_rope,
            windows: keys.windows(layers)?,
            features: keys.features(layers, hidden, query, dim),
            max_positions,
            tied: (file.shape)("output.weight").is_none(),
            eos: metadata
                .count("tokenizer.ggml.eos_token_id")
                .into_iter()
                .chain(metadata.count("tokenizer.ggml.eot_token_id"))
                .filter_map(|id| u32::try_from(id).ok())
                .collect(),
        }
        .checked()
    }
}

/// The keys of one architecture.
struct Keys<'a> {
    file: &'a Asked<'a>,
    name: &'a str,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.file.metadata.required(&self.key(name))
    }

    fn count(&self, name: &str) -> Option<usize> {
        self.file.metadata.count(&self.key(name))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.file.metadata.number(&self.key(name))
    }

    fn features(&self, layers: usize, hidden: usize, query: usize, dim: usize) -> Features {
        let mut features = architecture::features(self.architecture, hidden, dim);
        let has = |part: &str| (self.file.shape)(&format!("blk.0.{part}.bias")).is_some();
        features.biases = Biases {
            query_key_value: has("attn_q") || has("attn_qkv"),
            output: has("attn_output"),
            mlp: has("ffn_up"),
        };
        let cap = |name: &str| self.number(name).map(|cap| cap as f32).filter(|cap| *cap > 0.0);
        if self.architecture.is_gemma() {
            features.logit_softcap = cap("final_logit_softcapping");
        }
        if self.architecture == Architecture::Gemma2 {
            features.attention_softcap = cap("attn_logit_softcapping");
        }
        // The files do not say it: the largest models of both families scale by the stream's width, not by the head's.
        if matches!((self.architecture, layers), (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62)) {
            features.attention_scale = 1.0 / ((hidden / query.max(1)) as f32).sqrt();
        }
        features
    }

    fn windows(&self, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self.count("attention.sliding_window").filter(|window| *window > 0);
        match self.architecture {
            Architecture::Phi3 => Ok(vec![window; layers]),
            Architecture::Gemma2 | Architecture::Gemma3 => {
                let key = "attention.sliding_window_pattern";
                let pattern = self.count(key).unwrap_or(window_pattern(self.architecture));
                if pattern == 0 {
                    return failed(BadModel, format!("GGUF metadata `{}`: 0", self.key(key)));
                }
                let window = window.or((self.architecture == Architecture::Gemma2).then_some(4096));
                Ok((1..=layers).map(|layer| window.filter(|_| !layer.is_multiple_of(pattern))).collect())
            }
            _ => Ok(vec![None; layers]),
        }
    }

    fn rope_scaling(&self, max_positions: usize) -> Result<RopeScaling> {
        let has = |tensor: &str| (self.file.shape)(tensor).is_some();
        let values = |tensor: &str| (self.file.values)(tensor);
        let original = self.count("rope.scaling.original_context_length").unwrap_or(max_positions);
        if has("rope_freqs.weight") {
            return Ok(RopeScaling::Factors(values("rope_freqs.weight")?));
        }
        if has("rope_factors_short.weight") && has("rope_factors_long.weight") {
            return Ok(RopeScaling::Long {
                short: values("rope_factors_short.weight")?,
                long: values("rope_factors_long.weight")?,
                original_positions: original,
                attention_factor: self.number("rope.scaling.attn_factor").unwrap_or(1.0),
            });
        }
        let factor = self.number("rope.scaling.factor").filter(|factor| *factor > 0.0).unwrap_or(1.0);
        match self.file.metadata.text(&self.key("rope.scaling.type")) {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor }),
            Some("yarn") => Ok(RopeScaling::Yarn(Yarn {
                factor,
                original_positions: original as f64,
                beta_fast: self.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: self.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                attention_factor: Yarn::sharpening(factor, 1.0)
                    * self.number("rope.scaling.attn_factor").unwrap_or(1.0),
                truncate: true,
            })),
            Some(other) => {
                let message =
                    format!("the model's rope scaling is `{other}`; known are: none, linear, yarn, llama3, longrope");
                failed(UnsupportedModel, message)
            }
        }
    }
}
