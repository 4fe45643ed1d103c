//! The inner loop's instructions on x86-64.

use std::arch::x86_64::*;

use super::{Floats, Lanes, Words};

pub(super) struct Avx2;

/// A register for each half of the rows.
impl Lanes for Avx2 {
    type Codes = [__m256i; 2];
    type Sums = [__m256i; 2];
    type Floats = [__m256; 2];
    const MANY: bool = false;

    #[inline(always)]
    unsafe fn codes(words: &Words) -> [__m256i; 2] {
        // SAFETY: by the trait's contract; the words are aligned to 64 bytes.
        unsafe { [0, 8].map(|row| _mm256_load_si256(words.0.as_ptr().add(row).cast())) }
    }

    #[inline(always)]
    unsafe fn start<const WIDE: bool>(at: i32) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_set1_epi32(if WIDE { 0 } else { at }); 2] }
    }

    /// Two products of bytes are added in 16 bits first: of six bits and seven they cannot overflow. Wide codes are
    /// taken as the signed numbers that they stand for (so nothing is left for the start to take into account), and
    /// their signs are given to the activations: twice 128 times 127 is 32512.
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sums: [__m256i; 2], codes: [__m256i; 2], x: i32) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let (ones, x) = (_mm256_set1_epi16(1), _mm256_set1_epi32(x));
            let pairs = |half: usize| {
                if WIDE {
                    let signed = _mm256_xor_si256(codes[half], _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
                } else {
                    _mm256_maddubs_epi16(codes[half], x)
                }
            };
            [0, 1].map(|half| _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs(half), ones)))
        }
    }

    #[inline(always)]
    unsafe fn zero() -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn scaled(y: [__m256; 2], sums: [__m256i; 2], scales: &Floats, factor: f32) -> [__m256; 2] {
        // SAFETY: by the trait's contract; the numbers are aligned to 64 bytes.
        unsafe {
            [0, 1].map(|half| {
                let scales = _mm256_load_ps(scales.0.as_ptr().add(8 * half));
                let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[half]), scales);
                _mm256_add_ps(y[half], _mm256_mul_ps(product, _mm256_set1_ps(factor)))
            })
        }
    }

    #[inline(always)]
    unsafe fn raised(y: [__m256; 2], minima: &Floats, factor: f32) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            [0, 1].map(|half| {
                let minima = _mm256_load_ps(minima.0.as_ptr().add(8 * half));
                _mm256_add_ps(y[half], _mm256_mul_ps(minima, _mm256_set1_ps(factor)))
            })
        }
    }

    #[inline(always)]
    unsafe fn store(y: [__m256; 2]) -> Floats {
        // SAFETY: both are 16 f32.
        unsafe { std::mem::transmute(y) }
    }
}

pub(super) struct Vnni;

impl Lanes for Vnni {
    type Codes = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    const MANY: bool = true;

    #[inline(always)]
    unsafe fn codes(words: &Words) -> __m512i {
        // SAFETY: by the trait's contract; the words are aligned to 64 bytes.
        unsafe { _mm512_load_si512(words.0.as_ptr().cast()) }
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
    unsafe fn zero() -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn scaled(y: __m512, sums: __m512i, scales: &Floats, factor: f32) -> __m512 {
        // SAFETY: by the trait's contract; the numbers are aligned to 64 bytes.
        unsafe {
            let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_load_ps(scales.0.as_ptr()));
            _mm512_add_ps(y, _mm512_mul_ps(product, _mm512_set1_ps(factor)))
        }
    }

    #[inline(always)]
    unsafe fn raised(y: __m512, minima: &Floats, factor: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(y, _mm512_mul_ps(_mm512_load_ps(minima.0.as_ptr()), _mm512_set1_ps(factor))) }
    }

    #[inline(always)]
    unsafe fn store(y: __m512) -> Floats {
        // SAFETY: both are 16 f32.
        unsafe { std::mem::transmute(y) }
    }
}
