//! How many tokens the fullest batch of a training has, where a tokenizer has counted the rows.

use drydock_spec::lengths::RowLengths;

/// Batches of rows that are drawn by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// Rows of a batch.
    pub rows: u32,
    /// Answers of a row: of a pair two, of which each is cut for itself.
    pub sides: u64,
    /// Tokens that they are cut to.
    pub cut: u64,
    /// Batches in all.
    pub batches: u64,
}

/// Trainings of 100 of which no batch is fuller than is said.
const OF_100: f64 = 90.0;

/// The tokens that no batch of 90 of 100 trainings has more of, about.
///
/// The rows of a batch lie end to end without padding, so that their sum counts. How likely a sum of B draws is to reach t
/// is told by tilting the lengths' shares with exp(λ length) until their mean is t / B (Cramer 1938, with the factor of
/// Bahadur and Rao 1960), whatever they are distributed like; that rows are drawn without putting them back makes the sums
/// no wider (Hoeffding 1963, theorem 4). Where only the mean and the longest are known, his theorem 2 says less.
#[must_use]
pub fn fullest_batch(lengths: &RowLengths, draws: Draws) -> u64 {
    let Draws { rows, sides, cut, batches } = draws;
    let (rows, longest) = (f64::from(rows), lengths.longest.min(cut).saturating_mul(sides) as f64);
    // Of n batches each reaches what one of all does with a probability of p if it does so with -ln(1 - p) / n itself.
    let rarity = (batches.max(1) as f64 / -(OF_100 / 100.0).ln()).ln();
    let shares = cut_to(lengths, longest);
    let fullest = if shares.is_empty() {
        let mean = (lengths.tokens as f64 / lengths.rows.max(1) as f64).min(longest);
        rows * mean + longest * (rows * rarity / 2.0).sqrt()
    } else {
        rows * tilted_mean(&shares, rows, rarity, longest)
    };
    // No batch has more tokens than all rows together.
    fullest.min(rows * longest).min(lengths.tokens.max(1) as f64).ceil() as u64
}

/// The mean that so many draws reach or exceed with a probability of exp(-rarity).
fn tilted_mean(shares: &[(f64, f64)], rows: f64, rarity: f64, longest: f64) -> f64 {
    let tilted = |lambda: f64| {
        let weight = |(length, share): &(f64, f64)| share * (lambda * (length - longest)).exp();
        let moment = |power: i32| -> f64 { shares.iter().map(|part| weight(part) * part.0.powi(power)).sum() };
        let all = moment(0);
        let mean = moment(1) / all;
        let variance = (moment(2) / all - mean * mean).max(0.0);
        let chernoff = rows * (lambda * mean - lambda * longest - all.ln());
        let factor = lambda * (std::f64::consts::TAU * rows * variance).sqrt();
        (mean, chernoff + factor.max(1.0).ln())
    };
    // From next to the mean of the lengths to next to the longest; what is sought grows with λ.
    let (mut low, mut high) = (1e-6 / longest.max(1.0), 1e3 / longest.max(1.0));
    for _ in 0..60 {
        let middle = (low * high).sqrt();
        if tilted(middle).1 < rarity { low = middle } else { high = middle }
    }
    tilted(high).0
}

/// Each length with its share of the rows, none above `longest`. They were rounded up as they were counted; their mean is
/// known, and brings them back to it.
fn cut_to(lengths: &RowLengths, longest: f64) -> Vec<(f64, f64)> {
    let rounded: f64 = lengths.by_length.iter().map(|(length, rows)| length as f64 * rows as f64).sum();
    let rows: f64 = lengths.by_length.iter().map(|(_, rows)| rows as f64).sum();
    let scale = (lengths.tokens as f64 / rounded.max(1.0)).min(1.0);
    lengths
        .by_length
        .iter()
        .map(|(length, count)| ((length as f64 * scale).min(longest), count as f64 / rows))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths(rows: impl IntoIterator<Item = u64>) -> RowLengths {
        let mut lengths = RowLengths::default();
        rows.into_iter().for_each(|tokens| lengths.add(tokens, tokens));
        lengths
    }

    #[test]
    fn rows_that_are_all_cut_fill_every_batch() {
        let long = lengths([3000; 12]);
        assert_eq!(fullest_batch(&long, Draws { rows: 4, sides: 1, cut: 256, batches: 2 }), 1024);
        let only_sums = RowLengths { by_length: Default::default(), ..long };
        assert_eq!(fullest_batch(&only_sums, Draws { rows: 4, sides: 1, cut: 256, batches: 2 }), 1024);
    }

    #[test]
    fn a_batch_has_no_more_than_all_rows_have() {
        assert_eq!(fullest_batch(&lengths([10, 20, 30]), Draws { rows: 8, sides: 1, cut: 512, batches: 1 }), 60);
    }

    /// What the fullest of the batches of a training of three epochs has, of each of many trainings.
    fn trainings(rows: &[u64], batch: usize) -> Vec<u64> {
        let mut state = 7u64;
        let mut training = || {
            let mut epoch = || {
                let mut order = rows.to_vec();
                for at in (1..order.len()).rev() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    order.swap(at, (state >> 33) as usize % (at + 1));
                }
                order.chunks(batch).map(|batch| batch.iter().sum::<u64>()).max().unwrap()
            };
            (0..3).map(|_| epoch()).max().unwrap()
        };
        (0..300).map(|_| training()).collect()
    }

    #[test]
    fn nine_of_ten_trainings_have_no_fuller_batch_and_one_of_twenty_has_one_as_full() {
        let chats = |i: u64| 40 + i * 7 % 60;
        let with_long_ones = |i: u64| chats(i) + if i.is_multiple_of(31) { 300 } else { 0 };
        let skewed = |i: u64| 10 + (i * i * i) / 20_000;
        for (name, row) in
            [("even", &chats as &dyn Fn(u64) -> u64), ("with long ones", &with_long_ones), ("skewed", &skewed)]
        {
            let rows: Vec<u64> = (0..187).map(row).collect();
            for batch in [1, 2, 8, 16] {
                let draws = Draws { rows: batch, sides: 1, cut: 4096, batches: 3 * 187u64.div_ceil(u64::from(batch)) };
                let said = fullest_batch(&lengths(rows.iter().copied()), draws);
                let mut came_to = trainings(&rows, batch as usize);
                came_to.sort_unstable();
                let at = |of_100: usize| came_to[came_to.len() * of_100 / 100];
                let within = came_to.iter().filter(|most| **most <= said).count() * 100 / came_to.len();
                let above = said as f64 / at(95) as f64;
                assert!(within >= 85 && above < 1.1, "{name}, {batch}: {within} of 100, {above} of the 95th");
            }
        }
    }

    proptest! {
        #[test]
        fn more_rows_or_batches_never_have_fewer_tokens(
            rows in proptest::collection::vec(1..2000u64, 1..200), batch in 1..64u32, batches in 1..10_000u64,
        ) {
            let lengths = lengths(rows.iter().copied());
            let of = |rows, batches| fullest_batch(&lengths, Draws { rows, sides: 1, cut: 512, batches });
            let some = of(batch, batches);
            prop_assert!(some <= of(batch + 1, batches) && some <= of(batch, 2 * batches));
            let mean = rows.iter().map(|row| (*row).min(512)).sum::<u64>() as f64 / rows.len() as f64;
            let least = (f64::from(batch).min(rows.len() as f64) * mean * 0.8) as u64;
            prop_assert!(some >= least, "{some} of {least}");
        }
    }
}
