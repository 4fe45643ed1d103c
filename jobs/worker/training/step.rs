//! One optimizer step: gradients summed up over several forward passes, clipped, and applied.

use candle_core::Var;
use drydock_spec::finetune::Objective;
use drydock_spec::{FailureKind, Recipe};

use super::objective::{Aim, Portion, Rewards};
use crate::ending::{Result, failed};
use crate::kernels::adamw::{AdamW, Constants, global_norm};
use crate::kernels::linear::mix;
use crate::model::decoder::Decoder;
use crate::model::parameter::{Gradients, Trainable};
use crate::model::tape::{Pass, Tape};

/// Takes steps: the model's trained values, their gradients and the optimizer's moments.
pub struct Stepper<'a> {
    pub decoder: &'a Decoder,
    recipe: &'a Recipe,
    aim: Aim,
    variables: Vec<Var>,
    /// Sums over the forward passes of a step.
    gradients: Gradients,
    pub optimizer: AdamW,
}

/// What the passes of a step came to, before anything is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// A sum over what is counted, in nats.
    pub loss: f64,
    /// What the loss is a mean over: supervised tokens, or lessons where they are preferences.
    pub counted: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// L2 norm of the gradients of the mean loss, before clipping.
    pub grad_norm: f64,
    pub rewards: Rewards,
    /// Of every target of every pass, in nats.
    pub losses: Vec<Vec<f64>>,
}

impl Measured {
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.counted as f64
    }

    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl<'a> Stepper<'a> {
    pub fn new(decoder: &'a Decoder, recipe: &'a Recipe, aim: Aim, trainables: &[Trainable]) -> Self {
        let variables: Vec<Var> = trainables.iter().map(|trainable| trainable.var.clone()).collect();
        let constants = Constants {
            beta1: recipe.adam_beta1,
            beta2: recipe.adam_beta2,
            epsilon: recipe.adam_epsilon,
            weight_decay: recipe.weight_decay,
        };
        let optimizer = AdamW::new(constants, trainables.iter().map(Trainable::stretches).collect());
        Self { decoder, recipe, aim, gradients: Gradients::of(trainables), optimizer, variables }
    }

    /// The gradients of the mean loss over all passes of a step, counted from 0; several small passes are one big one.
    /// `before_each` is called before each pass forward or backward: what it refuses leaves everything as it was.
    pub fn measure(
        &mut self,
        step: u64,
        passes: &[Portion],
        mut before_each: impl FnMut() -> Result<()>,
    ) -> Result<Measured> {
        let counted: usize = passes.iter().map(|pass| pass.counted(self.aim)).sum();
        if counted == 0 {
            return failed(FailureKind::NothingToLearn, format!("no token of step {} counts for the loss", step + 1));
        }
        self.gradients.clear();
        let (mut loss, mut rewards, mut losses) = (0.0, Rewards::default(), Vec::with_capacity(passes.len()));
        for (index, pass) in passes.iter().enumerate() {
            before_each()?;
            let dropout_seed = mix(self.recipe.seed ^ mix(step ^ mix(index as u64)));
            let mut tape = Tape::record(self.decoder, &pass.batch, Pass::new(self.recipe, dropout_seed))?;
            before_each()?;
            if self.aim.objective == Objective::Sft {
                let scales = vec![(1.0 / counted as f64) as f32; pass.batch.targets.len()];
                losses.push(tape.backward(&scales, &mut self.gradients)?);
                loss += losses[index].iter().sum::<f64>();
                continue;
            }
            let weighed = pass.weigh(self.aim, self.decoder, &tape.losses()?)?;
            let scales: Vec<f32> = weighed.scales.iter().map(|scale| scale / counted as f32).collect();
            losses.push(tape.backward(&scales, &mut self.gradients)?);
            loss += weighed.loss;
            rewards.add(weighed.rewards);
        }
        let grad_norm = global_norm(self.gradients.groups());
        let tokens = passes.iter().map(Portion::tokens).sum();
        Ok(Measured { loss, counted, tokens, grad_norm, rewards, losses })
    }

    /// Changes the trained values by what was measured last.
    pub fn apply(&mut self, measured: &Measured, learning_rate: f64) -> Result<()> {
        let clip = self.clip(measured.grad_norm);
        Ok(self.optimizer.step(&self.variables, self.gradients.groups(), learning_rate, clip)?)
    }

    /// What gradients are multiplied by, so that their norm is at most `max_grad_norm`; as PyTorch does it.
    fn clip(&self, grad_norm: f64) -> f64 {
        if self.recipe.max_grad_norm == 0.0 { 1.0 } else { (self.recipe.max_grad_norm / (grad_norm + 1e-6)).min(1.0) }
    }

    /// The gradients that were measured last, before clipping, in the order of the groups.
    pub fn gradients(&self) -> &[Vec<f32>] {
        self.gradients.groups()
    }

    pub fn variables(&self) -> &[Var] {
        &self.variables
    }
}
