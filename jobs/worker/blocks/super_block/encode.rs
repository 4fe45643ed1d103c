//! Values into super-blocks: scales for the sub-blocks, then scales for those, then codes.
//!
//! First every sub-block gets the scale (and offset) that suits it best ([`Points`]). These are rounded to the few bits
//! that they have, which spoils the fit a little; so the rounded ones are then tried beside their neighbours, by the
//! error that comes out, and the scale of the scales is fitted to the codes by least squares, twice.

use super::{Codes, LEN, Values};
use crate::blocks::float::{from_f16, to_f16};
use crate::blocks::search::{Grades, Points, nearest, put_codes, try_grades};
use crate::kernels::simd::dispatched;

/// Whole scales and mins are tried with their neighbours; of equally good ones the first is taken.
const AROUND: [(f32, f32); 9] =
    [(0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, -1.0)];

/// How often the scales of the scales are fitted to the codes.
const FITS: usize = 2;

dispatched! {
    /// How much an error counts, value by value. `importance` is the mean square of what a value is multiplied with,
    /// where it is known; the root beside it, as in llama.cpp, makes errors of large values count more.
    pub(super) fn weigh(values: &Values, importance: Option<&Values>, weights: &mut Values) {
        let mut squares = [0.0; 16];
        for values in values.as_chunks::<16>().0 {
            for lane in 0..16 {
                squares[lane] += values[lane] * values[lane];
            }
        }
        let square = squares.iter().sum::<f32>() / LEN as f32;
        match importance {
            Some(importance) => {
                for i in 0..LEN {
                    weights[i] = importance[i] * (2.0 * square + values[i] * values[i]).sqrt();
                }
            }
            None => {
                let mean = square.sqrt();
                for i in 0..LEN {
                    weights[i] = mean + values[i].abs();
                }
            }
        }
    }
}

/// A super-block of which a value in sub-block `j` is `scale * scales[j] * code - min * mins[j]`.
pub(super) struct Graded<const L: usize> {
    pub scale: u16,
    pub min: u16,
    pub scales: [u8; L],
    pub mins: [u8; L],
    pub codes: Codes,
}

/// Chooses codes `0..=top`, scales and mins `0..=steps`.
// Not inlined into a function for one instruction set: see `search`.
#[inline(never)]
pub(super) fn graded<const L: usize, const N: usize>(
    values: &Values,
    importance: Option<&Values>,
    top: f32,
    steps: f32,
) -> Graded<L> {
    let mut weights = [0.0; LEN];
    weigh(values, importance, &mut weights);
    let points = Points::<L, N>::new(values, &weights);
    let lines = points.lines(top);
    let (mut goal_scales, mut goal_mins) = (lines.scale, lines.offset.map(|offset| -offset));
    let mut unit = (as_f16(furthest(&goal_scales) / steps), as_f16(furthest(&goal_mins) / steps));
    let mut best = (unit, Grades::none());
    for fit in 0..=FITS {
        let mut grades = Grades::none();
        for (aside, down) in AROUND {
            let scales = goal_scales.map(|goal| whole(goal, unit.0, aside, (0.0, steps)));
            let mins = goal_mins.map(|goal| whole(goal, unit.1, down, (0.0, steps)));
            try_grades(&points, &scales, &mins, unit, (0.0, top), &mut grades);
        }
        let fitted = points.units(&grades).map_or(unit, |(scale, min)| (as_f16(scale), as_f16(min)));
        goal_scales = grades.scales.map(|s| s * unit.0);
        goal_mins = grades.mins.map(|m| m * unit.1);
        if grades.gain() > best.1.gain() {
            best = (unit, grades);
        }
        if fit == FITS || fitted == unit || !(fitted.0 > 0.0 && fitted.1 >= 0.0) {
            break;
        }
        unit = fitted;
    }
    let (unit, grades) = best;
    let mut codes = [0; LEN];
    put_codes(&points, &grades, unit, (0.0, top), &mut codes);
    let [scales, mins] = [grades.scales, grades.mins].map(|whole| whole.map(|whole| whole as u8));
    Graded { scale: to_f16(unit.0), min: to_f16(unit.1), scales, mins, codes }
}

/// A super-block of which a value in sub-block `j` is `scale * scales[j] * (code + bottom)`.
pub(super) struct Centred {
    pub scale: u16,
    pub scales: [i8; 16],
    pub codes: Codes,
}

/// Chooses codes `bottom..-bottom` and scales `lowest..-lowest`.
#[inline(never)]
pub(super) fn centred(values: &Values, importance: Option<&Values>, bottom: f32, lowest: f32) -> Centred {
    let mut weights = [0.0; LEN];
    weigh(values, importance, &mut weights);
    let points = Points::<16, 16>::new(values, &weights);
    let range = (bottom, -1.0 - bottom);
    let mut goal = points.scales(bottom);
    // The scale of largest magnitude becomes `lowest`: there is one more on that side than on the other.
    let mut unit = as_f16(furthest(&goal) / lowest);
    let mut best = (unit, Grades::none());
    for fit in 0..=FITS {
        let mut grades = Grades::none();
        for aside in [0.0, -1.0, 1.0] {
            let scales = goal.map(|goal| whole(goal, unit, aside, (lowest, -1.0 - lowest)));
            try_grades(&points, &scales, &[0.0; 16], (unit, 0.0), range, &mut grades);
        }
        let fitted = points.units(&grades).map_or(unit, |(scale, _)| as_f16(scale));
        goal = grades.scales.map(|s| s * unit);
        if grades.gain() > best.1.gain() {
            best = (unit, grades);
        }
        if fit == FITS || fitted == unit {
            break;
        }
        unit = fitted;
    }
    let (unit, grades) = best;
    let mut codes = [0; LEN];
    put_codes(&points, &grades, (unit, 0.0), range, &mut codes);
    Centred { scale: to_f16(unit), scales: grades.scales.map(|s| s as i8), codes }
}

/// How many units a goal is, and a few aside; none if there is no unit.
#[inline(always)]
fn whole(goal: f32, unit: f32, aside: f32, (low, high): (f32, f32)) -> f32 {
    if unit == 0.0 { 0.0 } else { nearest(goal / unit + aside, low, high) }
}

/// A value as f16 holds it.
#[inline(always)]
fn as_f16(value: f32) -> f32 {
    from_f16(to_f16(value))
}

/// The value of largest magnitude.
fn furthest<const L: usize>(values: &[f32; L]) -> f32 {
    values.iter().fold(0.0, |furthest: f32, &value| if value.abs() > furthest.abs() { value } else { furthest })
}
