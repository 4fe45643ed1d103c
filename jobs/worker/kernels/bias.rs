//! A vector that is added to every row.

use super::memory::{Parts, by_rows, sum_over_rows};
use super::simd::dispatched;

dispatched! {
    fn add_to_each(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

dispatched! {
    fn add_each(rows: &[f32], sum: &mut [f32]) {
        for row in rows.chunks_exact(sum.len()) {
            sum.iter_mut().zip(row).for_each(|(sum, y)| *sum += y);
        }
    }
}

/// Adds the bias to every row of `y`.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    let rows = y.len() / width;
    let parts = Parts::of(y);
    by_rows(rows, |rows| {
        // SAFETY: `by_rows` gives no row out twice.
        add_to_each(unsafe { parts.part(rows.start * width..rows.end * width) }, bias);
    });
}

/// Adds the bias's gradient, the sum over the rows of `dy`.
pub fn bias_gradient(dy: &[f32], dbias: &mut [f32]) {
    let width = dbias.len();
    sum_over_rows(dy.len() / width, dbias, |rows, sums| {
        add_each(&dy[rows.start * width..rows.end * width], sums);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    #[test]
    fn a_bias_and_its_gradient_are_those_of_the_slow_operations() {
        for (rows, width) in [(1, 7), (3, 65), (300, 33)] {
            let (x, bias) = (random("x", (rows, width)), random("bias", width));
            let op = || {
                let forward = |x: &[&[f32]]| {
                    let mut y = x[0].to_vec();
                    add_bias(&mut y, x[1]);
                    y
                };
                let backward = |x: &[&[f32]], dy: &[f32]| {
                    let mut dbias = vec![0.0; x[1].len()];
                    bias_gradient(dy, &mut dbias);
                    vec![dy.to_vec(), dbias]
                };
                Kernel::new((rows, width), forward, backward)
            };
            let (y, want) = weighted_sum_gradients(|x| x[0].broadcast_add(x[1]), &[&x, &bias]).unwrap();
            let (fast_y, got) = weighted_sum_gradients(|x| x[0].apply_op2(x[1], op()), &[&x, &bias]).unwrap();
            assert_close(&fast_y, &y, 1e-6);
            assert_close(&got[1], &want[1], 1e-5);
        }
    }
}
