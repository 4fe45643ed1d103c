//! Metrics: what the steps since the last report came to, and how fast they were.

use std::time::Instant;

use drydock_spec::report::Metrics;

use super::state::{State, Sums};
use crate::report::resident_bytes;

/// Looks at the clock.
pub(super) struct Pace {
    /// When training was last looked at, for the seconds that it takes. What did not belong to it is added.
    looked: Instant,
    /// When the last metrics were made, or training went on.
    reported: Instant,
    /// Tokens since then; those that an earlier attempt has trained on do not count.
    tokens: u64,
}

/// What a step came to that is not summed up.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastStep {
    pub(super) learning_rate: f64,
    pub(super) grad_norm: f64,
    pub(super) tokens: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { looked: now, reported: now, tokens: 0 }
    }

    /// A step is done: the time since the last look was training's.
    pub(super) fn step_taken(&mut self, state: &mut State, step: &LastStep) {
        let now = Instant::now();
        state.seconds += now.duration_since(self.looked).as_secs_f64();
        self.looked = now;
        self.tokens += step.tokens as u64;
    }

    /// Leaves out the time since `began`, which something else took: an evaluation, or a checkpoint in the middle of a
    /// step.
    pub(super) fn leave_out(&mut self, began: Instant) {
        let elsewhere = began.elapsed();
        self.looked += elsewhere;
        self.reported += elsewhere;
    }

    /// Sums up the steps since the last metrics.
    pub(super) fn metrics(
        &mut self,
        state: &mut State,
        step: &LastStep,
        total_steps: u64,
        steps_per_epoch: u64,
    ) -> Metrics {
        let recent = std::mem::take(&mut state.recent);
        let preferences = recent.rewards.means();
        state.preferences = preferences.or(state.preferences);
        let left = total_steps.saturating_sub(state.steps) as f64;
        let metrics = Metrics {
            step: state.steps,
            total_steps,
            epoch: state.slot as f64 / steps_per_epoch as f64,
            loss: mean_loss(&recent),
            preferences,
            learning_rate: step.learning_rate,
            grad_norm: step.grad_norm,
            tokens_per_second: self.tokens as f64 / self.reported.elapsed().as_secs_f64().max(1e-9),
            eta_ms: (state.seconds / state.steps as f64 * left * 1000.0) as u64,
            rss_bytes: resident_bytes().0,
        };
        self.reported = Instant::now();
        self.tokens = 0;
        metrics
    }
}

fn mean_loss(sums: &Sums) -> f64 {
    sums.loss / sums.counted as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn step(tokens: usize) -> LastStep {
        LastStep { learning_rate: 0.1, grad_norm: 1.0, tokens }
    }

    /// A checkpoint is written between the gradients of a step and its update: what the gradients took still counts.
    #[test]
    fn what_a_checkpoint_takes_is_left_out_and_its_step_is_not() {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut pace = Pace { looked: ago(30), reported: ago(30), tokens: 0 };
        let mut state = State { steps: 1, ..State::default() };
        pace.leave_out(ago(10));
        pace.step_taken(&mut state, &step(400));
        assert!((19.9..21.0).contains(&state.seconds), "{}", state.seconds);
        state.recent = Sums { loss: 6.0, counted: 3, tokens: 400, ..Sums::default() };
        let metrics = pace.metrics(&mut state, &step(400), 2, 2);
        assert!((19.0..20.1).contains(&metrics.tokens_per_second), "{}", metrics.tokens_per_second);
        assert_eq!((metrics.loss, metrics.preferences), (2.0, None));
        assert!((19_900..21_000).contains(&metrics.eta_ms), "{}", metrics.eta_ms);
    }
}
