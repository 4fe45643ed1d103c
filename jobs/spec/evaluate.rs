//! The options of an evaluation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Columns;
use crate::option::{Complaints, InvalidOption, InvalidOptions};
use crate::recipe::DType;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// How surprised the model is by the rows: exp of the mean loss per token.
    Perplexity,
    /// How often the right choice has the highest log-likelihood.
    MultipleChoice,
    /// Whether generated answers are those of the rows: exact match and F1 over words, normalized as SQuAD does.
    ExactMatch,
    /// Whether the last number of generated answers is that of the rows, as for GSM8K.
    NumericMatch,
}

impl Measure {
    /// Whether the model must answer in its own words.
    #[must_use]
    pub fn generates(self) -> bool {
        matches!(self, Self::ExactMatch | Self::NumericMatch)
    }
}

/// A model to measure beside the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compared {
    /// As `model`.
    pub model: String,
    /// As `adapter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

/// An evaluation as somebody wrote it. Everything but `model` and `dataset` has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["model", "dataset"]))]
pub struct EvaluateArgs {
    /// The model to measure: a name from `list_models`, `hf:owner/name[@revision]`, or `job:<id>[/path]` of another
    /// job.
    pub model: String,
    /// An adapter over it: `job:<id>` of a finetune of this model. Base and adapter are measured side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Other models to measure on the same rows, at most 4: quantized, merged, before or after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare_with: Option<Vec<Compared>>,
    /// The dataset with the rows: a name that `load_dataset` returned.
    pub dataset: String,
    /// Which columns hold what, where their names are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// What is measured. Default: what the rows are for. Choices: multiple_choice. Texts: perplexity. Chats and
    /// completions: perplexity, and numeric_match where every answer has a number after `####`, or exact_match where
    /// every answer has ten words at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measures: Option<Vec<Measure>>,
    /// Rows to measure on, from the first, 1 to 100000000. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Solved rows put before each question, 0 to 32; they are drawn from the rows that are not measured. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<u32>,
    /// Put questions as chats, with the model's template. Default: whether the rows are chats. Perplexity takes rows as
    /// they are trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_chat_template: Option<bool>,
    /// Tokens at most of a window of text, and of a question with its answer, from 8 to the model's own limit;
    /// questions are cut from the left. Default: windows of 512, and questions of all that the model takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<u32>,
    /// Tokens that consecutive windows of a long text are apart, 1 to max_seq_length; fewer give each token more
    /// context. Default: max_seq_length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<u32>,
    /// Tokens of an answer at most, 1 to 4096. Default 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
    /// Texts at which an answer ends, at most 8, besides the model's own end; after solved rows that are not chats, an
    /// empty line is one, too. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Vec<String>>,
    /// Rows that are answered at once, 1 to 1024. Default 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// What matrix products are computed in: f32 or bf16. Default f32. With f32, quantized weights are used as they are:
    /// on the CPU, activations are rounded to eight bits for them, as llama.cpp does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// Rows whose questions and answers are kept, 0 to 10000. Default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_samples: Option<u32>,
    /// Seed of the choice of solved rows and of the bootstrap, a whole number. Default 42.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// An evaluation whose options are complete and within range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "EvaluateArgs")]
pub struct EvaluateSpec {
    pub model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    pub compare_with: Vec<Compared>,
    pub dataset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Without it, what the rows allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measures: Option<Vec<Measure>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    pub num_fewshot: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_chat_template: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<u32>,
    pub max_new_tokens: u32,
    pub until: Vec<String>,
    pub batch_size: u32,
    pub dtype: DType,
    pub log_samples: u32,
    pub seed: u64,
}

impl EvaluateArgs {
    /// Fills in the defaults and checks every option; all complaints come at once.
    pub fn parse(self) -> Result<EvaluateSpec, InvalidOptions> {
        let mut wrong = Complaints::default();
        let spec = EvaluateSpec {
            model: self.model,
            adapter: self.adapter,
            compare_with: self.compare_with.unwrap_or_default(),
            dataset: self.dataset,
            columns: self.columns,
            measures: self.measures,
            limit: self.limit,
            num_fewshot: self.num_fewshot.unwrap_or(0),
            apply_chat_template: self.apply_chat_template,
            max_seq_length: self.max_seq_length,
            stride: self.stride,
            max_new_tokens: self.max_new_tokens.unwrap_or(128),
            until: self.until.unwrap_or_default(),
            batch_size: self.batch_size.unwrap_or(16),
            dtype: self.dtype.unwrap_or_default(),
            log_samples: self.log_samples.unwrap_or(50),
            seed: self.seed.unwrap_or(42),
        };
        spec.check(&mut wrong);
        wrong.into_result(spec)
    }
}

impl TryFrom<EvaluateArgs> for EvaluateSpec {
    type Error = InvalidOptions;

    fn try_from(args: EvaluateArgs) -> Result<Self, Self::Error> {
        args.parse()
    }
}

impl EvaluateSpec {
    fn check(&self, wrong: &mut Complaints) {
        wrong.named("model", &self.model, "name one from list_models, hf:owner/name, or job:<id>");
        wrong.named("dataset", &self.dataset, "call load_dataset first and give the name it returns");
        wrong.require(self.compare_with.len() <= 4, || {
            let value = format!("{} models", self.compare_with.len());
            InvalidOption::new("compare_with", value, "too many", "give at most 4")
        });
        for other in &self.compare_with {
            wrong.named("compare_with.model", &other.model, "name one from list_models, hf:owner/name, or job:<id>");
        }
        wrong.require(self.measures.as_ref().is_none_or(|measures| !measures.is_empty()), || {
            InvalidOption::new("measures", "[]", "empty", "name what is to be measured, or leave it out")
        });
        if let Some(limit) = self.limit {
            wrong.within("limit", limit, 1, 100_000_000);
        }
        wrong.within("num_fewshot", self.num_fewshot, 0, 32);
        if let Some(length) = self.max_seq_length {
            wrong.within("max_seq_length", length, 8, 1_048_576);
        }
        if let Some(stride) = self.stride {
            wrong.within("stride", stride, 1, self.max_seq_length.unwrap_or(1_048_576));
        }
        wrong.within("max_new_tokens", self.max_new_tokens, 1, 4096);
        wrong.require(self.until.len() <= 8 && self.until.iter().all(|text| !text.is_empty()), || {
            InvalidOption::new("until", format!("{:?}", self.until), "too many, or empty", "give at most 8 texts")
        });
        wrong.within("batch_size", self.batch_size, 1, 1024);
        wrong.within("log_samples", self.log_samples, 0, 10_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> EvaluateArgs {
        EvaluateArgs { model: "m".into(), dataset: "d".into(), ..EvaluateArgs::default() }
    }

    #[test]
    fn two_names_are_enough() {
        let spec = args().parse().unwrap();
        assert_eq!((spec.batch_size, spec.num_fewshot, spec.measures), (16, 0, None));
    }

    #[test]
    fn every_wrong_option_is_named_at_once() {
        let wrong = EvaluateArgs { stride: Some(0), batch_size: Some(0), measures: Some(vec![]), ..args() };
        let text = wrong.parse().unwrap_err().to_string();
        for option in ["stride = 0", "batch_size = 0", "measures = []"] {
            assert!(text.contains(option), "{text}");
        }
    }

    #[test]
    fn a_spec_survives_json() {
        let spec = EvaluateArgs { measures: Some(vec![Measure::NumericMatch]), ..args() }.parse().unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<EvaluateSpec>(json).unwrap(), spec);
    }
}
