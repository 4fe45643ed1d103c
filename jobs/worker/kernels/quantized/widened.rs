//! Exact products with blocks: rows are widened to f32 a tile at a time.
//!
//! Every number is that of the product with the widened matrix, to the bit: a tile is a part of the result, never of a
//! sum, so the order of the sums is that of [`super::super::matrix::product`].

use super::Blocks;
use crate::kernels::matrix::{Matrix, MatrixMut, Threads, Write, product};
use crate::kernels::memory::Parts;

/// Values that are widened at once: 2 MiB.
const TILE: usize = 1 << 19;

impl Blocks<'_> {
    /// `y = x Wᵀ`: `[tokens, out]` of `[tokens, width]`.
    pub(in crate::kernels) fn forward(self, x: &[f32], width: usize) -> Vec<f32> {
        let (tokens, out) = (x.len() / width, self.out(width));
        let mut y = vec![0.0; tokens * out];
        // Whole registers of results, so that no tile has a worse kernel than the matrix.
        let rows = (TILE / width).next_multiple_of(64);
        let mut tile = vec![0.0; rows.min(out) * width];
        for start in (0..out).step_by(rows) {
            let end = (start + rows).min(out);
            let tile = &mut tile[..(end - start) * width];
            self.kind.decode_all(self.rows(start..end, width), tile);
            let parts = Parts::of(&mut y);
            // SAFETY: nobody else holds `y`.
            let y = unsafe { MatrixMut::strided(parts, start, (tokens, end - start), out) };
            product(y, Write::Replace, 1.0, Matrix::new(x, width), Matrix::new(tile, width).t(), Threads::All);
        }
        y
    }
}
