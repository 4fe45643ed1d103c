//! Metrics: what the steps since the last report came to, and how fast they were.

use std::time::Instant;

use drydock_spec::report::Metrics;

use super::state::{State, Sums};
use crate::report::resident_bytes;

/// Looks at the clock.
pub(super) struct Pace {
    /// When training was last looked at, for the seconds that it takes.
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

    /// Adds the time since the last look to the training's, if it was spent on it.
    pub(super) fn look(&mut self, state: &mut State, training: bool) {
        let now = Instant::now();
        if training {
            state.seconds += now.duration_since(self.looked).as_secs_f64();
        } else {
            self.reported += now.duration_since(self.looked);
        }
        self.looked = now;
    }

    pub(super) fn step_taken(&mut self, step: &LastStep) {
        self.tokens += step.tokens as u64;
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
        state.preferences = recent.rewards.means().or(state.preferences);
        let left = total_steps.saturating_sub(state.steps) as f64;
        let metrics = Metrics {
            step: state.steps,
            total_steps,
            epoch: state.slot as f64 / steps_per_epoch as f64,
            loss: mean_loss(&recent),
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
