//! Exact products with blocks: they are widened to f32 a tile at a time.
//!
//! Every number is that of the product with the widened matrix, to the bit: a tile makes a part of the results, never a
//! part of their sums, so the order of the sums is that of [`crate::kernels::matrix`].

use std::ops::Range;

use rayon::prelude::*;

use super::Blocks;
use crate::kernels::matrix::{Matrix, MatrixMut, Threads, Write, product};
use crate::kernels::memory::{Fresh, Parts};

/// Values that are widened at once, about: 2 MiB.
const TILE: usize = 1 << 19;
/// Columns that a backward pass takes on at least: its other operand is packed once for each tile.
const COLUMNS: usize = 128;

impl Blocks<'_> {
    /// `y = x Wᵀ`: `[tokens, out]` of `[tokens, width]`.
    pub(in crate::kernels) fn forward(self, x: &[f32], width: usize) -> Vec<f32> {
        let (tokens, out) = (x.len() / width, self.out(width));
        let mut y = Fresh::new(tokens * out);
        // Whole registers of results, whatever their width.
        let rows = (TILE / width).next_multiple_of(64).min(out);
        let mut tile = vec![0.0; rows * width];
        for start in (0..out).step_by(rows) {
            let end = (start + rows).min(out);
            let tile = &mut tile[..(end - start) * width];
            self.kind.decode_all(self.rows(start..end, width), tile);
            // SAFETY: nobody else holds these columns of the result.
            let y = unsafe { MatrixMut::strided(y.parts(), start, (tokens, end - start), out) };
            product(y, Write::Replace, 1.0, Matrix::new(x, width), Matrix::new(tile, width).t(), Threads::All);
        }
        // SAFETY: the tiles are all columns.
        unsafe { y.filled() }
    }

    /// `dx += dy W`, where `dx` is `[tokens, width]` and `dy` `[tokens, out]`; an empty `dx` is begun.
    pub(in crate::kernels) fn backward(self, dy: &[f32], width: usize, dx: &mut Vec<f32>) {
        let out = self.out(width);
        let tokens = dy.len() / out;
        let write = if dx.is_empty() { Write::Replace } else { Write::Add };
        dx.resize(tokens * width, 0.0);
        let len = self.kind.block_len();
        let columns = (TILE / out).max(COLUMNS).next_multiple_of(len).min(width);
        let mut tile = vec![0.0; out * columns];
        for start in (0..width).step_by(columns) {
            let columns = start..(start + columns).min(width);
            let tile = &mut tile[..out * columns.len()];
            self.widen_columns(columns.clone(), width, tile);
            // SAFETY: nobody else holds these columns of the result, and all of its values are there already.
            let dx = unsafe { MatrixMut::strided_filled(Parts::of(dx), start, (tokens, columns.len()), width) };
            product(dx, write, 1.0, Matrix::new(dy, out), Matrix::new(tile, columns.len()), Threads::All);
        }
    }

    /// Some whole blocks of every row, `[out, columns]`.
    fn widen_columns(self, columns: Range<usize>, width: usize, into: &mut [f32]) {
        let bytes_of = |values: usize| values / self.kind.block_len() * self.kind.block_bytes();
        let bytes = bytes_of(columns.start)..bytes_of(columns.end);
        let rows = self.bytes.par_chunks_exact(self.row_bytes(width));
        into.par_chunks_exact_mut(columns.len())
            .zip(rows)
            .with_min_len(64)
            .for_each(|(into, row)| self.kind.decode(&row[bytes.clone()], into));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{KINDS, some_activations, some_blocks};

    use crate::kernels::weight::{Precision, Weight};

    #[test]
    fn products_are_those_of_the_widened_matrix_bit_for_bit() {
        let floats = [crate::blocks::BlockKind::F16, crate::blocks::BlockKind::Bf16];
        for kind in KINDS.into_iter().chain(floats) {
            // The middle one has several tiles, forward and backward; the last is for a few tokens.
            for (out, width, tokens) in [(33, 256, 7), (1100, 1024, 9), (37, 512, 1)] {
                let bytes = some_blocks(kind, out, width);
                let blocks = Weight::blocks(kind, &bytes, width);
                let mut widened = vec![0.0; out * width];
                kind.decode_all(&bytes, &mut widened);
                let widened = Weight::f32(&widened, width);
                let x = some_activations(tokens, width);
                for precision in [Precision::F32, Precision::Bf16] {
                    let y = blocks.forward(&x, precision);
                    assert!(y == widened.forward(&x, precision), "{kind}, {out} x {width}, {precision:?}");
                    let (mut dx, mut want) = (Vec::new(), Vec::new());
                    for _ in 0..2 {
                        blocks.backward(&y, &mut dx, precision);
                        widened.backward(&y, &mut want, precision);
                        assert!(dx == want, "{kind}, {out} x {width}, {precision:?}, backward");
                    }
                }
            }
        }
    }
}
