//! Matrices that stay in the blocks of their file, and the products that are taken with them.
//!
//! Two kinds of products:
//! - exact ones, for training and wherever the caller asks for f32: blocks are widened inside the product, where it packs
//!   them or a tile at a time ([`widened`]), and the numbers are those of the matrix widened as a whole;
//! - integer ones, for scoring and answering, where no gradient is asked for: activations are rounded to eight bits in
//!   blocks of 32 ([`rounded`]) and multiplied with the weight's own codes, as llama.cpp does it. Rows are unpacked
//!   sixteen at a time ([`tile`]) and meet all tokens of a batch while they lie in the cache ([`dot`]); one token reads
//!   the weight once, and is done when memory has delivered it.

mod dot;
mod lanes;
mod legacy;
mod rounded;
mod super_block;
#[cfg(test)]
mod testing;
mod tile;
mod turned;
mod widened;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use self::dot::rows_times;
use self::lanes::{Instructions, ROWS};
use self::rounded::Rounded;
use self::tile::{Form, Tile};
pub use self::turned::Turned;
use super::matrix::Values;
use super::memory::{Parts, by_rows};
use crate::blocks::BlockKind;

/// A matrix `[out, width]` in blocks, row after row.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    pub kind: BlockKind,
    pub bytes: &'a [u8],
    /// Where the rows are kept as integer products want them, once one has been taken.
    pub turned: Option<&'a OnceLock<Turned>>,
}

impl<'a> Blocks<'a> {
    /// # Panics
    /// If the bytes are no whole number of rows.
    pub fn new(kind: BlockKind, bytes: &'a [u8], width: usize) -> Self {
        let whole = kind.row_bytes(width).is_some_and(|row| row > 0 && bytes.len().is_multiple_of(row));
        assert!(whole, "{} bytes of {kind} in rows of {width}", bytes.len());
        Self { kind, bytes, turned: None }
    }

    fn row_bytes(self, width: usize) -> usize {
        self.kind.row_bytes(width).expect("checked when the blocks were taken")
    }

    pub(super) fn out(self, width: usize) -> usize {
        self.bytes.len() / self.row_bytes(width)
    }

    /// The bytes of some rows.
    fn rows(self, rows: Range<usize>, width: usize) -> &'a [u8] {
        let row_bytes = self.row_bytes(width);
        &self.bytes[rows.start * row_bytes..rows.end * row_bytes]
    }

    /// Row `index` in f32.
    pub(super) fn row(self, index: usize, into: &mut [f32]) {
        self.kind.decode(self.rows(index..index + 1, into.len()), into);
    }

    /// How many values they hold.
    pub(super) fn len(self) -> usize {
        self.bytes.len() / self.kind.block_bytes() * self.kind.block_len()
    }

    /// Some rows' values in some columns, which are whole blocks, in f32: `[rows, columns]`.
    pub(super) fn widen(self, rows: Range<usize>, columns: Range<usize>, width: usize, into: &mut [f32]) {
        let bytes_of = |values: usize| values / self.kind.block_len() * self.kind.block_bytes();
        let bytes = bytes_of(columns.start)..bytes_of(columns.end);
        let rows = self.rows(rows, width).chunks_exact(self.row_bytes(width));
        for (row, into) in rows.zip(into.chunks_exact_mut(columns.len())) {
            self.kind.decode(&row[bytes.clone()], into);
        }
    }

    /// As the operand of a product that takes blocks. What is packed in the form that it has already, bf16, is lent in
    /// that form where it can be: a file may begin a tensor anywhere.
    pub(super) fn values(self) -> Values<'a> {
        // SAFETY: any two bytes are a bf16.
        let (before, values, after) = unsafe { self.bytes.align_to::<bf16>() };
        let lies_right = before.is_empty() && after.is_empty() && cfg!(target_endian = "little");
        if self.kind == BlockKind::Bf16 && lies_right { Values::Bf16(values) } else { Values::Blocks(self) }
    }

    /// Whether there are codes to multiply; floats have none.
    pub(super) fn has_codes(self) -> bool {
        Form::of(self.kind).is_some()
    }

    /// `y = x Wᵀ` in integers, `[tokens, out]` of `[tokens, width]`: off by what rounding the activations to eight bits
    /// takes away. Every value of `y` is written.
    ///
    /// # Safety
    /// Nobody else holds `y`.
    pub(super) unsafe fn forward_int8(self, x: &[f32], width: usize, y: Parts<'_>) {
        let turn = || Turned::new(self.kind, self.bytes, self.row_bytes(width));
        // SAFETY: by this function's contract.
        let forward = |turned: &Turned| unsafe { self.forward_on(turned, x, width, y, Instructions::best()) };
        match self.turned {
            Some(once) => forward(once.get_or_init(turn)),
            None => forward(&turn()),
        }
    }

    /// # Safety
    /// As for [`Self::forward_int8`].
    unsafe fn forward_on(self, turned: &Turned, x: &[f32], width: usize, y: Parts<'_>, instructions: Instructions) {
        thread_local! {
            /// Each thread's room for a tile, which lasts from product to product.
            static TILE: RefCell<Tile> = const { RefCell::new(Tile::EMPTY) };
        }
        let form = Form::of(self.kind).expect("asked for blocks with codes");
        let (x, out) = (Rounded::new(x, width, form), self.out(width));
        by_rows(out.div_ceil(ROWS), |tiles| {
            TILE.with_borrow_mut(|tile| {
                tile.make_room(form, width);
                for index in tiles {
                    let rows = index * ROWS..((index + 1) * ROWS).min(out);
                    rows_times(tile, (self.kind, turned, index), &x, instructions, |token, sums| {
                        // SAFETY: `by_rows` gives no tile out twice, and no two tiles share a row.
                        let y = unsafe { y.part(token * out + rows.start..token * out + rows.end) };
                        y.copy_from_slice(&sums.0[..rows.len()]);
                    });
                }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{KINDS, some_activations, some_blocks};
    use super::*;
    use crate::kernels::weight::{Held, Precision, Weight};

    /// For each result the product in f64 and how far rounding the activations may move it.
    fn slow(blocks: Blocks<'_>, x: &[f32], width: usize) -> Vec<(f64, f64)> {
        let out = blocks.out(width);
        let mut row = vec![0.0; width];
        let mut results = vec![(0.0, 0.0); x.len() / width * out];
        for index in 0..out {
            blocks.row(index, &mut row);
            for (token, x) in x.chunks(width).enumerate() {
                let (mut sum, mut bound) = (0.0, 0.0);
                for (x, w) in x.chunks(32).zip(row.chunks(32)) {
                    let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    let half_a_scale = f64::from(largest) / 254.0;
                    sum += x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                    bound +=
                        w.iter().map(|w| f64::from(w.abs()) * (half_a_scale + f64::from(largest) * 1e-5)).sum::<f64>();
                }
                results[token * out + index] = (sum, bound);
            }
        }
        results
    }

    #[test]
    fn integer_products_are_off_by_the_rounding_of_activations_at_most_and_equal_at_every_level() {
        for kind in KINDS {
            for (out, width, tokens) in [(1, 256, 1), (16, 512, 3), (37, 768, 33), (129, 256, 2)] {
                let bytes = some_blocks(kind, out, width);
                let blocks = Blocks::new(kind, &bytes, width);
                let x = some_activations(tokens, width);
                let first = Weight { held: Held::Blocks(blocks), out, width }.forward(&x, Precision::Int8);
                for (y, (want, bound)) in first.iter().zip(slow(blocks, &x, width)) {
                    let error = (f64::from(*y) - want).abs();
                    assert!(error <= bound, "{kind}: {y}, not {want}: off by {error}, at most {bound}");
                }
                let turned = Turned::new(kind, &bytes, blocks.row_bytes(width));
                for instructions in Instructions::all() {
                    let mut y = vec![f32::NAN; first.len()];
                    // SAFETY: `y` is ours.
                    unsafe { blocks.forward_on(&turned, &x, width, Parts::of(&mut y), instructions) };
                    assert_eq!(y, first, "{kind}, {instructions:?}");
                }
            }
        }
    }
}
