//! RMSNorm with a frozen weight: `y = x / sqrt(mean(x^2) + epsilon) * weight`, row by row.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::memory::{Fresh, by_rows};
use super::simd::{dispatched, dot};
use super::{argument, gradient, output, read};

pub struct RmsNorm {
    /// `[width]`, outside the tape.
    pub weight: Tensor,
    pub epsilon: f32,
}

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
    /// With `g = dy * weight` and `r = 1 / rms`: `dx = r * (g - x * r^2 * mean(g * x))`.
    fn normalise_backward(x: &[f32], weight: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
        let width = weight.len();
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let inverse = inverse_rms(x, epsilon);
            for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = dy * w;
            }
            let share = dot(dx, x) * inverse * inverse / width as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx - x * share);
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

/// What [`RmsNorm`] does, for rows that need no gradient.
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

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = argument(storage, layout)?;
        let y = read(&self.weight, |weight| Ok(rms_norm(x, weight, self.epsilon)))?;
        Ok(output(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = read(x, |x| {
            read(dy, |dy| {
                read(&self.weight, |weight| {
                    let width = weight.len();
                    let mut dx = Fresh::new(x.len());
                    let parts = dx.parts();
                    by_rows(x.len() / width, |rows| {
                        let at = rows.start * width..rows.end * width;
                        // SAFETY: no row is given out twice, and each value is written before it is read.
                        let dx = unsafe { parts.part(at.clone()) };
                        normalise_backward(&x[at.clone()], weight, self.epsilon, &dy[at], dx);
                    });
                    // SAFETY: every row has been written.
                    Ok(unsafe { dx.filled() })
                })
            })
        })?;
        gradient(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random, weighted_sum_gradients};

    #[test]
    fn an_overflow_is_not_hidden() {
        assert!(rms_norm(&[1e30, 1.0], &[1.0, 1.0], 1e-5).iter().all(|y| y.is_nan()));
        assert!(rms_norm(&[1e15, 1.0], &[1.0, 1.0], 1e-5).iter().all(|y| y.is_finite()));
    }

    #[test]
    fn rms_norm_and_its_gradient_are_those_of_the_slow_operations() {
        for (rows, width) in [(1, 7), (5, 64), (67, 33)] {
            let x = random("x", (rows, width));
            let weight = random("w", width).as_tensor().detach();
            let slow = |x: &Tensor| -> Result<Tensor> {
                let rms = (x.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                x.broadcast_div(&rms)?.broadcast_mul(&weight)
            };
            let fast = |x: &Tensor| x.apply_op1(RmsNorm { weight: weight.clone(), epsilon: 1e-5 });
            let (y, gradients) = weighted_sum_gradients(|x| slow(x[0]), &[&x]).unwrap();
            let (fast_y, fast_gradients) = weighted_sum_gradients(|x| fast(x[0]), &[&x]).unwrap();
            assert_close(&fast_y, &y, 1e-5);
            assert_close(&fast_gradients[0], &gradients[0], 1e-5);
        }
    }
}
