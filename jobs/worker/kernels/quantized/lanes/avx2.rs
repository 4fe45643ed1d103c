//! AVX2: a register for each half of the sixteen rows.

use std::arch::x86_64::*;

use super::{Floats, Halves, Lanes, Words};

pub(in crate::kernels::quantized) struct Avx2;

impl Lanes for Avx2 {
    type Words = [__m256i; 2];
    type Sums = [__m256i; 2];
    type Floats = [__m256; 2];
    const TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn load(words: &Words) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let at: *const __m256i = words.0.as_ptr().cast();
            [_mm256_load_si256(at), _mm256_load_si256(at.add(1))]
        }
    }

    #[inline(always)]
    unsafe fn store(words: [__m256i; 2], into: &mut Words) {
        // SAFETY: by the trait's contract.
        unsafe {
            let at: *mut __m256i = into.0.as_mut_ptr().cast();
            _mm256_store_si256(at, words[0]);
            _mm256_store_si256(at.add(1), words[1]);
        }
    }

    #[inline(always)]
    unsafe fn and(words: [__m256i; 2], mask: u32) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let mask = _mm256_set1_epi32(mask as i32);
            [_mm256_and_si256(words[0], mask), _mm256_and_si256(words[1], mask)]
        }
    }

    #[inline(always)]
    unsafe fn xor(words: [__m256i; 2], mask: u32) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let mask = _mm256_set1_epi32(mask as i32);
            [_mm256_xor_si256(words[0], mask), _mm256_xor_si256(words[1], mask)]
        }
    }

    #[inline(always)]
    unsafe fn or(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let bits = _mm256_set1_epi32(BITS as i32);
            [_mm256_srlv_epi32(words[0], bits), _mm256_srlv_epi32(words[1], bits)]
        }
    }

    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let bits = _mm256_set1_epi32(BITS as i32);
            [_mm256_sllv_epi32(words[0], bits), _mm256_sllv_epi32(words[1], bits)]
        }
    }

    #[inline(always)]
    unsafe fn half(words: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let [a, b] = Self::and(words, 0xffff);
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves))]
        }
    }

    #[inline(always)]
    unsafe fn load_halves(halves: &Halves) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let at: *const __m128i = halves.0.as_ptr().cast();
            [_mm256_cvtph_ps(_mm_load_si128(at)), _mm256_cvtph_ps(_mm_load_si128(at.add(1)))]
        }
    }

    #[inline(always)]
    unsafe fn number(words: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_cvtepi32_ps(words[0]), _mm256_cvtepi32_ps(words[1])] }
    }

    #[inline(always)]
    unsafe fn load_floats(floats: &Floats) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe {
            let at = floats.0.as_ptr();
            [_mm256_load_ps(at), _mm256_load_ps(at.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn store_floats(floats: [__m256; 2], into: &mut Floats) {
        // SAFETY: by the trait's contract.
        unsafe {
            let at = into.0.as_mut_ptr();
            _mm256_store_ps(at, floats[0]);
            _mm256_store_ps(at.add(8), floats[1]);
        }
    }

    #[inline(always)]
    unsafe fn same(float: f32) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_set1_ps(float); 2] }
    }

    #[inline(always)]
    unsafe fn plus(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn times(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
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
            let four = |codes: __m256i| {
                let pairs = if WIDE {
                    let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
                } else {
                    _mm256_maddubs_epi16(codes, x)
                };
                _mm256_madd_epi16(pairs, ones)
            };
            [_mm256_add_epi32(sums[0], four(codes[0])), _mm256_add_epi32(sums[1], four(codes[1]))]
        }
    }

    #[inline(always)]
    unsafe fn sums_as_floats(sums: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: by the trait's contract.
        unsafe { Self::number(sums) }
    }
}
