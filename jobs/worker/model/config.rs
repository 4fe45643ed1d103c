//! What a model is like: the numbers in `config.json` or in a GGUF's metadata, as one decoder understands them.

mod architecture;
mod gguf;
mod hf;
pub mod rope;
mod written;

use drydock_spec::FailureKind;
use drydock_spec::finetune::TargetModule;

use crate::ending::{Result, failed};
use crate::kernels::attention::{Heads, Scoring};
use crate::kernels::gated::Activation;
pub use architecture::architecture;
pub(in crate::model) use gguf::Asked;
pub use hf::OneOrMany;
pub use rope::{RopeConfig, RopeScaling};
pub(in crate::model) use written::class;

/// Far above what any model has, and so low that no product of two overflows: a file that asks for more was not made by
/// a training, and must be refused before anything of that size is made.
mod limit {
    pub(super) const LAYERS: usize = 1 << 12;
    pub(super) const WIDTH: usize = 1 << 20;
    pub(super) const HEADS: usize = 1 << 14;
    pub(super) const VOCABULARY: usize = 1 << 24;
    /// What GGUF can say.
    pub(super) const POSITIONS: usize = u32::MAX as usize;
}

/// The number of layers, before there is anything for each of them.
fn checked_layers(layers: usize) -> Result<usize> {
    if layers <= limit::LAYERS {
        return Ok(layers);
    }
    let most = limit::LAYERS;
    failed(FailureKind::BadModel, format!("the model's configuration has {layers} layers; at most {most} are believed"))
}

/// The shape of a decoder.
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
    /// What turns the heads of layers with a window, where that differs.
    pub window_rope: Option<RopeConfig>,
    /// How many tokens a layer's queries see, for each layer; nothing where they see all.
    pub windows: Vec<Option<usize>>,
    pub features: Features,
    /// Longest row, in tokens.
    pub max_positions: usize,
    /// Whether the head's weight is the embedding's.
    pub tied: bool,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// In what else decoders differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    pub activation: Activation,
    pub biases: Biases,
    /// Queries and keys go through a norm of their own, head by head (Qwen 3, Gemma 3).
    pub query_key_norm: bool,
    /// What attention and MLP give goes through a norm before it joins the stream (Gemma).
    pub norms_after: bool,
    /// What is added to the weight of a norm: Gemma's files hold the distance from 1.
    pub norm_offset: f32,
    /// What the embedding's rows are multiplied by.
    pub embedding_scale: f32,
    /// What the products of queries and keys are multiplied by.
    pub attention_scale: f32,
    pub attention_softcap: Option<f32>,
    pub logit_softcap: Option<f32>,
    /// The files hold queries, keys and values as one projection, gate and up as another (Phi-3).
    pub fused: bool,
}

/// Which projections add a vector of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    pub query_key_value: bool,
    pub output: bool,
    pub mlp: bool,
}

impl Config {
    /// A projection's weight, `[out, width]`.
    pub fn shape(&self, module: TargetModule) -> [usize; 2] {
        let &Self { hidden, intermediate, heads, .. } = self;
        match module {
            TargetModule::QProj => [heads.query_width(), hidden],
            TargetModule::KProj | TargetModule::VProj => [heads.key_value_width(), hidden],
            TargetModule::OProj => [hidden, heads.query_width()],
            TargetModule::GateProj | TargetModule::UpProj => [intermediate, hidden],
            TargetModule::DownProj => [hidden, intermediate],
        }
    }

    /// How a layer's queries weigh keys.
    pub fn scoring(&self, layer: usize) -> Scoring {
        let Features { attention_scale, attention_softcap, .. } = self.features;
        Scoring { scale: attention_scale, softcap: attention_softcap, window: self.windows[layer] }
    }

    /// Whether a layer turns its heads as the layers with a window do.
    pub fn turns_as_window(&self, layer: usize) -> bool {
        self.windows[layer].is_some() && self.window_rope.is_some()
    }

    /// Refuses numbers that cannot be those of a model; everything after this may divide by them.
    fn checked(self) -> Result<Self> {
        let Heads { query, key_value, dim } = self.heads;
        let positive = [
            ("layers", self.layers, limit::LAYERS),
            ("hidden size", self.hidden, limit::WIDTH),
            ("attention heads", query, limit::HEADS),
            ("key-value heads", key_value, limit::HEADS),
            ("head dimension", dim, limit::WIDTH),
            ("intermediate size", self.intermediate, limit::WIDTH),
            ("vocabulary", self.vocabulary, limit::VOCABULARY),
            ("positions", self.max_positions, limit::POSITIONS),
            ("tokens in a sliding window", self.windows.iter().flatten().copied().min().unwrap_or(1), usize::MAX),
        ];
        if let Some((name, value, most)) = positive.iter().find(|(_, value, most)| *value == 0 || value > most) {
            let message = match value {
                0 => format!("the model's configuration has 0 {name}"),
                _ => format!("the model's configuration has {value} {name}; at most {most} are believed"),
            };
            return failed(FailureKind::BadModel, message);
        }
        // A row of one token has nothing to predict, and no window could slide over a longer one.
        if self.max_positions < 2 {
            return failed(FailureKind::BadModel, "the model's configuration has 1 positions; at least 2 are needed");
        }
        if !query.is_multiple_of(key_value) || !dim.is_multiple_of(2) {
            let message = format!("{query} attention heads of {dim} values do not fit {key_value} key-value heads");
            return failed(FailureKind::BadModel, message);
        }
        self.check_features()?;
        Ok(self)
    }

    fn check_features(&self) -> Result<()> {
        let dim = self.heads.dim;
        if !above_zero(f64::from(self.norm_epsilon)) {
            let message = format!("the model's configuration has a norm epsilon of {}", self.norm_epsilon);
            return failed(FailureKind::BadModel, message);
        }
        for rope in [Some(&self.rope), self.window_rope.as_ref()].into_iter().flatten() {
            if rope.dim == 0 || rope.dim > dim || !rope.dim.is_multiple_of(2) || !above_zero(rope.theta) {
                let message = format!("{} of a head's {dim} values turn with a base of {}", rope.dim, rope.theta);
                return failed(FailureKind::BadModel, message);
            }
            let lists: [&[f32]; 2] = match &rope.scaling {
                RopeScaling::Factors(factors) => [factors, factors],
                RopeScaling::Long { short, long, .. } => [short, long],
                _ => {
                    check_turns(rope)?;
                    continue;
                }
            };
            if let Some(list) = lists.iter().find(|list| list.len() != rope.dim / 2) {
                let message = format!("the rope scaling has {} factors, not {}", list.len(), rope.dim / 2);
                return failed(FailureKind::BadModel, message);
            }
            if lists.iter().flat_map(|list| *list).any(|factor| !above_zero(f64::from(*factor))) {
                return failed(FailureKind::BadModel, "the rope scaling has a factor that is not above 0");
            }
            check_turns(rope)?;
        }
        let Features { attention_softcap, logit_softcap, attention_scale, .. } = self.features;
        let caps = [attention_softcap, logit_softcap, Some(attention_scale)];
        match caps.into_iter().flatten().find(|cap| !above_zero(f64::from(*cap))) {
            Some(cap) => failed(FailureKind::BadModel, format!("a softcap or the attention's scale is {cap}")),
            None => Ok(()),
        }
    }
}

/// Refuses a scaling whose numbers, each of them possible, together make an angle of no size.
fn check_turns(rope: &RopeConfig) -> Result<()> {
    let found = rope.frequencies();
    match found.inverse.iter().chain([&found.factor]).find(|number| !number.is_finite()) {
        Some(number) => failed(FailureKind::BadModel, format!("the rope scaling makes a head turn by {number}")),
        None => Ok(()),
    }
}

/// Whether a number can be divided by and multiplied with; NaN cannot.
fn above_zero(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

impl Features {
    /// Whether a projection adds a bias.
    pub fn has_bias(&self, module: TargetModule) -> bool {
        match module {
            TargetModule::QProj | TargetModule::KProj | TargetModule::VProj => self.biases.query_key_value,
            TargetModule::OProj => self.biases.output,
            TargetModule::GateProj | TargetModule::UpProj | TargetModule::DownProj => self.biases.mlp,
        }
    }
}
