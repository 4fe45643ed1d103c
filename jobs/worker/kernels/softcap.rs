//! Softcaps (Gemma 2): values are bent to lie between minus and plus a cap, `y = cap * tanh(x / cap)`.

use super::memory::{Parts, by_rows};
use super::simd::{dispatched, tanh};

/// Values that one call of the kernel takes on at least.
const BLOCK: usize = 4096;

/// Bends the values in place.
#[inline(always)]
pub(super) fn bend(values: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    values.iter_mut().for_each(|value| *value = cap * tanh(*value * inverse));
}

/// The slope at a value that has been bent to `y`: `1 - (y / cap)^2`.
#[inline(always)]
pub(super) fn slope(y: f32, cap: f32) -> f32 {
    let share = y / cap;
    1.0 - share * share
}

dispatched! {
    fn bend_block(values: &mut [f32], cap: f32) {
        bend(values, cap);
    }
}

dispatched! {
    fn slope_block(bent: &[f32], cap: f32, dy: &mut [f32]) {
        dy.iter_mut().zip(bent).for_each(|(dy, y)| *dy *= slope(*y, cap));
    }
}

/// Bends the values in place.
pub fn softcap(values: &mut [f32], cap: f32) {
    let len = values.len();
    let parts = Parts::of(values);
    by_rows(len.div_ceil(BLOCK), |blocks| {
        // SAFETY: `by_rows` gives no block out twice.
        bend_block(unsafe { parts.part(blocks.start * BLOCK..(blocks.end * BLOCK).min(len)) }, cap);
    });
}

/// From the gradients of what has been `bent` to those of what it was before, in place.
pub fn softcap_backward(bent: &[f32], cap: f32, dy: &mut [f32]) {
    assert_eq!(bent.len(), dy.len());
    let len = bent.len();
    let parts = Parts::of(dy);
    by_rows(len.div_ceil(BLOCK), |blocks| {
        let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(len);
        // SAFETY: `by_rows` gives no block out twice.
        slope_block(&bent[at.clone()], cap, unsafe { parts.part(at) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    #[test]
    fn softcap_and_its_gradient_are_those_of_the_slow_operations() {
        for (rows, width) in [(1, 7), (41, 333)] {
            let x = random("x", (rows, width));
            let op = || {
                let forward = |x: &[&[f32]]| {
                    let mut y = x[0].to_vec();
                    softcap(&mut y, 0.5);
                    y
                };
                let backward = move |x: &[&[f32]], dy: &[f32]| {
                    let mut dx = dy.to_vec();
                    softcap_backward(&forward(x), 0.5, &mut dx);
                    vec![dx]
                };
                Kernel::new((rows, width), forward, backward)
            };
            let (y, slow) = weighted_sum_gradients(|x| (x[0] * 2.0)?.tanh()? * 0.5, &[&x]).unwrap();
            let (fast_y, fast) = weighted_sum_gradients(|x| x[0].apply_op1(op()), &[&x]).unwrap();
            assert_close(&fast_y, &y, 1e-6);
            assert_close(&fast[0], &slow[0], 1e-6);
        }
    }
}
