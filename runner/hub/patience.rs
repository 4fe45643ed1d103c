//! How long to wait for a hub that is busy, and when to give up.

use std::time::Duration;

/// How often something is tried, and how long is waited in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Tries in a row that may come to nothing.
    pub tries: u32,
    /// The first wait; it doubles with every try.
    pub first: Duration,
    /// Longest wait, whatever the hub asks for.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { tries: 6, first: Duration::from_millis(500), longest: Duration::from_secs(60) }
    }
}

impl Patience {
    /// The wait after `failures` tries in a row, or nothing if it is time to give up. `asked` is what the hub wants
    /// (`Retry-After`); `chance`, from 0 to 1, keeps those apart who were sent away together.
    #[must_use]
    pub fn wait(&self, failures: u32, asked: Option<Duration>, chance: f64) -> Option<Duration> {
        if failures >= self.tries {
            return None;
        }
        let grown = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest);
        let own = grown.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        // Never earlier than asked; a little later, so that not all come back at once.
        Some(asked.map_or(own, |asked| asked.min(self.longest) + own.min(self.first)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_stay_bounded_and_end(failures in 1..40u32, chance in 0.0..1.0f64, asked in 0..1_000u64) {
            let patience = Patience::default();
            match patience.wait(failures, None, chance) {
                None => prop_assert!(failures >= patience.tries),
                Some(wait) => {
                    prop_assert!(failures < patience.tries);
                    prop_assert!(wait >= patience.first / 2 && wait <= patience.longest);
                    let asked = Duration::from_secs(asked);
                    let polite = patience.wait(failures, Some(asked), chance).unwrap();
                    prop_assert!(polite >= asked.min(patience.longest));
                    prop_assert!(polite <= patience.longest + patience.first);
                }
            }
        }
    }
}
