//! How far an estimate may be off, by how far those before it were.
//!
//! The intervals are those of split conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018) with the ratio
//! of what was measured to what was predicted as the score: if the next job is one like those before it (exchangeable
//! with them), the k-th smallest of n ratios is above its own with a probability of k / (n + 1), whatever the ratios are
//! distributed like and however wrong the formula is. What is needed is that the jobs are alike, not that the formula is
//! right: a formula that is off by a factor gets intervals that are off by the same.

use serde::{Deserialize, Serialize};

/// Jobs of 100 whose measured value the interval is to hold.
pub const CONFIDENCE_PERCENT: u32 = 90;
/// Ratios from which on both ends of the interval exist: with fewer, the 95th of 100 is above all of them.
pub const ENOUGH: usize = 19;

/// Ratios with which there is an interval at all: half of the jobs are expected within.
const LEAST: usize = 3;

/// Ratios of what was measured to what was predicted, of jobs like the next one as far as there are enough.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ratios {
    /// Sorted.
    ratios: Vec<f64>,
    own: usize,
}

/// What a prediction is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub median: f64,
    pub high: f64,
    /// The largest ratio of all.
    pub most: f64,
    /// Jobs of 100 that are expected within.
    pub of_100: u32,
    /// Jobs of this installation that it was learnt from; where they are fewer than [`ENOUGH`], others stand in.
    pub jobs: usize,
}

impl Ratios {
    /// `own` are those of the jobs that are most like the next one, the newest first. Where they are fewer than
    /// [`ENOUGH`], they are filled up with those of jobs that are less like it, in the order of `others`: so that the
    /// first few pull the interval towards them, and enough of them are all there is.
    #[must_use]
    pub fn new<'r>(own: &[f64], others: impl IntoIterator<Item = &'r [f64]>) -> Self {
        let is_ratio = |ratio: &f64| ratio.is_finite() && *ratio > 0.0;
        let mut ratios: Vec<f64> = own.iter().copied().filter(is_ratio).collect();
        let own = ratios.len();
        let missing = ENOUGH.saturating_sub(own);
        ratios.extend(others.into_iter().flatten().copied().filter(is_ratio).take(missing));
        ratios.sort_by(f64::total_cmp);
        Self { ratios, own }
    }

    /// Nothing where there are fewer than three. Where there are too few for [`CONFIDENCE_PERCENT`], it is from the
    /// smallest to the largest, and so sure as that is.
    #[must_use]
    pub fn interval(&self) -> Option<Interval> {
        let n = self.ratios.len();
        if n < LEAST {
            return None;
        }
        let of_100 = (100 * (n - 1) / (n + 1)) as u32;
        let outside = f64::from(100 - CONFIDENCE_PERCENT) / 200.0;
        // Ranks count from 1; the small number is below what a rank differs by, and above what rounding does.
        let low = (outside * (n + 1) as f64 + 1e-9).floor().max(1.0) as usize;
        let high = ((1.0 - outside) * (n + 1) as f64 - 1e-9).ceil().min(n as f64) as usize;
        Some(Interval {
            low: self.ratios[low - 1],
            median: self.ratios[n / 2],
            high: self.ratios[high - 1],
            most: self.ratios[n - 1],
            of_100: of_100.min(CONFIDENCE_PERCENT),
            jobs: self.own,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A number from 0 to 1 that follows the seed (SplitMix64).
    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// How many of 2000 next jobs were within the interval of the `n` before them.
    fn covered(n: usize, seed: u64, shape: impl Fn(f64) -> f64) -> f64 {
        let mut state = seed;
        let mut within = 0;
        for _ in 0..2000 {
            let ratios: Vec<f64> = (0..n).map(|_| shape(uniform(&mut state))).collect();
            let next = shape(uniform(&mut state));
            let interval = Ratios::new(&ratios, []).interval().unwrap();
            within += u32::from((interval.low..=interval.high).contains(&next));
        }
        f64::from(within) / 2000.0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn nine_of_ten_are_within_whatever_they_are_distributed_like(
            n in ENOUGH..120, seed: u64, bias in 0.2..5.0f64, tail in 0.1..6.0f64,
        ) {
            // From nearly even to heavily skewed, by a formula that is off by `bias`.
            let share = covered(n, seed, |u| bias * (1.0 + u.powf(tail)));
            // Three standard deviations of 2000 draws are 0.02.
            prop_assert!((0.88..=0.98).contains(&share), "{share}");
        }

        #[test]
        fn an_interval_is_in_order_and_made_of_what_was_measured(
            ratios in proptest::collection::vec(0.01..100.0f64, 0..60),
        ) {
            let interval = Ratios::new(&ratios, []).interval();
            prop_assert_eq!(interval.is_some(), ratios.len() >= LEAST);
            if let Some(Interval { low, median, high, most, of_100, jobs }) = interval {
                prop_assert_eq!(of_100 == CONFIDENCE_PERCENT, jobs >= ENOUGH);
                prop_assert!(low <= median && median <= high && high <= most);
                prop_assert!([low, median, high, most].iter().all(|end| ratios.contains(end)));
                prop_assert_eq!(jobs, ratios.len());
            }
        }
    }

    #[test]
    fn a_formula_that_is_off_corrects_itself_after_nineteen_jobs() {
        let shipped = [1.0; 40];
        let (mut state, mut own) = (7, Vec::new());
        let mut missed = Vec::new();
        for job in 0..200 {
            // Twice what is predicted, give or take a tenth.
            let measured = 2.0 * (0.9 + 0.2 * uniform(&mut state));
            let Interval { low, high, most, .. } = Ratios::new(&own, [&shipped[..]]).interval().unwrap();
            if !(low..=high).contains(&measured) {
                missed.push(job);
            }
            if job >= ENOUGH {
                assert!(low > 1.7 && most < 2.3, "nothing is left of what was shipped");
            }
            own.insert(0, measured);
        }
        let late = missed.iter().filter(|job| **job >= ENOUGH).count();
        assert!(missed.contains(&0), "the first job cannot be foreseen");
        assert!(late < 30, "{late} of 181 are no more than a tenth and chance");
    }

    #[test]
    fn others_stand_in_until_there_are_enough_and_no_longer() {
        let (own, kind, shipped) = ([2.0; 4], [1.5; 5], [1.0; 40]);
        let few = Ratios::new(&own, [&kind[..], &shipped[..]]);
        assert_eq!((few.ratios.len(), few.own), (ENOUGH, 4));
        assert_eq!(few.ratios.iter().filter(|ratio| **ratio == 1.0).count(), 10);
        assert_eq!(few.interval().unwrap().most, 2.0, "even the first job that needed more is believed");
        assert_eq!(Ratios::new(&[2.0; 19], [&shipped[..]]).interval().unwrap().low, 2.0);
        assert_eq!(Ratios::new(&[f64::NAN, 0.0, 1.0], []).own, 1);
    }
}
