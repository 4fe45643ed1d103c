//! Which rank computes what of a step.
//!
//! Passes go through the model in rounds. Where a round has a pass for every rank, each rank computes one; in the last
//! round, which may have fewer, a pass is dealt out by its rows. So a step takes the same rows through the model as on
//! one GPU, in passes that are no larger, and what chance decides for a row (dropout) is the same.

use std::ops::Range;

use crate::data::batch::Batch;

/// What a rank computes of a forward pass.
pub(super) struct Share {
    pub batch: Batch,
    /// Tokens of the pass that lie before it.
    pub first_token: usize,
    /// Which of the pass's targets are in it.
    pub targets: Range<usize>,
}

/// The ranks of each of a round's passes, of which there are at most as many as ranks.
pub(super) fn ranks_of(passes: usize, ranks: usize) -> impl Iterator<Item = Range<usize>> {
    (0..passes).map(move |pass| pass * ranks / passes..(pass + 1) * ranks / passes)
}

/// Deals a pass out to so many ranks. Those for which no row is left have no share.
pub(super) fn shares(batch: &Batch, ranks: usize) -> Vec<Share> {
    let targets: Vec<Range<usize>> = batch.targets_by_row().collect();
    let share = |rows: Range<usize>| Share {
        first_token: batch.bounds[rows.start],
        targets: targets[rows.start].start..targets[rows.end - 1].end,
        batch: batch.part(rows),
    };
    neighbours(&batch.bounds, ranks).into_iter().map(share).collect()
}

/// At most `parts` parts of neighbouring rows, which begin and end at the bounds, none of them empty. The largest has as
/// few tokens as can be, so that it has no more than equal numbers of the longest row would come to.
fn neighbours(bounds: &[usize], parts: usize) -> Vec<Range<usize>> {
    let tokens = |rows: &Range<usize>| bounds[rows.end] - bounds[rows.start];
    let filled = |most: usize| {
        let mut filled: Vec<Range<usize>> = Vec::new();
        for row in 0..bounds.len() - 1 {
            match filled.last_mut() {
                Some(part) if tokens(&(part.start..row + 1)) <= most => part.end = row + 1,
                _ => filled.push(row..row + 1),
            }
        }
        filled
    };
    let longest = bounds.windows(2).map(|row| row[1] - row[0]).max().unwrap_or(0);
    // Fewer tokens a part make more parts.
    let (mut least, mut most) = (longest, bounds.last().copied().unwrap_or(0).max(longest));
    while least < most {
        let middle = least.midpoint(most);
        if filled(middle).len() <= parts { most = middle } else { least = middle + 1 }
    }
    filled(least)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::rows::Row;

    #[test]
    fn a_round_of_fewer_passes_than_ranks_leaves_no_rank_without_a_pass() {
        let ranks = |passes, ranks| ranks_of(passes, ranks).collect::<Vec<_>>();
        assert_eq!(ranks(4, 4), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(ranks(3, 4), [0..1, 1..2, 2..4]);
        assert!(ranks_of(1, 4).eq(std::iter::once(0..4)));
    }

    proptest! {
        #[test]
        fn shares_are_all_of_a_pass_and_none_is_larger_than_equal_numbers_of_its_longest_row(
            rows in prop::collection::vec((1..40usize, 0..4u32), 1..30), ranks in 1..9usize
        ) {
            let rows: Vec<Row> = rows.into_iter().enumerate().map(|(number, (len, counted))| Row {
                ids: (0..len).map(|i| (100 * number + i) as u32).collect(),
                counts: (0..len as u32).map(|i| i % 4 < counted).collect(),
            }).collect();
            let batch = Batch::of(&rows);
            let shares = shares(&batch, ranks);
            prop_assert!(!shares.is_empty() && shares.len() <= ranks);
            let (mut tokens, mut targets) = (Vec::new(), Vec::new());
            for share in &shares {
                prop_assert_eq!(share.first_token, tokens.len());
                prop_assert_eq!(share.targets.clone(), targets.len()..targets.len() + share.batch.targets.len());
                tokens.extend_from_slice(&share.batch.ids);
                targets.extend(share.batch.targets.iter().map(|target| (share.batch.ids[target.position], target.token)));
            }
            prop_assert_eq!(&tokens, &batch.ids);
            let whole: Vec<_> = batch.targets.iter().map(|target| (batch.ids[target.position], target.token)).collect();
            prop_assert_eq!(targets, whole);
            let longest = rows.iter().map(|row| row.ids.len()).max().unwrap();
            let largest = shares.iter().map(|share| share.batch.ids.len()).max().unwrap();
            prop_assert!(largest <= rows.len().div_ceil(ranks) * longest);
        }
    }
}
