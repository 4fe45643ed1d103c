//! One optimizer step: gradients summed up over several forward passes, clipped, and applied.

use std::sync::{Mutex, PoisonError};

use drydock_spec::finetune::Objective;
use drydock_spec::{FailureKind, Recipe};

use super::engine::{Engine, Planned, Recorded, Sums};
use super::objective::{Aim, Portion, Rewards};
use crate::ending::{Result, failed};
use crate::kernels::linear::mix;
use crate::model::tape::Pass;

/// Takes steps.
pub struct Stepper<'a> {
    /// The model's trained values, their gradients and the optimizer's moments.
    pub engine: Box<dyn Engine + 'a>,
    recipe: &'a Recipe,
    aim: Aim,
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
    pub fn new(engine: Box<dyn Engine + 'a>, recipe: &'a Recipe, aim: Aim) -> Self {
        Self { engine, recipe, aim }
    }

    /// The gradients of the mean loss over all passes of a step, counted from 0; several small passes are one big one.
    /// `before_each` is called before passes are made: what it refuses leaves everything as it was.
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
        self.engine.clear()?;
        let aim = self.aim;
        // Passes may be computed at once, but are added up in their order.
        let weighed = Mutex::new(vec![(0.0, Rewards::default()); passes.len()]);
        let weigh = |number: usize, recorded: &mut dyn Recorded| {
            let pass: &Portion = &passes[number];
            if aim.objective == Objective::Sft {
                return Ok(vec![(1.0 / counted as f64) as f32; pass.batch.targets.len()]);
            }
            let losses = recorded.losses()?;
            let came_to = pass.weigh(aim, &losses, &mut |batch| recorded.target_losses(batch))?;
            weighed.lock().unwrap_or_else(PoisonError::into_inner)[number] = (came_to.loss, came_to.rewards);
            Ok(came_to.scales.iter().map(|scale| scale / counted as f32).collect())
        };
        let planned = |(number, pass)| self.planned(step, number, pass);
        let planned: Vec<Planned<'_>> = passes.iter().enumerate().map(planned).collect();
        self.engine.learn(&planned, &weigh, &mut before_each)?;
        let Sums { losses, grad_norm } = self.engine.sums()?;
        let (mut weighed_loss, mut rewards) = (0.0, Rewards::default());
        for (loss, more) in weighed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            weighed_loss += loss;
            rewards.add(more);
        }
        let loss = match aim.objective {
            Objective::Sft => losses.iter().map(|losses| losses.iter().sum::<f64>()).sum(),
            Objective::Dpo | Objective::Orpo | Objective::Kto => weighed_loss,
        };
        let tokens = passes.iter().map(Portion::tokens).sum();
        Ok(Measured { loss, counted, tokens, grad_norm, rewards, losses })
    }

    /// Each pass of each step has a dropout of its own.
    fn planned<'p>(&self, step: u64, number: usize, pass: &'p Portion) -> Planned<'p> {
        let dropout_seed = mix(self.recipe.seed ^ mix(step ^ mix(number as u64)));
        Planned { batch: &pass.batch, pass: Pass::new(self.recipe, dropout_seed) }
    }

    /// Changes the trained values by what was measured last.
    pub fn apply(&mut self, measured: &Measured, learning_rate: f64) -> Result<()> {
        self.engine.step(learning_rate, self.clip(measured.grad_norm))
    }

    /// What gradients are multiplied by, so that their norm is at most `max_grad_norm`; as PyTorch does it.
    fn clip(&self, grad_norm: f64) -> f64 {
        if self.recipe.max_grad_norm == 0.0 { 1.0 } else { (self.recipe.max_grad_norm / (grad_norm + 1e-6)).min(1.0) }
    }
}
