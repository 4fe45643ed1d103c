//! The options of a finetune. Their names are those of PEFT, TRL and Transformers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Columns;
use crate::option::{Complaints, InvalidOption, InvalidOptions};
use crate::quantize::TensorType;
use crate::recipe::{Auto, Defaults, Recipe, SchedulerType, training_args};

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

/// What of the model is trained, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Adapters of low rank beside frozen weights (Hu et al. 2021).
    #[default]
    Lora,
    /// The same over weights held quantized (Dettmers et al. 2023), which takes the least memory.
    Qlora,
    /// LoRA with a trained magnitude for each output (Liu et al. 2024).
    Dora,
    /// The weights themselves.
    Full,
}

impl Method {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Qlora => "qlora",
            Self::Dora => "dora",
            Self::Full => "full",
        }
    }

    /// Whether adapters are trained rather than the model's own weights.
    #[must_use]
    pub fn has_adapter(self) -> bool {
        self != Self::Full
    }
}

/// What is learnt from the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// To say what the rows say: supervised finetuning.
    #[default]
    Sft,
    /// To prefer the chosen answer over the rejected one, without straying from the model as it was (Rafailov et al.
    /// 2023).
    Dpo,
    /// To say the chosen answer and prefer it over the rejected one, with no reference (Hong et al. 2024).
    Orpo,
    /// To raise answers labelled good and lower those labelled bad, which need not come in pairs (Ethayarajh et al.
    /// 2024).
    Kto,
}

/// What a finetune leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The adapter, in PEFT's form.
    Adapter,
    /// The whole model with the adapter worked in, as a Hugging Face folder.
    Merged,
    Both,
}

impl Keep {
    #[must_use]
    pub fn adapter(self) -> bool {
        self != Self::Merged
    }

    #[must_use]
    pub fn merged(self) -> bool {
        self != Self::Adapter
    }
}

training_args! {
/// A finetune as somebody wrote it. Everything but `model` and `dataset` has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
// What is missing is reported by `parse`, together with everything else that is wrong; so serde takes it for empty.
#[schemars(extend("required" = ["model", "dataset"]))]
pub struct FinetuneArgs {
    /// The model to start from: a name from `list_models`, `hf:owner/name[@revision]`, or `job:<id>[/path]` of another
    /// job.
    pub model: String,
    /// The dataset to learn from: a name that `load_dataset` returned.
    pub dataset: String,
    /// An adapter to go on from: `job:<id>` of a finetune of the same model. Its rank and targets are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// What is trained: lora (the default), qlora, dora or full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// What is learnt: sft (the default), dpo, orpo or kto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// DPO, ORPO and KTO: how much the preference weighs, above 0, up to 100. Default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// QLoRA: what the base's matrices are held in, a quantized type; those of a quantized GGUF stay as they are.
    /// Default Q4_0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_quant_type: Option<TensorType>,
    /// Train only what these patterns match, `*` for anything: `model.layers.28.*`, `*.mlp.*`, `lm_head.weight`. For
    /// adapters, the projections that get one. Default: everything, or every target module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable: Option<Vec<String>>,
    /// What is left behind: adapter (the default of adapters), merged (the only one of method full) or both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// A dataset to measure the held-out loss on. Without it, `test_size` of the rows are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    /// Share of the rows held out of training to measure the loss on, 0 to 0.5. Default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_size: Option<f64>,
    /// Which columns hold what, where their names are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Rank of the adapter matrices, 1 to 512. Default 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_r: Option<u32>,
    /// The adapter's output is scaled by lora_alpha / lora_r; above 0, up to 65536. Default 2 * lora_r.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Share of the adapter's inputs dropped while training, 0 to below 1. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<f64>,
    /// The projections that get an adapter. Default: all seven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<TargetModule>>,
    /// Learn from the completion (or the assistant's turns) only, not from the prompt. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_only_loss: Option<bool>,
    /// Questions that the model answers before and after, at most 8. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_prompts: Option<Vec<String>>,
    /// Tokens of an answer at most, 1 to 1024. Default 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
}
}

/// A finetune whose options are complete and within range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "FinetuneArgs")]
pub struct FinetuneSpec {
    pub model: String,
    pub dataset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    pub method: Method,
    pub objective: Objective,
    pub beta: f64,
    pub base_quant_type: TensorType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable: Option<Vec<String>>,
    pub keep: Keep,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    pub test_size: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    pub lora_r: u32,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: Vec<TargetModule>,
    pub completion_only_loss: bool,
    pub sample_prompts: Vec<String>,
    pub max_new_tokens: u32,
    #[serde(flatten)]
    pub recipe: Recipe,
}

impl FinetuneArgs {
    /// Fills in the defaults and checks every option; all complaints come at once.
    pub fn parse(self) -> Result<FinetuneSpec, InvalidOptions> {
        let mut wrong = Complaints::default();
        let lora_r = self.lora_r.unwrap_or(8);
        let (method, objective) = (self.method.unwrap_or_default(), self.objective.unwrap_or_default());
        let recipe = self.recipe(defaults(method, objective), &mut wrong);
        let spec = FinetuneSpec {
            model: self.model,
            dataset: self.dataset,
            adapter: self.adapter,
            method,
            objective,
            beta: self.beta.unwrap_or(0.1),
            base_quant_type: self.base_quant_type.unwrap_or(TensorType::Q4_0),
            trainable: self.trainable,
            keep: self.keep.unwrap_or(if method.has_adapter() { Keep::Adapter } else { Keep::Merged }),
            test_size: self.test_size.unwrap_or(if self.eval_dataset.is_some() { 0.0 } else { 0.1 }),
            eval_dataset: self.eval_dataset,
            columns: self.columns,
            lora_r,
            // Of a rank that is refused anyway, no second complaint should follow.
            lora_alpha: self.lora_alpha.unwrap_or(2.0 * f64::from(lora_r.max(1))),
            lora_dropout: self.lora_dropout.unwrap_or(0.0),
            target_modules: self.target_modules.unwrap_or_else(|| TargetModule::ALL.to_vec()),
            completion_only_loss: self.completion_only_loss.unwrap_or(true),
            sample_prompts: self.sample_prompts.unwrap_or_default(),
            max_new_tokens: self.max_new_tokens.unwrap_or(64),
            recipe,
        };
        spec.check(&mut wrong);
        wrong.into_result(spec)
    }
}

/// Usual values: adapters take a higher learning rate than whole models, preferences a lower one than texts.
fn defaults(method: Method, objective: Objective) -> Defaults {
    let learning_rate = match (method.has_adapter(), objective) {
        (true, Objective::Sft) => 2e-4,
        (true, _) => 1e-5,
        (false, Objective::Sft) => 2e-5,
        (false, _) => 1e-6,
    };
    let (lr_scheduler_type, weight_decay, adam_beta2) = (SchedulerType::Linear, 0.0, 0.999);
    Defaults { learning_rate, lr_scheduler_type, weight_decay, adam_beta2, packing: false }
}

impl TryFrom<FinetuneArgs> for FinetuneSpec {
    type Error = InvalidOptions;

    fn try_from(args: FinetuneArgs) -> Result<Self, Self::Error> {
        args.parse()
    }
}

impl FinetuneSpec {
    fn check(&self, wrong: &mut Complaints) {
        wrong.named("model", &self.model, "name one from list_models, or hf:owner/name");
        wrong.named("dataset", &self.dataset, "call load_dataset first and give the name it returns");
        wrong.within("test_size", self.test_size, 0.0, 0.5);
        wrong.require(self.eval_dataset.is_none() || self.test_size == 0.0, || {
            InvalidOption::new("test_size", self.test_size, "given together with eval_dataset", "give one of the two")
        });
        self.check_measured(wrong);
        self.check_auto(wrong);
        self.check_adapter(wrong);
        self.check_objective(wrong);
        wrong.require(self.sample_prompts.len() <= 8, || {
            let value = format!("{} prompts", self.sample_prompts.len());
            InvalidOption::new("sample_prompts", value, "too many", "give at most 8")
        });
        wrong.within("max_new_tokens", self.max_new_tokens, 1, 1024);
    }

    /// The held-out loss can be waited for only if rows are held out.
    fn check_measured(&self, wrong: &mut Complaints) {
        if let Some(steps) = self.recipe.eval_steps {
            wrong.require(self.eval_dataset.is_some() || self.test_size > 0.0, || {
                let next = "give eval_dataset, or a test_size above 0";
                InvalidOption::new("eval_steps", steps, "given without held-out rows", next)
            });
        }
    }

    /// Only LoRA has another method that differs in nothing but what the base is held in.
    fn check_auto(&self, wrong: &mut Complaints) {
        let methods = [Method::Lora, Method::Qlora];
        wrong.require(!self.recipe.auto.contains(&Auto::Method) || methods.contains(&self.method), || {
            let next = "leave method out of auto, or choose method \"lora\"";
            InvalidOption::new("auto", "method", format!("nothing stands in for {}", self.method.name()), next)
        });
    }

    fn check_adapter(&self, wrong: &mut Complaints) {
        wrong.within("lora_r", self.lora_r, 1, 512);
        wrong.require(self.lora_alpha > 0.0 && self.lora_alpha <= 65_536.0, || {
            let next = "choose a value above 0, often 2 * lora_r";
            InvalidOption::new("lora_alpha", self.lora_alpha, "out of range", next)
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
        wrong.require(self.trainable.as_ref().is_none_or(|patterns| !patterns.is_empty()), || {
            InvalidOption::new("trainable", "[]", "empty", "name what is to be trained, or leave it out")
        });
        wrong.require(self.method.has_adapter() || self.keep == Keep::Merged, || {
            let next = "leave it out: a full finetune leaves a whole model behind";
            InvalidOption::new("keep", "adapter", "there is none with method full", next)
        });
        wrong.require(self.method.has_adapter() || self.adapter.is_none(), || {
            let value = self.adapter.as_deref().unwrap_or_default();
            InvalidOption::new("adapter", value, "given with method full", "merge it first, or choose method lora")
        });
        wrong.require(self.method != Method::Qlora || self.base_quant_type.is_quantized(), || {
            let next = "choose a quantized type, such as Q4_0, Q8_0 or Q4_K, or method lora";
            InvalidOption::new("base_quant_type", self.base_quant_type.name(), "not a quantized type", next)
        });
    }

    fn check_objective(&self, wrong: &mut Complaints) {
        wrong.require(self.beta > 0.0 && self.beta <= 100.0, || {
            InvalidOption::new("beta", self.beta, "out of range", "choose a value above 0, up to 100; 0.1 is usual")
        });
        wrong.require(self.objective == Objective::Sft || !self.recipe.packing, || {
            InvalidOption::new("packing", true, "given with a preference objective", "leave it out")
        });
        let rows = self.recipe.per_device_train_batch_size;
        wrong.require(self.objective != Objective::Kto || rows != 1, || {
            let problem = "objective kto compares the rows of a forward pass";
            InvalidOption::new("per_device_train_batch_size", rows, problem, "choose 2 or more")
        });
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
        assert_eq!((spec.lora_r, spec.lora_alpha, spec.recipe.warmup_ratio), (8, 16.0, Some(0.03)));
        assert_eq!(spec.target_modules.len(), 7);
    }

    #[test]
    fn steps_are_counted_up() {
        let spec = FinetuneArgs { num_train_epochs: Some(1.5), ..args() }.parse().unwrap();
        assert_eq!(spec.recipe.steps(17), (5, 8));
        let spec = FinetuneArgs { max_steps: Some(7), gradient_accumulation_steps: Some(2), ..args() }.parse().unwrap();
        assert_eq!(spec.recipe.steps(17), (3, 7));
    }

    #[test]
    fn every_wrong_option_is_named_at_once() {
        let wrong = FinetuneArgs { lora_r: Some(0), learning_rate: Some(-1.0), ..args() }.parse().unwrap_err();
        let text = wrong.to_string();
        assert!(text.contains("lora_r = 0: out of range; choose a value from 1 to 512"), "{text}");
        assert!(text.contains("learning_rate = -1: out of range"), "{text}");
    }

    #[test]
    fn kto_needs_rows_to_compare() {
        let kto =
            |rows| FinetuneArgs { objective: Some(Objective::Kto), per_device_train_batch_size: Some(rows), ..args() };
        let text = kto(1).parse().unwrap_err().to_string();
        assert!(text.contains("per_device_train_batch_size = 1: objective kto compares the rows"), "{text}");
        assert!(kto(2).parse().is_ok());
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
