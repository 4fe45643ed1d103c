//! Packing: an operand of a product, rearranged into the order in which tiles read it, and rounded on the way.
//!
//! A product is seen as the inner products of the *lines* of two operands (rows of the left matrix, columns of the
//! right one) over their *depth*. Lines are packed in groups of 16, cell by cell: `[cell][16 lines]`, where a cell is
//! one f32, or two bf16 that follow each other in depth. Lines and depths that do not exist are zero.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_maskz_loadu_epi16, _mm512_castps_si512, _mm512_castsi256_si512,
    _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_inserti64x4, _mm512_maskz_loadu_epi16,
    _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16, _mm512_set_epi16, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

use super::tile::GROUP;
use super::{Precision, Values};

/// One operand, line by line.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub(super) values: Values<'a>,
    pub(super) lines: usize,
    pub(super) depth: usize,
    pub(super) line_step: usize,
    pub(super) depth_step: usize,
}

impl Lines<'_> {
    /// Cells of a line.
    pub(super) fn cells(self, precision: Precision) -> usize {
        self.depth.div_ceil(values_in_cell(precision))
    }
}

pub(super) fn values_in_cell(precision: Precision) -> usize {
    match precision {
        Precision::F32 | Precision::Int8 => 1,
        Precision::Bf16 => 2,
    }
}

/// Packs the cells `cells` of the 16 lines of a group into `into`, `[cell][16]`. Blocks have to be widened before (see
/// [`super::widen`]).
pub(super) fn pack(
    lines: Lines<'_>,
    precision: Precision,
    group: usize,
    cells: Range<usize>,
    into: &mut [MaybeUninit<u32>],
) {
    assert!(cells.end <= lines.cells(precision) && into.len() == cells.len() * GROUP, "{cells:?} of a group");
    assert!(lines.line_step == 1 || lines.depth_step == 1, "an operand has its lines or its depth side by side");
    // SAFETY: `available` has found the instructions; the ranges have just been checked.
    unsafe {
        match (lines.values, precision) {
            (Values::F32(values), Precision::F32 | Precision::Int8) => {
                pack_with::<f32, false>(values, lines, group, cells, into)
            }
            (Values::F32(values), Precision::Bf16) => pack_with::<f32, true>(values, lines, group, cells, into),
            (Values::Bf16(values), Precision::F32 | Precision::Int8) => {
                pack_with::<bf16, false>(values, lines, group, cells, into)
            }
            (Values::Bf16(values), Precision::Bf16) => pack_with::<bf16, true>(values, lines, group, cells, into),
            (Values::Blocks(_), _) => unreachable!("blocks are widened strip by strip"),
        }
    }
}

/// # Safety
/// The CPU has AVX-512, for pairs with BF16, and the group's values lie within `values`.
unsafe fn pack_with<T: Value, const PAIRS: bool>(
    values: &[T],
    lines: Lines<'_>,
    group: usize,
    cells: Range<usize>,
    into: &mut [MaybeUninit<u32>],
) {
    let first = group * GROUP;
    let here = (lines.lines - first).min(GROUP);
    let end = (first + here - 1) * lines.line_step + (lines.depth - 1) * lines.depth_step;
    assert!(end < values.len(), "value {end} of {}", values.len());
    let from = values[first * lines.line_step..].as_ptr();
    // SAFETY: the last value that exists has been checked to lie within the buffer.
    unsafe {
        match (lines.depth_step, PAIRS) {
            (1, true) => along_pairs(from, here, lines.line_step, lines.depth, cells, into),
            (1, false) => along(from, here, lines.line_step, lines.depth, cells, into),
            (_, true) => across_pairs(from, here, lines.depth_step, lines.depth, cells, into),
            (_, false) => across(from, here, lines.depth_step, cells, into),
        }
    }
}

/// Packs a group whose lines' values lie side by side: 16 cells of 16 lines at a time are turned over. A cell is `wide`
/// values, which `load` takes 16 cells of.
macro_rules! along {
    ($(#[$meta:meta])* $name:ident, $features:literal, $wide:literal, |$at:ident, $count:ident| $load:expr) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        unsafe fn $name<T: Value>(
            from: *const T,
            here: usize,
            line_step: usize,
            depth: usize,
            cells: Range<usize>,
            into: &mut [MaybeUninit<u32>],
        ) {
            let load = |$at: *const T, $count: usize| {
                // SAFETY: `count` values exist from here on.
                unsafe { $load }
            };
            for (block, into) in into.chunks_mut(GROUP * GROUP).enumerate() {
                let at = (cells.start + block * GROUP) * $wide;
                let from = from.wrapping_add(at);
                let count = (depth - at).min(GROUP * $wide);
                if here == GROUP && count == GROUP * $wide && into.len() == GROUP * GROUP {
                    // With all lengths known, nothing leaves the registers.
                    let turned =
                        transposed(std::array::from_fn(|line| load(from.wrapping_add(line * line_step), GROUP * $wide)));
                    for (cell, cells) in turned.into_iter().enumerate() {
                        // SAFETY: there is room for 16 times 16 cells.
                        unsafe { _mm512_storeu_si512(into.as_mut_ptr().add(cell * GROUP).cast(), cells) };
                    }
                    continue;
                }
                let turned = transposed(std::array::from_fn(|line| {
                    load(from.wrapping_add(line * line_step), if line < here { count } else { 0 })
                }));
                for (into, cells) in into.chunks_exact_mut(GROUP).zip(turned) {
                    // SAFETY: there is room for 16 cells.
                    unsafe { _mm512_storeu_si512(into.as_mut_ptr().cast(), cells) };
                }
            }
        }
    };
}

along! {
    /// Cells of one f32.
    ///
    /// # Safety
    /// As of [`pack_with`]; `here` lines of `depth` values exist from `from` on.
    along, "avx512f,avx512bw,avx512vl,avx2", 1, |at, count| _mm512_castps_si512(T::wide(at, count))
}

along! {
    /// Cells of two bf16.
    ///
    /// # Safety
    /// As of [`pack_with`]; `here` lines of `depth` values exist from `from` on.
    along_pairs, "avx512f,avx512bw,avx512vl,avx512bf16,avx2", 2, |at, count| T::pairs(at, count)
}

/// The lines' values at one depth lie side by side, which is the packed order already.
///
/// # Safety
/// As of [`pack_with`]; at each depth `here` values exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn across<T: Value>(
    from: *const T,
    here: usize,
    depth_step: usize,
    cells: Range<usize>,
    into: &mut [MaybeUninit<u32>],
) {
    for (depth, into) in cells.zip(into.chunks_exact_mut(GROUP)) {
        // SAFETY: `here` values exist at this depth, and there is room for 16.
        unsafe {
            let values = T::wide(from.add(depth * depth_step), here);
            _mm512_storeu_si512(into.as_mut_ptr().cast(), _mm512_castps_si512(values));
        }
    }
}

/// The same for pairs: two depths are interleaved.
///
/// # Safety
/// As of [`pack_with`]; at each depth `here` values exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
unsafe fn across_pairs<T: Value>(
    from: *const T,
    here: usize,
    depth_step: usize,
    depth: usize,
    cells: Range<usize>,
    into: &mut [MaybeUninit<u32>],
) {
    // Lane i takes value i of the first depth and value i of the second.
    let interleaved = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0,
    );
    for (cell, into) in cells.zip(into.chunks_exact_mut(GROUP)) {
        // SAFETY: `here` values exist at each depth below `depth`, and there is room for 16 cells.
        unsafe {
            let low = from.add(2 * cell * depth_step);
            let more = if 2 * cell + 1 < depth { here } else { 0 };
            let both = T::both(low, here, low.wrapping_add(depth_step), more);
            _mm512_storeu_si512(into.as_mut_ptr().cast(), _mm512_permutexvar_epi16(interleaved, both));
        }
    }
}

/// A form that values are held in. All loads take the first `count` values, and zero for the rest.
trait Value: Copy {
    /// 16 values in f32.
    unsafe fn wide(at: *const Self, count: usize) -> __m512;
    /// 32 values that follow each other, as bf16.
    unsafe fn pairs(at: *const Self, count: usize) -> __m512i;
    /// 16 values of each, one after the other, as bf16.
    unsafe fn both(low: *const Self, low_count: usize, high: *const Self, high_count: usize) -> __m512i;
}

fn mask16(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

impl Value for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    unsafe fn wide(at: *const f32, count: usize) -> __m512 {
        // SAFETY: what the mask hides is not read.
        unsafe { _mm512_maskz_loadu_ps(mask16(count), at) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
    unsafe fn pairs(at: *const f32, count: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { Self::both(at, count, at.wrapping_add(16), count.saturating_sub(16)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
    unsafe fn both(low: *const f32, low_count: usize, high: *const f32, high_count: usize) -> __m512i {
        // SAFETY: as above; the two types are the same 64 bytes.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(Self::wide(high, high_count), Self::wide(low, low_count))) }
    }
}

impl Value for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    unsafe fn wide(at: *const bf16, count: usize) -> __m512 {
        // SAFETY: what the mask hides is not read. A bf16 is the upper half of an f32.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half_register(at, count)))) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
    unsafe fn pairs(at: *const bf16, count: usize) -> __m512i {
        let mask = ((1u64 << count.min(32)) - 1) as u32;
        // SAFETY: what the mask hides is not read.
        unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
    unsafe fn both(low: *const bf16, low_count: usize, high: *const bf16, high_count: usize) -> __m512i {
        // SAFETY: what the masks hide is not read.
        unsafe {
            let (low, high) = (half_register(low, low_count), half_register(high, high_count));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
}

/// # Safety
/// `count` values, at most 16, exist from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn half_register(at: *const bf16, count: usize) -> __m256i {
    // SAFETY: what the mask hides is not read.
    unsafe { _mm256_maskz_loadu_epi16(mask16(count), at.cast()) }
}

/// Turns 16 x 16 cells over: by 1 and by 2 cells within quarters of a register, then by quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; GROUP]) -> [__m512i; GROUP] {
    // Register 4i + j, of four rows, comes to hold cell j of every quarter.
    let mut fours = rows;
    for i in (0..GROUP).step_by(4) {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        fours[i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        fours[i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        fours[i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        fours[i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut turned = fours;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        // Quarters 0 and 2, and quarters 1 and 3, of two registers.
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<EVEN>(c, d), _mm512_shuffle_i32x4::<ODD>(c, d));
        turned[j] = _mm512_shuffle_i32x4::<EVEN>(ab_even, cd_even);
        turned[4 + j] = _mm512_shuffle_i32x4::<EVEN>(ab_odd, cd_odd);
        turned[8 + j] = _mm512_shuffle_i32x4::<ODD>(ab_even, cd_even);
        turned[12 + j] = _mm512_shuffle_i32x4::<ODD>(ab_odd, cd_odd);
    }
    turned
}
