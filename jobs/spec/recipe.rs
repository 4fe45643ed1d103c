//! What every job that trains is told about training. The names are those of Transformers and TRL.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::option::{Complaints, InvalidOption};

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

/// What the operands of matrix products are rounded to. Sums, trained values and the optimizer stay f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    #[default]
    F32,
    Bf16,
}

/// What to do when the loss is no longer a number, or runs away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// End the job as failed; the last checkpoint is kept.
    #[default]
    Stop,
    /// Go back to the last checkpoint, halve the learning rate and pass over the rows at which it happened; after three
    /// times, stop.
    RollBack,
}

/// An option that is left to the plan, which takes what fits, and what costs least of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auto {
    // No docs, which every tool's schema would repeat. Rows of a forward pass, and with them how many passes make a step,
    // so that a step learns from as many rows.
    BatchSize,
    GradientCheckpointing,
    // LoRA over a base that is held quantized, where one as it is does not fit.
    Method,
}

/// The options of training, complete and within range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recipe {
    pub num_train_epochs: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    pub per_device_train_batch_size: u32,
    pub gradient_accumulation_steps: u32,
    pub gradient_checkpointing: bool,
    /// What the plan may change; nothing any more once a job is queued.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auto: Vec<Auto>,
    pub dtype: DType,
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
    pub packing: bool,
    pub seed: u64,
    pub logging_steps: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_steps: Option<u32>,
    pub load_best_model_at_end: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<u32>,
    pub early_stopping_threshold: f64,
    pub on_divergence: OnDivergence,
}

/// The length that a row is cut to where neither the caller nor the model says less.
pub const DEFAULT_MAX_SEQ_LENGTH: u32 = 512;

/// What differs between the kinds of training where the caller leaves it open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) learning_rate: f64,
    pub(crate) lr_scheduler_type: SchedulerType,
    pub(crate) weight_decay: f64,
    pub(crate) adam_beta2: f64,
    pub(crate) packing: bool,
}

/// Declares the arguments of a job that trains: its own first, then those that all of them share, and how the shared
/// ones become a [`Recipe`]. (A flattened struct would do the same, but then serde could not refuse unknown options.)
macro_rules! training_args {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// Passes over the training rows, above 0, up to 10000; a fraction ends within a pass. Default 1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub num_train_epochs: Option<f64>,
            /// Stop after so many steps, 1 to 10000000, whatever num_train_epochs says. Default: when that is done.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub max_steps: Option<u32>,
            /// Rows in one forward pass, 1 to 4096; objective kto takes 2 at least. Default 4.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub per_device_train_batch_size: Option<u32>,
            /// Forward passes whose gradients make one optimizer step, 1 to 4096. Default 1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub gradient_accumulation_steps: Option<u32>,
            /// Keep only what enters each layer and compute the rest again: about a quarter more time for much less
            /// memory. Default false.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub gradient_checkpointing: Option<bool>,
            /// What the plan chooses so that the job fits; a step keeps its rows. Default: nothing.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub auto: Option<Vec<$crate::recipe::Auto>>,
            /// What products are computed in: f32 or bf16 (sums and trained values stay f32). Default f32.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub dtype: Option<$crate::recipe::DType>,
            /// Peak learning rate, above 0, up to 1. Default: adapters 2e-4, method full 2e-5, on preferences a
            /// twentieth of either; training from nothing 1e-3.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub learning_rate: Option<f64>,
            /// How the learning rate moves after the warm-up. Default linear; training from nothing cosine.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub lr_scheduler_type: Option<$crate::recipe::SchedulerType>,
            /// Steps over which the learning rate rises from zero; not with warmup_ratio. Default: as that says.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub warmup_steps: Option<u32>,
            /// The same as a share of all steps, 0 to 1. Default 0.03.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub warmup_ratio: Option<f64>,
            /// Decoupled weight decay of AdamW, 0 to 1; not of norms and biases. Default 0; training from nothing 0.1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub weight_decay: Option<f64>,
            /// AdamW's decay of the first moment, 0 to below 1. Default 0.9.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub adam_beta1: Option<f64>,
            /// AdamW's decay of the second moment, 0 to below 1. Default 0.999; training from nothing 0.99.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub adam_beta2: Option<f64>,
            /// AdamW's epsilon, above 0, up to 0.1. Default 1e-8.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub adam_epsilon: Option<f64>,
            /// Gradients are scaled down to this L2 norm, up to 1000000; 0 turns clipping off. Default 1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub max_grad_norm: Option<f64>,
            /// Tokens a row is cut to, from 8 to the model's own limit. Default 512, or that limit where it is smaller;
            /// training from nothing 256.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub max_seq_length: Option<u32>,
            /// Fill rows up to max_seq_length with whole dataset rows, none of which sees another. Default false; training
            /// from nothing true.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub packing: Option<bool>,
            /// Seed of all that is left to chance, a whole number. Default 42.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub seed: Option<u64>,
            /// A metrics report every so many steps, 1 to 1000000. Default 1.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub logging_steps: Option<u32>,
            /// Measure the held-out loss every so many steps, 1 to 10000000. Default: before and after only.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub eval_steps: Option<u32>,
            /// Write a checkpoint every so many steps, 1 to 10000000. Default: only when told to stop, and for
            /// roll_back.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub save_steps: Option<u32>,
            /// Keep what had the lowest held-out loss rather than what came last. Needs eval_steps. Default false.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub load_best_model_at_end: Option<bool>,
            /// Stop after so many measurements of the held-out loss without improvement, 1 to 10000. Needs eval_steps.
            /// Default: never.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub early_stopping_patience: Option<u32>,
            /// What the held-out loss must fall by to count as an improvement, in nats, 0 to 100. Default 0.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub early_stopping_threshold: Option<f64>,
            /// What to do when the loss is no longer a number, or runs away: stop (the default) or roll_back.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub on_divergence: Option<$crate::recipe::OnDivergence>,
        }

        impl $name {
            /// The shared options with their defaults; what is wrong with them is added to `wrong`.
            fn recipe(
                &self,
                defaults: $crate::recipe::Defaults,
                wrong: &mut $crate::option::Complaints,
            ) -> $crate::recipe::Recipe {
                let recipe = $crate::recipe::Recipe {
                    num_train_epochs: self.num_train_epochs.unwrap_or(1.0),
                    max_steps: self.max_steps,
                    per_device_train_batch_size: self.per_device_train_batch_size.unwrap_or(4),
                    gradient_accumulation_steps: self.gradient_accumulation_steps.unwrap_or(1),
                    gradient_checkpointing: self.gradient_checkpointing.unwrap_or(false),
                    auto: self.auto.clone().unwrap_or_default(),
                    dtype: self.dtype.unwrap_or_default(),
                    learning_rate: self.learning_rate.unwrap_or(defaults.learning_rate),
                    lr_scheduler_type: self.lr_scheduler_type.unwrap_or(defaults.lr_scheduler_type),
                    warmup_ratio: match (self.warmup_steps, self.warmup_ratio) {
                        (None, None) => Some(0.03),
                        (_, ratio) => ratio,
                    },
                    warmup_steps: self.warmup_steps,
                    weight_decay: self.weight_decay.unwrap_or(defaults.weight_decay),
                    adam_beta1: self.adam_beta1.unwrap_or(0.9),
                    adam_beta2: self.adam_beta2.unwrap_or(defaults.adam_beta2),
                    adam_epsilon: self.adam_epsilon.unwrap_or(1e-8),
                    max_grad_norm: self.max_grad_norm.unwrap_or(1.0),
                    max_seq_length: self.max_seq_length,
                    packing: self.packing.unwrap_or(defaults.packing),
                    seed: self.seed.unwrap_or(42),
                    logging_steps: self.logging_steps.unwrap_or(1),
                    eval_steps: self.eval_steps,
                    save_steps: self.save_steps,
                    load_best_model_at_end: self.load_best_model_at_end.unwrap_or(false),
                    early_stopping_patience: self.early_stopping_patience,
                    early_stopping_threshold: self.early_stopping_threshold.unwrap_or(0.0),
                    on_divergence: self.on_divergence.unwrap_or_default(),
                };
                recipe.check(wrong);
                recipe
            }
        }
    };
}
pub(crate) use training_args;

impl Recipe {
    /// Rows (packs of rows, where they are packed) whose gradients make one optimizer step.
    #[must_use]
    pub fn rows_per_step(&self) -> u64 {
        u64::from(self.per_device_train_batch_size) * u64::from(self.gradient_accumulation_steps)
    }

    /// Optimizer steps of one pass over so many training rows (or packs), and in all.
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

    /// Adds what is out of range.
    pub(crate) fn check(&self, wrong: &mut Complaints) {
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
            let next = "choose a value above 0, up to 1; 2e-4 is usual for LoRA, 2e-5 for full finetuning";
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
        self.check_measuring(wrong);
    }

    /// What is measured and saved along the way.
    fn check_measuring(&self, wrong: &mut Complaints) {
        for (name, steps) in [("eval_steps", self.eval_steps), ("save_steps", self.save_steps)] {
            if let Some(steps) = steps {
                wrong.within(name, steps, 1, 10_000_000);
            }
        }
        if let Some(patience) = self.early_stopping_patience {
            wrong.within("early_stopping_patience", patience, 1, 10_000);
            wrong.require(self.eval_steps.is_some(), || {
                let next = "give eval_steps too: the held-out loss is what is waited for";
                InvalidOption::new("early_stopping_patience", patience, "given without eval_steps", next)
            });
        }
        wrong.within("early_stopping_threshold", self.early_stopping_threshold, 0.0, 100.0);
        wrong.require(!self.load_best_model_at_end || self.eval_steps.is_some(), || {
            let next = "give eval_steps too: the best is what had the lowest held-out loss";
            InvalidOption::new("load_best_model_at_end", true, "given without eval_steps", next)
        });
    }
}
