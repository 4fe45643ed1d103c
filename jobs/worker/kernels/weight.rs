//! A matrix of the model as it is held in memory, and the three products that training takes with it.
//!
//! What a product computes with is one thing ([`Precision`]), what its weight is held in another ([`Held`]): a frozen
//! weight may lie in memory in the form of its file and is widened on the way into a product.

use super::few::{self, FEW};
pub use super::matrix::Precision;
use super::matrix::{Matrix, MatrixMut, Values, Write, sum, summed, takes_blocks};
use super::memory::{Fresh, Parts};
use super::quantized::Blocks;
use crate::blocks::BlockKind;

/// Values of a block at most for a product to widen columns of it where it packs them: a strip of 96 columns is three
/// blocks of this length, but of a longer one it would use a small part.
const SHORT: usize = 32;

/// The values of a matrix `[out, width]`, row after row.
#[derive(Debug, Clone, Copy)]
pub enum Held<'a> {
    F32(&'a [f32]),
    /// In a file's blocks: quantized, or floats of 16 bits.
    Blocks(Blocks<'a>),
}

/// A matrix `[out, width]` in somebody else's memory.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    pub held: Held<'a>,
    pub out: usize,
    pub width: usize,
}

impl<'a> Weight<'a> {
    /// Rows of `width` values without gaps.
    pub fn f32(values: &'a [f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        Self { held: Held::F32(values), out: values.len() / width, width }
    }

    /// The blocks of a file, row after row.
    pub fn blocks(kind: BlockKind, bytes: &'a [u8], width: usize) -> Self {
        let blocks = Blocks::new(kind, bytes, width);
        Self { held: Held::Blocks(blocks), out: blocks.out(width), width }
    }

    /// `y = x Wᵀ`: `[tokens, out]` of `[tokens, width]`.
    pub fn forward(self, x: &[f32], precision: Precision) -> Vec<f32> {
        self.forward_fresh(x, None, precision)
    }

    /// The same into memory that is there already.
    pub fn forward_into(self, x: &[f32], y: &mut [f32], precision: Precision) {
        // SAFETY: `y` is lent to us alone.
        unsafe { self.write(x, None, Parts::of(y), precision) };
    }

    /// `y = x Wᵀ + r Bᵀ` in one go, for an adapter's `r` `[tokens, rank]` and B `[out, rank]`.
    pub fn forward_with(self, x: &[f32], adapter: (&[f32], &[f32]), precision: Precision) -> Vec<f32> {
        if precision != Precision::Int8 && x.len() > FEW * self.width {
            return self.forward_fresh(x, Some(adapter), precision);
        }
        let (r, b) = adapter;
        let rank = b.len() / self.out;
        let mut y = self.forward(x, precision);
        let adapter = (Matrix::new(r, rank), Matrix::new(b, rank).t());
        sum(MatrixMut::new(&mut y, self.out), Write::Add, &[adapter], precision);
        y
    }

    fn forward_fresh(self, x: &[f32], adapter: Option<(&[f32], &[f32])>, precision: Precision) -> Vec<f32> {
        let mut y = Fresh::new(x.len() / self.width * self.out);
        // SAFETY: nobody else holds `y` yet, and every value of it is written.
        unsafe {
            self.write(x, adapter, y.parts(), precision);
            y.filled()
        }
    }

    /// Writes every value of `y`; an adapter is for more than a few tokens, and not for integers.
    ///
    /// # Safety
    /// Nobody else holds `y`.
    unsafe fn write(self, x: &[f32], adapter: Option<(&[f32], &[f32])>, y: Parts<'_>, precision: Precision) {
        let few = x.len() <= FEW * self.width;
        let values = match (self.held, precision) {
            (Held::Blocks(blocks), Precision::Int8) if blocks.has_codes() => {
                // SAFETY: by this function's contract.
                return unsafe { blocks.forward_int8(x, self.width, y) };
            }
            // SAFETY: by this function's contract.
            (_, Precision::F32 | Precision::Int8) if few => return unsafe { few::forward(self, x, y) },
            (Held::Blocks(blocks), _) if takes_blocks(precision) => blocks.values(),
            // SAFETY: by this function's contract.
            (Held::Blocks(blocks), _) => return unsafe { blocks.forward(x, self.width, adapter, y, precision) },
            (Held::F32(values), _) => Values::F32(values),
        };
        let mut terms = vec![(Matrix::new(x, self.width), Matrix::of(values, self.width).t())];
        terms.extend(adapter.map(|(r, b)| {
            let rank = b.len() / self.out;
            (Matrix::new(r, rank), Matrix::new(b, rank).t())
        }));
        // SAFETY: by this function's contract.
        let y = unsafe { MatrixMut::strided(y, 0, (x.len() / self.width, self.out), self.out) };
        sum(y, Write::Replace, &terms, precision);
    }

    /// `dx += dy W`: adds the gradient of the product's input; an empty `dx` is begun.
    pub fn backward(self, dy: &[f32], dx: &mut Vec<f32>, precision: Precision) {
        self.add(dy, None, dx, precision);
    }

    /// `dx += dy W + dr A` in one go, for an adapter's A `[rank, width]` and the gradient `dr` `[tokens, rank]` of what
    /// it makes of the input; an empty `dx` is begun.
    pub fn backward_with(self, dy: &[f32], adapter: (&[f32], &[f32]), dx: &mut Vec<f32>, precision: Precision) {
        self.add(dy, Some(adapter), dx, precision);
    }

    fn add(self, dy: &[f32], adapter: Option<(&[f32], &[f32])>, dx: &mut Vec<f32>, precision: Precision) {
        let values = match self.held {
            Held::F32(values) => Values::F32(values),
            Held::Blocks(blocks) if takes_blocks(precision) && blocks.kind.block_len() <= SHORT => blocks.values(),
            Held::Blocks(blocks) => return blocks.backward(dy, self.width, adapter, dx, precision),
        };
        let mut terms = vec![(Matrix::new(dy, self.out), Matrix::of(values, self.width))];
        terms.extend(adapter.map(|(dr, a)| (Matrix::new(dr, a.len() / self.width), Matrix::new(a, self.width))));
        if dx.is_empty() {
            *dx = summed(&terms, precision);
        } else {
            sum(MatrixMut::new(dx, self.width), Write::Add, &terms, precision);
        }
    }

    /// Row `index` in f32.
    pub fn row(self, index: usize, into: &mut [f32]) {
        match self.held {
            Held::F32(values) => into.copy_from_slice(&values[index * self.width..(index + 1) * self.width]),
            Held::Blocks(blocks) => blocks.row(index, into),
        }
    }
}

/// `dw += dyᵀ x`: adds the gradient `[out, width]` of a weight.
pub fn weight_gradient(x: &[f32], dy: &[f32], dw: &mut [f32], width: usize, precision: Precision) {
    let out = dw.len() / width;
    let terms = [(Matrix::new(dy, out).t(), Matrix::new(x, width))];
    sum(MatrixMut::new(dw, width), Write::Add, &terms, precision);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_products_are_sums_over_the_inner_index() {
        let (x, w) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.5, -1.0, 2.0, 0.0, 1.0]);
        let weight = Weight::f32(&w, 2);
        for precision in [Precision::F32, Precision::Bf16] {
            let y = weight.forward(&x, precision);
            assert_eq!(y, [2.0, 3.0, 2.0, 5.0, 5.0, 4.0]);
            let mut dx = Vec::new();
            weight.backward(&y, &mut dx, precision);
            assert_eq!(dx, [-1.0, 9.0, 0.0, 16.5]);
            weight.backward(&y, &mut dx, precision);
            assert_eq!(dx, [-2.0, 18.0, 0.0, 33.0]);
            let mut dw = vec![1.0; 6];
            weight_gradient(&x, &y, &mut dw, 2, precision);
            assert_eq!(dw, [18.0, 25.0, 19.0, 27.0, 15.0, 21.0]);
        }
    }

    #[test]
    fn bf16_products_round_their_operands_only() {
        let (x, w) = ([1.0 + 1.0 / 512.0, 1.0], [1.0, 1.0 / 256.0]);
        assert_eq!(Weight::f32(&w, 2).forward(&x, Precision::Bf16), [1.0 + 1.0 / 256.0]);
    }
}
