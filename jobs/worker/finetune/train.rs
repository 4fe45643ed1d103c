//! The training loop: forward and backward passes, gathered into optimizer steps.

use std::time::Instant;

use candle_core::Var;
use drydock_spec::report::Metrics;
use drydock_spec::{Failure, FailureKind, Recipe, Report};
use serde::Serialize;

use crate::data::batch::{Batch, epoch};
use crate::data::rows::Row;
use crate::ending::{Ending, Result};
use crate::kernels::adamw::{AdamW, Constants, global_norm};
use crate::kernels::linear::mix;
use crate::model::decoder::Decoder;
use crate::model::parameter::{Gradients, Trainable};
use crate::model::tape::{Pass, Tape};
use crate::report::{Reporter, resident_bytes};
use crate::schedule::Schedule;
use crate::stop;

/// What training came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trained {
    pub steps: u64,
    /// Mean loss per supervised token of the last step, in nats.
    pub final_loss: f64,
    /// Tokens trained on.
    pub tokens: u64,
    pub seconds: f64,
    pub tokens_per_second: f64,
}

pub struct Trainer<'a> {
    decoder: &'a Decoder,
    recipe: &'a Recipe,
    rows: &'a [Row],
    variables: Vec<Var>,
    /// Sums over the forward passes of a step.
    gradients: Gradients,
    optimizer: AdamW,
    schedule: Schedule,
    last_finite: Option<(u64, f64)>,
}

/// One optimizer step, looked back on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Sum over the supervised tokens, in nats.
    pub loss: f64,
    pub supervised: usize,
    pub tokens: usize,
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
}

impl Step {
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.supervised as f64
    }
}

impl<'a> Trainer<'a> {
    pub fn new(decoder: &'a Decoder, recipe: &'a Recipe, trainables: &[Trainable], rows: &'a [Row]) -> Self {
        let variables: Vec<Var> = trainables.iter().map(|trainable| trainable.var.clone()).collect();
        let constants = Constants {
            beta1: recipe.adam_beta1,
            beta2: recipe.adam_beta2,
            epsilon: recipe.adam_epsilon,
            weight_decay: recipe.weight_decay,
        };
        Self {
            decoder,
            recipe,
            rows,
            gradients: Gradients::of(trainables),
            optimizer: AdamW::new(constants, &variables),
            variables,
            schedule: Schedule::new(recipe, rows.len() as u64),
            last_finite: None,
        }
    }

    /// Takes every step, and reports.
    pub fn train(mut self, reporter: &Reporter) -> Result<Trained> {
        let mut pace = Pace::new(self.schedule.clone(), u64::from(self.recipe.logging_steps));
        let (batch_size, accumulation) =
            (self.recipe.per_device_train_batch_size as usize, self.recipe.gradient_accumulation_steps as usize);
        let (total, mut done) = (self.schedule.total_steps, 0);
        for number in 0.. {
            for step in epoch(self.rows.len(), batch_size, accumulation, self.recipe.seed, number) {
                if done == total {
                    return Ok(pace.trained());
                }
                let batches: Vec<Batch> =
                    step.iter().map(|rows| Batch::of(rows.iter().map(|&row| &self.rows[row]))).collect();
                let taken = self.step(done, &batches, || {
                    reporter.progress(done, total);
                    stop::check()
                })?;
                done += 1;
                reporter.step_done(done);
                if let Some(metrics) = pace.add(done, taken) {
                    reporter.report(Report::Metrics(metrics));
                }
            }
        }
        unreachable!("epochs go on until the last step")
    }

    /// One optimizer step, counted from 0. The loss is divided by the supervised tokens of all its batches, so that
    /// several small batches are one big one.
    pub fn step(
        &mut self,
        number: u64,
        batches: &[Batch],
        mut before_each: impl FnMut() -> Result<()>,
    ) -> Result<Step> {
        let supervised: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        self.gradients.clear();
        let mut loss = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            before_each()?;
            let seed = mix(self.recipe.seed ^ mix(number ^ mix(index as u64)));
            loss += self.add_gradients(batch, seed, 1.0 / supervised as f64)?;
        }
        let (mean, grad_norm) = (loss / supervised as f64, global_norm(self.gradients.groups()));
        let learning_rate = self.schedule.learning_rate(number);
        if !mean.is_finite() || !grad_norm.is_finite() {
            return Err(self.diverged(number, mean, grad_norm, learning_rate));
        }
        self.last_finite = Some((number + 1, mean));
        let clip = self.clip(grad_norm);
        self.optimizer.step(&self.variables, self.gradients.groups(), learning_rate, clip)?;
        let tokens = batches.iter().map(|batch| batch.ids.len()).sum();
        Ok(Step { loss, supervised, tokens, learning_rate, grad_norm })
    }

    /// Adds the gradients of `scale` times the batch's loss, and returns the loss itself.
    fn add_gradients(&mut self, batch: &Batch, dropout_seed: u64, scale: f64) -> Result<f64> {
        let tape = Tape::record(self.decoder, batch, Pass::new(self.recipe, dropout_seed))?;
        let losses = tape.backward(&vec![scale as f32; batch.targets.len()], &mut self.gradients)?;
        Ok(losses.into_iter().sum())
    }

    /// What gradients are multiplied by, so that their norm is at most `max_grad_norm`; as PyTorch does it.
    fn clip(&self, grad_norm: f64) -> f64 {
        if self.recipe.max_grad_norm == 0.0 { 1.0 } else { (self.recipe.max_grad_norm / (grad_norm + 1e-6)).min(1.0) }
    }

    fn diverged(&self, number: u64, loss: f64, grad_norm: f64, learning_rate: f64) -> Ending {
        let what = if loss.is_finite() {
            format!("the gradient's norm is {grad_norm}")
        } else {
            format!("the loss is {loss}")
        };
        let before = match self.last_finite {
            Some((step, loss)) => format!("the last finite loss was {loss:.4} at step {step}"),
            None => "it never was finite".to_owned(),
        };
        let message = format!("{what} at step {} (learning rate {learning_rate:e}); {before}", number + 1);
        Failure::new(FailureKind::Diverged, message).into()
    }

    /// The gradients of the last step, before clipping, in the order of the variables.
    pub fn gradients(&self) -> &[Vec<f32>] {
        self.gradients.groups()
    }
}

/// Sums steps up into metrics.
struct Pace {
    schedule: Schedule,
    logging_steps: u64,
    started: Instant,
    since: Instant,
    /// Of the steps since the last metrics.
    recent: Vec<Step>,
    last: Option<Step>,
    steps: u64,
    tokens: u64,
}

impl Pace {
    fn new(schedule: Schedule, logging_steps: u64) -> Self {
        let now = Instant::now();
        Self { schedule, logging_steps, started: now, since: now, recent: Vec::new(), last: None, steps: 0, tokens: 0 }
    }

    /// Adds a step; every `logging_steps`, and after the last one, metrics come of it.
    fn add(&mut self, done: u64, step: Step) -> Option<Metrics> {
        self.recent.push(step);
        self.last = Some(step);
        self.steps = done;
        self.tokens += step.tokens as u64;
        let total = self.schedule.total_steps;
        if !done.is_multiple_of(self.logging_steps) && done != total {
            return None;
        }
        let supervised: usize = self.recent.iter().map(|step| step.supervised).sum();
        let tokens: usize = self.recent.iter().map(|step| step.tokens).sum();
        let so_far = self.started.elapsed().as_secs_f64();
        let metrics = Metrics {
            step: done,
            total_steps: total,
            epoch: done as f64 / self.schedule.steps_per_epoch as f64,
            loss: self.recent.iter().map(|step| step.loss).sum::<f64>() / supervised as f64,
            learning_rate: step.learning_rate,
            grad_norm: step.grad_norm,
            tokens_per_second: tokens as f64 / self.since.elapsed().as_secs_f64().max(1e-9),
            eta_ms: (so_far / done as f64 * (total - done) as f64 * 1000.0) as u64,
            rss_bytes: resident_bytes().0,
        };
        self.recent.clear();
        self.since = Instant::now();
        Some(metrics)
    }

    fn trained(&self) -> Trained {
        let seconds = self.started.elapsed().as_secs_f64();
        Trained {
            steps: self.steps,
            final_loss: self.last.map_or(0.0, |step| step.mean_loss()),
            tokens: self.tokens,
            seconds,
            tokens_per_second: self.tokens as f64 / seconds.max(1e-9),
        }
    }
}
