//! A matrix of the model as it is held in memory, and the three products that training takes with it.
//!
//! What a product computes with is one thing ([`Precision`]), what its weight is held in another ([`Held`]): a frozen
//! weight may lie in memory in the form of its file and is widened on the way into a product.

use half::bf16;

use super::few::{self, FEW};
use super::matrix::{Matrix, MatrixMut, Threads, Write, multiplied, product};
use super::quantized::Blocks;
use crate::blocks::BlockKind;

/// What the operands of a product are rounded to; sums are always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Eight bits of mantissa, as bf16 autocast does it.
    Bf16,
    /// Activations rounded to eight bits, 32 values at a time, and the weight's own codes: for scoring and answering
    /// with a quantized weight, as llama.cpp does it. Any other product is f32.
    Int8,
}

/// The values of a matrix `[out, width]`, row after row.
#[derive(Debug, Clone, Copy)]
pub enum Held<'a> {
    F32(&'a [f32]),
    /// As in a GGUF file: quantized, or floats of 16 bits.
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
        match (self.held, precision) {
            (Held::Blocks(blocks), Precision::Int8) if blocks.has_codes() => blocks.forward_int8(x, self.width),
            (_, Precision::F32 | Precision::Int8) if x.len() <= FEW * self.width => few::forward(self, x),
            (_, Precision::F32 | Precision::Int8) => self.forward_f32(x),
            (_, Precision::Bf16) => self.with_rounded(|rounded| rounded.forward_f32(&self::rounded(x))),
        }
    }

    fn forward_f32(self, x: &[f32]) -> Vec<f32> {
        match self.held {
            Held::F32(weight) => multiplied(Matrix::new(x, self.width), Matrix::new(weight, self.width).t()),
            Held::Blocks(blocks) => blocks.forward(x, self.width),
        }
    }

    /// `dx += dy W`: adds the gradient of the product's input; an empty `dx` is begun.
    pub fn backward(self, dy: &[f32], dx: &mut Vec<f32>, precision: Precision) {
        match precision {
            Precision::F32 | Precision::Int8 => self.backward_f32(dy, dx),
            Precision::Bf16 => self.with_rounded(|rounded| rounded.backward_f32(&self::rounded(dy), dx)),
        }
    }

    fn backward_f32(self, dy: &[f32], dx: &mut Vec<f32>) {
        match self.held {
            Held::F32(weight) => {
                let (dy, weight) = (Matrix::new(dy, self.out), Matrix::new(weight, self.width));
                if dx.is_empty() {
                    *dx = multiplied(dy, weight);
                } else {
                    product(MatrixMut::new(dx, self.width), Write::Add, 1.0, dy, weight, Threads::All);
                }
            }
            Held::Blocks(blocks) => blocks.backward(dy, self.width, dx),
        }
    }

    /// Lends the weight rounded to bf16 to `f`.
    fn with_rounded<R>(self, f: impl FnOnce(Weight<'_>) -> R) -> R {
        let values = match self.held {
            Held::F32(values) => rounded(values),
            Held::Blocks(blocks) => {
                let mut values = vec![0.0; self.out * self.width];
                blocks.kind.decode_all(blocks.bytes, &mut values);
                rounded(&values)
            }
        };
        f(Weight::f32(&values, self.width))
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
    let mut add = |x: &[f32], dy: &[f32]| {
        let (x, dy) = (Matrix::new(x, width), Matrix::new(dy, out));
        product(MatrixMut::new(dw, width), Write::Add, 1.0, dy.t(), x, Threads::All);
    };
    match precision {
        Precision::F32 | Precision::Int8 => add(x, dy),
        Precision::Bf16 => add(&rounded(x), &rounded(dy)),
    }
}

/// Values as bf16 can hold them, to the nearest, ties to even.
fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
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
