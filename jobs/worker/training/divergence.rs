//! Noticing that training runs away, while the loss is still a number.
//!
//! What is compared is the smoothed loss with the best that it has been, and the measure is how much the loss jumps
//! about anyway: the mean deviation, smoothed in its turn, as TCP judges whether an answer is late (Jacobson 1988).
//! A factor on the loss itself, as learning-rate finders have it, would see trouble wherever a small loss doubles, and
//! none where a large one grows to what guessing would give.

use serde::{Deserialize, Serialize};

/// What a step takes over of the smoothed loss: it looks back over about ten steps.
const LOSS_DECAY: f64 = 0.9;
/// The same for the mean deviation, which looks back over about a hundred.
const DEVIATION_DECAY: f64 = 0.99;
/// Steps before anything is judged.
const FIRST_JUDGED: u64 = 10;
/// How far above the best the smoothed loss may be, in mean deviations. Smoothed noise itself stays within two, and the
/// very first loss, which is not smoothed yet, seldom strays by more than three.
const DEVIATIONS: f64 = 6.0;
/// And in nats at least: e times the best perplexity.
const LEAST: f64 = 1.0;
/// Steps in a row that the smoothed loss must be too high. A single bad batch is forgotten sooner.
const PATIENCE: u32 = 10;
/// What a single step adds to the mean deviation at most, in nats, as long as there is none to speak of.
const FIRST_JUMP: f64 = 2.0;

/// What the losses so far look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Calm,
    /// Too high, but not for long yet.
    InDoubt,
    /// Too high for too long, since the step at this slot of the data.
    Diverged {
        since: u64,
    },
}

/// Judges losses one by one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    seen: u64,
    /// Not yet corrected for having started at zero, and so is the deviation.
    loss: f64,
    deviation: f64,
    best: Option<f64>,
    too_high: u32,
    since: Option<u64>,
}

impl Watch {
    /// Takes in a step's mean loss, which must be finite, in nats.
    pub fn look(&mut self, loss: f64, slot: u64) -> Verdict {
        if self.seen > 0 {
            let jump = (loss - self.smoothed()).abs();
            // A loss that is too high says nothing of what is usual: else running away would excuse itself.
            let jump = match self.seen > FIRST_JUDGED {
                false => jump.min(FIRST_JUMP),
                true if loss > self.limit() => self.mean_deviation(),
                true => jump,
            };
            self.deviation = DEVIATION_DECAY * self.deviation + (1.0 - DEVIATION_DECAY) * jump;
        }
        self.loss = LOSS_DECAY * self.loss + (1.0 - LOSS_DECAY) * loss;
        self.seen += 1;
        let smoothed = self.smoothed();
        if self.seen < FIRST_JUDGED || smoothed <= self.limit() {
            self.best = Some(self.best.map_or(smoothed, |best| best.min(smoothed)));
            (self.too_high, self.since) = (0, None);
            return Verdict::Calm;
        }
        self.too_high += 1;
        let since = *self.since.get_or_insert(slot);
        if self.too_high >= PATIENCE { Verdict::Diverged { since } } else { Verdict::InDoubt }
    }

    /// Whether the last steps are in doubt: no state to go back to.
    pub fn in_doubt(&self) -> bool {
        self.too_high > 0
    }

    /// The smoothed loss, in nats.
    pub fn smoothed(&self) -> f64 {
        self.loss / (1.0 - LOSS_DECAY.powf(self.seen as f64))
    }

    /// The lowest that the smoothed loss has been.
    pub fn best(&self) -> Option<f64> {
        self.best
    }

    /// What the smoothed loss may be at most.
    fn limit(&self) -> f64 {
        self.best.map_or(f64::INFINITY, |best| best + LEAST.max(DEVIATIONS * self.mean_deviation()))
    }

    fn mean_deviation(&self) -> f64 {
        self.deviation / (1.0 - DEVIATION_DECAY.powf((self.seen - 1).max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::{Chance, Purpose};

    /// Noise of deviation 1: normal for the most part, and with a heavy tail to the upper side, as batches have it.
    fn noise(chance: &mut Chance) -> f64 {
        let normal: f64 = (0..12).map(|_| f64::from(chance.uniform(0.5))).sum();
        let rare = f64::from(chance.uniform(0.5)) + 0.5;
        if rare < 0.02 { normal.abs() * 4.0 } else { normal }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Falling, flat, starting anywhere, with little noise or so much that it hides the rest.
        #[test]
        fn a_healthy_curve_raises_no_alarm(
            seed: u64, start in 0.5..12.0f64, end in 0.0..4.0f64, pace in 5.0..2000.0f64, spread in 0.0..2.0f64
        ) {
            let mut chance = Chance::new(seed, Purpose::Order(0));
            let mut watch = Watch::default();
            for step in 0..3000u64 {
                let level = end + (start - end).max(0.0) * (-(step as f64) / pace).exp();
                let loss = (level + spread * noise(&mut chance)).max(0.0);
                let verdict = watch.look(loss, step);
                prop_assert!(!matches!(verdict, Verdict::Diverged { .. }), "at step {step}: {watch:?}");
            }
        }

        /// From a healthy plateau up to where guessing is, within a few steps or slowly.
        #[test]
        fn a_loss_that_runs_away_is_noticed_and_its_beginning_named(
            seed: u64, level in 0.1..3.0f64, spread in 0.0..0.5f64, healthy in 20..500u64, climb in 1.0..60.0f64
        ) {
            let mut chance = Chance::new(seed, Purpose::Order(0));
            let mut watch = Watch::default();
            let mut noticed = None;
            for step in 0..healthy + 150 {
                let risen = (step.saturating_sub(healthy) as f64 / climb).min(1.0);
                let loss = (level + (10.5 - level) * risen + spread * noise(&mut chance)).max(0.0);
                if let Verdict::Diverged { since } = watch.look(loss, step) {
                    noticed = Some((step, since));
                    break;
                }
            }
            let (step, since) = noticed.expect("it is noticed");
            prop_assert!(since >= healthy && since < step, "{since} to {step}, from {healthy} on");
            prop_assert!(step < healthy + 25 + climb as u64, "{step}, from {healthy} on");
        }
    }

    #[test]
    fn what_runs_away_from_the_first_step_on_is_noticed_too() {
        let curves: [fn(u64) -> f64; 2] = [|step| 2.5 + 3.0 * step as f64, |step| if step == 0 { 2.5 } else { 9.0 }];
        for curve in curves {
            let mut watch = Watch::default();
            assert!((0..40).any(|step| matches!(watch.look(curve(step), step), Verdict::Diverged { .. })));
        }
    }

    #[test]
    fn one_bad_batch_is_no_divergence() {
        let mut watch = Watch::default();
        for step in 0..200 {
            let loss = if step == 100 { 12.0 } else { 1.5 + 0.1 * f64::from((step % 3) as u8) };
            assert!(!matches!(watch.look(loss, step), Verdict::Diverged { .. }));
        }
    }
}
