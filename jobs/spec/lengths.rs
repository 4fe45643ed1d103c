//! How long the rows of a dataset are, in little space.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows as a model's tokenizer makes them, before any is cut. The two answers of a pair are one row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RowLengths {
    pub rows: u64,
    /// Of all rows together.
    pub tokens: u64,
    /// Tokens of the longest row; of a pair, of its longer answer.
    pub longest: u64,
    /// Empty where only the sums are known.
    #[serde(default)]
    pub by_length: Lengths,
}

impl RowLengths {
    /// One more row, of so many tokens, of which its longest part has `longest`.
    pub fn add(&mut self, tokens: u64, longest: u64) {
        self.rows += 1;
        self.tokens += tokens;
        self.longest = self.longest.max(longest);
        self.by_length.add(tokens);
    }
}

/// Rows by their length in tokens. Lengths are rounded up to one of eight steps from each power of two
/// to the next (as HdrHistogram has its buckets), so that those that rows are usually cut to are told exactly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Lengths(BTreeMap<u64, u64>);

impl Lengths {
    /// One more row.
    pub fn add(&mut self, tokens: u64) {
        *self.0.entry(rounded(tokens)).or_default() += 1;
    }

    /// Each length that there is, rounded up, and its rows.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + Clone + '_ {
        self.0.iter().map(|(tokens, rows)| (*tokens, *rows))
    }

    /// Rows that may have more tokens than this: at least those that have.
    #[must_use]
    pub fn beyond(&self, tokens: u64) -> u64 {
        self.0.range(tokens.saturating_add(1)..).map(|(_, rows)| rows).sum()
    }
}

/// The next step from here on.
fn rounded(tokens: u64) -> u64 {
    let step = 1 << tokens.max(1).ilog2().saturating_sub(3);
    tokens.div_ceil(step).saturating_mul(step)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_lengths_are_told_exactly() {
        for usual in [8, 16, 100, 128, 256, 384, 512, 640, 768, 1024, 2048, 4096] {
            let mut lengths = Lengths::default();
            [usual - 1, usual, usual + 1].into_iter().for_each(|tokens| lengths.add(tokens));
            if usual == 100 {
                // Eight steps from 64 to 128: 96, 104.
                assert_eq!((lengths.beyond(100), lengths.beyond(104)), (3, 0));
            } else {
                assert_eq!(lengths.beyond(usual), 1, "{usual}");
            }
        }
    }

    proptest! {
        #[test]
        fn rows_beyond_a_length_are_never_fewer_than_there_are(
            rows in proptest::collection::vec(0..100_000u64, 0..50),
            cut in 0..100_000u64,
        ) {
            let mut lengths = Lengths::default();
            rows.iter().for_each(|tokens| lengths.add(*tokens));
            prop_assert!(lengths.beyond(cut) >= rows.iter().filter(|tokens| **tokens > cut).count() as u64);
            // An eighth above what is asked for, nothing is rounded beyond it any more.
            prop_assert!(lengths.beyond(cut + cut / 8) <= rows.iter().filter(|tokens| **tokens > cut).count() as u64);
        }
    }
}
