//! Blocks of 32 values with one scale, ggml's first formats. A block begins with its scale as f16.
//!
//! | format | after the scale | a value is |
//! |---|---|---|
//! | Q4_0 | 16 bytes of codes | `scale * (code - 8)` |
//! | Q4_1 | the smallest value as f16, 16 bytes of codes | `scale * code + min` |
//! | Q5_0 | 4 bytes of fifth bits, 16 bytes of codes | `scale * (code - 16)` |
//! | Q5_1 | the smallest value, 4 bytes of fifth bits, 16 bytes of codes | `scale * code + min` |
//! | Q8_0 | 32 signed bytes | `scale * code` |
//!
//! Byte `i` of the codes holds the low four bits of value `i` in its lower half and those of value `i + 16` in its upper
//! one; bit `i` of the fifth bits (a little-endian word) belongs to value `i`.

mod searched;

use searched::Found;

use super::float::{half_at, to_f16};
use super::of_row;
use crate::kernels::simd::dispatched;

/// Values of a block.
const LEN: usize = 32;
type Values = [f32; LEN];
type Codes = [u8; LEN];

/// The codes of four bits that begin at byte `at`.
#[inline(always)]
fn nibbles(block: &[u8], at: usize) -> Codes {
    let bytes = &block[at..at + LEN / 2];
    let mut codes = [0; LEN];
    for i in 0..LEN / 2 {
        codes[i] = bytes[i] & 15;
        codes[i + LEN / 2] = bytes[i] >> 4;
    }
    codes
}

/// The codes of five bits whose fifth ones begin at byte `at`.
#[inline(always)]
fn five_bits(block: &[u8], at: usize) -> Codes {
    let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let mut codes = nibbles(block, at + 4);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((high >> i & 1) as u8) << 4;
    }
    codes
}

/// `scale * (code - zero)`.
#[inline(always)]
fn centred(codes: &Codes, zero: i8, scale: f32, into: &mut Values) {
    for i in 0..LEN {
        into[i] = f32::from(codes[i] as i8 - zero) * scale;
    }
}

/// `scale * code + min`.
#[inline(always)]
fn raised(codes: &Codes, scale: f32, min: f32, into: &mut Values) {
    for i in 0..LEN {
        into[i] = f32::from(codes[i]) * scale + min;
    }
}

dispatched! {
    pub(super) fn decode_q4_0(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<18, LEN>(bytes, into) {
            centred(&nibbles(block, 2), 8, half_at(block, 0), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q4_1(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<20, LEN>(bytes, into) {
            raised(&nibbles(block, 4), half_at(block, 0), half_at(block, 2), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q5_0(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<22, LEN>(bytes, into) {
            centred(&five_bits(block, 2), 16, half_at(block, 0), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q5_1(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<24, LEN>(bytes, into) {
            raised(&five_bits(block, 4), half_at(block, 0), half_at(block, 2), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q8_0(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<34, LEN>(bytes, into) {
            let scale = half_at(block, 0);
            for (value, code) in into.iter_mut().zip(&block[2..]) {
                *value = f32::from(*code as i8) * scale;
            }
        }
    }
}

/// A number of `0..=top` without its fraction, NaN as 0.
#[inline(always)]
fn cut_off(value: f32, top: f32) -> u8 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < top { value } else { top };
    // SAFETY: it is a number from 0 to 31. (The cast with `as`, which asks again, does not become vector code.)
    unsafe { value.to_int_unchecked::<i32>() as u8 }
}

/// `value` to the nearest whole number from -127 to 127, halves away from zero: the largest number below one half lifts
/// every fraction of a half or more over the next whole number, and none that is smaller.
#[inline(always)]
fn nearest(value: f32) -> i8 {
    let value = value + f32::copysign(0.499_999_97, value);
    let value = if value > -127.0 { value } else { -127.0 };
    let value = if value < 127.0 { value } else { 127.0 };
    // SAFETY: it is a number from -127 to 127: NaN is not above -127.
    unsafe { value.to_int_unchecked::<i32>() as i8 }
}

/// The value of largest magnitude, the first of equals.
#[inline(always)]
fn extreme(values: &Values) -> f32 {
    let (low, high) = low_and_high(values);
    if high == 0.0 && low == 0.0 {
        // Not a negative zero.
        return 0.0;
    }
    if high == -low {
        return values.iter().copied().find(|value| value.abs() == high).unwrap_or(0.0);
    }
    // Which sign it has cannot be foreseen: a choice, not a branch.
    if high > -low { high } else { low }
}

#[inline(always)]
fn low_and_high(values: &Values) -> (f32, f32) {
    let mut low = [f32::MAX; 16];
    let mut high = [f32::MIN; 16];
    for values in values.as_chunks::<16>().0 {
        for lane in 0..16 {
            low[lane] = if values[lane] < low[lane] { values[lane] } else { low[lane] };
            high[lane] = if values[lane] > high[lane] { values[lane] } else { high[lane] };
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            low[lane] = if low[lane + half] < low[lane] { low[lane + half] } else { low[lane] };
            high[lane] = if high[lane + half] > high[lane] { high[lane + half] } else { high[lane] };
        }
    }
    (low[0], high[0])
}

/// One over a scale, or zero.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&to_f16(value).to_le_bytes());
}

#[inline(always)]
fn put_nibbles(codes: &Codes, block: &mut [u8], at: usize) {
    let bytes = &mut block[at..at + LEN / 2];
    for i in 0..LEN / 2 {
        bytes[i] = codes[i] & 15 | codes[i + LEN / 2] << 4;
    }
}

#[inline(always)]
fn put_five_bits(codes: &Codes, block: &mut [u8], at: usize) {
    let high = codes.iter().enumerate().fold(0, |high, (i, code)| high | u32::from(code >> 4 & 1) << i);
    block[at..at + 4].copy_from_slice(&high.to_le_bytes());
    put_nibbles(codes, block, at + 4);
}

/// Codes around `-bottom`, and their scale: the value of largest magnitude becomes code 0, without a search.
#[inline(always)]
fn rounded_centred(values: &Values, bottom: f32) -> (f32, Codes) {
    let scale = extreme(values) / bottom;
    let inverse = inverse(scale);
    let mut codes = [0; LEN];
    for i in 0..LEN {
        codes[i] = cut_off(values[i] * inverse + (0.5 - bottom), -1.0 - 2.0 * bottom);
    }
    (scale, codes)
}

/// Codes `0..=top`, their scale and the smallest value, without a search.
#[inline(always)]
fn rounded_raised(values: &Values, top: f32) -> (f32, f32, Codes) {
    let (low, high) = low_and_high(values);
    let scale = (high - low) / top;
    let inverse = inverse(scale);
    let mut codes = [0; LEN];
    for i in 0..LEN {
        codes[i] = cut_off((values[i] - low) * inverse + 0.5, top);
    }
    (scale, low, codes)
}

/// The blocks of a row beside the room for their bytes.
#[inline(always)]
fn to_encode<'a, const BYTES: usize>(
    values: &'a [f32],
    into: &'a mut [u8],
) -> impl Iterator<Item = (&'a Values, &'a mut [u8; BYTES])> {
    values.as_chunks().0.iter().zip(into.as_chunks_mut().0)
}

dispatched! {
    pub(super) fn encode_q4_0(values: &[f32], into: &mut [u8]) {
        for (values, block) in to_encode::<18>(values, into) {
            let (scale, codes) = rounded_centred(values, -8.0);
            put_half(block, 0, scale);
            put_nibbles(&codes, block, 2);
        }
    }
}

dispatched! {
    pub(super) fn encode_q4_1(values: &[f32], into: &mut [u8]) {
        for (values, block) in to_encode::<20>(values, into) {
            let (scale, min, codes) = rounded_raised(values, 15.0);
            put_half(block, 0, scale);
            put_half(block, 2, min);
            put_nibbles(&codes, block, 4);
        }
    }
}

dispatched! {
    pub(super) fn encode_q5_0(values: &[f32], into: &mut [u8]) {
        for (values, block) in to_encode::<22>(values, into) {
            let (scale, codes) = rounded_centred(values, -16.0);
            put_half(block, 0, scale);
            put_five_bits(&codes, block, 2);
        }
    }
}

dispatched! {
    pub(super) fn encode_q5_1(values: &[f32], into: &mut [u8]) {
        for (values, block) in to_encode::<24>(values, into) {
            let (scale, min, codes) = rounded_raised(values, 31.0);
            put_half(block, 0, scale);
            put_half(block, 2, min);
            put_five_bits(&codes, block, 4);
        }
    }
}

dispatched! {
    pub(super) fn encode_q8_0(values: &[f32], into: &mut [u8]) {
        for (values, block) in to_encode::<34>(values, into) {
            let (low, high) = low_and_high(values);
            let scale = (if high > -low { high } else { low }).abs() / 127.0;
            let inverse = inverse(scale);
            put_half(block, 0, scale);
            for (byte, value) in block[2..].iter_mut().zip(values) {
                *byte = nearest(*value * inverse) as u8;
            }
        }
    }
}

/// By a search that heeds which values matter.
pub(super) fn encode_q4_0_by(importance: &[f32], values: &[f32], into: &mut [u8]) {
    let blocks = into.as_chunks_mut::<18>().0;
    searched::centred(values, importance, -8.0, |index, found: Found| {
        let block = &mut blocks[index];
        block[..2].copy_from_slice(&found.scale.to_le_bytes());
        put_nibbles(&found.codes, block, 2);
    });
}

/// By a search that heeds which values matter.
pub(super) fn encode_q4_1_by(importance: &[f32], values: &[f32], into: &mut [u8]) {
    let blocks = into.as_chunks_mut::<20>().0;
    searched::raised(values, importance, 15.0, |index, found: Found| {
        let block = &mut blocks[index];
        block[..2].copy_from_slice(&found.scale.to_le_bytes());
        block[2..4].copy_from_slice(&found.min.to_le_bytes());
        put_nibbles(&found.codes, block, 4);
    });
}

/// By a search that heeds which values matter.
pub(super) fn encode_q5_0_by(importance: &[f32], values: &[f32], into: &mut [u8]) {
    let blocks = into.as_chunks_mut::<22>().0;
    searched::centred(values, importance, -16.0, |index, found: Found| {
        let block = &mut blocks[index];
        block[..2].copy_from_slice(&found.scale.to_le_bytes());
        put_five_bits(&found.codes, block, 2);
    });
}

/// By a search that heeds which values matter.
pub(super) fn encode_q5_1_by(importance: &[f32], values: &[f32], into: &mut [u8]) {
    let blocks = into.as_chunks_mut::<24>().0;
    searched::raised(values, importance, 31.0, |index, found: Found| {
        let block = &mut blocks[index];
        block[..2].copy_from_slice(&found.scale.to_le_bytes());
        block[2..4].copy_from_slice(&found.min.to_le_bytes());
        put_five_bits(&found.codes, block, 4);
    });
}

#[cfg(test)]
mod tests;
