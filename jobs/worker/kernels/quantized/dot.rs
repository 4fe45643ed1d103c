//! Sixteen rows of a quantized matrix times tokens whose values are rounded: the inner loop of integer products.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Floats, Instructions, Lanes, Plain, Words};
use super::rounded::{BLOCK, Rounded};
use super::tile::Tile;
use super::turned::Turned;
use crate::blocks::BlockKind;

/// A tile times the tokens `first..first + TOKENS`, whose results are given to `put`.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn multiply<L: Lanes, const TOKENS: usize, const WORDS: usize, const RAISED: bool, const WIDE: bool>(
    tile: &Tile,
    x: &Rounded,
    first: usize,
    put: &mut impl FnMut(usize, &Floats),
) {
    let (words, groups, blocks) = (x.width / 4, tile.scales.len(), x.width / BLOCK);
    let of_block = BLOCK / 4 / WORDS;
    let of = |token: usize, count: usize| (first + token) * count..(first + token + 1) * count;
    let codes: [&[i32]; TOKENS] = std::array::from_fn(|token| &x.codes[of(token, words)]);
    let starts: [&[i32]; TOKENS] = std::array::from_fn(|token| &x.starts[of(token, groups)]);
    let scales: [&[f32]; TOKENS] = std::array::from_fn(|token| &x.scales[of(token, blocks)]);
    let lifts: [&[f32]; TOKENS] =
        std::array::from_fn(|token| if RAISED { &x.lifts[of(token, groups)] } else { &[][..] });
    // SAFETY: by this function's contract.
    unsafe {
        let mut y = [L::same(0.0); TOKENS];
        for group in 0..groups {
            let mut sums: [L::Sums; TOKENS] = std::array::from_fn(|token| L::start::<WIDE>(starts[token][group]));
            let weights: &[Words; WORDS] = &tile.codes.as_chunks().0[group];
            let x: [&[i32; WORDS]; TOKENS] = std::array::from_fn(|token| &codes[token].as_chunks().0[group]);
            for word in 0..WORDS {
                let weights = L::load(&weights[word]);
                for token in 0..TOKENS {
                    sums[token] = L::dot::<WIDE>(sums[token], weights, x[token][word]);
                }
            }
            for token in 0..TOKENS {
                let factor = L::same(scales[token][group / of_block]);
                let scaled = L::times(L::sums_as_floats(sums[token]), L::load_floats(&tile.scales[group]));
                y[token] = L::plus(y[token], L::times(scaled, factor));
                if RAISED {
                    let minima = L::load_floats(&tile.minima[group]);
                    y[token] = L::plus(y[token], L::times(minima, L::same(lifts[token][group])));
                }
            }
        }
        for (token, y) in y.into_iter().enumerate() {
            let mut results = Floats::ZERO;
            L::store_floats(y, &mut results);
            put(first + token, &results);
        }
    }
}

/// All of `tokens`, as many at a time as the registers hold.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_all<L: Lanes, const WORDS: usize, const RAISED: bool, const WIDE: bool>(
    tile: &Tile,
    x: &Rounded,
    mut tokens: Range<usize>,
    put: &mut impl FnMut(usize, &Floats),
) {
    // SAFETY: by this function's contract.
    unsafe {
        while tokens.len() >= 8 && L::TOKENS >= 8 {
            multiply::<L, 8, WORDS, RAISED, WIDE>(tile, x, tokens.start, put);
            tokens.start += 8;
        }
        while tokens.len() >= 2 {
            multiply::<L, 2, WORDS, RAISED, WIDE>(tile, x, tokens.start, put);
            tokens.start += 2;
        }
        for token in tokens {
            multiply::<L, 1, WORDS, RAISED, WIDE>(tile, x, token, put);
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn by_form<L: Lanes>(tile: &Tile, x: &Rounded, tokens: Range<usize>, put: &mut impl FnMut(usize, &Floats)) {
    // SAFETY: by this function's contract.
    unsafe {
        match (tile.form.group, tile.form.raised, tile.form.zero) {
            (32, true, _) => multiply_all::<L, 8, true, false>(tile, x, tokens, put),
            (32, false, 128) => multiply_all::<L, 8, false, true>(tile, x, tokens, put),
            (32, false, _) => multiply_all::<L, 8, false, false>(tile, x, tokens, put),
            (_, true, _) => multiply_all::<L, 4, true, false>(tile, x, tokens, put),
            (_, false, _) => multiply_all::<L, 4, false, false>(tile, x, tokens, put),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn unpack_and_multiply<L: Lanes>(
    tile: &mut Tile,
    (kind, turned, index): (BlockKind, &Turned, usize),
    x: &Rounded,
    put: &mut impl FnMut(usize, &Floats),
) {
    // SAFETY: by this function's contract.
    unsafe {
        tile.unpack::<L>(kind, turned.tile(index));
        by_form::<L>(tile, x, 0..x.tokens(), put);
    }
}

/// Multiplies sixteen rows (those of a kind and an index among the turned ones) with every token; `put` gets a token and
/// what the rows say to it. The tile is room to work in.
pub(super) fn rows_times(
    tile: &mut Tile,
    rows: (BlockKind, &Turned, usize),
    x: &Rounded,
    instructions: Instructions,
    mut put: impl FnMut(usize, &Floats),
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn avx512(tile: &mut Tile, rows: (BlockKind, &Turned, usize), x: &Rounded, put: &mut impl FnMut(usize, &Floats)) {
        // SAFETY: the instructions are enabled.
        unsafe { unpack_and_multiply::<Avx512>(tile, rows, x, put) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(tile: &mut Tile, rows: (BlockKind, &Turned, usize), x: &Rounded, put: &mut impl FnMut(usize, &Floats)) {
        // SAFETY: the instructions are enabled.
        unsafe { unpack_and_multiply::<Avx2>(tile, rows, x, put) }
    }
    match instructions {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: they were found on this CPU.
        Instructions::Avx512 => unsafe { avx512(tile, rows, x, &mut put) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx2 => unsafe { avx2(tile, rows, x, &mut put) },
        // SAFETY: plain code needs no instructions.
        _ => unsafe { unpack_and_multiply::<Plain>(tile, rows, x, &mut put) },
    }
}
