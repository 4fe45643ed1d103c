//! Sixteen rows of a quantized matrix, unpacked for integer products.
//!
//! Every kind of block comes to the same form: codes of a byte each, and for each group of 16 or 32 of them a scale and
//! perhaps a minimum. So one kernel multiplies them all ([`super::dot`]), and a kind is a matter of a few lines
//! ([`super::legacy`], [`super::super_block`]).

use super::lanes::{Floats, ROWS, Source, Words};
use super::{legacy, super_block};
use crate::blocks::BlockKind;
use crate::kernels::simd::Level;

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

/// Where the parts of one block go.
pub(super) struct Unpacked<'a> {
    pub(super) codes: &'a mut [Words],
    pub(super) scales: &'a mut [Floats],
    pub(super) minima: &'a mut [Floats],
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
    pub(super) fn unpack(&mut self, kind: BlockKind, bytes: &[u8], level: Level) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512(tile: &mut Tile, kind: BlockKind, bytes: &[u8]) {
            tile.unpack_with::<true>(kind, bytes);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2(tile: &mut Tile, kind: BlockKind, bytes: &[u8]) {
            tile.unpack_with::<false>(kind, bytes);
        }
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level was found on this CPU.
            Level::Avx512 => unsafe { avx512(self, kind, bytes) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { avx2(self, kind, bytes) },
            _ => self.unpack_with::<false>(kind, bytes),
        }
    }

    #[inline(always)]
    fn unpack_with<const AVX512: bool>(&mut self, kind: BlockKind, bytes: &[u8]) {
        match kind {
            BlockKind::F32 | BlockKind::F16 | BlockKind::Bf16 => {}
            BlockKind::Q4_0 => self.each(kind, bytes, legacy::q4_0::<AVX512>),
            BlockKind::Q4_1 => self.each(kind, bytes, legacy::q4_1::<AVX512>),
            BlockKind::Q5_0 => self.each(kind, bytes, legacy::q5_0::<AVX512>),
            BlockKind::Q5_1 => self.each(kind, bytes, legacy::q5_1::<AVX512>),
            BlockKind::Q8_0 => self.each(kind, bytes, legacy::q8_0::<AVX512>),
            BlockKind::Q2K => self.each(kind, bytes, super_block::q2k::<AVX512>),
            BlockKind::Q3K => self.each(kind, bytes, super_block::q3k::<AVX512>),
            BlockKind::Q4K => self.each(kind, bytes, super_block::q4k::<AVX512>),
            BlockKind::Q5K => self.each(kind, bytes, super_block::q5k::<AVX512>),
            BlockKind::Q6K => self.each(kind, bytes, super_block::q6k::<AVX512>),
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
            unpack(Source::new(bytes, row_bytes, block * kind.block_bytes()), Unpacked { codes, scales, minima });
        }
    }
}
