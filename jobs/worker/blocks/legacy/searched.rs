//! Blocks of 32 whose scale is searched for, because it is known which values matter.

use super::{Codes, LEN};
use crate::blocks::float::{from_f16, to_f16};
use crate::blocks::search::{Grades, Points, put_codes};

/// Blocks that are searched side by side.
const LANES: usize = 8;
type Sought = Points<LANES, LEN>;

/// A block's numbers: scale and min as f16, and the codes.
pub(super) struct Found {
    pub scale: u16,
    pub min: u16,
    pub codes: Codes,
}

/// Codes `bottom..-bottom` for the blocks of a row, counted from `bottom`; there is no min.
#[inline(never)]
pub(super) fn centred(values: &[f32], importance: &[f32], bottom: f32, put: impl FnMut(usize, Found)) {
    by_lanes(values, importance, (bottom, -1.0 - bottom), |points| (points.scales(bottom), [0.0; LANES]), put);
}

/// Codes `0..=top` for the blocks of a row.
#[inline(never)]
pub(super) fn raised(values: &[f32], importance: &[f32], top: f32, put: impl FnMut(usize, Found)) {
    let best = |points: &Sought| {
        let lines = points.lines(top);
        (lines.scale, lines.offset)
    };
    by_lanes(values, importance, (0.0, top), best, put);
}

/// Scales and offsets by `best`, for several blocks at a time; `put` is given each block's number in the row.
fn by_lanes(
    values: &[f32],
    importance: &[f32],
    range: (f32, f32),
    best: impl Fn(&Sought) -> ([f32; LANES], [f32; LANES]),
    mut put: impl FnMut(usize, Found),
) {
    let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
    for (group, (values, importance)) in values.chunks(LANES * LEN).zip(importance.chunks(LANES * LEN)).enumerate() {
        // The root, as in llama.cpp, makes errors of large values count more.
        let weights: Vec<f32> = values.iter().zip(importance).map(|(x, q)| q * (square + x * x).sqrt()).collect();
        let points = Sought::new(values, &weights);
        let (scales, offsets) = best(&points);
        let (scales, offsets) = (scales.map(to_f16), offsets.map(to_f16));
        let grades = Grades::at(scales.map(from_f16), offsets.map(|offset| -from_f16(offset)));
        let mut codes = [0; LANES * LEN];
        put_codes(&points, &grades, (1.0, 1.0), range, &mut codes);
        for (lane, codes) in codes.as_chunks::<LEN>().0.iter().enumerate().take(values.len() / LEN) {
            put(group * LANES + lane, Found { scale: scales[lane], min: offsets[lane], codes: *codes });
        }
    }
}
