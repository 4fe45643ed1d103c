//! Unpacking super-blocks of 256 values; their layouts are described in [`crate::blocks`].
//!
//! The product of a super-block's scale (11 bits of mantissa) and a sub-block's (at most 7) is exact in f32, so groups
//! here have the very scales that decoding multiplies by.

use super::lanes::Lanes;
use super::tile::{Unpacked, high_nibbles, low_nibbles};
use super::turned::Block;

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
pub(super) unsafe fn q2k<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let both = block.word::<L>(20);
        let (scale, min) = (L::half(both), L::times(L::half(L::right::<16>(both)), L::same(-1.0)));
        for word in 0..4 {
            let packed = block.word::<L>(word);
            let scales = bytes_as_numbers::<L>(low_nibbles::<L>(packed));
            let mins = bytes_as_numbers::<L>(high_nibbles::<L>(packed));
            for byte in 0..4 {
                to.scale::<L>(4 * word + byte, L::times(scale, scales[byte]));
                to.minimum::<L>(4 * word + byte, L::times(min, mins[byte]));
            }
        }
        for half in 0..2 {
            for i in 0..8 {
                let bytes = block.word::<L>(4 + 8 * half + i);
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
pub(super) unsafe fn q3k<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let scale = block.scales::<L>();
        let (first, second, high) = (block.word::<L>(24), block.word::<L>(25), block.word::<L>(26));
        let six_bits = [
            L::or(low_nibbles::<L>(first), L::left::<4>(two_bits::<L, 0>(high))),
            L::or(low_nibbles::<L>(second), L::left::<4>(two_bits::<L, 2>(high))),
            L::or(high_nibbles::<L>(first), L::left::<4>(two_bits::<L, 4>(high))),
            L::or(high_nibbles::<L>(second), L::left::<4>(two_bits::<L, 6>(high))),
        ];
        for (word, &six_bits) in six_bits.iter().enumerate() {
            for (byte, &number) in bytes_as_numbers::<L>(six_bits).iter().enumerate() {
                to.scale::<L>(4 * word + byte, L::times(scale, L::plus(number, L::same(-32.0))));
            }
        }
        for i in 0..8 {
            let (third, first, second) = (block.word::<L>(i), block.word::<L>(8 + i), block.word::<L>(16 + i));
            to.code::<L>(i, three_bits::<L, 0, 0>(first, third));
            to.code::<L>(8 + i, three_bits::<L, 2, 1>(first, third));
            to.code::<L>(16 + i, three_bits::<L, 4, 2>(first, third));
            to.code::<L>(24 + i, three_bits::<L, 6, 3>(first, third));
            to.code::<L>(32 + i, three_bits::<L, 0, 4>(second, third));
            to.code::<L>(40 + i, three_bits::<L, 2, 5>(second, third));
            to.code::<L>(48 + i, three_bits::<L, 4, 6>(second, third));
            to.code::<L>(56 + i, three_bits::<L, 6, 7>(second, third));
        }
    }
}

/// The eight scales and minima of Q4_K and Q5_K, from the block's first four words.
#[inline(always)]
unsafe fn scales_and_minima<L: Lanes>(block: Block<'_>, to: &mut Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let (both, s) = (block.word::<L>(0), block.word::<L>(1));
        let (m, rest) = (block.word::<L>(2), block.word::<L>(3));
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
pub(super) unsafe fn q4k<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        scales_and_minima::<L>(block, &mut to);
        for quarter in 0..4 {
            for i in 0..8 {
                let bytes = block.word::<L>(4 + 8 * quarter + i);
                to.code::<L>(16 * quarter + i, low_nibbles::<L>(bytes));
                to.code::<L>(16 * quarter + 8 + i, high_nibbles::<L>(bytes));
            }
        }
    }
}

/// A quarter of Q5_K's codes: four bits here, and the fifth from the plane of them.
#[inline(always)]
unsafe fn five_bits<L: Lanes, const LOW: u32, const HIGH: u32>(
    quarter: usize,
    block: Block<'_>,
    to: &mut Unpacked<'_>,
) {
    // SAFETY: by the module's contract.
    unsafe {
        for i in 0..8 {
            let (fifth, bytes) = (block.word::<L>(4 + i), block.word::<L>(12 + 8 * quarter + i));
            let (low, high) = (one_bit::<L, LOW>(fifth), one_bit::<L, HIGH>(fifth));
            to.code::<L>(16 * quarter + i, L::or(low_nibbles::<L>(bytes), L::left::<4>(low)));
            to.code::<L>(16 * quarter + 8 + i, L::or(high_nibbles::<L>(bytes), L::left::<4>(high)));
        }
    }
}

#[inline(always)]
pub(super) unsafe fn q5k<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        scales_and_minima::<L>(block, &mut to);
        five_bits::<L, 0, 1>(0, block, &mut to);
        five_bits::<L, 2, 3>(1, block, &mut to);
        five_bits::<L, 4, 5>(2, block, &mut to);
        five_bits::<L, 6, 7>(3, block, &mut to);
    }
}

#[inline(always)]
pub(super) unsafe fn q6k<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let scale = block.scales::<L>();
        for word in 0..4 {
            // Bytes with a sign: 128 too much once that bit is turned over.
            let numbers = bytes_as_numbers::<L>(L::xor(block.word::<L>(48 + word), 0x8080_8080));
            for (byte, &number) in numbers.iter().enumerate() {
                to.scale::<L>(4 * word + byte, L::times(scale, L::plus(number, L::same(-128.0))));
            }
        }
        for half in 0..2 {
            for i in 0..8 {
                let (first, second) = (block.word::<L>(16 * half + i), block.word::<L>(16 * half + 8 + i));
                let high = block.word::<L>(32 + 8 * half + i);
                let six = |low, high| L::or(low, L::left::<4>(high));
                to.code::<L>(32 * half + i, six(low_nibbles::<L>(first), two_bits::<L, 0>(high)));
                to.code::<L>(32 * half + 8 + i, six(low_nibbles::<L>(second), two_bits::<L, 2>(high)));
                to.code::<L>(32 * half + 16 + i, six(high_nibbles::<L>(first), two_bits::<L, 4>(high)));
                to.code::<L>(32 * half + 24 + i, six(high_nibbles::<L>(second), two_bits::<L, 6>(high)));
            }
        }
    }
}
