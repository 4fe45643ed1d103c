//! Unpacking super-blocks of 256 values; their layouts are described in [`crate::blocks`].
//!
//! The product of a super-block's scale (11 bits of mantissa) and a sub-block's (at most 7) is exact in f32, so groups
//! here have the very scales that decoding multiplies by.

use super::lanes::{Floats, Source, Words};
use super::tile::Unpacked;

/// The two bits of every byte that begin at bit `shift`.
#[inline(always)]
fn two_bits(bytes: Words, shift: usize) -> Words {
    bytes.map(|bytes| bytes >> shift & 0x0303_0303)
}

/// Bit `index` of every byte, moved to bit `to`.
#[inline(always)]
fn one_bit(bytes: Words, index: usize, to: usize) -> Words {
    bytes.map(|bytes| (bytes >> index & 0x0101_0101) << to)
}

#[inline(always)]
fn or(a: Words, b: Words) -> Words {
    a.with(b, |a, b| a | b)
}

/// Four words of one matrix and four of another.
#[inline(always)]
fn eight_words<const AVX512: bool>(block: Source<'_>, at: usize) -> [Words; 8] {
    let [a, b, c, d] = block.four_words::<AVX512>(at);
    let [e, f, g, h] = block.four_words::<AVX512>(at + 16);
    [a, b, c, d, e, f, g, h]
}

#[inline(always)]
pub(super) fn q2k<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    let both = block.words(80);
    let (scale, min) = (both.low_half(), both.high_half().negated());
    for (word, packed) in block.four_words::<AVX512>(0).into_iter().enumerate() {
        let (scales, mins) = (packed.low_nibbles(), packed.high_nibbles());
        for byte in 0..4 {
            to.scales[4 * word + byte] = scale.times(scales.byte(byte));
            to.minima[4 * word + byte] = min.times(mins.byte(byte));
        }
    }
    for (half, codes) in to.codes.chunks_exact_mut(32).enumerate() {
        let bytes = eight_words::<AVX512>(block, 16 + 32 * half);
        for (j, codes) in codes.chunks_exact_mut(8).enumerate() {
            for (codes, bytes) in codes.iter_mut().zip(bytes) {
                *codes = two_bits(bytes, 2 * j);
            }
        }
    }
}

#[inline(always)]
pub(super) fn q3k<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    let scale = block.halves(108);
    let (first, second, high) = (block.words(96), block.words(100), block.words(104));
    for (word, scales) in to.scales.chunks_exact_mut(4).enumerate() {
        let low = if word.is_multiple_of(2) { first } else { second };
        let low = if word < 2 { low.low_nibbles() } else { low.high_nibbles() };
        let six = low.with(high, |low, high| low | (high >> (2 * word) & 0x0303_0303) << 4);
        for (byte, to) in scales.iter_mut().enumerate() {
            *to = scale.times(six.byte(byte).minus(32.0));
        }
    }
    let third = eight_words::<AVX512>(block, 0);
    for (half, codes) in to.codes.chunks_exact_mut(32).enumerate() {
        let bytes = eight_words::<AVX512>(block, 32 + 32 * half);
        for (j, codes) in codes.chunks_exact_mut(8).enumerate() {
            for (codes, (bytes, third)) in codes.iter_mut().zip(bytes.into_iter().zip(third)) {
                *codes = or(two_bits(bytes, 2 * j), one_bit(third, 4 * half + j, 2));
            }
        }
    }
}

/// The eight scales and minima of Q4_K and Q5_K, from the block's first 16 bytes.
#[inline(always)]
fn scales_and_minima([both, s, m, rest]: [Words; 4], scales: &mut [Floats], minima: &mut [Floats]) {
    let (scale, min) = (both.low_half(), both.high_half().negated());
    let first = |six: Words| six.map(|six| six & 0x3f3f_3f3f);
    let last = |low: Words, six: Words| low.with(six, |low, six| low | (six >> 6 & 0x0303_0303) << 4);
    let (s, m) = ([first(s), last(rest.low_nibbles(), s)], [first(m), last(rest.high_nibbles(), m)]);
    for i in 0..8 {
        scales[i] = scale.times(s[i / 4].byte(i % 4));
        minima[i] = min.times(m[i / 4].byte(i % 4));
    }
}

#[inline(always)]
pub(super) fn q4k<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    scales_and_minima(block.four_words::<AVX512>(0), to.scales, to.minima);
    for (quarter, codes) in to.codes.chunks_exact_mut(16).enumerate() {
        let bytes = eight_words::<AVX512>(block, 16 + 32 * quarter);
        let (low, high) = codes.split_at_mut(8);
        for (i, bytes) in bytes.into_iter().enumerate() {
            (low[i], high[i]) = (bytes.low_nibbles(), bytes.high_nibbles());
        }
    }
}

#[inline(always)]
pub(super) fn q5k<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    scales_and_minima(block.four_words::<AVX512>(0), to.scales, to.minima);
    let fifth = eight_words::<AVX512>(block, 16);
    for (quarter, codes) in to.codes.chunks_exact_mut(16).enumerate() {
        let bytes = eight_words::<AVX512>(block, 48 + 32 * quarter);
        let (low, high) = codes.split_at_mut(8);
        for (i, bytes) in bytes.into_iter().enumerate() {
            low[i] = or(bytes.low_nibbles(), one_bit(fifth[i], 2 * quarter, 4));
            high[i] = or(bytes.high_nibbles(), one_bit(fifth[i], 2 * quarter + 1, 4));
        }
    }
}

#[inline(always)]
pub(super) fn q6k<const AVX512: bool>(block: Source<'_>, to: Unpacked<'_>) {
    let scale = block.halves(208);
    for (packed, scales) in block.four_words::<AVX512>(192).into_iter().zip(to.scales.chunks_exact_mut(4)) {
        for (byte, to) in scales.iter_mut().enumerate() {
            *to = scale.times(packed.signed_byte(byte));
        }
    }
    for (half, codes) in to.codes.chunks_exact_mut(32).enumerate() {
        let low = [0, 32].map(|at| eight_words::<AVX512>(block, 64 * half + at));
        let high = eight_words::<AVX512>(block, 128 + 32 * half);
        for (j, codes) in codes.chunks_exact_mut(8).enumerate() {
            for (i, codes) in codes.iter_mut().enumerate() {
                let low = low[j % 2][i];
                let low = if j < 2 { low.low_nibbles() } else { low.high_nibbles() };
                *codes = low.with(high[i], |low, high| low | (high >> (2 * j) & 0x0303_0303) << 4);
            }
        }
    }
}
