//! Without any instruction set: the reference, and what other CPUs run.

use super::{Floats, Halves, Lanes, ROWS, Words};
use crate::blocks::from_f16;

pub(in crate::kernels::quantized) struct Plain;

/// Written as a loop, which compilers make vector code of.
#[inline(always)]
fn each<T: Copy>(start: T, value: impl Fn(usize) -> T) -> [T; ROWS] {
    let mut values = [start; ROWS];
    for (row, into) in values.iter_mut().enumerate() {
        *into = value(row);
    }
    values
}

impl Lanes for Plain {
    type Words = [u32; ROWS];
    type Sums = [i32; ROWS];
    type Floats = [f32; ROWS];
    const TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn load(words: &Words) -> [u32; ROWS] {
        words.0
    }

    #[inline(always)]
    unsafe fn store(words: [u32; ROWS], into: &mut Words) {
        into.0 = words;
    }

    #[inline(always)]
    unsafe fn and(words: [u32; ROWS], mask: u32) -> [u32; ROWS] {
        each(0, |row| words[row] & mask)
    }

    #[inline(always)]
    unsafe fn xor(words: [u32; ROWS], mask: u32) -> [u32; ROWS] {
        each(0, |row| words[row] ^ mask)
    }

    #[inline(always)]
    unsafe fn or(a: [u32; ROWS], b: [u32; ROWS]) -> [u32; ROWS] {
        each(0, |row| a[row] | b[row])
    }

    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: [u32; ROWS]) -> [u32; ROWS] {
        each(0, |row| words[row] >> BITS)
    }

    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: [u32; ROWS]) -> [u32; ROWS] {
        each(0, |row| words[row] << BITS)
    }

    #[inline(always)]
    unsafe fn half(words: [u32; ROWS]) -> [f32; ROWS] {
        each(0.0, |row| from_f16(words[row] as u16))
    }

    #[inline(always)]
    unsafe fn load_halves(halves: &Halves) -> [f32; ROWS] {
        each(0.0, |row| from_f16(halves.0[row]))
    }

    #[inline(always)]
    unsafe fn number(words: [u32; ROWS]) -> [f32; ROWS] {
        each(0.0, |row| words[row] as i32 as f32)
    }

    #[inline(always)]
    unsafe fn load_floats(floats: &Floats) -> [f32; ROWS] {
        floats.0
    }

    #[inline(always)]
    unsafe fn store_floats(floats: [f32; ROWS], into: &mut Floats) {
        into.0 = floats;
    }

    #[inline(always)]
    unsafe fn same(float: f32) -> [f32; ROWS] {
        [float; ROWS]
    }

    #[inline(always)]
    unsafe fn plus(a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        each(0.0, |row| a[row] + b[row])
    }

    #[inline(always)]
    unsafe fn times(a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        each(0.0, |row| a[row] * b[row])
    }

    #[inline(always)]
    unsafe fn start<const WIDE: bool>(at: i32) -> [i32; ROWS] {
        [at; ROWS]
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sums: [i32; ROWS], codes: [u32; ROWS], x: i32) -> [i32; ROWS] {
        let x = x.to_le_bytes();
        each(0, |row| {
            let codes = codes[row].to_le_bytes();
            (0..4).fold(sums[row], |sum, i| sum + i32::from(codes[i]) * i32::from(x[i] as i8))
        })
    }

    #[inline(always)]
    unsafe fn sums_as_floats(sums: [i32; ROWS]) -> [f32; ROWS] {
        each(0.0, |row| sums[row] as f32)
    }
}
