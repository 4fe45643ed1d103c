//! Sixteen rows of a quantized matrix, unpacked for integer products.
//!
//! Every kind of block comes to the same form: codes of a byte each, and for each group of 16 or 32 of them a scale and
//! perhaps a minimum. So one kernel multiplies them all ([`super::dot`]), and a kind is a matter of a few lines
//! ([`super::legacy`], [`super::super_block`]).

use super::lanes::{Floats, Halves, Lanes, Words};
use super::turned::Block;
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
    /// Room for nothing yet.
    pub(super) const EMPTY: Self = Self {
        form: Form { group: 32, zero: 0, raised: false },
        codes: Vec::new(),
        scales: Vec::new(),
        minima: Vec::new(),
    };

    /// Makes room for rows of `width` values; what is there is left behind.
    pub(super) fn make_room(&mut self, form: Form, width: usize) {
        let groups = width / form.group;
        self.form = form;
        self.codes.resize(width / 4, Words::ZERO);
        self.scales.resize(groups, Floats::ZERO);
        self.minima.resize(if form.raised { groups } else { 0 }, Floats::ZERO);
    }

    /// Unpacks the blocks of sixteen rows.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    pub(super) unsafe fn unpack<'b, L: Lanes>(&mut self, kind: BlockKind, blocks: impl Iterator<Item = Block<'b>>) {
        // SAFETY: by this function's contract.
        unsafe {
            match kind {
                BlockKind::F32 | BlockKind::F16 | BlockKind::Bf16 => {}
                BlockKind::Q4_0 => self.each(kind, blocks, |from, to| legacy::q4_0::<L>(from, to)),
                BlockKind::Q4_1 => self.each(kind, blocks, |from, to| legacy::q4_1::<L>(from, to)),
                BlockKind::Q5_0 => self.each(kind, blocks, |from, to| legacy::q5_0::<L>(from, to)),
                BlockKind::Q5_1 => self.each(kind, blocks, |from, to| legacy::q5_1::<L>(from, to)),
                BlockKind::Q8_0 => self.each(kind, blocks, |from, to| legacy::q8_0::<L>(from, to)),
                BlockKind::Q2K => self.each(kind, blocks, |from, to| super_block::q2k::<L>(from, to)),
                BlockKind::Q3K => self.each(kind, blocks, |from, to| super_block::q3k::<L>(from, to)),
                BlockKind::Q4K => self.each(kind, blocks, |from, to| super_block::q4k::<L>(from, to)),
                BlockKind::Q5K => self.each(kind, blocks, |from, to| super_block::q5k::<L>(from, to)),
                BlockKind::Q6K => self.each(kind, blocks, |from, to| super_block::q6k::<L>(from, to)),
            }
        }
    }

    /// Unpacks block after block.
    #[inline(always)]
    fn each<'b>(
        &mut self,
        kind: BlockKind,
        blocks: impl Iterator<Item = Block<'b>>,
        unpack: impl Fn(Block<'_>, Unpacked<'_>),
    ) {
        let groups = kind.block_len() / self.form.group;
        let codes = self.codes.chunks_exact_mut(kind.block_len() / 4);
        let mut minima = self.minima.chunks_exact_mut(groups);
        for ((from, codes), scales) in blocks.zip(codes).zip(self.scales.chunks_exact_mut(groups)) {
            unpack(from, Unpacked { codes, scales, minima: minima.next().unwrap_or_default() });
        }
    }
}

/// # Safety
/// The CPU has the instructions of `L`; so for every function.
impl Block<'_> {
    /// Word `index` of the block.
    #[inline(always)]
    pub(super) unsafe fn word<L: Lanes>(self, index: usize) -> L::Words {
        // SAFETY: by the contract.
        unsafe { L::load(&self.words[index]) }
    }

    /// The scales that lie apart.
    #[inline(always)]
    pub(super) unsafe fn scales<L: Lanes>(self) -> L::Floats {
        // SAFETY: by the contract.
        unsafe { L::load_halves(self.half.unwrap_or(&Halves::ZERO)) }
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
