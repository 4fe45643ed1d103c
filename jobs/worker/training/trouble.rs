//! What is done about a training that diverged: it ends and says why, or goes back and tries otherwise.

use drydock_spec::recipe::OnDivergence;
use drydock_spec::{Failure, FailureKind};

use super::Trainer;
use super::evidence::{FILE, Scene};
use super::objective::Portion;
use super::order::Pass;
use super::state::RolledBack;
use super::step::Measured;
use crate::ending::{Ending, Result};
use crate::save::Saver;

/// How often a training is rolled back before it is given up.
const ROLL_BACKS: usize = 3;
/// Places that are named in a sentence.
const NAMED: usize = 5;

impl Trainer<'_> {
    /// A step has diverged, or shows that those since the slot `since` have; it has changed nothing yet.
    pub(super) fn diverged(
        &mut self,
        since: u64,
        passes: &[Pass],
        portions: &[Portion],
        measured: &Measured,
        learning_rate: f64,
    ) -> Result<()> {
        let rolls_back = self.course.recipe.on_divergence == OnDivergence::RollBack;
        if rolls_back && self.saved.is_some() && self.state.rolled_back.len() < ROLL_BACKS {
            return self.roll_back(since);
        }
        let what = self.what_happened(since, measured);
        let gradients = self.stepper.engine.gradients()?;
        let scene = Scene {
            lessons: self.train.lessons,
            passes,
            portions,
            measured,
            gradients: &gradients,
            trainables: self.course.trainables,
        };
        let step = self.state.steps + 1;
        let before = match self.state.last_loss {
            Some(loss) => format!("the last finite loss was {loss:.4} at step {}", self.state.steps),
            None => "it never was finite".to_owned(),
        };
        let rows = listed(&scene.places().collect::<Vec<_>>());
        let tried = match self.state.rolled_back.len() {
            0 => String::new(),
            times => format!("; rolled back {times} times before"),
        };
        let message = format!("{what} at step {step} (learning rate {learning_rate:e}); {before}; rows: {rows}{tried}");
        let evidence = scene.evidence(what, &self.state, learning_rate);
        Saver::new(self.course.output, self.reporter).json(FILE, "evidence", &evidence)?;
        Err(Ending::from(Failure::new(FailureKind::Diverged, message)))
    }

    fn what_happened(&self, since: u64, measured: &Measured) -> String {
        let watch = &self.state.watch;
        if !measured.loss.is_finite() {
            format!("the loss is {}", measured.mean_loss())
        } else if !measured.grad_norm.is_finite() {
            format!("the gradient's norm is {}", measured.grad_norm)
        } else {
            format!(
                "the smoothed loss is {:.4}, and has been far above its best of {:.4} for {} steps",
                watch.smoothed(),
                watch.best().unwrap_or_default(),
                self.state.slot - since + 1
            )
        }
    }

    /// Goes back to the last checkpoint and passes over the steps since `since`, at half the learning rate. (To pass
    /// over what was trained on when the loss rose helped where nothing else did: Chowdhery et al. 2022, PaLM, section
    /// 5.1.) Nothing of this needs to be on the disk: an attempt that goes on from the same checkpoint comes to the
    /// same step, and does the same.
    fn roll_back(&mut self, since: u64) -> Result<()> {
        let Some((to_step, folder)) = self.saved.clone() else { return Ok(()) };
        let (diverged_at, slots) = (self.state.steps + 1, since..=self.state.slot);
        let places = self.places(since);
        let mut passed_over = std::mem::take(&mut self.state.passed_over);
        let mut rolled_back = std::mem::take(&mut self.state.rolled_back);
        self.go_on_from(&folder)?;
        passed_over.extend(slots);
        let named = listed(&places.iter().map(String::as_str).collect::<Vec<_>>());
        rolled_back.push(RolledBack { diverged_at, to_step, passed_over: places });
        (self.state.passed_over, self.state.rolled_back) = (passed_over, rolled_back);
        let scale = self.state.learning_rate_scale();
        let message = format!(
            "training diverged at step {diverged_at}; it goes on from step {to_step} with {scale} times the learning \
             rate, and passes over {named}"
        );
        self.reporter.warn("rolled_back", message);
        Ok(())
    }

    /// Where the first lessons stand that are passed over from a slot on.
    fn places(&mut self, since: u64) -> Vec<String> {
        let passes = self.order.at(since, self.schedule.steps_per_epoch);
        let lessons = passes.iter().flatten().take(NAMED + 1);
        lessons.map(|&lesson| self.train.lessons[lesson].place.clone()).collect()
    }
}

/// The first few of many.
fn listed(places: &[&str]) -> String {
    let named = places.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match places.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
