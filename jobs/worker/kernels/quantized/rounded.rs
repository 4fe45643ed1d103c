//! Activations rounded to eight bits, 32 values at a time: `x = scale * code`, `|code| <= 127`.
//!
//! An error of at most half a scale a value, that is `max |x| / 254` over each 32 values. llama.cpp rounds the same way
//! for its blocks of 32; for super-blocks it takes 256 values at a time, which is coarser.

use rayon::prelude::*;

use super::tile::Form;
use crate::kernels::simd::dispatched;

/// Values that share a scale.
pub(super) const BLOCK: usize = 32;

/// Tokens that one thread rounds at a time: fewer are not worth waking another one.
const SHARE: usize = 16;

/// Rounded activations `[tokens, width]`, and what the form of the weight that they meet makes of their sums.
pub(super) struct Rounded {
    /// `[tokens, width / 4]`: four codes each, the first in the lowest byte.
    pub(super) codes: Vec<i32>,
    /// `[tokens, width / BLOCK]`
    pub(super) scales: Vec<f32>,
    /// `[tokens, width / group]`: where a group's sum starts, so that what is subtracted from every code of the weight
    /// is taken into account: `-zero * sum of codes`.
    pub(super) starts: Vec<i32>,
    /// `[tokens, width / group]`, for a form with minima: `scale * sum of codes`, the factor of the minimum.
    pub(super) lifts: Vec<f32>,
    pub(super) width: usize,
}

dispatched! {
    /// Blocks of activations to codes and scales. What is not finite makes its block NaN, so that a model that has
    /// exploded does not look merely stupid.
    fn round(x: &[f32], codes: &mut [i32], scales: &mut [f32]) {
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(codes.as_chunks_mut::<{ BLOCK / 4 }>().0);
        for ((x, codes), scale) in blocks.zip(scales) {
            let mut largest = [0.0f32; 16];
            for (lane, largest) in largest.iter_mut().enumerate() {
                let (a, b) = (x[lane].abs(), x[16 + lane].abs());
                *largest = if a > b { a } else { b };
            }
            let largest = largest.into_iter().fold(0.0, |a, b| if b > a { b } else { a });
            let finite = x.iter().fold(true, |finite, x| finite & x.is_finite());
            *scale = if finite { largest / 127.0 } else { f32::NAN };
            let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
            let rounded: [i8; BLOCK] = std::array::from_fn(|i| nearest(x[i] * inverse));
            for (code, bytes) in codes.iter_mut().zip(rounded.as_chunks().0) {
                *code = i32::from_le_bytes(bytes.map(|byte| byte as u8));
            }
        }
    }
}

/// To the nearest of -127 to 127, ties to even: adding 1.5 * 2^23 leaves the whole number in the lowest bits. A scale so
/// small that its inverse overflows gives the largest codes, and products of nothing.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    ((x.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i32 - 12_582_912.0f32.to_bits() as i32) as i8
}

dispatched! {
    /// The sums of groups of `words` words of codes.
    fn group_sums(codes: &[i32], words: usize, sums: &mut [i32]) {
        for (codes, sum) in codes.chunks_exact(words).zip(sums) {
            *sum = codes.iter().map(|code| code.to_le_bytes().map(|byte| i32::from(byte as i8)).iter().sum::<i32>()).sum();
        }
    }
}

impl Rounded {
    /// Rounds `x` `[tokens, width]`; the width is a multiple of 32.
    pub(super) fn new(x: &[f32], width: usize, form: Form) -> Self {
        let (tokens, groups) = (x.len() / width, width / form.group);
        let mut codes = vec![0; x.len() / 4];
        let mut scales = vec![0.0; x.len() / BLOCK];
        let mut starts = vec![0; tokens * groups];
        if tokens <= SHARE {
            round(x, &mut codes, &mut scales);
            group_sums(&codes, form.group / 4, &mut starts);
        } else {
            let shares = x
                .par_chunks(SHARE * width)
                .zip(codes.par_chunks_mut(SHARE * width / 4))
                .zip(scales.par_chunks_mut(SHARE * width / BLOCK))
                .zip(starts.par_chunks_mut(SHARE * groups));
            shares.for_each(|(((x, codes), scales), sums)| {
                round(x, codes, scales);
                group_sums(codes, form.group / 4, sums);
            });
        }
        let mut lifts = Vec::new();
        if form.raised {
            let of_block = BLOCK / form.group;
            lifts.extend(starts.iter().enumerate().map(|(group, &sum)| scales[group / of_block] * sum as f32));
        }
        starts.iter_mut().for_each(|sum| *sum *= -i32::from(form.zero));
        Self { codes, scales, starts, lifts, width }
    }

    pub(super) fn tokens(&self) -> usize {
        self.codes.len() * 4 / self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form { group: 16, zero: 4, raised: true };

    #[test]
    fn codes_are_off_by_half_a_scale_at_most() {
        let x: Vec<f32> = (0..128).map(|i| (i as f32 * 0.37).sin() * (1 + i / 32) as f32).collect();
        let rounded = Rounded::new(&x, 64, FORM);
        assert_eq!(rounded.tokens(), 2);
        let codes: Vec<i8> = rounded.codes.iter().flat_map(|code| code.to_le_bytes()).map(|byte| byte as i8).collect();
        for (i, x) in x.iter().enumerate() {
            let scale = rounded.scales[i / 32];
            assert!((x - scale * f32::from(codes[i])).abs() <= scale * 0.5001, "{x}");
        }
        for (group, codes) in codes.chunks(16).enumerate() {
            let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
            assert_eq!(rounded.starts[group], -4 * sum);
            assert_eq!(rounded.lifts[group], rounded.scales[group / 2] * sum as f32);
        }
        assert!(codes.chunks(32).all(|codes| codes.iter().any(|code| code.abs() == 127)));
    }

    #[test]
    fn nothing_stays_nothing_and_what_is_not_finite_is_not_hidden() {
        let mut x = vec![0.0; 96];
        (x[40], x[70]) = (f32::NAN, f32::INFINITY);
        let rounded = Rounded::new(&x, 96, FORM);
        assert_eq!((rounded.scales[0], rounded.codes[0]), (0.0, 0));
        assert!(rounded.scales[1].is_nan() && rounded.scales[2].is_nan());
    }
}
