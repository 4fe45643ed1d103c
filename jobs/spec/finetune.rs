//! The options of a finetune. Their names are those of PEFT, TRL and Transformers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Columns;
use crate::option::{Complaints, InvalidOption, InvalidOptions};

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Falls to zero in a straight line.
    Linear,
    /// Falls to zero along half a cosine.
    Cosine,
    /// Stays where it is.
    Constant,
}

/// A projection of a decoder layer that can carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetModule {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl TargetModule {
    /// Every linear projection of a Llama-shaped layer, which is what PEFT calls `all-linear`.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// A finetune as somebody wrote it. Everything but `model` and `dataset` has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
// What is missing is reported by `parse`, together with everything else that is wrong; so serde takes it for empty.
#[schemars(extend("required" = ["model", "dataset"]))]
pub struct FinetuneArgs {
    /// The model to start from: a name from `list_models`, or `hf:owner/name[@revision]`.
    pub model: String,
    /// The dataset to learn from: a name that `load_dataset` returned.
    pub dataset: String,
    /// A dataset to measure the held-out loss on. Without it, `test_size` of the rows are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    /// Share of the rows held out of training to measure the loss on, 0 to 0.5. Default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_size: Option<f64>,
    /// Which columns hold what, where the dataset's own names are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Rank of the adapter matrices, 1 to 512. Default 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_r: Option<u32>,
    /// The adapter's output is scaled by lora_alpha / lora_r. Default 2 * lora_r.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Share of the adapter's inputs dropped while training, 0 to below 1. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<f64>,
    /// The projections that get an adapter. Default: all seven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<TargetModule>>,
    /// Passes over the training rows. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_train_epochs: Option<f64>,
    /// Stop after so many optimizer steps, whatever num_train_epochs says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    /// Rows in one forward pass. Default 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_device_train_batch_size: Option<u32>,
    /// Forward passes whose gradients are added up before one optimizer step. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_accumulation_steps: Option<u32>,
    /// Peak learning rate. Default 2e-4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// How the learning rate moves after the warm-up. Default linear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_scheduler_type: Option<SchedulerType>,
    /// Optimizer steps over which the learning rate rises from zero. Not together with warmup_ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u32>,
    /// The same as a share of all steps, 0 to 1. Default 0.03.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay of AdamW. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// AdamW's decay of the first moment. Default 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_beta1: Option<f64>,
    /// AdamW's decay of the second moment. Default 0.999.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_beta2: Option<f64>,
    /// AdamW's epsilon. Default 1e-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_epsilon: Option<f64>,
    /// Gradients are scaled down to this L2 norm; 0 turns clipping off. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Tokens a row is cut to. Default 512, or the model's own limit where that is smaller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<u32>,
    /// Learn from the completion (or the assistant's turns) only, not from the prompt. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_only_loss: Option<bool>,
    /// Seed of the adapter's start values, the split, the order of rows and dropout. Default 42.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// A metrics report every so many optimizer steps. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging_steps: Option<u32>,
    /// Questions that the model answers before and after, at most 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_prompts: Option<Vec<String>>,
    /// Tokens of an answer at most, 1 to 1024. Default 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
}

/// A finetune whose options are complete and within range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "FinetuneArgs")]
pub struct FinetuneSpec {
    pub model: String,
    pub dataset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    pub test_size: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    pub lora_r: u32,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: Vec<TargetModule>,
    pub num_train_epochs: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    pub per_device_train_batch_size: u32,
    pub gradient_accumulation_steps: u32,
    pub learning_rate: f64,
    pub lr_scheduler_type: SchedulerType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub max_grad_norm: f64,
    /// Tokens a row is cut to; without it 512, or the model's own limit where that is smaller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<u32>,
    pub completion_only_loss: bool,
    pub seed: u64,
    pub logging_steps: u32,
    pub sample_prompts: Vec<String>,
    pub max_new_tokens: u32,
}

/// The length that a row is cut to where neither the caller nor the model says less.
pub const DEFAULT_MAX_SEQ_LENGTH: u32 = 512;

impl FinetuneArgs {
    /// Fills in the defaults and checks every option; all complaints come at once.
    pub fn parse(self) -> Result<FinetuneSpec, InvalidOptions> {
        let mut wrong = Complaints::default();
        let lora_r = self.lora_r.unwrap_or(8);
        let spec = FinetuneSpec {
            model: self.model,
            dataset: self.dataset,
            test_size: self.test_size.unwrap_or(if self.eval_dataset.is_some() { 0.0 } else { 0.1 }),
            eval_dataset: self.eval_dataset,
            columns: self.columns,
            lora_r,
            // Of a rank that is refused anyway, no second complaint should follow.
            lora_alpha: self.lora_alpha.unwrap_or(2.0 * f64::from(lora_r.max(1))),
            lora_dropout: self.lora_dropout.unwrap_or(0.0),
            target_modules: self.target_modules.unwrap_or_else(|| TargetModule::ALL.to_vec()),
            num_train_epochs: self.num_train_epochs.unwrap_or(1.0),
            max_steps: self.max_steps,
            per_device_train_batch_size: self.per_device_train_batch_size.unwrap_or(4),
            gradient_accumulation_steps: self.gradient_accumulation_steps.unwrap_or(1),
            learning_rate: self.learning_rate.unwrap_or(2e-4),
            lr_scheduler_type: self.lr_scheduler_type.unwrap_or(SchedulerType::Linear),
            warmup_ratio: match (self.warmup_steps, self.warmup_ratio) {
                (None, None) => Some(0.03),
                (_, ratio) => ratio,
            },
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay.unwrap_or(0.0),
            adam_beta1: self.adam_beta1.unwrap_or(0.9),
            adam_beta2: self.adam_beta2.unwrap_or(0.999),
            adam_epsilon: self.adam_epsilon.unwrap_or(1e-8),
            max_grad_norm: self.max_grad_norm.unwrap_or(1.0),
            max_seq_length: self.max_seq_length,
            completion_only_loss: self.completion_only_loss.unwrap_or(true),
            seed: self.seed.unwrap_or(42),
            logging_steps: self.logging_steps.unwrap_or(1),
            sample_prompts: self.sample_prompts.unwrap_or_default(),
            max_new_tokens: self.max_new_tokens.unwrap_or(64),
        };
        spec.check(&mut wrong);
        wrong.into_result(spec)
    }
}

impl TryFrom<FinetuneArgs> for FinetuneSpec {
    type Error = InvalidOptions;

    fn try_from(args: FinetuneArgs) -> Result<Self, Self::Error> {
        args.parse()
    }
}

impl FinetuneSpec {
    /// Rows whose gradients make one optimizer step.
    #[must_use]
    pub fn rows_per_step(&self) -> u64 {
        u64::from(self.per_device_train_batch_size) * u64::from(self.gradient_accumulation_steps)
    }

    /// Optimizer steps of one pass over so many training rows, and in all.
    #[must_use]
    pub fn steps(&self, train_rows: u64) -> (u64, u64) {
        let per_epoch = train_rows.div_ceil(self.rows_per_step()).max(1);
        let by_epochs = (self.num_train_epochs * per_epoch as f64).ceil() as u64;
        (per_epoch, self.max_steps.map_or(by_epochs, u64::from).max(1))
    }

    /// The length that rows are cut to, given the model's own limit in tokens.
    #[must_use]
    pub fn seq_length(&self, model_limit: u32) -> u32 {
        self.max_seq_length.unwrap_or(DEFAULT_MAX_SEQ_LENGTH).min(model_limit)
    }

    fn check(&self, wrong: &mut Complaints) {
        wrong.require(!self.model.trim().is_empty(), || {
            InvalidOption::new("model", "\"\"", "missing", "name one from list_models, or hf:owner/name")
        });
        wrong.require(!self.dataset.trim().is_empty(), || {
            InvalidOption::new("dataset", "\"\"", "missing", "call load_dataset first and give the name it returns")
        });
        wrong.within("test_size", self.test_size, 0.0, 0.5);
        wrong.require(self.eval_dataset.is_none() || self.test_size == 0.0, || {
            InvalidOption::new("test_size", self.test_size, "given together with eval_dataset", "give one of the two")
        });
        wrong.within("lora_r", self.lora_r, 1, 512);
        wrong.require(self.lora_alpha > 0.0 && self.lora_alpha <= 65_536.0, || {
            InvalidOption::new(
                "lora_alpha",
                self.lora_alpha,
                "out of range",
                "choose a value above 0, often 2 * lora_r",
            )
        });
        wrong.require((0.0..1.0).contains(&self.lora_dropout), || {
            InvalidOption::new("lora_dropout", self.lora_dropout, "out of range", "choose a value from 0 to below 1")
        });
        let mut seen = self.target_modules.clone();
        seen.sort_unstable();
        seen.dedup();
        wrong.require(!seen.is_empty() && seen.len() == self.target_modules.len(), || {
            let names: Vec<_> = self.target_modules.iter().map(|module| module.name()).collect();
            let next = "name each of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj at most once";
            InvalidOption::new("target_modules", format!("{names:?}"), "empty or repeated", next)
        });
        wrong.require(self.num_train_epochs > 0.0 && self.num_train_epochs <= 10_000.0, || {
            let next = "choose a value above 0, up to 10000";
            InvalidOption::new("num_train_epochs", self.num_train_epochs, "out of range", next)
        });
        if let Some(steps) = self.max_steps {
            wrong.within("max_steps", steps, 1, 10_000_000);
        }
        wrong.within("per_device_train_batch_size", self.per_device_train_batch_size, 1, 4096);
        wrong.within("gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 4096);
        wrong.require(self.learning_rate > 0.0 && self.learning_rate <= 1.0, || {
            let next = "choose a value above 0, up to 1; 2e-4 is usual for LoRA";
            InvalidOption::new("learning_rate", self.learning_rate, "out of range", next)
        });
        wrong.require(self.warmup_steps.is_none() || self.warmup_ratio.is_none(), || {
            let value = self.warmup_ratio.unwrap_or_default();
            InvalidOption::new("warmup_ratio", value, "given together with warmup_steps", "give one of the two")
        });
        if let Some(ratio) = self.warmup_ratio {
            wrong.within("warmup_ratio", ratio, 0.0, 1.0);
        }
        wrong.within("weight_decay", self.weight_decay, 0.0, 1.0);
        for (name, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            wrong.require((0.0..1.0).contains(&beta), || {
                InvalidOption::new(name, beta, "out of range", "choose a value from 0 to below 1")
            });
        }
        wrong.require(self.adam_epsilon > 0.0 && self.adam_epsilon <= 0.1, || {
            InvalidOption::new("adam_epsilon", self.adam_epsilon, "out of range", "choose a value above 0, up to 0.1")
        });
        wrong.within("max_grad_norm", self.max_grad_norm, 0.0, 1e6);
        if let Some(length) = self.max_seq_length {
            wrong.within("max_seq_length", length, 8, 1_048_576);
        }
        wrong.within("logging_steps", self.logging_steps, 1, 1_000_000);
        wrong.require(self.sample_prompts.len() <= 8, || {
            let value = format!("{} prompts", self.sample_prompts.len());
            InvalidOption::new("sample_prompts", value, "too many", "give at most 8")
        });
        wrong.within("max_new_tokens", self.max_new_tokens, 1, 1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> FinetuneArgs {
        FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() }
    }

    #[test]
    fn two_names_are_enough() {
        let spec = args().parse().unwrap();
        assert_eq!((spec.lora_r, spec.lora_alpha, spec.warmup_ratio), (8, 16.0, Some(0.03)));
        assert_eq!(spec.target_modules.len(), 7);
    }

    #[test]
    fn steps_are_counted_up() {
        let spec = FinetuneArgs { num_train_epochs: Some(1.5), ..args() }.parse().unwrap();
        assert_eq!(spec.steps(17), (5, 8));
        let spec = FinetuneArgs { max_steps: Some(7), gradient_accumulation_steps: Some(2), ..args() }.parse().unwrap();
        assert_eq!(spec.steps(17), (3, 7));
    }

    #[test]
    fn every_wrong_option_is_named_at_once() {
        let wrong = FinetuneArgs { lora_r: Some(0), learning_rate: Some(-1.0), ..args() }.parse().unwrap_err();
        let text = wrong.to_string();
        assert!(text.contains("lora_r = 0: out of range; choose a value from 1 to 512"), "{text}");
        assert!(text.contains("learning_rate = -1: out of range"), "{text}");
    }

    #[test]
    fn nan_is_out_of_every_range() {
        for wrong in [
            FinetuneArgs { test_size: Some(f64::NAN), ..args() },
            FinetuneArgs { learning_rate: Some(f64::NAN), ..args() },
            FinetuneArgs { num_train_epochs: Some(f64::NAN), ..args() },
            FinetuneArgs { max_grad_norm: Some(f64::NAN), ..args() },
        ] {
            assert!(wrong.parse().is_err());
        }
    }

    #[test]
    fn a_spec_survives_json_and_cannot_be_forged() {
        let spec = args().parse().unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<FinetuneSpec>(json.clone()).unwrap(), spec);
        let mut forged = json;
        forged["lora_r"] = 0.into();
        assert!(serde_json::from_value::<FinetuneSpec>(forged).is_err());
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = serde_json::from_str::<FinetuneArgs>(r#"{"model":"m","dataset":"d","lora_rank":4}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `lora_rank`"), "{error}");
    }
}
