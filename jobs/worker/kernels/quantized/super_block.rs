//! Unpacking super-blocks of 256 values; their layouts are described in [`crate::blocks`].
//!
//! The product of a super-block's scale (11 bits of mantissa) and a sub-block's (at most 7) is exact in f32, so groups
//! here have the very scales that decoding multiplies by.

use super::lanes::Lanes;
use super::tile::{Source, Unpacked, high_nibbles, low_nibbles};

/// The two bits of every byte that begin at bit `BIT`.
///
/// # Safety
/// The CPU has the instructions of `L`; so everywhere here.
#[inline(always)]
unsafe fn two_bits<L: Lanes, const BIT: u32>(bytes: L::Words) -> L::Words {
    // SAFETY: by this function's contract.
    unsafe { L::and(L::right::<BIT>(bytes), 0x0303_0303) }
}

/// Bit `BIT` of every byte.
#[inline(always)]
unsafe fn one_bit<L: Lanes, const BIT: u32>(bytes: L::Words) -> L::Words {
    // SAFETY: by the module's contract.
    unsafe { L::and(L::right::<BIT>(bytes), 0x0101_0101) }
}

/// The four bytes of each word as numbers.
#[inline(always)]
unsafe fn bytes_as_numbers<L: Lanes>(words: L::Words) -> [L::Floats; 4] {
    // SAFETY: by the module's contract.
    unsafe {
        [
            L::number(L::and(words, 255)),
            L::number(L::and(L::right::<8>(words), 255)),
            L::number(L::and(L::right::<16>(words), 255)),
            L::number(L::right::<24>(words)),
        ]
    }
}

#[inline(always)]
pub(super) unsafe fn q2k<L: Lanes>(block: Source<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let both = block.words::<L>(80);
        let (scale, min) = (L::half(both), L::times(L::half(L::right::<16>(both)), L::same(-1.0)));
        for (word, packed) in block.four_words::<L>(0).into_iter().enumerate() {
            let scales = bytes_as_numbers::<L>(low_nibbles::<L>(packed));
            let mins = bytes_as_numbers::<L>(high_nibbles::<L>(packed));
            for byte in 0..4 {
                to.scale::<L>(4 * word + byte, L::times(scale, scales[byte]));
                to.minimum::<L>(4 * word + byte, L::times(min, mins[byte]));
            }
        }
        for half in 0..2 {
            for (i, bytes) in block.eight_words::<L>(16 + 32 * half).into_iter().enumerate() {
                to.code::<L>(32 * half + i, two_bits::<L, 0>(bytes));
                to.code::<L>(32 * half + 8 + i, two_bits::<L, 2>(bytes));
                to.code::<L>(32 * half + 16 + i, two_bits::<L, 4>(bytes));
                to.code::<L>(32 * half + 24 + i, two_bits::<L, 6>(bytes));
            }
        }
    }
}

/// Two bits of `bytes` and the third from `third`, for values `128 HALF + 32 j + i`.
#[inline(always)]
unsafe fn three_bits<L: Lanes, const BIT: u32, const THIRD: u32>(bytes: L::Words, third: L::Words) -> L::Words {
    // SAFETY: by the module's contract.
    unsafe { L::or(two_bits::<L, BIT>(bytes), L::left::<2>(one_bit::<L, THIRD>(third))) }
}

#[inline(always)]
pub(super) unsafe fn q3k<L: Lanes>(block: Source<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let scale = L::half(L::right::<16>(block.words::<L>(106)));
        let (first, second, high) = (block.words::<L>(96), block.words::<L>(100), block.words::<L>(104));
        let six_bits = [
            L::or(low_nibbles::<L>(first), L::left::<4>(two_bits::<L, 0>(high))),
            L::or(low_nibbles::<L>(second), L::left::<4>(two_bits::<L, 2>(high))),
            L::or(high_nibbles::<L>(first), L::left::<4>(two_bits::<L, 4>(high))),
            L::or(high_nibbles::<L>(second), L::left::<4>(two_bits::<L, 6>(high))),
        ];
        for (word, six_bits) in six_bits.into_iter().enumerate() {
            for (byte, number) in bytes_as_numbers::<L>(six_bits).into_iter().enumerate() {
                to.scale::<L>(4 * word + byte, L::times(scale, L::plus(number, L::same(-32.0))));
            }
        }
        let third = block.eight_words::<L>(0);
        let halves = [block.eight_words::<L>(32), block.eight_words::<L>(64)];
        for i in 0..8 {
            to.code::<L>(i, three_bits::<L, 0, 0>(halves[0][i], third[i]));
            to.code::<L>(8 + i, three_bits::<L, 2, 1>(halves[0][i], third[i]));
            to.code::<L>(16 + i, three_bits::<L, 4, 2>(halves[0][i], third[i]));
            to.code::<L>(24 + i, three_bits::<L, 6, 3>(halves[0][i], third[i]));
            to.code::<L>(32 + i, three_bits::<L, 0, 4>(halves[1][i], third[i]));
            to.code::<L>(40 + i, three_bits::<L, 2, 5>(halves[1][i], third[i]));
            to.code::<L>(48 + i, three_bits::<L, 4, 6>(halves[1][i], third[i]));
            to.code::<L>(56 + i, three_bits::<L, 6, 7>(halves[1][i], third[i]));
        }
    }
}

/// The eight scales and minima of Q4_K and Q5_K, from the block's first 16 bytes.
#[inline(always)]
unsafe fn scales_and_minima<L: Lanes>([both, s, m, rest]: [L::Words; 4], to: &mut Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let (scale, min) = (L::half(both), L::times(L::half(L::right::<16>(both)), L::same(-1.0)));
        let last = |low, six| L::or(low, L::left::<4>(two_bits::<L, 6>(six)));
        let scales = [L::and(s, 0x3f3f_3f3f), last(low_nibbles::<L>(rest), s)];
        let mins = [L::and(m, 0x3f3f_3f3f), last(high_nibbles::<L>(rest), m)];
        for half in 0..2 {
            let (scales, mins) = (bytes_as_numbers::<L>(scales[half]), bytes_as_numbers::<L>(mins[half]));
            for byte in 0..4 {
                to.scale::<L>(4 * half + byte, L::times(scale, scales[byte]));
                to.minimum::<L>(4 * half + byte, L::times(min, mins[byte]));
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn q4k<L: Lanes>(block: Source<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        scales_and_minima::<L>(block.four_words::<L>(0), &mut to);
        for quarter in 0..4 {
            for (i, bytes) in block.eight_words::<L>(16 + 32 * quarter).into_iter().enumerate() {
                to.code::<L>(16 * quarter + i, low_nibbles::<L>(bytes));
                to.code::<L>(16 * quarter + 8 + i, high_nibbles::<L>(bytes));
            }
        }
    }
}

/// A quarter of Q5_K's codes: four bits of `bytes`, and the fifth from `fifth`.
#[inline(always)]
unsafe fn five_bits<L: Lanes, const LOW: u32, const HIGH: u32>(
    quarter: usize,
    block: Source<'_>,
    fifth: &[L::Words; 8],
    to: &mut Unpacked<'_>,
) {
    // SAFETY: by the module's contract.
    unsafe {
        for (i, bytes) in block.eight_words::<L>(48 + 32 * quarter).into_iter().enumerate() {
            let (low, high) = (one_bit::<L, LOW>(fifth[i]), one_bit::<L, HIGH>(fifth[i]));
            to.code::<L>(16 * quarter + i, L::or(low_nibbles::<L>(bytes), L::left::<4>(low)));
            to.code::<L>(16 * quarter + 8 + i, L::or(high_nibbles::<L>(bytes), L::left::<4>(high)));
        }
    }
}

#[inline(always)]
pub(super) unsafe fn q5k<L: Lanes>(block: Source<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        scales_and_minima::<L>(block.four_words::<L>(0), &mut to);
        let fifth = block.eight_words::<L>(16);
        five_bits::<L, 0, 1>(0, block, &fifth, &mut to);
        five_bits::<L, 2, 3>(1, block, &fifth, &mut to);
        five_bits::<L, 4, 5>(2, block, &fifth, &mut to);
        five_bits::<L, 6, 7>(3, block, &fifth, &mut to);
    }
}

#[inline(always)]
pub(super) unsafe fn q6k<L: Lanes>(block: Source<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let scale = L::half(L::right::<16>(block.words::<L>(206)));
        for (word, packed) in block.four_words::<L>(192).into_iter().enumerate() {
            // Bytes with a sign: 128 too much once that bit is turned over.
            let numbers = bytes_as_numbers::<L>(L::xor(packed, 0x8080_8080));
            for (byte, number) in numbers.into_iter().enumerate() {
                to.scale::<L>(4 * word + byte, L::times(scale, L::plus(number, L::same(-128.0))));
            }
        }
        for half in 0..2 {
            let first = block.eight_words::<L>(64 * half);
            let second = block.eight_words::<L>(64 * half + 32);
            for (i, high) in block.eight_words::<L>(128 + 32 * half).into_iter().enumerate() {
                let six = |low, high| L::or(low, L::left::<4>(high));
                to.code::<L>(32 * half + i, six(low_nibbles::<L>(first[i]), two_bits::<L, 0>(high)));
                to.code::<L>(32 * half + 8 + i, six(low_nibbles::<L>(second[i]), two_bits::<L, 2>(high)));
                to.code::<L>(32 * half + 16 + i, six(high_nibbles::<L>(first[i]), two_bits::<L, 4>(high)));
                to.code::<L>(32 * half + 24 + i, six(high_nibbles::<L>(second[i]), two_bits::<L, 6>(high)));
            }
        }
    }
}
