//! The options of training a decoder from nothing. Their names are those of Transformers and TRL.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Columns;
use crate::option::{Complaints, InvalidOption, InvalidOptions};
use crate::recipe::{Auto, Defaults, Recipe, SchedulerType, training_args};

/// A decoder's shape by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// 4 layers of 128: learns letters and words of a small text within minutes on a CPU.
    Nano,
    /// 6 layers of 384: what people try on Shakespeare.
    Mini,
    /// 12 layers of 768, like GPT-2's smallest.
    Small,
    /// 24 layers of 1024.
    Medium,
}

/// The shape of a decoder; the names are those of `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShapeArgs {
    /// Width of the stream through the layers, 8 to 65536. Default: as `size` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<u32>,
    /// Layers, 1 to 1024. Default: as `size` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_hidden_layers: Option<u32>,
    /// Heads that ask; hidden_size is divided into that many of an even width. Default: as `size` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_attention_heads: Option<u32>,
    /// Heads that hold keys and values; a divisor of num_attention_heads. Default: as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<u32>,
    /// Width inside the MLP, 8 to 1048576. Default: 8/3 of hidden_size, up to a multiple of 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<u32>,
    /// The longest row that the model will take, in tokens, max_seq_length at least. Default: max_seq_length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_position_embeddings: Option<u32>,
    /// Base of the rotary positions, 1 to 1e12. Default 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Whether the head is the embedding. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tie_word_embeddings: Option<bool>,
}

/// The shape of a Llama-like decoder, complete and consistent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Shape {
    pub hidden_size: u32,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    pub intermediate_size: u32,
    pub max_position_embeddings: u32,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}

impl Shape {
    /// Numbers in the decoder with so many tokens in its vocabulary.
    #[must_use]
    pub fn parameters(&self, vocabulary: u64) -> u64 {
        let (hidden, inner) = (u64::from(self.hidden_size), u64::from(self.intermediate_size));
        let kv = hidden / u64::from(self.num_attention_heads) * u64::from(self.num_key_value_heads);
        let layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 } * vocabulary * hidden;
        u64::from(self.num_hidden_layers) * layer + embeddings + hidden
    }
}

training_args! {
/// Training from nothing, as somebody wrote it. Everything but `dataset` has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["dataset"]))]
pub struct TrainArgs {
    /// The dataset to learn from: a name that `load_dataset` returned. Plain text files are one long row each.
    pub dataset: String,
    /// A dataset to measure the held-out loss on. Without it, the last `test_size` of the text is held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    /// Share of the text held out of training, 0 to 0.5. Default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_size: Option<f64>,
    /// Which columns hold what, where their names are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// The decoder's shape by name: nano, mini (the default), small or medium.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// What of the shape is to differ from `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ShapeArgs>,
    /// A model whose tokenizer is used. Without it one is trained on the data (byte-level BPE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Tokens of a trained tokenizer, 257 to 262144. Default 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<u32>,
    /// Beginnings of texts that the model goes on with before and after, at most 8. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_prompts: Option<Vec<String>>,
    /// Tokens of a sample at most, 1 to 1024. Default 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
}
}

/// A training whose options are complete and within range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "TrainArgs")]
pub struct TrainSpec {
    pub dataset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    pub test_size: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    pub config: Shape,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    pub vocab_size: u32,
    pub sample_prompts: Vec<String>,
    pub max_new_tokens: u32,
    #[serde(flatten)]
    pub recipe: Recipe,
}

impl TrainArgs {
    /// Fills in the defaults and checks every option; all complaints come at once.
    pub fn parse(self) -> Result<TrainSpec, InvalidOptions> {
        let mut wrong = Complaints::default();
        let mut recipe = self.recipe(
            Defaults {
                learning_rate: 1e-3,
                lr_scheduler_type: SchedulerType::Cosine,
                weight_decay: 0.1,
                adam_beta2: 0.99,
                packing: true,
            },
            &mut wrong,
        );
        let length = recipe.max_seq_length.unwrap_or(256);
        recipe.max_seq_length = Some(length);
        let config = shape(self.size.unwrap_or(Size::Mini), self.config.unwrap_or_default(), length);
        check_shape(&config, length, &mut wrong);
        let spec = TrainSpec {
            test_size: self.test_size.unwrap_or(if self.eval_dataset.is_some() { 0.0 } else { 0.1 }),
            dataset: self.dataset,
            eval_dataset: self.eval_dataset,
            columns: self.columns,
            config,
            tokenizer: self.tokenizer,
            vocab_size: self.vocab_size.unwrap_or(4096),
            sample_prompts: self.sample_prompts.unwrap_or_default(),
            max_new_tokens: self.max_new_tokens.unwrap_or(64),
            recipe,
        };
        spec.check(&mut wrong);
        wrong.into_result(spec)
    }
}

/// The named shape, with what the caller wants otherwise.
fn shape(size: Size, args: ShapeArgs, length: u32) -> Shape {
    let (layers, hidden, heads) = match size {
        Size::Nano => (4, 128, 4),
        Size::Mini => (6, 384, 6),
        Size::Small => (12, 768, 12),
        Size::Medium => (24, 1024, 16),
    };
    let hidden_size = args.hidden_size.unwrap_or(hidden);
    let num_attention_heads = args.num_attention_heads.unwrap_or(heads);
    Shape {
        hidden_size,
        num_hidden_layers: args.num_hidden_layers.unwrap_or(layers),
        num_attention_heads,
        num_key_value_heads: args.num_key_value_heads.unwrap_or(num_attention_heads),
        intermediate_size: args
            .intermediate_size
            .unwrap_or_else(|| (hidden_size.saturating_mul(8) / 3).div_ceil(64).saturating_mul(64)),
        max_position_embeddings: args.max_position_embeddings.unwrap_or(length),
        rope_theta: args.rope_theta.unwrap_or(10_000.0),
        tie_word_embeddings: args.tie_word_embeddings.unwrap_or(true),
    }
}

fn check_shape(shape: &Shape, length: u32, wrong: &mut Complaints) {
    wrong.within("config.hidden_size", shape.hidden_size, 8, 65_536);
    wrong.within("config.num_hidden_layers", shape.num_hidden_layers, 1, 1024);
    wrong.within("config.intermediate_size", shape.intermediate_size, 8, 1_048_576);
    wrong.within("config.rope_theta", shape.rope_theta, 1.0, 1e12);
    let heads = shape.num_attention_heads;
    wrong.require(heads > 0 && shape.hidden_size.is_multiple_of(2 * heads), || {
        let next = format!("choose one that divides hidden_size = {} into heads of an even width", shape.hidden_size);
        InvalidOption::new("config.num_attention_heads", heads, "does not fit", next)
    });
    let key_value = shape.num_key_value_heads;
    wrong.require(key_value > 0 && heads.is_multiple_of(key_value), || {
        let next = format!("choose a divisor of num_attention_heads = {heads}");
        InvalidOption::new("config.num_key_value_heads", key_value, "does not fit", next)
    });
    wrong.require(shape.max_position_embeddings >= length, || {
        let next = format!("choose at least max_seq_length = {length}");
        let value = shape.max_position_embeddings;
        InvalidOption::new("config.max_position_embeddings", value, "shorter than the rows", next)
    });
}

impl TryFrom<TrainArgs> for TrainSpec {
    type Error = InvalidOptions;

    fn try_from(args: TrainArgs) -> Result<Self, Self::Error> {
        args.parse()
    }
}

impl TrainSpec {
    fn check(&self, wrong: &mut Complaints) {
        wrong.named("dataset", &self.dataset, "call load_dataset first and give the name it returns");
        wrong.within("test_size", self.test_size, 0.0, 0.5);
        wrong.require(self.eval_dataset.is_none() || self.test_size == 0.0, || {
            InvalidOption::new("test_size", self.test_size, "given together with eval_dataset", "give one of the two")
        });
        wrong.within("vocab_size", self.vocab_size, 257, 262_144);
        wrong.require(!self.recipe.auto.contains(&Auto::Method), || {
            let next = "name batch_size or gradient_checkpointing";
            InvalidOption::new("auto", "method", "a training from nothing has but one method", next)
        });
        wrong.require(self.sample_prompts.len() <= 8, || {
            let value = format!("{} prompts", self.sample_prompts.len());
            InvalidOption::new("sample_prompts", value, "too many", "give at most 8")
        });
        wrong.within("max_new_tokens", self.max_new_tokens, 1, 1024);
        if let Some(steps) = self.recipe.eval_steps {
            wrong.require(self.eval_dataset.is_some() || self.test_size > 0.0, || {
                let next = "give eval_dataset, or a test_size above 0";
                InvalidOption::new("eval_steps", steps, "given without held-out text", next)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> TrainArgs {
        TrainArgs { dataset: "d".into(), ..TrainArgs::default() }
    }

    #[test]
    fn one_name_is_enough() {
        let spec = args().parse().unwrap();
        assert_eq!((spec.config.hidden_size, spec.config.intermediate_size), (384, 1024));
        assert_eq!((spec.vocab_size, spec.recipe.packing), (4096, true));
        assert_eq!(spec.config.parameters(4096), 12_194_688);
    }

    #[test]
    fn a_shape_that_does_not_fit_together_is_refused_in_one_go() {
        let config = ShapeArgs {
            hidden_size: Some(100),
            num_attention_heads: Some(0),
            max_position_embeddings: Some(16),
            ..ShapeArgs::default()
        };
        let text = TrainArgs { config: Some(config), ..args() }.parse().unwrap_err().to_string();
        assert!(text.contains("config.num_attention_heads = 0: does not fit"), "{text}");
        assert!(text.contains("config.max_position_embeddings = 16: shorter than the rows"), "{text}");
    }

    #[test]
    fn a_spec_survives_json() {
        // The shape that a spec holds is complete; as arguments it says the same again.
        let spec = args().parse().unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<TrainSpec>(json).unwrap(), spec);
    }
}
