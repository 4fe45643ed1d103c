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

use super::float::from_f16;
use crate::kernels::simd::dispatched;

/// Values of a block.
const LEN: usize = 32;
type Values = [f32; LEN];
type Codes = [u8; LEN];

/// The f16 at a byte of a block.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

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

/// The blocks of a row beside the room for their values.
#[inline(always)]
fn blocks<'a, const BYTES: usize>(
    bytes: &'a [u8],
    into: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut Values)> {
    bytes.as_chunks().0.iter().zip(into.as_chunks_mut().0)
}

dispatched! {
    pub(super) fn decode_q4_0(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in blocks::<18>(bytes, into) {
            centred(&nibbles(block, 2), 8, half_at(block, 0), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q4_1(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in blocks::<20>(bytes, into) {
            raised(&nibbles(block, 4), half_at(block, 0), half_at(block, 2), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q5_0(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in blocks::<22>(bytes, into) {
            centred(&five_bits(block, 2), 16, half_at(block, 0), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q5_1(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in blocks::<24>(bytes, into) {
            raised(&five_bits(block, 4), half_at(block, 0), half_at(block, 2), into);
        }
    }
}

dispatched! {
    pub(super) fn decode_q8_0(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in blocks::<34>(bytes, into) {
            let scale = half_at(block, 0);
            for (value, code) in into.iter_mut().zip(&block[2..]) {
                *value = f32::from(*code as i8) * scale;
            }
        }
    }
}
