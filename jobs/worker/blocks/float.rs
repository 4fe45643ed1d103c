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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_as_the_half_crate_widens_it() {
        for bits in 0..=u16::MAX {
            let (got, want) = (from_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got}, not {want}");
        }
    }
}
