//! Linear projections `y = x Wᵀ`, with and without an adapter: LoRA (Hu et al. 2021) or DoRA (see [`super::dora`]).

use std::borrow::Cow;

use super::add::add_to;
use super::dora::{Magnitude, scale_columns};
use super::matrix::{Matrix, MatrixMut, Threads, Write, multiplied, product};
use super::memory::{Parts, by_rows};
use super::narrow::{Adapted, reduced};
use super::weight::{Precision, Weight, weight_gradient};

/// A projection as it lies in memory.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[out, width]`
    pub weight: Weight<'a>,
    pub lora: Option<Lora<'a>>,
    /// Of the products with the weight, and of what joins them in the same go: an adapter's second product.
    pub precision: Precision,
}

/// An adapter: adds `scale * drop(x) Aᵀ Bᵀ`. With a magnitude, each column of the sum is scaled as well.
///
/// Dropout and magnitude together follow PEFT: with `d = drop(x)` and the gains `g`,
/// `y = x Wᵀ + (g - 1) d Wᵀ + g scale d Aᵀ Bᵀ`, so that only what the adapter changes meets dropout.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// `[rank, width]`
    pub a: &'a [f32],
    /// `[out, rank]`
    pub b: &'a [f32],
    pub scale: f32,
    pub dropout: Option<Dropout>,
    pub magnitude: Option<Magnitude<'a>>,
}

/// Where gradients are added, as far as they are asked for. What is not asked for is not computed: a frozen weight's
/// gradient would cost as much as the whole forward pass.
#[derive(Default)]
pub struct LinearGradient<'a> {
    pub weight: Option<&'a mut [f32]>,
    pub a: Option<&'a mut [f32]>,
    pub b: Option<&'a mut [f32]>,
    pub magnitude: Option<&'a mut [f32]>,
}

/// Which of an adapter's inputs are dropped in a forward pass. The mask is a function of the seed and the place, so
/// the backward pass makes it again instead of keeping it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share that is dropped, 0 to below 1; the rest is scaled up by `1 / (1 - rate)`.
    pub rate: f32,
    /// Different for every projection and every pass.
    pub seed: u64,
}

impl Dropout {
    fn factor(self, index: usize) -> f32 {
        let kept = (mix(self.seed ^ mix(index as u64)) >> 40) as f32 / (1u64 << 24) as f32 >= self.rate;
        if kept { 1.0 / (1.0 - self.rate) } else { 0.0 }
    }

    /// Multiplies each value by its factor; dropout is its own backward pass.
    fn apply(self, x: &[f32]) -> Vec<f32> {
        const BLOCK: usize = 4096;
        let mut y = x.to_vec();
        let parts = Parts::of(&mut y);
        by_rows(x.len().div_ceil(BLOCK), |blocks| {
            let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(x.len());
            // SAFETY: `by_rows` gives no block out twice.
            let y = unsafe { parts.part(at.clone()) };
            y.iter_mut().zip(at).for_each(|(y, index)| *y *= self.factor(index));
        });
        y
    }
}

/// The finaliser of SplitMix64: every bit of the input changes about half of the output's.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `x Wᵀ`; `w` is `[out, width]`.
pub fn linear(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    multiplied(Matrix::new(x, width), Matrix::new(w, width).t())
}

impl Lora<'_> {
    /// What the adapter sees of `x`.
    fn seen<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        self.dropout.map_or(x.into(), |dropout| dropout.apply(x).into())
    }

    fn rank(&self, weight: Weight<'_>) -> usize {
        self.a.len() / weight.width
    }
}

impl Linear<'_> {
    /// `[tokens, out]` of `[tokens, width]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let Some(lora) = self.lora else { return self.weight.forward(x, self.precision) };
        let seen = lora.seen(x);
        let Some(magnitude) = lora.magnitude else { return self.adapted(x, &seen, lora) };
        let mut sum = self.adapted(&seen, &seen, lora);
        scale_columns(&mut sum, &magnitude.gains(self.weight, &lora).gains);
        if lora.dropout.is_some() {
            // The weight meets the whole of `x`, and its share in the sum what dropout has left of it.
            let mut y = self.weight.forward(x, self.precision);
            let dropped = self.weight.forward(&seen, self.precision);
            y.iter_mut().zip(&dropped).for_each(|(y, dropped)| *y -= dropped);
            add_to(&mut y, &sum);
            return y;
        }
        sum
    }

    /// What the weight makes of `x` and the adapter of `seen`, without a magnitude.
    fn adapted(&self, x: &[f32], seen: &[f32], lora: Lora<'_>) -> Vec<f32> {
        let reduced = reduced(seen, lora.a, self.weight.width, lora.scale);
        self.weight.forward_with(x, (&reduced, lora.b), self.precision)
    }

    /// The weight `[out, width]` in force, with the adapter worked in: a plain projection with it gives the same.
    pub fn merged(&self) -> Vec<f32> {
        let Weight { out, width, .. } = self.weight;
        let mut merged = vec![0.0; out * width];
        merged.chunks_exact_mut(width).enumerate().for_each(|(index, row)| self.weight.row(index, row));
        let Some(lora) = self.lora else { return merged };
        let rank = lora.a.len() / width;
        let (a, b) = (Matrix::new(lora.a, width), Matrix::new(lora.b, rank));
        product(MatrixMut::new(&mut merged, width), Write::Add, lora.scale, b, a, Threads::All);
        if let Some(magnitude) = lora.magnitude {
            let gains = magnitude.gains(self.weight, &lora).gains;
            for (row, gain) in merged.chunks_exact_mut(width).zip(gains) {
                row.iter_mut().for_each(|value| *value *= gain);
            }
        }
        merged
    }

    /// Adds the gradient of `x` to `dx`, where one is asked for (an empty one is begun), and those of the weight or
    /// the adapter. What the adapter made of `x` is computed again: its rank is small. With a magnitude that takes a
    /// product with the weight, too.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: Option<&mut Vec<f32>>, gradient: LinearGradient<'_>) {
        let width = self.weight.width;
        let Some(lora) = self.lora else {
            if let Some(dx) = dx {
                self.weight.backward(dy, dx, self.precision);
            }
            if let Some(dw) = gradient.weight {
                weight_gradient(x, dy, dw, width, self.precision);
            }
            return;
        };
        assert!(gradient.weight.is_none(), "a weight with an adapter is frozen");
        let seen = lora.seen(x);
        // The gradient before the magnitude.
        let mut dsum = Cow::Borrowed(dy);
        if let Some(magnitude) = lora.magnitude {
            let gains = magnitude.gains(self.weight, &lora);
            if let Some(dm) = gradient.magnitude {
                let sum = self.adapted(&seen, &seen, lora);
                gains.add_gradient(&sum, dy, dm);
            }
            scale_columns(dsum.to_mut(), &gains.gains);
        }
        let rank = lora.rank(self.weight);
        let adapted = Adapted { a: lora.a, b: lora.b, rank, scale: lora.scale, x: &seen, dy: &dsum };
        let dreduced = adapted.backward(gradient.a, gradient.b);
        let Some(dx) = dx else { return };
        match lora.dropout {
            None => self.weight.backward_with(&dsum, (&dreduced, lora.a), dx, self.precision),
            Some(dropout) => {
                self.weight.backward(dy, dx, self.precision);
                let mut dseen = multiplied(Matrix::new(&dreduced, rank), Matrix::new(lora.a, width));
                if lora.magnitude.is_some() {
                    let mut changed = dsum.into_owned();
                    changed.iter_mut().zip(dy).for_each(|(changed, dy)| *changed -= dy);
                    self.weight.backward(&changed, &mut dseen, self.precision);
                }
                add_to(dx, &dropout.apply(&dseen));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Tensor, Var};

    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, frozen, random, weighted_sum_gradients};

    fn plain(weight: &[f32], width: usize) -> Linear<'_> {
        Linear { weight: Weight::f32(weight, width), lora: None, precision: Precision::F32 }
    }

    #[test]
    fn a_projection_and_its_gradients_are_those_of_matmul() {
        for (tokens, width, out) in [(1, 7, 5), (65, 33, 17)] {
            let (x, weight) = (random("x", (tokens, width)), random("w", (out, width)));
            let op = || {
                Kernel::new(
                    (tokens, out),
                    move |x| plain(x[1], width).forward(x[0]),
                    move |x, dy| {
                        let (mut dx, mut dw) = (Vec::new(), vec![0.0; x[1].len()]);
                        let gradient = LinearGradient { weight: Some(&mut dw), ..Default::default() };
                        plain(x[1], width).backward(x[0], dy, Some(&mut dx), gradient);
                        vec![dx, dw]
                    },
                )
            };
            let (y, want) = weighted_sum_gradients(|x| x[0].matmul(&x[1].t()?), &[&x, &weight]).unwrap();
            let (fast_y, got) = weighted_sum_gradients(|x| x[0].apply_op2(x[1], op()), &[&x, &weight]).unwrap();
            assert_close(&fast_y, &y, 1e-5);
            assert_close(&got[0], &want[0], 1e-5);
            assert_close(&got[1], &want[1], 1e-5);
        }
    }

    #[test]
    fn an_adapted_projection_and_its_gradients_are_those_of_matmul() {
        for dropout in [None, Some(Dropout { rate: 0.4, seed: 7 })] {
            for (tokens, width, out, rank) in [(1, 7, 5, 3), (65, 33, 17, 4)] {
                let (weight, values) = frozen("w", (out, width));
                let inputs: [&Var; 3] =
                    [&random("x", (tokens, width)), &random("a", (rank, width)), &random("b", (out, rank))];
                let mask: Vec<f32> = (0..tokens * width).map(|i| dropout.map_or(1.0, |d| d.factor(i))).collect();
                let mask = Tensor::from_vec(mask, (tokens, width), weight.device()).unwrap();
                let slow = |x: &[&Tensor]| {
                    let reduced = (x[0] * &mask)?.matmul(&x[1].t()?)?;
                    x[0].matmul(&weight.t()?)? + (reduced.matmul(&x[2].t()?)? * 1.7)?
                };
                let op = || {
                    let (weight, again) = (values.clone(), values.clone());
                    Kernel::new(
                        (tokens, out),
                        move |x| {
                            let lora = Some(Lora { a: x[1], b: x[2], scale: 1.7, dropout, magnitude: None });
                            let weight = Weight::f32(&weight, width);
                            Linear { weight, lora, precision: Precision::F32 }.forward(x[0])
                        },
                        move |x, dy| {
                            let lora = Some(Lora { a: x[1], b: x[2], scale: 1.7, dropout, magnitude: None });
                            let (mut dx, mut a, mut b) = (Vec::new(), vec![0.0; x[1].len()], vec![0.0; x[2].len()]);
                            let gradient = LinearGradient { a: Some(&mut a), b: Some(&mut b), ..Default::default() };
                            let weight = Weight::f32(&again, width);
                            let linear = Linear { weight, lora, precision: Precision::F32 };
                            linear.backward(x[0], dy, Some(&mut dx), gradient);
                            vec![dx, a, b]
                        },
                    )
                };
                let (y, want) = weighted_sum_gradients(slow, &inputs).unwrap();
                let (fast_y, got) = weighted_sum_gradients(|x| x[0].apply_op3(x[1], x[2], op()), &inputs).unwrap();
                assert_close(&fast_y, &y, 1e-5);
                for (got, want) in got.iter().zip(&want) {
                    assert_close(got, want, 1e-5);
                }
            }
        }
    }

    /// The weight's row norms are constants on both sides, as PEFT has it.
    #[test]
    fn a_projection_with_trained_lengths_and_its_gradients_are_those_of_matmul() {
        let (tokens, width, out, rank) = (65, 33, 17, 4);
        for dropout in [None, Some(Dropout { rate: 0.4, seed: 7 })] {
            let (weight, values) = frozen("w", (out, width));
            let [x, a, b, m] = [("x", (tokens, width)), ("a", (rank, width)), ("b", (out, rank)), ("m", (1, out))]
                .map(|(name, shape)| random(name, shape));
            let mask: Vec<f32> = (0..tokens * width).map(|i| dropout.map_or(1.0, |d| d.factor(i))).collect();
            let mask = Tensor::from_vec(mask, (tokens, width), weight.device()).unwrap();
            let sum = (&weight + (b.matmul(&a).unwrap() * 1.7).unwrap()).unwrap();
            let norms = sum.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().detach();
            let slow = |x: &[&Tensor]| {
                let gains = x[3].broadcast_div(&norms)?;
                let dropped = (x[0] * &mask)?;
                let change = (dropped.matmul(&x[1].t()?)?.matmul(&x[2].t()?)? * 1.7)?.broadcast_mul(&gains)?;
                let base = dropped.matmul(&weight.t()?)?.broadcast_mul(&(gains - 1.0)?)?;
                x[0].matmul(&weight.t()?)? + base + change
            };
            let (want_y, want) = weighted_sum_gradients(slow, &[&x, &a, &b, &m]).unwrap();

            let row_squares = crate::kernels::dora::row_squares(Weight::f32(&values, width));
            let [x, a, b, m] = [&x, &a, &b, &m].map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let magnitude = Some(Magnitude { values: &m, row_squares: &row_squares });
            let lora = Some(Lora { a: &a, b: &b, scale: 1.7, dropout, magnitude });
            let linear = Linear { lora, ..plain(&values, width) };
            let y = Tensor::from_vec(linear.forward(&x), (tokens, out), weight.device()).unwrap();
            assert_close(&y, &want_y, 1e-5);
            let dy = random("weights of the sum", (tokens, out)).flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (mut dx, [mut da, mut db, mut dm]) = (Vec::new(), [&a, &b, &m].map(|values| vec![0.0; values.len()]));
            let gradient =
                LinearGradient { weight: None, a: Some(&mut da), b: Some(&mut db), magnitude: Some(&mut dm) };
            linear.backward(&x, &dy, Some(&mut dx), gradient);
            for (got, want) in [dx, da, db, dm].into_iter().zip(&want) {
                assert_close(&Tensor::from_vec(got, want.shape(), want.device()).unwrap(), want, 1e-5);
            }
        }
    }

    #[test]
    fn a_merged_weight_gives_what_weight_and_adapter_give() {
        let (tokens, width, out, rank) = (9, 33, 17, 4);
        let [(_, x), (_, w), (_, a), (_, b), (_, m)] =
            [("x", tokens, width), ("w", out, width), ("a", rank, width), ("b", out, rank), ("m", 1, out)]
                .map(|(name, rows, cols)| frozen(name, (rows, cols)));
        let row_squares = crate::kernels::dora::row_squares(Weight::f32(&w, width));
        for magnitude in [None, Some(Magnitude { values: &m, row_squares: &row_squares })] {
            let lora = Some(Lora { a: &a, b: &b, scale: 1.7, dropout: None, magnitude });
            let adapted = Linear { lora, ..plain(&w, width) };
            let merged = adapted.merged();
            let [got, want] = [plain(&merged, width).forward(&x), adapted.forward(&x)]
                .map(|y| Tensor::from_vec(y, (tokens, out), &candle_core::Device::Cpu).unwrap());
            assert_close(&got, &want, 1e-5);
        }
    }

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let dropout = Dropout { rate: 0.25, seed: 3 };
        let y = dropout.apply(&vec![1.0; 100_000]);
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f32 / 1e5;
        let mean = y.iter().sum::<f32>() / 1e5;
        assert!((dropped - 0.25).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "{dropped} {mean}");
        assert_ne!(y, Dropout { seed: 4, ..dropout }.apply(&vec![1.0; 100_000]));
    }
}
