//! Sums in place.

use super::memory::{Parts, by_rows};
use super::simd::dispatched;

/// Values that one call of the kernel takes on at least.
const BLOCK: usize = 4096;

dispatched! {
    fn add_block(sum: &mut [f32], more: &[f32]) {
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
}

/// `sum += more`.
pub fn add_to(sum: &mut [f32], more: &[f32]) {
    assert_eq!(sum.len(), more.len());
    let len = sum.len();
    let parts = Parts::of(sum);
    by_rows(len.div_ceil(BLOCK), |blocks| {
        let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(len);
        // SAFETY: `by_rows` gives no block out twice.
        add_block(unsafe { parts.part(at.clone()) }, &more[at]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_added_once() {
        for len in [1, 4095, 4096, 50_001] {
            let mut sum = vec![1.0; len];
            add_to(&mut sum, &(0..len).map(|i| i as f32).collect::<Vec<_>>());
            assert!(sum.iter().enumerate().all(|(i, &sum)| sum == 1.0 + i as f32));
        }
    }
}
