//! How far a training has come: all of it that is not a tensor.

use std::collections::BTreeSet;

use drydock_spec::report::{Evaluation, Preferences, Sample};
use serde::{Deserialize, Serialize};

use super::divergence::Watch;
use super::objective::Rewards;
use super::patience::Patience;
use super::step::Measured;

/// There is no state of a random generator here: whatever chance decides is a function of the seed and of the counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Where in the data the next step begins, counted in steps over all epochs; those that are passed over count, too.
    pub slot: u64,
    /// Slots that are passed over, as training diverged there.
    pub passed_over: BTreeSet<u64>,
    pub rolled_back: Vec<RolledBack>,
    pub tokens: u64,
    pub seconds: f64,
    /// The last step's mean loss, in nats.
    pub last_loss: Option<f64>,
    /// Since the last metrics.
    pub recent: Sums,
    /// What the last metrics said of preferences.
    pub preferences: Option<Preferences>,
    pub watch: Watch,
    pub patience: Patience,
    /// The step at which the held-out loss was measured last.
    pub evaluated: Option<u64>,
    /// What was measured and answered so far, from before the first step on.
    pub evaluations: Vec<Evaluation>,
    pub samples: Vec<Sample>,
}

/// A return to an earlier state. With each, the learning rate is halved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The step at which training had diverged, counted from 1.
    pub diverged_at: u64,
    /// The steps that were left to go on from.
    pub to_step: u64,
    /// Where in the dataset that stands which is passed over; the first of it.
    pub passed_over: Vec<String>,
}

/// Sums over steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    pub loss: f64,
    pub counted: u64,
    pub tokens: u64,
    pub rewards: Rewards,
}

impl State {
    /// Takes in a step that was taken.
    pub fn step_taken(&mut self, measured: &Measured) {
        self.steps += 1;
        self.slot += 1;
        self.tokens += measured.tokens as u64;
        self.last_loss = Some(measured.mean_loss());
        self.recent.loss += measured.loss;
        self.recent.counted += measured.counted as u64;
        self.recent.tokens += measured.tokens as u64;
        self.recent.rewards.add(measured.rewards);
    }

    /// The slot of the next step.
    pub fn next_slot(&self) -> u64 {
        (self.slot..).find(|slot| !self.passed_over.contains(slot)).unwrap_or(self.slot)
    }

    /// What the schedule's learning rate is multiplied by.
    pub fn learning_rate_scale(&self) -> f64 {
        0.5f64.powi(self.rolled_back.len() as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_are_passed_over_are_never_next() {
        let state = State { slot: 4, passed_over: [4, 5, 7].into(), ..State::default() };
        assert_eq!(state.next_slot(), 6);
        assert_eq!(State { slot: 8, ..state }.next_slot(), 8);
    }

    #[test]
    fn a_state_survives_json_to_the_last_bit() {
        let mut state = State { seconds: 0.1 + 0.2, last_loss: Some(1.0 / 3.0), ..State::default() };
        state.recent.loss = 0.123_456_789_012_345_68;
        for (loss, slot) in [(2.0 / 7.0, 0), (1e-17, 1), (9.1, 2)] {
            state.watch.look(loss, slot);
        }
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
    }
}
