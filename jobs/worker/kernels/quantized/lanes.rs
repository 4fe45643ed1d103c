//! Sixteen rows side by side: what integer products work on, in the registers of several instruction sets.
//!
//! A row's sum over its blocks stays in a lane of its own, so that no register is ever summed across. Sums of products
//! of codes are exact; what is rounded is rounded lane by lane and in the same order everywhere, so every instruction
//! set gives the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

pub(super) use self::plain::Plain;
#[cfg(target_arch = "x86_64")]
pub(super) use self::{avx2::Avx2, avx512::Avx512};

/// Rows that are computed together: as many as the widest registers have lanes.
pub(super) const ROWS: usize = 16;

/// A word of each of the rows, in memory: four codes of a byte each, or bits of another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Words(pub(super) [u32; ROWS]);

/// A number for each of the rows, in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Floats(pub(super) [f32; ROWS]);

/// An f16's bits for each of the rows, in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(32))]
pub(super) struct Halves(pub(super) [u16; ROWS]);

impl Halves {
    pub(super) const ZERO: Self = Self([0; ROWS]);
}

impl Words {
    pub(super) const ZERO: Self = Self([0; ROWS]);
}

impl Floats {
    pub(super) const ZERO: Self = Self([0.0; ROWS]);
}

/// The instructions that a product is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    Plain,
    Avx2,
    /// With VNNI: four products of bytes are added at once.
    Avx512,
}

impl Instructions {
    /// The best of this CPU.
    pub(super) fn best() -> Self {
        use crate::kernels::simd::{Level, level};
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if is_x86_feature_detected!("avx512vnni") => Self::Avx512,
            Level::Avx512 | Level::Avx2 => Self::Avx2,
            Level::Baseline => Self::Plain,
        }
    }

    /// All that this CPU has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let best = Self::best();
        [Self::Plain, Self::Avx2, Self::Avx512].into_iter().filter(|&some| some as u8 <= best as u8).collect()
    }
}

/// Registers that hold something for each of sixteen rows.
///
/// # Safety
/// Every function may be called only where the CPU has the instructions.
pub(super) trait Lanes {
    type Words: Copy;
    type Sums: Copy;
    type Floats: Copy;
    /// Tokens that there are registers for.
    const TOKENS: usize;

    unsafe fn load(words: &Words) -> Self::Words;
    unsafe fn store(words: Self::Words, into: &mut Words);
    unsafe fn and(words: Self::Words, mask: u32) -> Self::Words;
    unsafe fn xor(words: Self::Words, mask: u32) -> Self::Words;
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words;
    unsafe fn right<const BITS: u32>(words: Self::Words) -> Self::Words;
    unsafe fn left<const BITS: u32>(words: Self::Words) -> Self::Words;

    /// The f16 in the lower half of each word.
    unsafe fn half(words: Self::Words) -> Self::Floats;
    unsafe fn load_halves(halves: &Halves) -> Self::Floats;
    /// Words as numbers with a sign.
    unsafe fn number(words: Self::Words) -> Self::Floats;

    unsafe fn load_floats(floats: &Floats) -> Self::Floats;
    unsafe fn store_floats(floats: Self::Floats, into: &mut Floats);
    unsafe fn same(float: f32) -> Self::Floats;
    unsafe fn plus(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn times(a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// What a group's sums start from: the number that takes the zero of the weight's codes into account.
    unsafe fn start<const WIDE: bool>(at: i32) -> Self::Sums;
    /// Adds to each lane the inner product of four codes of the weight (no sign) and four of the activations (with
    /// sign). With `WIDE` the weight's codes use all eight bits and their zero is 128, else at most six bits.
    unsafe fn dot<const WIDE: bool>(sums: Self::Sums, codes: Self::Words, x: i32) -> Self::Sums;
    unsafe fn sums_as_floats(sums: Self::Sums) -> Self::Floats;
}
