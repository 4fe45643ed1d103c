//! Sixteen rows of a quantized matrix, unpacked for integer products.
//!
//! Every kind of block comes to the same form: codes of a byte each, and for each group of 16 or 32 of them a scale and
//! perhaps a minimum. So one kernel multiplies them all ([`super::dot`]), and a kind is a matter of a few lines
//! ([`super::legacy`], [`super::super_block`]).

use super::lanes::{Floats, Lanes, ROWS, Words};
use super::{legacy, super_block};
use crate::blocks::BlockKind;

/// What the values of a kind are, as a tile holds them: `scale * (code - zero) + minimum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Values that share a scale: 16 or 32.
    pub(super) group: usize,
    /// What is subtracted from every code.
    pub(super) zero: u8,
    /// Whether groups have a minimum.
    pub(super) raised: bool,
}

impl Form {
    /// The form of a quantized kind; floats have none.
    pub(super) fn of(kind: BlockKind) -> Option<Self> {
        let form = |group, zero, raised| Some(Self { group, zero, raised });
        match kind {
            BlockKind::F32 | BlockKind::F16 | BlockKind::Bf16 => None,
            BlockKind::Q4_0 => form(32, 8, false),
            BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4K | BlockKind::Q5K => form(32, 0, true),
            BlockKind::Q5_0 => form(32, 16, false),
            BlockKind::Q8_0 => form(32, 128, false),
            BlockKind::Q2K => form(16, 0, true),
            BlockKind::Q3K => form(16, 4, false),
            BlockKind::Q6K => form(16, 32, false),
        }
    }
}

/// Sixteen unpacked rows.
pub(super) struct Tile {
    pub(super) form: Form,
    /// `[width / 4]`: four codes of each row.
    pub(super) codes: Vec<Words>,
    /// `[width / group]`
    pub(super) scales: Vec<Floats>,
    /// `[width / group]`, or nothing.
    pub(super) minima: Vec<Floats>,
}

impl Tile {
    /// Room for rows of `width` values.
    pub(super) fn new(form: Form, width: usize) -> Self {
        let groups = width / form.group;
        Self {
            form,
            codes: vec![Words::ZERO; width / 4],
            scales: vec![Floats::ZERO; groups],
            minima: vec![Floats::ZERO; if form.raised { groups } else { 0 }],
        }
    }

    /// Unpacks the sixteen rows of `bytes`.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    pub(super) unsafe fn unpack<L: Lanes>(&mut self, kind: BlockKind, bytes: &[u8]) {
        // SAFETY: by this function's contract.
        unsafe {
            match kind {
                BlockKind::F32 | BlockKind::F16 | BlockKind::Bf16 => {}
                BlockKind::Q4_0 => self.each(kind, bytes, |from, to| legacy::q4_0::<L>(from, to)),
                BlockKind::Q4_1 => self.each(kind, bytes, |from, to| legacy::q4_1::<L>(from, to)),
                BlockKind::Q5_0 => self.each(kind, bytes, |from, to| legacy::q5_0::<L>(from, to)),
                BlockKind::Q5_1 => self.each(kind, bytes, |from, to| legacy::q5_1::<L>(from, to)),
                BlockKind::Q8_0 => self.each(kind, bytes, |from, to| legacy::q8_0::<L>(from, to)),
                BlockKind::Q2K => self.each(kind, bytes, |from, to| super_block::q2k::<L>(from, to)),
                BlockKind::Q3K => self.each(kind, bytes, |from, to| super_block::q3k::<L>(from, to)),
                BlockKind::Q4K => self.each(kind, bytes, |from, to| super_block::q4k::<L>(from, to)),
                BlockKind::Q5K => self.each(kind, bytes, |from, to| super_block::q5k::<L>(from, to)),
                BlockKind::Q6K => self.each(kind, bytes, |from, to| super_block::q6k::<L>(from, to)),
            }
        }
    }

    /// Unpacks block after block.
    #[inline(always)]
    fn each(&mut self, kind: BlockKind, bytes: &[u8], unpack: impl Fn(Source<'_>, Unpacked<'_>)) {
        let row_bytes = bytes.len() / ROWS;
        let groups = kind.block_len() / self.form.group;
        let codes = self.codes.chunks_exact_mut(kind.block_len() / 4);
        for (block, (codes, scales)) in codes.zip(self.scales.chunks_exact_mut(groups)).enumerate() {
            let minima =
                if self.form.raised { &mut self.minima[block * groups..(block + 1) * groups] } else { &mut [] };
            let source = Source { bytes: &bytes[block * kind.block_bytes()..], row_bytes };
            unpack(source, Unpacked { codes, scales, minima });
        }
    }
}

/// A block at the same place of sixteen rows, of at least 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// From the first row's block on.
    bytes: &'a [u8],
    row_bytes: usize,
}

impl Source<'_> {
    /// The four words that lie `at` bytes into the block.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`; so everywhere here.
    #[inline(always)]
    pub(super) unsafe fn four_words<L: Lanes>(self, at: usize) -> [L::Words; 4] {
        assert!((ROWS - 1) * self.row_bytes + at + 16 <= self.bytes.len(), "sixteen whole rows are expected");
        // SAFETY: the last row has these bytes, so the others have them.
        unsafe { L::read(self.bytes.as_ptr().add(at), self.row_bytes) }
    }

    /// The eight words that lie `at` bytes into the block.
    #[inline(always)]
    pub(super) unsafe fn eight_words<L: Lanes>(self, at: usize) -> [L::Words; 8] {
        // SAFETY: by this type's contract.
        let ([a, b, c, d], [e, f, g, h]) = unsafe { (self.four_words::<L>(at), self.four_words::<L>(at + 16)) };
        [a, b, c, d, e, f, g, h]
    }

    /// The word that lies `at` bytes into the block: the first or the last of four that do not leave it.
    #[inline(always)]
    pub(super) unsafe fn words<L: Lanes>(self, at: usize) -> L::Words {
        // SAFETY: by this type's contract.
        unsafe { if at < 12 { self.four_words::<L>(at)[0] } else { self.four_words::<L>(at - 12)[3] } }
    }
}

/// Where the parts of one block go.
pub(super) struct Unpacked<'a> {
    codes: &'a mut [Words],
    scales: &'a mut [Floats],
    minima: &'a mut [Floats],
}

/// # Safety
/// The CPU has the instructions of `L`; so for every function.
impl Unpacked<'_> {
    #[inline(always)]
    pub(super) unsafe fn code<L: Lanes>(&mut self, index: usize, codes: L::Words) {
        // SAFETY: by the contract.
        unsafe { L::store(codes, &mut self.codes[index]) };
    }

    #[inline(always)]
    pub(super) unsafe fn codes<L: Lanes>(&mut self, first: usize, codes: &[L::Words]) {
        for (into, &codes) in self.codes[first..first + codes.len()].iter_mut().zip(codes) {
            // SAFETY: by the contract.
            unsafe { L::store(codes, into) };
        }
    }

    #[inline(always)]
    pub(super) unsafe fn scale<L: Lanes>(&mut self, group: usize, scales: L::Floats) {
        // SAFETY: by the contract.
        unsafe { L::store_floats(scales, &mut self.scales[group]) };
    }

    #[inline(always)]
    pub(super) unsafe fn minimum<L: Lanes>(&mut self, group: usize, minima: L::Floats) {
        // SAFETY: by the contract.
        unsafe { L::store_floats(minima, &mut self.minima[group]) };
    }
}

/// The lower halves of all bytes.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn low_nibbles<L: Lanes>(bytes: L::Words) -> L::Words {
    // SAFETY: by this function's contract.
    unsafe { L::and(bytes, 0x0f0f_0f0f) }
}

/// The upper halves of all bytes.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn high_nibbles<L: Lanes>(bytes: L::Words) -> L::Words {
    // SAFETY: by this function's contract.
    unsafe { L::and(L::right::<4>(bytes), 0x0f0f_0f0f) }
}
