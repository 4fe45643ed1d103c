//! Training: from lessons to better values, one optimizer step after the other.
//!
//! Everything that decides what the next step does is in a [`State`] and in the trained values; the rest follows from
//! the seed. So a checkpoint is the state and the values, and an attempt that goes on from one takes the same steps,
//! bit for bit, as one that was never interrupted (with the same number of threads and GPUs on the same kind of machine).

pub mod checkpoint;
pub mod divergence;
pub mod engine;
pub mod evaluation;
pub mod evidence;
pub mod objective;
pub mod order;
mod pace;
pub mod patience;
pub mod preference;
pub mod state;
pub mod step;
mod trouble;

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use drydock_spec::finetune::Objective;
use drydock_spec::recipe::OnDivergence;
use drydock_spec::report::{Checkpoint as CheckpointReport, Evaluation, Finished, Phase, Preferences};
use drydock_spec::{Failure, FailureKind, Recipe, Report};
use serde::Serialize;

use crate::compute::Compute;
use crate::data::batch::Batch;
use crate::data::lesson::Lesson;
use crate::ending::{Ending, OrFail, Result, failed, write_failed};
use crate::generate::{Question, answer_all};
use crate::kernels::read;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::model::tokenizer::Text;
use crate::report::{Reporter, resident_bytes};
use crate::schedule::Schedule;
use crate::stop;
use checkpoint::{Checkpoint, Lent, Origin};
use divergence::{Verdict, Watch};
use evaluation::HeldOut;
use objective::{Aim, Material, Portion};
use order::{Order, Pass, fixed_passes};
use pace::{LastStep, Pace};
use patience::Best;
use state::{RolledBack, State};
use step::{Measured, Stepper};

/// What a training is about.
pub struct Course<'a> {
    pub decoder: &'a Decoder,
    pub compute: &'a Compute,
    pub trainables: &'a [Trainable],
    pub recipe: &'a Recipe,
    pub aim: Aim,
    pub train: &'a [Lesson],
    pub held_out: &'a [Lesson],
    /// Tokens that rows were cut to; packs are filled up to it.
    pub max_length: usize,
    /// The folder for artifacts.
    pub output: &'a Path,
    /// What checkpoints are of.
    pub origin: Origin,
}

/// What training came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trained {
    pub steps: u64,
    /// Mean loss of the last step, in nats.
    pub final_loss: f64,
    /// Tokens trained on.
    pub tokens: u64,
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// Whether the held-out loss was waited for in vain.
    pub stopped_early: bool,
    /// The measurement whose values were kept, where they are not those of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Best>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rolled_back: Vec<RolledBack>,
    /// Where answers are compared: their rewards in the last steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Preferences>,
}

impl Trained {
    /// The last report of a job that trains.
    pub fn finished(&self) -> Finished {
        Finished {
            steps: self.steps,
            train_loss: Some(self.final_loss),
            tokens: self.tokens,
            peak_rss_bytes: resident_bytes().1,
        }
    }
}

pub struct Trainer<'a> {
    course: Course<'a>,
    reporter: &'a Reporter,
    pub state: State,
    stepper: Stepper<'a>,
    schedule: Schedule,
    order: Order,
    train: Material<'a>,
    held_out: Material<'a>,
    held_out_passes: Vec<Pass>,
    /// The trained values with the lowest held-out loss, while they are not the model's.
    best: Option<Vec<Vec<f32>>>,
    /// The values of the last step, while the best ones are the model's.
    last: Option<Vec<Vec<f32>>>,
    /// The last checkpoint and its step.
    saved: Option<(u64, PathBuf)>,
    pace: Pace,
}

impl<'a> Trainer<'a> {
    /// Ready for the first step.
    pub fn new(course: Course<'a>, reporter: &'a Reporter) -> Result<Self> {
        let Course { decoder, compute, trainables, recipe, aim, train, held_out, max_length, .. } = course;
        let fixed = if aim.objective == Objective::Kto {
            fixed_passes(train.len(), recipe.per_device_train_batch_size as usize, recipe.seed)
        } else {
            Vec::new()
        };
        let held_out_passes = evaluation::passes(held_out, aim, recipe);
        let train = Material::new(train, aim, &fixed, max_length);
        let held_out = Material::new(held_out, aim, &held_out_passes, max_length);
        let order =
            if fixed.is_empty() { Order::new(recipe, train.lessons, max_length) } else { Order::fixed(recipe, fixed) };
        let engine = compute.engine(decoder, recipe, trainables)?;
        Ok(Self {
            stepper: Stepper::new(engine, recipe, aim),
            schedule: Schedule::new(recipe, order.rows()),
            state: State::default(),
            pace: Pace::new(),
            best: None,
            last: None,
            saved: None,
            order,
            train,
            held_out,
            held_out_passes,
            course,
            reporter,
        })
    }

    /// Goes on from a checkpoint, with all that it holds.
    pub fn go_on_from(&mut self, folder: &Path) -> Result<()> {
        let Checkpoint { state, values, moments, best, reference } =
            checkpoint::read(folder, &self.course.origin, self.course.trainables)?;
        for (material, reference) in [&self.train, &self.held_out].into_iter().zip(&reference) {
            let wanted = if self.course.aim.needs_reference() { material.lessons.len() } else { 0 };
            if reference.len() != wanted {
                let message =
                    format!("the checkpoint knows the reference of {} rows, not of {wanted}", reference.len());
                return failed(FailureKind::ContractBroken, message);
            }
        }
        self.set_values(values)?;
        let steps = i32::try_from(state.steps).or_fail(FailureKind::ContractBroken, "the checkpoint's steps")?;
        self.stepper.engine.go_on(moments, steps)?;
        [self.train.reference, self.held_out.reference] = reference;
        self.best = best;
        self.saved = Some((state.steps, folder.to_owned()));
        self.reporter.step_done(state.steps);
        self.state = state;
        self.pace = Pace::new();
        Ok(())
    }

    /// Asks the model what preferences are compared with. To be done before anything is trained.
    pub fn refer(&mut self) -> Result<()> {
        if self.course.aim.needs_reference() {
            let (engine, aim) = (&mut self.stepper.engine, self.course.aim);
            let total = (self.train.lessons.len() + self.held_out.lessons.len()) as u64;
            let mut before = 0;
            for material in [&mut self.train, &mut self.held_out] {
                material.refer(aim, &mut |batch| engine.target_losses(batch), |done| {
                    self.reporter.progress(before + done as u64, total);
                    stop::check()
                })?;
                before += material.lessons.len() as u64;
            }
        }
        Ok(())
    }

    /// Takes every step that is left. Where it is asked to stop, it leaves a checkpoint behind.
    pub fn train(&mut self) -> Result<Trained> {
        self.reporter.step_done(self.state.steps);
        self.pace = Pace::new();
        match self.take_steps() {
            Err(Ending::Stopped) => {
                self.keep()?;
                Err(Ending::Stopped)
            }
            ended => {
                ended?;
                // Whoever saves the model, or asks it something, reads the variables.
                self.stepper.engine.give_values()?;
                Ok(self.trained())
            }
        }
    }

    fn take_steps(&mut self) -> Result<()> {
        loop {
            if self.evaluation_is_due() {
                self.evaluate_on_the_way()?;
            }
            if self.is_done() {
                if self.checkpoint_is_due(&self.state.watch) {
                    self.save()?;
                }
                return self.use_best();
            }
            self.step()?;
        }
    }

    fn is_done(&self) -> bool {
        let over = self.state.patience.is_over(self.course.recipe.early_stopping_patience);
        over || self.state.steps >= self.schedule.total_steps
    }

    fn step(&mut self) -> Result<()> {
        self.state.slot = self.state.next_slot();
        let (steps, total) = (self.state.steps, self.schedule.total_steps);
        let passes = self.order.at(self.state.slot, self.schedule.steps_per_epoch).to_vec();
        let portions: Vec<Portion> = passes.iter().map(|pass| self.train.portion(self.course.aim, pass)).collect();
        let measured = self.stepper.measure(steps, &portions, || {
            self.reporter.progress(steps, total);
            stop::check()
        })?;
        let learning_rate = self.schedule.learning_rate(steps) * self.state.learning_rate_scale();
        let mut watch = self.state.watch.clone();
        let verdict = if measured.is_finite() {
            watch.look(measured.mean_loss(), self.state.slot)
        } else {
            Verdict::Diverged { since: self.state.slot }
        };
        if let Verdict::Diverged { since } = verdict {
            self.state.watch = watch;
            return self.diverged(since, &passes, &portions, &measured, learning_rate);
        }
        // Only now is it known that the values can be gone on from: the step before may have ruined them, and the loss
        // that shows it is in the new watch only.
        if self.checkpoint_is_due(&watch) {
            self.save()?;
        }
        self.state.watch = watch;
        self.stepper.apply(&measured, learning_rate)?;
        self.state.step_taken(&measured);
        self.reporter.step_done(self.state.steps);
        self.report_metrics(&measured, learning_rate);
        Ok(())
    }

    fn report_metrics(&mut self, measured: &Measured, learning_rate: f64) {
        let step = LastStep { learning_rate, grad_norm: measured.grad_norm, tokens: measured.tokens };
        self.pace.step_taken(&mut self.state, &step);
        let total = self.schedule.total_steps;
        let every = u64::from(self.course.recipe.logging_steps);
        if self.state.steps.is_multiple_of(every) || self.state.steps == total {
            let metrics = self.pace.metrics(&mut self.state, &step, total, self.schedule.steps_per_epoch);
            self.reporter.report(Report::Metrics(metrics));
        }
    }

    fn evaluation_is_due(&self) -> bool {
        let (recipe, steps) = (self.course.recipe, self.state.steps);
        let last = recipe.load_best_model_at_end && steps == self.schedule.total_steps;
        let due = recipe.eval_steps.is_some_and(|every| steps.is_multiple_of(u64::from(every)) || last);
        due && steps > 0 && self.state.evaluated != Some(steps) && !self.held_out.lessons.is_empty()
    }

    /// The held-out loss while training: whether it is the best so far, and whether to wait any longer.
    fn evaluate_on_the_way(&mut self) -> Result<()> {
        let (steps, recipe, began) = (self.state.steps, self.course.recipe, Instant::now());
        let measured = self.evaluate(Phase::During)?;
        self.state.evaluated = Some(steps);
        let is_best = measured.is_some_and(|measured| {
            self.state.patience.measured(steps, measured.loss, recipe.early_stopping_threshold)
        });
        if is_best && recipe.load_best_model_at_end {
            self.best = Some(self.values()?);
        }
        self.pace.leave_out(began);
        Ok(())
    }

    /// Measures the held-out loss and reports it; nothing where no rows are held out.
    pub fn evaluate(&mut self, phase: Phase) -> Result<Option<HeldOut>> {
        if self.held_out.lessons.is_empty() {
            return Ok(None);
        }
        let (done_before, total) = match phase {
            Phase::During => (Some(self.state.steps), self.schedule.total_steps),
            Phase::Before | Phase::After => (None, self.held_out.lessons.len() as u64),
        };
        let (engine, aim) = (&mut self.stepper.engine, self.course.aim);
        let score = &mut |batch: &Batch| engine.target_losses(batch);
        let measured = evaluation::measure(score, &self.held_out, aim, &self.held_out_passes, |done| {
            self.reporter.progress(done_before.unwrap_or(done), total);
            stop::check()
        })?;
        let HeldOut { loss, tokens, preferences } = measured;
        if !loss.is_finite() {
            return Err(no_number(phase, loss));
        }
        let perplexity = loss.exp().min(f64::MAX);
        let evaluation = Evaluation { phase, step: done_before, loss, perplexity, tokens, preferences };
        self.reporter.report(Report::Evaluation(evaluation.clone()));
        // An attempt that was stopped after the last step measures once more.
        self.state.evaluations.retain(|earlier| (earlier.phase, earlier.step) != (phase, done_before));
        self.state.evaluations.push(evaluation);
        Ok(Some(measured))
    }

    /// Has the questions answered with the values of the moment, and reports the answers.
    pub fn answer(&mut self, text: &Text, questions: &[Question], phase: Phase) -> Result<()> {
        let samples = answer_all(&*self.stepper.engine, text, questions, phase, self.reporter)?;
        self.state.samples.extend(samples);
        Ok(())
    }

    /// Every `save_steps`; without them, often enough to have something to roll back to, where that is asked for. What
    /// the watch doubts is not saved.
    fn checkpoint_is_due(&self, watch: &Watch) -> bool {
        let (recipe, steps) = (self.course.recipe, self.state.steps);
        let rolls_back = recipe.on_divergence == OnDivergence::RollBack;
        let every = match recipe.save_steps {
            Some(every) => u64::from(every),
            None if rolls_back => (self.schedule.total_steps / 10).max(1),
            None => return false,
        };
        let due = steps.is_multiple_of(every) && (steps > 0 || rolls_back);
        due && self.saved.as_ref().is_none_or(|(saved, _)| *saved != steps) && !watch.in_doubt()
    }

    /// Leaves a checkpoint behind, unless there is one of this very step.
    pub fn keep(&mut self) -> Result<()> {
        let here = self.course.output.join("checkpoints");
        match &self.saved {
            Some((step, path)) if *step == self.state.steps && path.starts_with(here) => Ok(()),
            _ => self.save(),
        }
    }

    fn save(&mut self) -> Result<()> {
        let began = Instant::now();
        self.use_last()?;
        self.stepper.engine.give_values()?;
        let moments = self.stepper.engine.moments()?;
        let lent = Lent {
            state: &self.state,
            moments: &moments,
            best: self.best.as_deref(),
            reference: [&self.train.reference, &self.held_out.reference],
        };
        let Course { output, origin, trainables, .. } = &self.course;
        let (path, bytes) = checkpoint::write(output, origin, trainables, &lent)?;
        self.saved = Some((self.state.steps, output.join(&path)));
        self.reporter.report(Report::Checkpoint(CheckpointReport { step: self.state.steps, path, bytes }));
        self.pace.leave_out(began);
        Ok(())
    }

    /// The job is done: checkpoints go, but for the last one where they were asked for.
    pub fn clear_checkpoints(&self) -> Result<()> {
        let output = self.course.output;
        let kept = self.saved.as_ref().filter(|_| self.course.recipe.save_steps.is_some()).map(|(step, _)| *step);
        checkpoint::remove_all_but(output, kept).map_err(|error| write_failed(output, &error))
    }

    /// From here on the model's values are those with the lowest held-out loss.
    fn use_best(&mut self) -> Result<()> {
        let best = self.state.patience.best().filter(|best| best.step != self.state.steps);
        if let (Some(kept), Some(_)) = (best, &self.best) {
            self.last = Some(self.values()?);
            let best = self.best.clone().unwrap_or_default();
            self.set_values(best)?;
            let message = format!(
                "the values of step {} are kept: their held-out loss {:.4} is the lowest; training ended at step {}",
                kept.step, kept.loss, self.state.steps
            );
            self.reporter.warn("best_model_kept", message);
        }
        Ok(())
    }

    /// And from here on they are those of the last step again.
    fn use_last(&mut self) -> Result<()> {
        self.last.take().map_or(Ok(()), |last| self.set_values(last))
    }

    fn values(&self) -> Result<Vec<Vec<f32>>> {
        self.stepper.engine.give_values()?;
        let values = self.course.trainables.iter();
        let values = values.map(|trainable| read(&trainable.var, |values| Ok(values.to_vec())));
        Ok(values.collect::<candle_core::Result<_>>()?)
    }

    fn set_values(&mut self, values: Vec<Vec<f32>>) -> Result<()> {
        for (trainable, values) in self.course.trainables.iter().zip(values) {
            let len = values.len();
            if len > 0 {
                trainable.var.set(&Tensor::from_vec(values, len, &Device::Cpu)?)?;
            }
        }
        self.stepper.engine.take_values()
    }

    fn trained(&self) -> Trained {
        let state = &self.state;
        Trained {
            steps: state.steps,
            final_loss: state.last_loss.unwrap_or(0.0),
            tokens: state.tokens,
            seconds: state.seconds,
            tokens_per_second: state.tokens as f64 / state.seconds.max(1e-9),
            stopped_early: state.steps < self.schedule.total_steps,
            kept: state.patience.best().filter(|_| self.last.is_some()),
            rolled_back: state.rolled_back.clone(),
            preferences: state.preferences,
        }
    }
}

/// What a held-out loss means that is no number.
fn no_number(phase: Phase, loss: f64) -> Ending {
    let (kind, when) = match phase {
        Phase::Before => (FailureKind::BadModel, "before anything is trained"),
        Phase::During | Phase::After => (FailureKind::Diverged, "of what was trained"),
    };
    Failure::new(kind, format!("the held-out loss {when} is {loss}")).into()
}
