//! Unpacking blocks of 32 values; their layouts are described in [`crate::blocks`], and what of them are words in
//! [`super::turned`].

use super::lanes::Lanes;
use super::tile::{Unpacked, high_nibbles, low_nibbles};
use super::turned::Block;

/// Four words from `first` on.
///
/// # Safety
/// The CPU has the instructions of `L`; so everywhere here.
#[inline(always)]
unsafe fn four<L: Lanes>(block: Block<'_>, first: usize) -> [L::Words; 4] {
    // SAFETY: by this function's contract.
    unsafe {
        [block.word::<L>(first), block.word::<L>(first + 1), block.word::<L>(first + 2), block.word::<L>(first + 3)]
    }
}

/// The lower halves of four words are the first half of the codes, the upper halves the second.
#[inline(always)]
unsafe fn nibbles<L: Lanes>(bytes: [L::Words; 4]) -> [L::Words; 8] {
    let [a, b, c, d] = bytes;
    // SAFETY: by this function's contract.
    unsafe {
        [
            low_nibbles::<L>(a),
            low_nibbles::<L>(b),
            low_nibbles::<L>(c),
            low_nibbles::<L>(d),
            high_nibbles::<L>(a),
            high_nibbles::<L>(b),
            high_nibbles::<L>(c),
            high_nibbles::<L>(d),
        ]
    }
}

/// Four codes with their fifth bits, which are the lowest of `bits`.
#[inline(always)]
unsafe fn with_fifth_bits<L: Lanes>(codes: L::Words, bits: L::Words) -> L::Words {
    // SAFETY: by the module's contract.
    unsafe {
        // Each to the fifth place of a byte of its own.
        let first_two = L::or(L::left::<4>(L::and(bits, 1)), L::left::<11>(L::and(bits, 2)));
        let last_two = L::or(L::left::<18>(L::and(bits, 4)), L::left::<25>(L::and(bits, 8)));
        L::or(codes, L::or(first_two, last_two))
    }
}

/// Codes of five bits: the lower four as in [`nibbles`], and a word of fifth bits, the first value's lowest.
#[inline(always)]
unsafe fn five_bits<L: Lanes>(bytes: [L::Words; 4], bits: L::Words) -> [L::Words; 8] {
    // SAFETY: by the module's contract.
    unsafe {
        let [a, b, c, d, e, f, g, h] = nibbles::<L>(bytes);
        [
            with_fifth_bits::<L>(a, bits),
            with_fifth_bits::<L>(b, L::right::<4>(bits)),
            with_fifth_bits::<L>(c, L::right::<8>(bits)),
            with_fifth_bits::<L>(d, L::right::<12>(bits)),
            with_fifth_bits::<L>(e, L::right::<16>(bits)),
            with_fifth_bits::<L>(f, L::right::<20>(bits)),
            with_fifth_bits::<L>(g, L::right::<24>(bits)),
            with_fifth_bits::<L>(h, L::right::<28>(bits)),
        ]
    }
}

#[inline(always)]
pub(super) unsafe fn q4_0<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        to.scale::<L>(0, block.scales::<L>());
        to.codes::<L>(0, &nibbles::<L>(four::<L>(block, 0)));
    }
}

#[inline(always)]
pub(super) unsafe fn q4_1<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let both = block.word::<L>(0);
        to.scale::<L>(0, L::half(both));
        to.minimum::<L>(0, L::half(L::right::<16>(both)));
        to.codes::<L>(0, &nibbles::<L>(four::<L>(block, 1)));
    }
}

#[inline(always)]
pub(super) unsafe fn q5_0<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        to.scale::<L>(0, block.scales::<L>());
        to.codes::<L>(0, &five_bits::<L>(four::<L>(block, 1), block.word::<L>(0)));
    }
}

#[inline(always)]
pub(super) unsafe fn q5_1<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        let both = block.word::<L>(0);
        to.scale::<L>(0, L::half(both));
        to.minimum::<L>(0, L::half(L::right::<16>(both)));
        to.codes::<L>(0, &five_bits::<L>(four::<L>(block, 2), block.word::<L>(1)));
    }
}

/// Bytes with a sign become codes by an offset of 128.
#[inline(always)]
pub(super) unsafe fn q8_0<L: Lanes>(block: Block<'_>, mut to: Unpacked<'_>) {
    // SAFETY: by the module's contract.
    unsafe {
        to.scale::<L>(0, block.scales::<L>());
        for word in 0..8 {
            to.code::<L>(word, L::xor(block.word::<L>(word), 0x8080_8080));
        }
    }
}
