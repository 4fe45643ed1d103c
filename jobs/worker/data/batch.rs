//! What goes through the model at once.

use std::ops::Range;
use std::sync::Arc;

use super::rows::Row;
use crate::kernels::cross_entropy::Target;

/// Rows laid end to end, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub ids: Vec<u32>,
    /// Where each row begins, and after the last one where it ends.
    pub bounds: Arc<[usize]>,
    /// The tokens that count, and where each is predicted.
    pub targets: Vec<Target>,
    /// Where each row's targets begin, and after the last row where they end.
    target_bounds: Vec<usize>,
}

impl Batch {
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let (mut ids, mut bounds, mut targets, mut target_bounds) = (Vec::new(), vec![0], Vec::new(), vec![0]);
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
            target_bounds.push(targets.len());
        }
        Self { ids, bounds: bounds.into(), targets, target_bounds }
    }

    /// Some neighbouring rows, as a batch of their own.
    pub fn part(&self, rows: Range<usize>) -> Self {
        let (first, targets) = (self.bounds[rows.start], self.target_bounds[rows.start]..self.target_bounds[rows.end]);
        let moved = |&Target { position, token }: &Target| Target { position: position - first, token };
        Self {
            ids: self.ids[first..self.bounds[rows.end]].to_vec(),
            bounds: self.bounds[rows.start..=rows.end].iter().map(|bound| bound - first).collect(),
            target_bounds: self.target_bounds[rows.start..=rows.end].iter().map(|at| at - targets.start).collect(),
            targets: self.targets[targets].iter().map(moved).collect(),
        }
    }

    /// The targets of each row, in the order of the rows.
    pub fn targets_by_row(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.target_bounds.windows(2).map(|bounds| bounds[0]..bounds[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_end_to_end_and_predictions_stay_within_their_row() {
        let rows = [
            Row { ids: vec![5, 6, 7], counts: vec![true, false, true] },
            Row { ids: vec![4], counts: vec![true] },
            Row { ids: vec![8, 9], counts: vec![true, true] },
        ];
        let batch = Batch::of(&rows);
        assert_eq!(batch.ids, [5, 6, 7, 4, 8, 9]);
        assert_eq!(*batch.bounds, [0, 3, 4, 6]);
        assert_eq!(batch.targets, [Target { position: 1, token: 7 }, Target { position: 4, token: 9 }]);
        assert!(batch.targets_by_row().eq([0..1, 1..1, 1..2]));
        assert_eq!(batch.part(1..3), Batch::of(&rows[1..]));
    }
}
