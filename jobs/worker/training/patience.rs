//! Which measurement of the held-out loss was the best, and when to wait no longer for a better one.

use serde::{Deserialize, Serialize};

/// A measurement of the held-out loss while training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimizer steps taken.
    pub step: u64,
    /// Mean loss in nats.
    pub loss: f64,
}

/// The rules are those of Transformers' EarlyStoppingCallback: any lower loss is the new best, but only one that is
/// lower by more than the threshold makes the waiting start again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Patience {
    best: Option<Best>,
    /// Measurements since the last improvement that counted.
    waited: u32,
}

impl Patience {
    /// Takes in a measurement, and says whether it is the best so far. A loss that is no number never is.
    pub fn measured(&mut self, step: u64, loss: f64, threshold: f64) -> bool {
        let best = self.best.map_or(f64::INFINITY, |best| best.loss);
        if best - loss > threshold {
            self.waited = 0;
        } else {
            self.waited += 1;
        }
        if loss < best {
            self.best = Some(Best { step, loss });
        }
        loss < best
    }

    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// Whether so many measurements in a row brought no improvement.
    pub fn is_over(&self, patience: Option<u32>) -> bool {
        patience.is_some_and(|patience| self.waited >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_improvement_is_the_best_but_does_not_count() {
        let mut patience = Patience::default();
        let measured: Vec<bool> = [2.0, 1.5, 1.45, 1.42, f64::NAN, 1.3]
            .iter()
            .zip(1..)
            .map(|(&loss, step)| patience.measured(step, loss, 0.1))
            .collect();
        assert_eq!(measured, [true, true, true, true, false, true]);
        assert_eq!(patience.best(), Some(Best { step: 6, loss: 1.3 }));
        assert!(!patience.is_over(Some(1)), "the last one was lower by more than 0.1");
        patience.measured(7, 1.25, 0.1);
        assert!(patience.is_over(Some(1)) && !patience.is_over(Some(2)) && !patience.is_over(None));
    }
}
