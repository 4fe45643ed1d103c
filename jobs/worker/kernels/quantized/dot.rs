//! The inner loop of integer products: a tile of sixteen rows times a few tokens.
//!
//! One text for all instruction sets: they differ in how four products of bytes are added to a sum of 32 bits
//! ([`Lanes::dot`]). Those sums are exact; what is rounded is rounded in the same order everywhere, lane by lane, so every
//! level gives the same bits.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use super::lanes::{Floats, ROWS, Words};
use super::rounded::{BLOCK, Rounded};
use super::tile::Tile;

/// The instructions that multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    Plain,
    Avx2,
    /// AVX-512 with VNNI: four products of bytes are added at once.
    Vnni,
}

impl Instructions {
    /// The best of this CPU.
    pub(super) fn best() -> Self {
        use crate::kernels::simd::{Level, level};
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if is_x86_feature_detected!("avx512vnni") => Self::Vnni,
            Level::Avx512 | Level::Avx2 => Self::Avx2,
            Level::Baseline => Self::Plain,
        }
    }

    /// All that this CPU has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let best = Self::best();
        [Self::Plain, Self::Avx2, Self::Vnni].into_iter().filter(|&some| some as u8 <= best as u8).collect()
    }
}

/// Sixteen rows' sums in the registers of an instruction set.
///
/// # Safety
/// Every function may be called only where the CPU has the instructions.
trait Lanes {
    type Codes: Copy;
    type Sums: Copy;
    type Floats: Copy;

    /// Whether there are registers for many tokens at a time.
    const MANY: bool;

    unsafe fn codes(words: &Words) -> Self::Codes;

    /// What a group's sums start from: in every lane the number that takes the codes' zero into account.
    unsafe fn start<const WIDE: bool>(at: i32) -> Self::Sums;

    /// Adds to each lane the inner product of four codes of the weight (no sign) and four of the activations `x` (with
    /// sign). With `WIDE` the weight's codes use all eight bits and their zero is 128, else at most six bits.
    unsafe fn dot<const WIDE: bool>(sums: Self::Sums, codes: Self::Codes, x: i32) -> Self::Sums;

    unsafe fn zero() -> Self::Floats;

    /// `y + (sums * scales) * factor`
    unsafe fn scaled(y: Self::Floats, sums: Self::Sums, scales: &Floats, factor: f32) -> Self::Floats;

    /// `y + minima * factor`
    unsafe fn raised(y: Self::Floats, minima: &Floats, factor: f32) -> Self::Floats;

    unsafe fn store(y: Self::Floats) -> Floats;
}

struct Plain;

impl Lanes for Plain {
    type Codes = Words;
    type Sums = [i32; ROWS];
    type Floats = Floats;
    const MANY: bool = false;

    #[inline(always)]
    unsafe fn codes(words: &Words) -> Words {
        *words
    }

    #[inline(always)]
    unsafe fn start<const WIDE: bool>(at: i32) -> [i32; ROWS] {
        [at; ROWS]
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sums: [i32; ROWS], codes: Words, x: i32) -> [i32; ROWS] {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        std::array::from_fn(|row| {
            let codes = codes.0[row].to_le_bytes().map(i32::from);
            sums[row] + codes[0] * x[0] + codes[1] * x[1] + codes[2] * x[2] + codes[3] * x[3]
        })
    }

    #[inline(always)]
    unsafe fn zero() -> Floats {
        Floats::ZERO
    }

    #[inline(always)]
    unsafe fn scaled(y: Floats, sums: [i32; ROWS], scales: &Floats, factor: f32) -> Floats {
        Floats(std::array::from_fn(|row| y.0[row] + sums[row] as f32 * scales.0[row] * factor))
    }

    #[inline(always)]
    unsafe fn raised(y: Floats, minima: &Floats, factor: f32) -> Floats {
        Floats(std::array::from_fn(|row| y.0[row] + minima.0[row] * factor))
    }

    #[inline(always)]
    unsafe fn store(y: Floats) -> Floats {
        y
    }
}

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
        let mut y = [L::zero(); TOKENS];
        for group in 0..groups {
            let mut sums: [L::Sums; TOKENS] = std::array::from_fn(|token| L::start::<WIDE>(starts[token][group]));
            let weights: &[Words; WORDS] = &tile.codes.as_chunks().0[group];
            let x: [&[i32; WORDS]; TOKENS] = std::array::from_fn(|token| &codes[token].as_chunks().0[group]);
            for word in 0..WORDS {
                let weights = L::codes(&weights[word]);
                for token in 0..TOKENS {
                    sums[token] = L::dot::<WIDE>(sums[token], weights, x[token][word]);
                }
            }
            for token in 0..TOKENS {
                y[token] = L::scaled(y[token], sums[token], &tile.scales[group], scales[token][group / of_block]);
                if RAISED {
                    y[token] = L::raised(y[token], &tile.minima[group], lifts[token][group]);
                }
            }
        }
        for (token, y) in y.into_iter().enumerate() {
            put(first + token, &L::store(y));
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
        while tokens.len() >= 8 && L::MANY {
            multiply::<L, 8, WORDS, RAISED, WIDE>(tile, x, tokens.start, put);
            tokens.start += 8;
        }
        while tokens.len() >= 3 {
            multiply::<L, 3, WORDS, RAISED, WIDE>(tile, x, tokens.start, put);
            tokens.start += 3;
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

/// Multiplies a tile with each of `tokens`; `put` gets a token and what the sixteen rows say to it.
pub(super) fn tile_times(
    tile: &Tile,
    x: &Rounded,
    tokens: Range<usize>,
    instructions: Instructions,
    mut put: impl FnMut(usize, &Floats),
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    fn vnni(tile: &Tile, x: &Rounded, tokens: Range<usize>, put: &mut impl FnMut(usize, &Floats)) {
        // SAFETY: the instructions are enabled.
        unsafe { by_form::<x86::Vnni>(tile, x, tokens, put) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(tile: &Tile, x: &Rounded, tokens: Range<usize>, put: &mut impl FnMut(usize, &Floats)) {
        // SAFETY: the instructions are enabled.
        unsafe { by_form::<x86::Avx2>(tile, x, tokens, put) }
    }
    match instructions {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: they were found on this CPU.
        Instructions::Vnni => unsafe { vnni(tile, x, tokens, &mut put) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx2 => unsafe { avx2(tile, x, tokens, &mut put) },
        // SAFETY: plain code needs no instructions.
        _ => unsafe { by_form::<Plain>(tile, x, tokens, &mut put) },
    }
}
