//! Sixteen rows side by side: what integer products work on, and how it is read out of rows that lie one after the
//! other.
//!
//! A row's sum over its blocks then stays in a lane of its own, so that no register is ever summed across, and the
//! order of the sums is the same for every width of registers.

use crate::blocks::from_f16;

/// Rows that are computed together: as many as the widest registers have lanes.
pub(super) const ROWS: usize = 16;

/// A 32-bit word of each of the rows: four values of a byte each, or bits of another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Words(pub(super) [u32; ROWS]);

/// A number for each of the rows.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Floats(pub(super) [f32; ROWS]);

impl Words {
    pub(super) const ZERO: Self = Self([0; ROWS]);

    #[inline(always)]
    pub(super) fn map(self, f: impl Fn(u32) -> u32) -> Self {
        Self(std::array::from_fn(|row| f(self.0[row])))
    }

    #[inline(always)]
    pub(super) fn with(self, other: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        Self(std::array::from_fn(|row| f(self.0[row], other.0[row])))
    }

    /// The lower halves of all bytes.
    #[inline(always)]
    pub(super) fn low_nibbles(self) -> Self {
        self.map(|word| word & 0x0f0f_0f0f)
    }

    /// The upper halves of all bytes.
    #[inline(always)]
    pub(super) fn high_nibbles(self) -> Self {
        self.map(|word| word >> 4 & 0x0f0f_0f0f)
    }

    /// Byte `index` of each word as a number.
    #[inline(always)]
    pub(super) fn byte(self, index: usize) -> Floats {
        Floats(std::array::from_fn(|row| (self.0[row] >> (8 * index) & 255) as i32 as f32))
    }

    /// Byte `index` of each word as a number with a sign.
    #[inline(always)]
    pub(super) fn signed_byte(self, index: usize) -> Floats {
        Floats(std::array::from_fn(|row| ((self.0[row] << (24 - 8 * index)) as i32 >> 24) as f32))
    }

    /// The f16 in the lower half of each word.
    #[inline(always)]
    pub(super) fn low_half(self) -> Floats {
        Floats(std::array::from_fn(|row| from_f16(self.0[row] as u16)))
    }

    /// The f16 in the upper half of each word.
    #[inline(always)]
    pub(super) fn high_half(self) -> Floats {
        Floats(std::array::from_fn(|row| from_f16((self.0[row] >> 16) as u16)))
    }
}

impl Floats {
    pub(super) const ZERO: Self = Self([0.0; ROWS]);

    #[inline(always)]
    pub(super) fn times(self, other: Self) -> Self {
        Self(std::array::from_fn(|row| self.0[row] * other.0[row]))
    }

    #[inline(always)]
    pub(super) fn minus(self, less: f32) -> Self {
        Self(std::array::from_fn(|row| self.0[row] - less))
    }

    #[inline(always)]
    pub(super) fn negated(self) -> Self {
        Self(std::array::from_fn(|row| -self.0[row]))
    }
}

/// A block at the same place of sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// From the first row's block on.
    bytes: &'a [u8],
    row_bytes: usize,
}

impl<'a> Source<'a> {
    /// `bytes` are those of the rows; the block begins `at` bytes after the beginning of each.
    #[inline(always)]
    pub(super) fn new(bytes: &'a [u8], row_bytes: usize, at: usize) -> Self {
        Self { bytes: &bytes[at..], row_bytes }
    }

    /// The word that lies `at` bytes into the block.
    #[inline(always)]
    pub(super) fn words(self, at: usize) -> Words {
        self.check(at + 4);
        // SAFETY: `check` has seen that the last row has these bytes, so the others have them.
        let word = |row: usize| unsafe {
            self.bytes.as_ptr().add(row * self.row_bytes + at).cast::<u32>().read_unaligned().to_le()
        };
        Words(std::array::from_fn(word))
    }

    /// The f16 that lies `at` bytes into the block.
    #[inline(always)]
    pub(super) fn halves(self, at: usize) -> Floats {
        self.check(at + 2);
        // SAFETY: as in `words`.
        let half = |row: usize| unsafe {
            self.bytes.as_ptr().add(row * self.row_bytes + at).cast::<u16>().read_unaligned().to_le()
        };
        let halves: [u16; ROWS] = std::array::from_fn(half);
        Floats(halves.map(from_f16))
    }

    /// The four words that lie `at` bytes into the block.
    #[inline(always)]
    pub(super) fn four_words<const AVX512: bool>(self, at: usize) -> [Words; 4] {
        #[cfg(target_arch = "x86_64")]
        if AVX512 {
            self.check(at + 16);
            // SAFETY: the rows have these bytes, and who asks for AVX-512 has found it.
            return unsafe { transposed(self.bytes.as_ptr().add(at), self.row_bytes) };
        }
        [0, 4, 8, 12].map(|word| self.words(at + word))
    }

    #[inline(always)]
    fn check(self, end: usize) {
        assert!((ROWS - 1) * self.row_bytes + end <= self.bytes.len(), "sixteen whole rows are expected");
    }
}

/// Reads 16 bytes of each row, which is a 16 x 4 matrix of words, and turns it: a register holds four rows at first
/// (`i`, `4 + i`, `8 + i` and `12 + i`), and words trade places within its quarters.
///
/// # Safety
/// The CPU has AVX-512, and the bytes are there in all of the rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transposed(from: *const u8, row_bytes: usize) -> [Words; 4] {
    use std::arch::x86_64::*;
    // SAFETY: by this function's contract.
    unsafe {
        let read = |row: usize| _mm_loadu_si128(from.add(row * row_bytes).cast());
        let every_fourth = |row: usize| {
            let rows = _mm512_castsi128_si512(read(row));
            let rows = _mm512_inserti32x4::<1>(rows, read(4 + row));
            let rows = _mm512_inserti32x4::<2>(rows, read(8 + row));
            _mm512_inserti32x4::<3>(rows, read(12 + row))
        };
        let [a, b, c, d] = [every_fourth(0), every_fourth(1), every_fourth(2), every_fourth(3)];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
        .map(|words| std::mem::transmute::<__m512i, Words>(words))
    }
}
