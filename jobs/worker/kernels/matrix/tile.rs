//! The innermost loop of a product: a tile of 8 rows by up to 48 columns whose sums stay in registers.
//!
//! Both operands come packed (see [`super::pack`]): a group is 16 lines of an operand, cell by cell, and a cell is what
//! one lane takes in at a time, four bytes: one f32, or two neighbouring values as bf16. For every cell a tile loads up
//! to three registers of columns and lets each of eight rows, spread over a register, meet them: 24 sums hide the
//! latency of two multiply-adds a cycle, and 11 loads for 24 of those stay below what the CPU can load.

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castsi512_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps,
};

/// Lines of a packed group: the lanes of a register.
pub(super) const GROUP: usize = 16;
/// Rows of a tile; half of a group.
pub(super) const ROWS: usize = 8;
/// Most groups of columns in a tile.
pub(super) const GROUPS: usize = 3;
/// Cells from one in use to the one of the same rows that is asked for. Rows come from the last cache, and at the begin
/// of a tile the CPU has not yet noticed that it is to fetch them in time: without asking, a tenth of the time is
/// waiting.
const AHEAD: usize = 128;

/// Where a tile's sums go.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: *mut f32,
    /// From one row to the next.
    pub(super) row_step: usize,
    /// Rows and columns that exist: at most `ROWS` and `GROUPS * GROUP`.
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Whether the sums are added to what is there.
    pub(super) add: bool,
}

/// The packed operands of a tile.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    /// The first of eight lines of a group, at the first cell.
    pub(super) rows: *const u32,
    /// The first cell of the first group of columns.
    pub(super) cols: *const u32,
    /// From one group of columns to the next.
    pub(super) group_step: usize,
    pub(super) cells: usize,
}

/// Asks for the tile's part of the result while the sums are still being made.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<const V: usize>(place: Place) {
    for row in 0..place.rows {
        for group in 0..V {
            let at = place.first.wrapping_add(row * place.row_step + group * GROUP);
            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>());
        }
    }
}

/// A tile of `V` groups of columns for one kind of cell.
macro_rules! tile {
    ($(#[$meta:meta])* $name:ident, $features:literal, |$sum:ident, $row:ident, $col:ident| $step:expr) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const V: usize>(packed: Packed, place: Place) {
            prefetch::<V>(place);
            let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
            for cell in 0..packed.cells {
                // SAFETY: by this function's contract.
                unsafe {
                    let cols = packed.cols.add(cell * GROUP);
                    let cols: [__m512i; V] =
                        std::array::from_fn(|group| _mm512_loadu_si512(cols.add(group * packed.group_step).cast()));
                    let rows = packed.rows.add(cell * GROUP);
                    _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(AHEAD * GROUP).cast::<i8>());
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let $row = _mm512_set1_epi32(*rows.add(row) as i32);
                        for ($sum, &$col) in sums.iter_mut().zip(&cols) {
                            *$sum = $step;
                        }
                    }
                }
            }
            let masks: [u16; V] = std::array::from_fn(|group| {
                let cols = place.cols.saturating_sub(group * GROUP).min(GROUP);
                ((1u32 << cols) - 1) as u16
            });
            // In place, and with the row counted by hand: handed on or looped over, the sums would leave their registers.
            let mut at = place.first;
            for (row, sums) in sums.into_iter().enumerate() {
                if row == place.rows {
                    return;
                }
                for (group, sum) in sums.into_iter().enumerate() {
                    // SAFETY: the masks let only columns through that exist.
                    unsafe {
                        let at = at.wrapping_add(group * GROUP);
                        let before = _mm512_maskz_loadu_ps(if place.add { masks[group] } else { 0 }, at);
                        _mm512_mask_storeu_ps(at, masks[group], _mm512_add_ps(before, sum));
                    }
                }
                at = at.wrapping_add(place.row_step);
            }
        }
    };
}

tile! {
    /// Cells of one f32.
    ///
    /// # Safety
    /// The CPU has AVX-512F, `packed` describes initialised memory, and `place` memory that is ours.
    single,
    "avx512f",
    |sum, row, col| _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(col), *sum)
}

tile! {
    /// Cells of two bf16. The instruction rounds each addition to f32 to the nearest, and takes denormal numbers, also
    /// those that come out, for zero.
    ///
    /// # Safety
    /// The CPU has AVX-512F and AVX512-BF16, `packed` describes initialised memory, and `place` memory that is ours.
    pairs,
    "avx512f,avx512bf16",
    |sum, row, col| _mm512_dpbf16_ps(*sum, as_bf16(row), as_bf16(col))
}

#[inline]
fn as_bf16(cells: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without meaning of their own.
    unsafe { std::mem::transmute(cells) }
}
