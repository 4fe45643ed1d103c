//! What computes a training: forward and backward passes, the optimizer, and losses for their own sake.
//!
//! The training itself knows no device. It has an [`Engine`], which holds the trained values while steps are taken: the
//! [`Cpu`] in the model's own variables, a GPU in its own memory. The variables are what everybody else reads (who
//! saves, answers, writes checkpoints), so whoever reads them first asks the engine to [`Engine::give_values`], and
//! whoever has written them to [`Engine::take_values`].

use std::borrow::Cow;

use candle_core::Var;
use drydock_spec::Recipe;

use crate::data::batch::Batch;
use crate::ending::Result;
use crate::generate::answers;
use crate::generate::greedy::{Answer, Prompt};
use crate::kernels::adamw::{AdamW, Constants, Moments, global_norm};
use crate::model::decoder::Decoder;
use crate::model::parameter::{Gradients, Trainable};
use crate::model::tape::{Pass, Tape};
use crate::model::tokenizer::Text;

/// A pass of a step: what goes through the model, and how.
#[derive(Clone, Copy)]
pub struct Planned<'b> {
    pub batch: &'b Batch,
    pub pass: Pass,
}

/// Says what each of a pass's losses counts; the pass by its number in the step. Whoever computes several at once asks
/// for several at once.
pub type Weigh<'w> = dyn Fn(usize, &mut dyn Recorded) -> Result<Vec<f32>> + Sync + 'w;

/// Who computes a training.
pub trait Engine {
    /// The forward pass of a batch, up to where its losses begin.
    fn record<'e>(&'e mut self, batch: &'e Batch, pass: Pass) -> Result<Box<dyn Recorded + 'e>>;

    /// All passes of a step, forward and backward. `before_each` is called before each of them forward or backward, or
    /// before as many as are computed at once: what it refuses leaves the trained values as they were.
    fn learn(
        &mut self,
        passes: &[Planned<'_>],
        weigh: &Weigh<'_>,
        before_each: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        for (number, &Planned { batch, pass }) in passes.iter().enumerate() {
            before_each()?;
            let mut recorded = self.record(batch, pass)?;
            before_each()?;
            let scales = weigh(number, &mut *recorded)?;
            recorded.backward(&scales)?;
        }
        Ok(())
    }

    /// A new step begins: gradients are zero, and no pass has been made.
    fn clear(&mut self) -> Result<()>;

    /// What the backward passes since [`Engine::clear`] came to. A device is waited for here, and nowhere else in a
    /// step of texts.
    fn sums(&mut self) -> Result<Sums>;

    /// Changes the trained values by the gradients, which are multiplied by `gradient_scale` first (clipping).
    fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()>;

    /// The gradients of the groups, before clipping.
    fn gradients(&self) -> Result<Cow<'_, [Vec<f32>]>>;

    /// The optimizer's moments, in the order of the groups.
    fn moments(&self) -> Result<Cow<'_, [Moments]>>;

    /// Goes on from where another optimizer stood after so many steps.
    fn go_on(&mut self, moments: Vec<Moments>, steps: i32) -> Result<()>;

    /// The negative log likelihood of each of a batch's targets, in nats, for its own sake.
    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>>;

    /// What the model answers to prompts, all of them at once; `before_pass` hears how many answers are there.
    fn answers(
        &self,
        text: &Text,
        prompts: &[Prompt],
        before_pass: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Answer>>;

    /// The trained values are to be those of the model's variables.
    fn take_values(&mut self) -> Result<()>;

    /// The model's variables are to be the trained values.
    fn give_values(&self) -> Result<()>;
}

/// A forward pass that waits for its backward pass.
pub trait Recorded {
    /// The negative log likelihood of each of the batch's targets, in nats, for those who must know them before they
    /// can say what they count.
    fn losses(&mut self) -> Result<Vec<f64>>;

    /// See [`Engine::target_losses`].
    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>>;

    /// Adds the gradients of the sum over the targets of `scales` times their losses.
    fn backward(self: Box<Self>, scales: &[f32]) -> Result<()>;
}

/// What the passes of a step came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Of every target of every pass, in nats.
    pub losses: Vec<Vec<f64>>,
    /// L2 norm of all gradients together.
    pub grad_norm: f64,
}

/// The optimizer's constants, as a recipe has them.
pub fn constants(recipe: &Recipe) -> Constants {
    Constants {
        beta1: recipe.adam_beta1,
        beta2: recipe.adam_beta2,
        epsilon: recipe.adam_epsilon,
        weight_decay: recipe.weight_decay,
    }
}

/// Computes where everybody else does.
pub struct Cpu<'a> {
    decoder: &'a Decoder,
    variables: Vec<Var>,
    /// Sums over the passes of a step.
    gradients: Gradients,
    losses: Vec<Vec<f64>>,
    optimizer: AdamW,
}

impl<'a> Cpu<'a> {
    pub fn new(decoder: &'a Decoder, recipe: &Recipe, trainables: &[Trainable]) -> Self {
        Self {
            decoder,
            variables: trainables.iter().map(|trainable| trainable.var.clone()).collect(),
            gradients: Gradients::of(trainables),
            losses: Vec::new(),
            optimizer: AdamW::new(constants(recipe), trainables.iter().map(Trainable::stretches).collect()),
        }
    }
}

impl Engine for Cpu<'_> {
    fn record<'e>(&'e mut self, batch: &'e Batch, pass: Pass) -> Result<Box<dyn Recorded + 'e>> {
        let Self { decoder, gradients, losses, .. } = self;
        let decoder: &'e Decoder = decoder;
        let tape = Tape::record(decoder, batch, pass)?;
        Ok(Box::new(RecordedOnCpu { decoder, tape, gradients, losses }))
    }

    fn clear(&mut self) -> Result<()> {
        self.gradients.clear();
        self.losses.clear();
        Ok(())
    }

    fn sums(&mut self) -> Result<Sums> {
        Ok(Sums { losses: std::mem::take(&mut self.losses), grad_norm: global_norm(self.gradients.groups()) })
    }

    fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        Ok(self.optimizer.step(&self.variables, self.gradients.groups(), learning_rate, gradient_scale)?)
    }

    fn gradients(&self) -> Result<Cow<'_, [Vec<f32>]>> {
        Ok(self.gradients.groups().into())
    }

    fn moments(&self) -> Result<Cow<'_, [Moments]>> {
        Ok(self.optimizer.moments().into())
    }

    fn go_on(&mut self, moments: Vec<Moments>, steps: i32) -> Result<()> {
        self.optimizer.go_on(moments, steps);
        Ok(())
    }

    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        Ok(self.decoder.target_losses(batch)?)
    }

    fn answers(
        &self,
        text: &Text,
        prompts: &[Prompt],
        before_pass: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Answer>> {
        answers(self.decoder, text, prompts, before_pass)
    }

    /// They are the same.
    fn take_values(&mut self) -> Result<()> {
        Ok(())
    }

    fn give_values(&self) -> Result<()> {
        Ok(())
    }
}

struct RecordedOnCpu<'e> {
    decoder: &'e Decoder,
    tape: Tape<'e>,
    gradients: &'e mut Gradients,
    losses: &'e mut Vec<Vec<f64>>,
}

impl Recorded for RecordedOnCpu<'_> {
    fn losses(&mut self) -> Result<Vec<f64>> {
        Ok(self.tape.losses()?)
    }

    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        Ok(self.decoder.target_losses(batch)?)
    }

    fn backward(self: Box<Self>, scales: &[f32]) -> Result<()> {
        let Self { tape, gradients, losses, .. } = *self;
        losses.push(tape.backward(scales, gradients)?);
        Ok(())
    }
}
