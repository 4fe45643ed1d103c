//! Packing: short rows share what one long row takes.
//!
//! Whole rows only, none of which sees another: attention knows where each begins, and positions start again there. So
//! a pack teaches exactly what its rows would teach one by one; only what a forward pass costs is spread more evenly.

use std::collections::BTreeMap;

/// Puts rows of the given lengths (at most `capacity` each) into as few packs of `capacity` tokens as best-fit
/// decreasing finds, which is at most 11/9 of the fewest possible, and one more (Johnson 1974; TRL calls it `bfd`).
///
/// The longest go first, each into the fullest pack that has room; rows of one length in the `order` given. How many
/// packs there are follows from the lengths alone, so it is the same in every epoch.
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize, order: &[usize]) -> Vec<Vec<usize>> {
    let mut longest_first = order.to_vec();
    longest_first.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // Packs by the room that is left in them.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in longest_first {
        let length = lengths[row];
        let fullest = by_room.range_mut(length..).next().map(|(&room, packs)| (room, packs.pop()));
        let (room, pack) = match fullest {
            Some((room, Some(pack))) => {
                if by_room[&room].is_empty() {
                    by_room.remove(&room);
                }
                (room, pack)
            }
            _ => {
                packs.push(Vec::new());
                (capacity.max(length), packs.len() - 1)
            }
        };
        packs[pack].push(row);
        by_room.entry(room - length).or_default().push(pack);
    }
    packs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_row_goes_into_the_fullest_pack_that_has_room() {
        let lengths = [4, 8, 1, 4, 2, 1];
        let packs = best_fit_decreasing(&lengths, 10, &[0, 1, 2, 3, 4, 5]);
        assert_eq!(packs, [vec![1, 2, 5], vec![0, 3, 4]]);
    }

    proptest! {
        #[test]
        fn every_row_is_packed_once_and_no_pack_overflows(
            lengths in prop::collection::vec(1..=64usize, 1..200), turn in 0..200usize
        ) {
            let mut order: Vec<usize> = (0..lengths.len()).collect();
            order.rotate_left(turn % lengths.len());
            let packs = best_fit_decreasing(&lengths, 64, &order);
            let tokens = |pack: &Vec<usize>| pack.iter().map(|&row| lengths[row]).sum::<usize>();
            prop_assert!(packs.iter().all(|pack| tokens(pack) <= 64));
            let mut rows = packs.concat();
            rows.sort_unstable();
            prop_assert!(rows.into_iter().eq(0..lengths.len()));
            // Far from the bound that is proved, but no two packs could have been one.
            let half_empty = packs.iter().filter(|pack| tokens(pack) <= 32).count();
            prop_assert!(half_empty <= 1);
            // The number of packs, and so of steps, is the same whatever the order.
            let straight: Vec<usize> = (0..lengths.len()).collect();
            prop_assert_eq!(packs.len(), best_fit_decreasing(&lengths, 64, &straight).len());
        }
    }
}
