//! Exact products with blocks that are widened to f32 before they are packed, a tile of the matrix at a time.
//!
//! Our own products widen blocks while they pack them (see [`Weight`](crate::kernels::weight::Weight)); this is for CPUs
//! that have none of them, and for columns of blocks so long that a strip would widen most of them in vain.
//!
//! Every number is that of the product with the widened matrix: a tile makes a part of the results, never a part of
//! their sums. Where products are our own it is the same to the bit; the `gemm` crate, elsewhere, orders its sums by the
//! shape of the result.

use std::ops::Range;

use rayon::prelude::*;

use super::Blocks;
use crate::kernels::matrix::{Matrix, MatrixMut, Precision, Write, sum};
use crate::kernels::memory::Parts;

/// Values that are widened at once, about: 2 MiB.
const TILE: usize = 1 << 19;
/// Columns that a backward pass takes on at least: its other operand is packed once for each tile.
const COLUMNS: usize = 128;

impl Blocks<'_> {
    /// `y = x Wᵀ`, `[tokens, out]` of `[tokens, width]`; with an adapter's `r` `[tokens, rank]` and B `[out, rank]`
    /// `y = x Wᵀ + r Bᵀ`. Every value of `y` is written.
    ///
    /// # Safety
    /// Nobody else holds `y`.
    pub(in crate::kernels) unsafe fn forward(
        self,
        x: &[f32],
        width: usize,
        adapter: Option<(&[f32], &[f32])>,
        y: Parts<'_>,
        precision: Precision,
    ) {
        let (tokens, out) = (x.len() / width, self.out(width));
        // Whole registers of results, whatever their width.
        let rows = (TILE / width).next_multiple_of(64).min(out);
        let mut tile = vec![0.0; rows * width];
        for start in (0..out).step_by(rows) {
            let end = (start + rows).min(out);
            let tile = &mut tile[..(end - start) * width];
            self.kind.decode_all(self.rows(start..end, width), tile);
            let mut terms = vec![(Matrix::new(x, width), Matrix::new(tile, width).t())];
            terms.extend(adapter.map(|(r, b)| {
                let rank = b.len() / out;
                (Matrix::new(r, rank), Matrix::new(&b[start * rank..end * rank], rank).t())
            }));
            // SAFETY: by this function's contract.
            let y = unsafe { MatrixMut::strided(y, start, (tokens, end - start), out) };
            sum(y, Write::Replace, &terms, precision);
        }
    }

    /// `dx += dy W`, where `dx` is `[tokens, width]` and `dy` `[tokens, out]`; with an adapter's `dr` `[tokens, rank]` and
    /// A `[rank, width]` `dx += dy W + dr A`. An empty `dx` is begun.
    pub(in crate::kernels) fn backward(
        self,
        dy: &[f32],
        width: usize,
        adapter: Option<(&[f32], &[f32])>,
        dx: &mut Vec<f32>,
        precision: Precision,
    ) {
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
            let mut terms = vec![(Matrix::new(dy, out), Matrix::new(tile, columns.len()))];
            terms.extend(adapter.map(|(dr, a)| {
                let rank = a.len() / width;
                (Matrix::new(dr, rank), Matrix::strided(&a[start..], rank, columns.len(), width))
            }));
            // SAFETY: nobody else holds these columns of the result, and all of its values are there already.
            let dx = unsafe { MatrixMut::strided_filled(Parts::of(dx), start, (tokens, columns.len()), width) };
            sum(dx, write, &terms, precision);
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
    use super::*;
    use crate::blocks::BlockKind;
    use crate::kernels::simd::{Level, level};
    use crate::kernels::weight::Weight;

    /// Bit for bit where products are our own; see the module's documentation.
    fn assert_same(got: &[f32], want: &[f32], what: &str) {
        if level() == Level::Avx512 {
            return assert!(got == want, "{what}");
        }
        let largest = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= largest * 1e-5), "{what}");
    }

    #[test]
    fn bf16_that_begins_at_an_odd_byte_gives_the_same_products() {
        let (out, width, tokens) = (37, 96, 9);
        let bytes = some_blocks(BlockKind::Bf16, out, width);
        let x = some_activations(tokens, width);
        for shift in 0..2 {
            let shifted = [vec![0; shift], bytes.clone()].concat();
            let [blocks, want] = [&shifted[shift..], &bytes].map(|bytes| Weight::blocks(BlockKind::Bf16, bytes, width));
            let y = blocks.forward(&x, Precision::F32);
            assert_same(&y, &want.forward(&x, Precision::F32), "forward");
            let (mut dx, mut want_dx) = (Vec::new(), Vec::new());
            blocks.backward(&y, &mut dx, Precision::F32);
            want.backward(&y, &mut want_dx, Precision::F32);
            assert_same(&dx, &want_dx, "backward");
        }
    }

    #[test]
    fn products_are_those_of_the_widened_matrix() {
        for kind in KINDS.into_iter().chain([BlockKind::F16, BlockKind::Bf16]) {
            // The middle one has several tiles, forward and backward; the last is for a few tokens.
            for (out, width, tokens) in [(33, 256, 7), (1100, 1024, 9), (37, 512, 1)] {
                let bytes = some_blocks(kind, out, width);
                let (blocks, tiled) = (Weight::blocks(kind, &bytes, width), Blocks::new(kind, &bytes, width));
                let mut widened = vec![0.0; out * width];
                kind.decode_all(&bytes, &mut widened);
                let widened = Weight::f32(&widened, width);
                let x = some_activations(tokens, width);
                for precision in [Precision::F32, Precision::Bf16] {
                    let what = format!("{kind}, {out} x {width}, {precision:?}");
                    let y = blocks.forward(&x, precision);
                    assert_same(&y, &widened.forward(&x, precision), &what);
                    let (mut dx, mut tiled_dx, mut want) = (Vec::new(), Vec::new(), Vec::new());
                    for _ in 0..2 {
                        blocks.backward(&y, &mut dx, precision);
                        tiled.backward(&y, width, None, &mut tiled_dx, precision);
                        widened.backward(&y, &mut want, precision);
                        assert_same(&dx, &want, &what);
                        assert_same(&tiled_dx, &want, &what);
                    }
                    let rank = 3;
                    let (r, b) = (some_activations(tokens, rank), some_activations(out, rank));
                    let with = blocks.forward_with(&x, (&r, &b), precision);
                    assert_same(&with, &widened.forward_with(&x, (&r, &b), precision), &what);
                    if tokens > 1 {
                        let mut y = vec![f32::NAN; tokens * out];
                        // SAFETY: `y` is ours.
                        unsafe { tiled.forward(&x, width, Some((&r, &b)), Parts::of(&mut y), precision) };
                        assert_same(&y, &with, &what);
                    }
                    let a = some_activations(rank, width);
                    blocks.backward_with(&y, (&r, &a), &mut dx, precision);
                    tiled.backward(&y, width, Some((&r, &a)), &mut tiled_dx, precision);
                    widened.backward_with(&y, (&r, &a), &mut want, precision);
                    assert_same(&dx, &want, &what);
                    assert_same(&tiled_dx, &want, &what);
                }
            }
        }
    }
}
