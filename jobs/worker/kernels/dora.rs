//! DoRA (Liu et al. 2024): an adapted weight whose rows keep a direction and have their lengths trained.
//!
//! With the adapter's `W + sBA` and its row norms `n`, row `r` of the weight in force is `m_r (W + sBA)_r / n_r`. As in
//! the paper's section 4.3, and in PEFT, `n` counts as a constant in the backward pass. The sum `W + sBA` itself is never
//! made: its norms follow from small products, and what it does to `x` is what an adapter does, scaled column by column.

use super::linear::Lora;
use super::matrix::{Matrix, multiplied};
use super::memory::{Parts, by_rows, sum_over_rows};
use super::simd::dispatched;
use super::weight::{Precision, Weight};

/// The lengths of an adapted weight's rows.
#[derive(Clone, Copy)]
pub struct Magnitude<'a> {
    /// The trained lengths `m`, `[out]`.
    pub values: &'a [f32],
    /// The squared length of each row of the frozen weight, `[out]`.
    pub row_squares: &'a [f32],
}

/// What a magnitude comes to for the adapter's values of the moment.
pub(super) struct Gains {
    /// `m / n`, `[out]`.
    pub(super) gains: Vec<f32>,
    /// `1 / n`, `[out]`.
    inverse_norms: Vec<f32>,
}

/// The squared length of each row.
pub fn row_squares(weight: Weight<'_>) -> Vec<f32> {
    let mut row = vec![0.0; weight.width];
    let square = |index| {
        weight.row(index, &mut row);
        row.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>() as f32
    };
    (0..weight.out).map(square).collect()
}

/// The row norms of `W + sBA`, by `n² = |W_r|² + 2s b_r·(A W_r) + s² b_r·(A Aᵀ b_r)`.
pub fn row_norms(weight: Weight<'_>, row_squares: &[f32], lora: &Lora<'_>) -> Vec<f32> {
    let rank = lora.a.len() / weight.width;
    let (a, b) = (Matrix::new(lora.a, weight.width), Matrix::new(lora.b, rank));
    // [rank, out] and [out, rank]
    let across = weight.forward(lora.a, Precision::F32);
    let squared = multiplied(b, Matrix::new(&multiplied(a, a.t()), rank));
    let scale = f64::from(lora.scale);
    let norm = |row: usize| {
        let at = row * rank..(row + 1) * rank;
        let adapter: f64 = lora.b[at.clone()]
            .iter()
            .zip(&squared[at])
            .enumerate()
            .map(|(k, (&b, &squared))| {
                let across = f64::from(across[k * weight.out + row]);
                f64::from(b) * (2.0 * scale * across + scale * scale * f64::from(squared))
            })
            .sum();
        (f64::from(row_squares[row]) + adapter).max(0.0).sqrt() as f32
    };
    (0..weight.out).map(norm).collect()
}

impl Magnitude<'_> {
    pub(super) fn gains(&self, weight: Weight<'_>, lora: &Lora<'_>) -> Gains {
        let norms = row_norms(weight, self.row_squares, lora);
        // A row of zeros has no direction, whatever its length: it stays zero, and so does its gradient.
        let inverse_norms: Vec<f32> = norms.iter().map(|&n| if n > 0.0 { 1.0 / n } else { 0.0 }).collect();
        let gains = self.values.iter().zip(&inverse_norms).map(|(m, inverse)| m * inverse).collect();
        Gains { gains, inverse_norms }
    }
}

impl Gains {
    /// Adds the magnitude's gradient: `dm_r += sum over the tokens of dy_r u_r / n_r`, with `u = x (W + sBA)ᵀ`.
    pub(super) fn add_gradient(&self, u: &[f32], dy: &[f32], dm: &mut [f32]) {
        let width = dm.len();
        let mut sums = vec![0.0; width];
        sum_over_rows(u.len() / width, &mut sums, |rows, sums| {
            let at = rows.start * width..rows.end * width;
            add_products(&u[at.clone()], &dy[at], sums);
        });
        for (dm, (sum, inverse)) in dm.iter_mut().zip(sums.iter().zip(&self.inverse_norms)) {
            *dm += sum * inverse;
        }
    }
}

dispatched! {
    fn add_products(x: &[f32], y: &[f32], sums: &mut [f32]) {
        for (x, y) in x.chunks_exact(sums.len()).zip(y.chunks_exact(sums.len())) {
            for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
                *sum += x * y;
            }
        }
    }
}

dispatched! {
    fn scale_rows(x: &mut [f32], factors: &[f32]) {
        for x in x.chunks_exact_mut(factors.len()) {
            x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        }
    }
}

/// Multiplies each column of `[rows, factors]` by a factor of its own.
pub(super) fn scale_columns(x: &mut [f32], factors: &[f32]) {
    let (width, rows) = (factors.len(), x.len() / factors.len());
    let parts = Parts::of(x);
    by_rows(rows, |rows| {
        // SAFETY: `by_rows` gives no row out twice.
        scale_rows(unsafe { parts.part(rows.start * width..rows.end * width) }, factors);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, frozen};
    use candle_core::{Device, Tensor};

    #[test]
    fn row_norms_are_those_of_the_sum() {
        let (out, width, rank) = (9, 33, 4);
        let [(w, w_values), (a, a_values), (b, b_values)] =
            [frozen("w", (out, width)), frozen("a", (rank, width)), frozen("b", (out, rank))];
        let sum = (w + (b.matmul(&a).unwrap() * 0.7).unwrap()).unwrap();
        let want = sum.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        let weight = Weight::f32(&w_values, width);
        let lora = Lora { a: &a_values, b: &b_values, scale: 0.7, dropout: None, magnitude: None };
        let got = row_norms(weight, &row_squares(weight), &lora);
        assert_close(&Tensor::new(got, &Device::Cpu).unwrap(), &want, 1e-6);
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let lora = Lora { a: &[1.0, 2.0], b: &[0.0, 0.0], scale: 1.0, dropout: None, magnitude: None };
        let weight = Weight::f32(&[0.0, 0.0, 3.0, 4.0], 2);
        let magnitude = Magnitude { values: &[0.0, 10.0], row_squares: &row_squares(weight) };
        assert_eq!(magnitude.gains(weight, &lora).gains, [0.0, 2.0]);
    }
}
