//! AVX-512 with VNNI: a register for all sixteen rows.

use std::arch::x86_64::*;

use super::{Floats, Halves, Lanes, Words};

pub(in crate::kernels::quantized) struct Avx512;

impl Lanes for Avx512 {
    type Words = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    const TOKENS: usize = 8;

    #[inline(always)]
    unsafe fn load(words: &Words) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_load_si512(words.0.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn store(words: __m512i, into: &mut Words) {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_store_si512(into.0.as_mut_ptr().cast(), words) }
    }

    #[inline(always)]
    unsafe fn and(words: __m512i, mask: u32) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_and_si512(words, _mm512_set1_epi32(mask as i32)) }
    }

    #[inline(always)]
    unsafe fn xor(words: __m512i, mask: u32) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_xor_si512(words, _mm512_set1_epi32(mask as i32)) }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: __m512i) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_srlv_epi32(words, _mm512_set1_epi32(BITS as i32)) }
    }

    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: __m512i) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_sllv_epi32(words, _mm512_set1_epi32(BITS as i32)) }
    }

    #[inline(always)]
    unsafe fn half(words: __m512i) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)) }
    }

    #[inline(always)]
    unsafe fn load_halves(halves: &Halves) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm256_load_si256(halves.0.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn number(words: __m512i) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtepi32_ps(words) }
    }

    #[inline(always)]
    unsafe fn load_floats(floats: &Floats) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_load_ps(floats.0.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store_floats(floats: __m512, into: &mut Floats) {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_store_ps(into.0.as_mut_ptr(), floats) }
    }

    #[inline(always)]
    unsafe fn same(float: f32) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_set1_ps(float) }
    }

    #[inline(always)]
    unsafe fn plus(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn times(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn start<const WIDE: bool>(at: i32) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_set1_epi32(at) }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn sums_as_floats(sums: __m512i) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { Self::number(sums) }
    }
}
