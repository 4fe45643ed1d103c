//! Unpacking blocks of 32 values; their layouts are described in [`crate::blocks`].

use super::lanes::{Source, Words};
use super::tile::Unpacked;

/// Puts the lower halves of 16 bytes into the first half of the codes, the upper halves into the second.
#[inline(always)]
fn put_nibbles(bytes: [Words; 4], codes: &mut [Words]) {
    let (low, high) = codes.split_at_mut(4);
    for (i, bytes) in bytes.into_iter().enumerate() {
        (low[i], high[i]) = (bytes.low_nibbles(), bytes.high_nibbles());
    }
}

/// Adds the fifth bits: bit `i` of the word is that of value `i`.
#[inline(always)]
fn add_fifth_bits(bits: Words, codes: &mut [Words]) {
    for (i, codes) in codes.iter_mut().enumerate() {
        // Four bits, each to the fifth place of a byte of its own.
        let spread = bits.map(|bits| {
            let bits = bits >> (4 * i);
            (bits & 1) << 4 | (bits & 2) << 11 | (bits & 4) << 18 | (bits & 8) << 25
        });
        *codes = codes.with(spread, |code, bit| code | bit);
    }
}

#[inline(always)]
pub(super) fn q4_0<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    to.scales[0] = block.halves(0);
    put_nibbles(block.four_words::<AVX512>(2), &mut to.codes[..8]);
}

#[inline(always)]
pub(super) fn q4_1<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    let scale_and_minimum = block.words(0);
    (to.scales[0], to.minima[0]) = (scale_and_minimum.low_half(), scale_and_minimum.high_half());
    put_nibbles(block.four_words::<AVX512>(4), &mut to.codes[..8]);
}

#[inline(always)]
pub(super) fn q5_0<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    let codes = &mut to.codes[..8];
    to.scales[0] = block.halves(0);
    put_nibbles(block.four_words::<AVX512>(6), codes);
    add_fifth_bits(block.words(2), codes);
}

#[inline(always)]
pub(super) fn q5_1<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    let codes = &mut to.codes[..8];
    let scale_and_minimum = block.words(0);
    (to.scales[0], to.minima[0]) = (scale_and_minimum.low_half(), scale_and_minimum.high_half());
    put_nibbles(block.four_words::<AVX512>(8), codes);
    add_fifth_bits(block.words(4), codes);
}

/// Bytes with a sign become codes by an offset of 128.
#[inline(always)]
pub(super) fn q8_0<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    to.scales[0] = block.halves(0);
    for (at, codes) in [2, 18].into_iter().zip(to.codes.chunks_exact_mut(4)) {
        for (codes, bytes) in codes.iter_mut().zip(block.four_words::<AVX512>(at)) {
            *codes = bytes.map(|bytes| bytes ^ 0x8080_8080);
        }
    }
}
