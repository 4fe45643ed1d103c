//! Products of a weight with a few tokens: row by row, as fast as memory delivers the weight.
//!
//! Answering takes one token at a time. Packing the operands for blocks of registers would then cost more than the
//! product itself; here each thread takes rows of the weight as they lie in memory, widens one where it has to, and
//! multiplies it with every token.

use super::memory::{Parts, by_rows};
use super::simd::{dispatched, dot};
use super::weight::{Held, Weight};

/// Tokens up to which this is faster than the products of [`super::matrix`].
pub(super) const FEW: usize = 4;

dispatched! {
    /// The inner products of one row with each token.
    fn dots(row: &[f32], x: &[f32], sums: &mut [f32]) {
        for (x, sum) in x.chunks_exact(row.len()).zip(sums) {
            *sum = dot(row, x);
        }
    }
}

/// `y = x Wᵀ`: `[tokens, out]` of `[tokens, width]`, in f32. Every value of `y` is written.
///
/// # Safety
/// Nobody else holds `y`.
pub(super) unsafe fn forward(weight: Weight<'_>, x: &[f32], y: Parts<'_>) {
    let Weight { held, out, width } = weight;
    let tokens = x.len() / width;
    assert!(tokens <= FEW, "{tokens} tokens are not a few");
    by_rows(out, |rows| {
        let mut widened = vec![0.0; width];
        for index in rows {
            let row = match held {
                Held::F32(values) => &values[index * width..(index + 1) * width],
                Held::Blocks(_) => {
                    weight.row(index, &mut widened);
                    &widened
                }
            };
            let mut sums = [0.0; FEW];
            dots(row, x, &mut sums[..tokens]);
            for (token, &sum) in sums[..tokens].iter().enumerate() {
                // SAFETY: `by_rows` gives no row out twice, and nobody else holds `y`.
                let value = unsafe { y.part(token * out + index..token * out + index + 1) };
                value[0] = sum;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::weight::Precision;

    #[test]
    fn a_few_tokens_meet_every_row() {
        for tokens in 1..=FEW {
            let (out, width) = (37, 21);
            let w: Vec<f32> = (0..out * width).map(|i| (i as f32 * 0.37).sin()).collect();
            let x: Vec<f32> = (0..tokens * width).map(|i| (i as f32 * 0.11).cos()).collect();
            let y = Weight::f32(&w, width).forward(&x, Precision::F32);
            for (i, y) in y.iter().enumerate() {
                let (token, row) = (i / out, i % out);
                let pairs = w[row * width..].iter().zip(&x[token * width..(token + 1) * width]);
                let want: f64 = pairs.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                assert!((f64::from(*y) - want).abs() < 1e-5, "{y}, not {want}");
            }
        }
    }
}
