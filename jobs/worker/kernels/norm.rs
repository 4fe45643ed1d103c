//! RMSNorm: `y = x / sqrt(mean(x^2) + epsilon) * weight`, row by row.

use super::memory::{Fresh, Parts, by_rows, sum_over_rows};
use super::simd::{dispatched, dot, dot3};

dispatched! {
    fn normalise(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let inverse = inverse_rms(x, epsilon);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * inverse * w;
            }
        }
    }
}

dispatched! {
    /// With `g = dy * weight` and `r = 1 / rms`: `dx += r * (g - x * r^2 * mean(g * x))`.
    fn add_gradient(x: &[f32], weight: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
        let width = weight.len();
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let inverse = inverse_rms(x, epsilon);
            let share = dot3(dy, weight, x) * inverse * inverse / width as f32;
            for ((dx, x), (dy, w)) in dx.iter_mut().zip(x).zip(dy.iter().zip(weight)) {
                *dx += inverse * (dy * w - x * share);
            }
        }
    }
}

dispatched! {
    /// `dweight += sum over the rows of dy * x / rms`.
    fn add_weight_gradient(x: &[f32], epsilon: f32, dy: &[f32], dweight: &mut [f32]) {
        let width = dweight.len();
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let inverse = inverse_rms(x, epsilon);
            for (dweight, (x, dy)) in dweight.iter_mut().zip(x.iter().zip(dy)) {
                *dweight += dy * x * inverse;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let mean = dot(x, x) / x.len() as f32;
    // Squares that overflow would make the row zero, and a model that has exploded would look merely stupid; this way
    // the row is NaN, and training is seen to diverge.
    if mean.is_infinite() { f32::NAN } else { 1.0 / (mean + epsilon).sqrt() }
}

/// Rows of `x`, normalised.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut y = Fresh::new(x.len());
    let parts = y.parts();
    by_rows(x.len() / width, |rows| {
        let values = rows.start * width..rows.end * width;
        // SAFETY: `by_rows` gives no row out twice, and `normalise` only writes to it.
        normalise(&x[values.clone()], weight, epsilon, unsafe { parts.part(values) });
    });
    // SAFETY: every row has been written.
    unsafe { y.filled() }
}

/// Adds the gradient of `x` to `dx`, which may hold that of the stream around the norm already, and that of the weight
/// to `dweight`, where one is asked for.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    let width = weight.len();
    let parts = Parts::of(dx);
    by_rows(x.len() / width, |rows| {
        let at = rows.start * width..rows.end * width;
        // SAFETY: `by_rows` gives no row out twice.
        add_gradient(&x[at.clone()], weight, epsilon, &dy[at.clone()], unsafe { parts.part(at) });
    });
    if let Some(dweight) = dweight {
        sum_over_rows(x.len() / width, dweight, |rows, dweight| {
            let at = rows.start * width..rows.end * width;
            add_weight_gradient(&x[at.clone()], epsilon, &dy[at], dweight);
        });
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Result, Tensor};

    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    #[test]
    fn an_overflow_is_not_hidden() {
        assert!(rms_norm(&[1e30, 1.0], &[1.0, 1.0], 1e-5).iter().all(|y| y.is_nan()));
        assert!(rms_norm(&[1e15, 1.0], &[1.0, 1.0], 1e-5).iter().all(|y| y.is_finite()));
    }

    #[test]
    fn rms_norm_and_its_gradients_are_those_of_the_slow_operations() {
        for (rows, width) in [(1, 7), (5, 64), (67, 33), (300, 8)] {
            let (x, weight) = (random("x", (rows, width)), random("w", (1, width)));
            let slow = |x: &[&Tensor]| -> Result<Tensor> {
                let rms = (x[0].sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                x[0].broadcast_div(&rms)?.broadcast_mul(x[1])? + x[0]
            };
            // With the stream around the norm, since the gradients of both are summed up here.
            let op = || {
                let forward = move |x: &[&[f32]]| {
                    let mut y = rms_norm(x[0], x[1], 1e-5);
                    y.iter_mut().zip(x[0]).for_each(|(y, x)| *y += x);
                    y
                };
                let backward = move |x: &[&[f32]], dy: &[f32]| {
                    let (mut dx, mut dweight) = (dy.to_vec(), vec![0.0; width]);
                    rms_norm_backward(x[0], x[1], 1e-5, dy, &mut dx, Some(&mut dweight));
                    vec![dx, dweight]
                };
                Kernel::new((rows, width), forward, backward)
            };
            let (y, want) = weighted_sum_gradients(slow, &[&x, &weight]).unwrap();
            let (fast_y, got) = weighted_sum_gradients(|x| x[0].apply_op2(x[1], op()), &[&x, &weight]).unwrap();
            assert_close(&fast_y, &y, 1e-5);
            assert_close(&got[0], &want[0], 1e-5);
            assert_close(&got[1], &want[1], 1e-5);
        }
    }
}
