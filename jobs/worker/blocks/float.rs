//! Values held as they are: f32, f16 and bf16, little-endian.
//!
//! The conversions are written without branches or tables, so that the compiler makes vector code of the loops; they
//! equal those of the CPU's own instructions. f16 has 1 sign bit, 5 of exponent and 10 of mantissa.

use crate::kernels::simd::dispatched;

/// The value of f16 bits. Shifting exponent and mantissa to where f32 has them leaves a number that is 2^112 too small;
/// the product puts that right, for subnormal numbers too.
#[inline(always)]
pub(crate) fn from_f16(bits: u16) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits((112 + 127) << 23);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * TWO_TO_112).to_bits();
    let value = if bits & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

/// The f16 at a byte of a block.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The f16 nearest to a value, ties to even; too large a value becomes infinite, and a NaN a quiet one.
///
/// Below the smallest normal f16 the sum with a power of two makes the CPU round at the right bit. (Methods of Fabian
/// Giesen, <https://gist.github.com/rygorous/2156668>.)
#[inline(always)]
pub(super) fn to_f16(value: f32) -> u16 {
    const INFINITE: u32 = 0x7f80_0000;
    const TOO_LARGE: u32 = (127 + 16) << 23;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    /// 0.5: its last place is 2^-24, that of f16's subnormal numbers.
    const ROUND_SUBNORMAL: u32 = 126 << 23;
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(ROUND_SUBNORMAL)).to_bits() - ROUND_SUBNORMAL;
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let special = if magnitude > INFINITE { 0x7e00 | magnitude >> 13 & 0x1ff } else { 0x7c00 };
    let rounded = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    let rounded = if magnitude >= TOO_LARGE { special } else { rounded };
    rounded as u16 | (bits >> 16) as u16 & 0x8000
}

/// The bf16 nearest to a value, ties to even; a NaN becomes a quiet one.
#[inline(always)]
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 }
}

#[inline(always)]
fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

dispatched! {
    pub(super) fn decode_f32(bytes: &[u8], into: &mut [f32]) {
        for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }
}

dispatched! {
    pub(super) fn decode_f16(bytes: &[u8], into: &mut [f32]) {
        for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
            *value = from_f16(u16::from_le_bytes(*bytes));
        }
    }
}

dispatched! {
    pub(super) fn decode_bf16(bytes: &[u8], into: &mut [f32]) {
        for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
            *value = from_bf16(u16::from_le_bytes(*bytes));
        }
    }
}

dispatched! {
    pub(super) fn encode_f32(values: &[f32], into: &mut [u8]) {
        for (value, bytes) in values.iter().zip(into.as_chunks_mut().0) {
            *bytes = value.to_le_bytes();
        }
    }
}

dispatched! {
    pub(super) fn encode_f16(values: &[f32], into: &mut [u8]) {
        for (value, bytes) in values.iter().zip(into.as_chunks_mut().0) {
            *bytes = to_f16(*value).to_le_bytes();
        }
    }
}

dispatched! {
    pub(super) fn encode_bf16(values: &[f32], into: &mut [u8]) {
        for (value, bytes) in values.iter().zip(into.as_chunks_mut().0) {
            *bytes = to_bf16(*value).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values around every f16, where rounding decides, and a spread over all of f32.
    fn telling_values() -> impl Iterator<Item = f32> {
        let around = (0..=u16::MAX).flat_map(|bits| {
            let next = half::f16::from_bits(bits.wrapping_add(1)).to_f32();
            let middle = (half::f16::from_bits(bits).to_f32() + next) / 2.0;
            [middle.to_bits().wrapping_sub(1), middle.to_bits(), middle.to_bits().wrapping_add(1)]
        });
        around.chain((0..=u32::MAX).step_by(10_007)).map(f32::from_bits)
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        for value in telling_values() {
            let (got, want) = (to_f16(value), half::f16::from_f32(value));
            assert!(
                got == want.to_bits() || want.is_nan() && from_f16(got).is_nan(),
                "{value:e}: {got:#x}, not {want}"
            );
            assert_eq!(to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value:e}");
        }
    }

    #[test]
    fn every_f16_widens_as_the_half_crate_widens_it() {
        for bits in 0..=u16::MAX {
            let (got, want) = (from_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got}, not {want}");
        }
    }
}
