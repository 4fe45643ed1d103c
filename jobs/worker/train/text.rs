//! From texts to rows: every token but a text's first is predicted once an epoch.

use crate::data::rows::Row;

/// Cuts a text into rows of at most `length` tokens. Each row after the first begins with the token that the one before
/// it ended with: so that token's successor is predicted too, and no token counts twice.
pub fn rows(ids: &[u32], length: usize) -> Vec<Row> {
    let step = length - 1;
    let starts = (0..ids.len().saturating_sub(1)).step_by(step);
    starts.map(|start| Row::learnt(ids[start..(start + length).min(ids.len())].to_vec())).collect()
}

/// The last `share` of the rows, to be held out: what comes later in a text is what a model has to foresee. One row at
/// least is left to learn from.
pub fn hold_out(rows: &mut Vec<Row>, share: f64) -> Vec<Row> {
    let count = ((rows.len() as f64 * share).ceil() as usize).min(rows.len().saturating_sub(1));
    rows.split_off(rows.len() - count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_token_but_the_first_is_predicted_once(len in 0usize..200, length in 2usize..50) {
            let ids: Vec<u32> = (0..len as u32).collect();
            let rows = rows(&ids, length);
            prop_assert!(rows.iter().all(|row| (2..=length).contains(&row.ids.len())));
            let predicted: Vec<u32> = rows.iter().flat_map(|row| row.ids[1..].to_vec()).collect();
            prop_assert_eq!(predicted, ids.get(1..).unwrap_or_default());
        }
    }

    #[test]
    fn the_end_is_held_out_and_something_is_left() {
        let mut all = rows(&(0..101).collect::<Vec<_>>(), 11);
        let held_out = hold_out(&mut all, 0.25);
        assert_eq!((all.len(), held_out.len()), (7, 3));
        assert_eq!(held_out[0].ids[0], 70);
        let mut one = rows(&[1, 2, 3], 11);
        assert!(hold_out(&mut one, 0.5).is_empty() && one.len() == 1);
    }
}
