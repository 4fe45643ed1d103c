//! What goes through the model at once.

use std::sync::Arc;

use super::rows::Row;
use crate::kernels::cross_entropy::Target;
use crate::random::{Chance, Purpose};

/// Rows laid end to end, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub ids: Vec<u32>,
    /// Where each row begins, and after the last one where it ends.
    pub bounds: Arc<[usize]>,
    /// The tokens that count, and where each is predicted.
    pub targets: Vec<Target>,
}

impl Batch {
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let (mut ids, mut bounds, mut targets) = (Vec::new(), vec![0], Vec::new());
        for row in rows {
            let start = ids.len();
            ids.extend_from_slice(&row.ids);
            bounds.push(ids.len());
            // Each token is predicted by the one before it, so a row's first token never counts.
            targets.extend(
                (1..row.ids.len())
                    .filter(|&i| row.counts[i])
                    .map(|i| Target { position: start + i - 1, token: row.ids[i] }),
            );
        }
        Self { ids, bounds: bounds.into(), targets }
    }
}

/// One pass over the rows, as the indices of each forward pass, gathered by optimizer step. What is left over at the
/// end makes a smaller step, as in Transformers' trainer.
pub fn epoch(rows: usize, batch_size: usize, accumulation: usize, seed: u64, epoch: u32) -> Vec<Vec<Vec<usize>>> {
    let order = Chance::new(seed, Purpose::Order(epoch)).permutation(rows);
    let batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    batches.chunks(accumulation).map(<[Vec<usize>]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_end_to_end_and_predictions_stay_within_their_row() {
        let rows = [
            Row { ids: vec![5, 6, 7], counts: vec![true, false, true] },
            Row { ids: vec![8, 9], counts: vec![true, true] },
        ];
        let batch = Batch::of(&rows);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(*batch.bounds, [0, 3, 5]);
        assert_eq!(batch.targets, [Target { position: 1, token: 7 }, Target { position: 3, token: 9 }]);
    }

    #[test]
    fn an_epoch_takes_every_row_once_and_no_two_epochs_are_alike() {
        let steps = epoch(23, 4, 2, 1, 0);
        assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
        let mut rows: Vec<usize> = steps.concat().concat();
        assert_ne!(rows, epoch(23, 4, 2, 1, 1).concat().concat());
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..23));
    }
}
