//! Super-blocks of 256 values, ggml's "K-quants": sub-blocks have scales of few bits, and those have a scale themselves.
//!
//! | format | sub-blocks | bytes, in order | a value is |
//! |---|---|---|---|
//! | Q2_K | 16 of 16 | 16 of scales, 64 of codes, scale, min | `scale * s * code - min * m` |
//! | Q3_K | 16 of 16 | 32 of third bits, 64 of codes, 12 of scales, scale | `scale * s * (code - 4)` |
//! | Q4_K | 8 of 32 | scale, min, 12 of scales, 128 of codes | `scale * s * code - min * m` |
//! | Q5_K | 8 of 32 | scale, min, 12 of scales, 32 of fifth bits, 128 of codes | `scale * s * code - min * m` |
//! | Q6_K | 16 of 16 | 128 of low codes, 64 of high codes, 16 of scales, scale | `scale * s * (code - 32)` |
//!
//! `scale` and `min` are f16, `s` and `m` belong to the sub-block. How they are packed:
//!
//! - Q2_K: `s` in the lower half of a byte, `m` in its upper half.
//! - Q3_K: `s + 32` in six bits: the low four as sixteen halves of eight bytes (first all lower halves), the high two in
//!   four bytes, byte `j % 4` holding those of sub-block `j` at bit `2 (j / 4)`.
//! - Q4_K, Q5_K: `s` and `m` in six bits. The first four of each are the low six bits of bytes 0-3 and 4-7; of the last
//!   four, bytes 8-11 hold the low four bits (`s` below, `m` above), and the two high bits of bytes 0-7 the rest.
//! - Q6_K: `s` is a signed byte.
//!
//! Codes: two bits are packed by halves of 128 values: byte `i` of a half's 32 bytes holds values `i`, `i + 32`, `i + 64`
//! and `i + 96`, lowest bits first. Four bits are packed by quarters of 64: byte `i` of 32 holds values `i` and `i + 32`;
//! but Q6_K's low four by halves: byte `i` of 64 holds values `i` and `i + 64`. A plane of single high bits is 32 bytes:
//! byte `i` holds, at bit `j`, that of value `32 j + i`.

mod encode;

use encode::{Centred, Graded, centred as choose_centred, graded};

use super::float::half_at;
use super::of_row;
use crate::kernels::simd::dispatched;

/// Values of a super-block.
pub(super) const LEN: usize = 256;
pub(super) type Values = [f32; LEN];
pub(super) type Codes = [u8; LEN];

/// Adds the two-bit codes of 64 bytes, shifted to where they belong.
#[inline(always)]
fn or_two_bits(bytes: &[u8], shift: u32, codes: &mut Codes) {
    for (half, codes) in codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let bytes = &bytes[32 * half..32 * half + 32];
        for j in 0..4 {
            for i in 0..32 {
                codes[32 * j + i] |= (bytes[i] >> (2 * j) & 3) << shift;
            }
        }
    }
}

/// Adds a plane of single bits, shifted to where they belong.
#[inline(always)]
fn or_bit_plane(bytes: &[u8], shift: u32, codes: &mut Codes) {
    let bytes = &bytes[..32];
    for j in 0..8 {
        for i in 0..32 {
            codes[32 * j + i] |= (bytes[i] >> j & 1) << shift;
        }
    }
}

/// Codes of four bits: each group of `2 * stride` values lies in `stride` bytes.
#[inline(always)]
fn nibbles<const STRIDE: usize>(bytes: &[u8]) -> Codes {
    let mut codes = [0; LEN];
    for group in 0..LEN / (2 * STRIDE) {
        let bytes = &bytes[STRIDE * group..STRIDE * (group + 1)];
        let codes = &mut codes[2 * STRIDE * group..2 * STRIDE * (group + 1)];
        for i in 0..STRIDE {
            codes[i] = bytes[i] & 15;
            codes[i + STRIDE] = bytes[i] >> 4;
        }
    }
    codes
}

/// The reverse of [`or_two_bits`].
#[inline(always)]
fn pack_two_bits(codes: &Codes, shift: u32, bytes: &mut [u8]) {
    for (half, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
        let bytes = &mut bytes[32 * half..32 * half + 32];
        for i in 0..32 {
            let two = |j: usize| (codes[32 * j + i] >> shift & 3) << (2 * j);
            bytes[i] = two(0) | two(1) | two(2) | two(3);
        }
    }
}

/// The reverse of [`or_bit_plane`].
#[inline(always)]
fn pack_bit_plane(codes: &Codes, shift: u32, bytes: &mut [u8]) {
    let bytes = &mut bytes[..32];
    bytes.fill(0);
    for j in 0..8 {
        for i in 0..32 {
            bytes[i] |= (codes[32 * j + i] >> shift & 1) << j;
        }
    }
}

/// The reverse of [`nibbles`]; higher bits are passed over.
#[inline(always)]
fn pack_nibbles<const STRIDE: usize>(codes: &Codes, bytes: &mut [u8]) {
    for group in 0..LEN / (2 * STRIDE) {
        let bytes = &mut bytes[STRIDE * group..STRIDE * (group + 1)];
        let codes = &codes[2 * STRIDE * group..2 * STRIDE * (group + 1)];
        for i in 0..STRIDE {
            bytes[i] = codes[i] & 15 | codes[i + STRIDE] << 4;
        }
    }
}

/// The eight scales and mins of six bits.
#[inline(always)]
pub(super) fn unpack_scales_and_mins(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (s, m, both) = (bytes[j], bytes[j + 4], bytes[j + 8]);
        (scales[j], mins[j]) = (s & 63, m & 63);
        (scales[j + 4], mins[j + 4]) = (both & 15 | s >> 6 << 4, both >> 4 | m >> 6 << 4);
    }
    (scales, mins)
}

#[inline(always)]
fn pack_scales_and_mins(scales: &[u8; 8], mins: &[u8; 8], bytes: &mut [u8]) {
    for j in 0..4 {
        bytes[j] = scales[j] | scales[j + 4] >> 4 << 6;
        bytes[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        bytes[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
}

/// The sixteen scales of six bits, 32 too large.
#[inline(always)]
fn unpack_scales(bytes: &[u8]) -> [i8; 16] {
    let mut scales = [0; 16];
    for (j, scale) in scales.iter_mut().enumerate() {
        let low = if j < 8 { bytes[j] & 15 } else { bytes[j - 8] >> 4 };
        let high = bytes[8 + j % 4] >> (2 * (j / 4)) & 3;
        *scale = (low | high << 4) as i8 - 32;
    }
    scales
}

#[inline(always)]
fn pack_scales(scales: &[i8; 16], bytes: &mut [u8]) {
    bytes[..12].fill(0);
    for (j, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        bytes[j % 8] |= (scale & 15) << (4 * (j / 8));
        bytes[8 + j % 4] |= scale >> 4 << (2 * (j / 4));
    }
}

/// `scale * code - min`, sub-block by sub-block.
#[inline(always)]
fn lowered<const SUB: usize>(codes: &Codes, into: &mut Values, scale_and_min: impl Fn(usize) -> (f32, f32)) {
    let codes = codes.as_chunks::<SUB>().0.iter();
    for (j, (codes, into)) in codes.zip(into.as_chunks_mut::<SUB>().0).enumerate() {
        let (scale, min) = scale_and_min(j);
        for i in 0..SUB {
            into[i] = scale * f32::from(codes[i]) - min;
        }
    }
}

/// `scale * (code - zero)`, sub-block by sub-block.
#[inline(always)]
fn centred(codes: &Codes, zero: i8, into: &mut Values, scale: impl Fn(usize) -> f32) {
    let codes = codes.as_chunks::<16>().0.iter();
    for (j, (codes, into)) in codes.zip(into.as_chunks_mut::<16>().0).enumerate() {
        let scale = scale(j);
        for i in 0..16 {
            into[i] = scale * f32::from(codes[i] as i8 - zero);
        }
    }
}

dispatched! {
    pub(super) fn decode_q2k(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<84, LEN>(bytes, into) {
            let mut codes = [0; LEN];
            or_two_bits(&block[16..80], 0, &mut codes);
            let (scale, min) = (half_at(block, 80), half_at(block, 82));
            lowered::<16>(&codes, into, |j| (scale * f32::from(block[j] & 15), min * f32::from(block[j] >> 4)));
        }
    }
}

dispatched! {
    pub(super) fn decode_q3k(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<110, LEN>(bytes, into) {
            let mut codes = [0; LEN];
            or_two_bits(&block[32..96], 0, &mut codes);
            or_bit_plane(&block[..32], 2, &mut codes);
            let (scale, scales) = (half_at(block, 108), unpack_scales(&block[96..108]));
            centred(&codes, 4, into, |j| scale * f32::from(scales[j]));
        }
    }
}

dispatched! {
    pub(super) fn decode_q4k(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<144, LEN>(bytes, into) {
            let (scale, min) = (half_at(block, 0), half_at(block, 2));
            let (scales, mins) = unpack_scales_and_mins(&block[4..16]);
            let codes = nibbles::<32>(&block[16..]);
            lowered::<32>(&codes, into, |j| (scale * f32::from(scales[j]), min * f32::from(mins[j])));
        }
    }
}

dispatched! {
    pub(super) fn decode_q5k(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<176, LEN>(bytes, into) {
            let (scale, min) = (half_at(block, 0), half_at(block, 2));
            let (scales, mins) = unpack_scales_and_mins(&block[4..16]);
            let mut codes = nibbles::<32>(&block[48..]);
            or_bit_plane(&block[16..48], 4, &mut codes);
            lowered::<32>(&codes, into, |j| (scale * f32::from(scales[j]), min * f32::from(mins[j])));
        }
    }
}

dispatched! {
    pub(super) fn decode_q6k(bytes: &[u8], into: &mut [f32]) {
        for (block, into) in of_row::<210, LEN>(bytes, into) {
            let mut codes = nibbles::<64>(&block[..128]);
            or_two_bits(&block[128..192], 4, &mut codes);
            let scale = half_at(block, 208);
            centred(&codes, 32, into, |j| scale * f32::from(block[192 + j] as i8));
        }
    }
}

/// The values of a row's super-blocks, what they are multiplied with, and the room for their bytes.
#[inline(always)]
fn to_encode<'a, const BYTES: usize>(
    values: &'a [f32],
    importance: Option<&'a [f32]>,
    into: &'a mut [u8],
) -> impl Iterator<Item = (&'a Values, Option<&'a Values>, &'a mut [u8; BYTES])> {
    let importance = importance.map(|importance| importance.as_chunks().0);
    let blocks = values.as_chunks().0.iter().zip(into.as_chunks_mut().0);
    blocks.enumerate().map(move |(i, (values, block))| (values, importance.map(|importance| &importance[i]), block))
}

dispatched! {
    pub(super) fn encode_q2k(values: &[f32], importance: Option<&[f32]>, into: &mut [u8]) {
        for (values, importance, block) in to_encode::<84>(values, importance, into) {
            let Graded { scale, min, scales, mins, codes } =
                graded::<16, 16>(values, importance, 3.0, 15.0);
            for j in 0..16 {
                block[j] = scales[j] | mins[j] << 4;
            }
            pack_two_bits(&codes, 0, &mut block[16..80]);
            block[80..82].copy_from_slice(&scale.to_le_bytes());
            block[82..84].copy_from_slice(&min.to_le_bytes());
        }
    }
}

dispatched! {
    pub(super) fn encode_q3k(values: &[f32], importance: Option<&[f32]>, into: &mut [u8]) {
        for (values, importance, block) in to_encode::<110>(values, importance, into) {
            let Centred { scale, scales, codes } =
                choose_centred(values, importance, -4.0, -32.0);
            pack_bit_plane(&codes, 2, &mut block[..32]);
            pack_two_bits(&codes, 0, &mut block[32..96]);
            pack_scales(&scales, &mut block[96..108]);
            block[108..].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

dispatched! {
    pub(super) fn encode_q4k(values: &[f32], importance: Option<&[f32]>, into: &mut [u8]) {
        for (values, importance, block) in to_encode::<144>(values, importance, into) {
            let Graded { scale, min, scales, mins, codes } =
                graded::<8, 32>(values, importance, 15.0, 63.0);
            block[..2].copy_from_slice(&scale.to_le_bytes());
            block[2..4].copy_from_slice(&min.to_le_bytes());
            pack_scales_and_mins(&scales, &mins, &mut block[4..16]);
            pack_nibbles::<32>(&codes, &mut block[16..]);
        }
    }
}

dispatched! {
    pub(super) fn encode_q5k(values: &[f32], importance: Option<&[f32]>, into: &mut [u8]) {
        for (values, importance, block) in to_encode::<176>(values, importance, into) {
            let Graded { scale, min, scales, mins, codes } =
                graded::<8, 32>(values, importance, 31.0, 63.0);
            block[..2].copy_from_slice(&scale.to_le_bytes());
            block[2..4].copy_from_slice(&min.to_le_bytes());
            pack_scales_and_mins(&scales, &mins, &mut block[4..16]);
            pack_bit_plane(&codes, 4, &mut block[16..48]);
            pack_nibbles::<32>(&codes, &mut block[48..]);
        }
    }
}

dispatched! {
    pub(super) fn encode_q6k(values: &[f32], importance: Option<&[f32]>, into: &mut [u8]) {
        for (values, importance, block) in to_encode::<210>(values, importance, into) {
            let Centred { scale, scales, codes } =
                choose_centred(values, importance, -32.0, -128.0);
            pack_nibbles::<64>(&codes, &mut block[..128]);
            pack_two_bits(&codes, 4, &mut block[128..192]);
            block[192..208].copy_from_slice(&scales.map(|s| s as u8));
            block[208..].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
