//! Values into super-blocks: scales for the sub-blocks, then scales for those, then codes.
//!
//! First every sub-block gets the scale (and offset) that suits it best ([`search`]). These are rounded to the few bits
//! that they have, which spoils the fit a little; so the rounded ones are then tried beside their neighbours, by the
//! error that comes out, and the scale of the scales is fitted to the codes by least squares, twice.

use super::{Codes, LEN, Values};
use crate::blocks::float::{from_f16, to_f16};
use crate::blocks::lanes::Lanes;
use crate::blocks::search::{self, Line, Moments, Points};

/// How often the scales of the scales are fitted to the codes.
const FITS: usize = 2;

/// How much an error counts, value by value. `importance` is the mean square of what a value is multiplied with, where
/// it is known; the root beside it, as in llama.cpp, makes errors of large values count more.
#[inline(always)]
pub(super) fn weights(values: &Values, importance: Option<&Values>) -> Values {
    let square = values.iter().map(|x| x * x).sum::<f32>() / LEN as f32;
    let mut weights = [0.0; LEN];
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
    weights
}

/// A super-block of which a value in sub-block `j` is `scale * scales[j] * code - min * mins[j]`.
pub(super) struct Graded<const L: usize> {
    pub scale: u16,
    pub min: u16,
    pub scales: [u8; L],
    pub mins: [u8; L],
    pub codes: Codes,
}

/// The choice of a [`Graded`] super-block, while it is made.
#[derive(Clone, Copy)]
struct Grades<const L: usize> {
    scale: f32,
    min: f32,
    scales: Lanes<L>,
    mins: Lanes<L>,
}

impl<const L: usize> Grades<L> {
    #[inline(always)]
    fn line(self) -> Line<L> {
        let offset = Lanes::ZERO - self.mins * Lanes::all(self.min);
        Line { scale: self.scales * Lanes::all(self.scale), offset }
    }
}

/// Chooses codes `0..=top`, scales and mins `0..=steps`.
#[inline(always)]
pub(super) fn graded<const L: usize, const N: usize>(
    values: &Values,
    weights: &Values,
    top: f32,
    steps: f32,
) -> Graded<L> {
    let points = &Points::<L, N>::new(values, weights);
    let mut goal = points.line(top);
    let mut unit = (as_f16(highest(goal.scale) / steps), as_f16(highest(Lanes::ZERO - goal.offset) / steps));
    let mut best = Grades { scale: unit.0, min: unit.1, scales: Lanes::ZERO, mins: Lanes::ZERO };
    let mut best_gain = f32::NEG_INFINITY;
    for fit in 0..=FITS {
        let (grades, moments) = nearest_grades(points, top, steps, unit, goal);
        let gain = moments.gain(grades.line()).sum();
        if best_gain < gain {
            (best, best_gain) = (grades, gain);
        }
        let fitted = fitted_units(&grades, &moments);
        if fit == FITS || fitted == unit {
            break;
        }
        (goal, unit) = (grades.line(), fitted);
    }
    Graded {
        scale: to_f16(best.scale),
        min: to_f16(best.min),
        scales: best.scales.0.map(|s| s as u8),
        mins: best.mins.0.map(|m| m as u8),
        codes: in_order(&points.codes(best.line(), 0.0, top)),
    }
}

/// The whole scales and mins around a goal that leave the smallest error, and the moments of their codes.
#[inline(always)]
fn nearest_grades<const L: usize, const N: usize>(
    points: &Points<L, N>,
    top: f32,
    steps: f32,
    (scale, min): (f32, f32),
    goal: Line<L>,
) -> (Grades<L>, Moments<L>) {
    let whole = |goal: Lanes<L>, unit: f32, aside: f32| {
        (goal.over(Lanes::all(unit)) + Lanes::all(aside)).rounded(Lanes::ZERO, Lanes::all(steps))
    };
    let at = |aside: (f32, f32)| {
        let scales = whole(goal.scale, scale, aside.0);
        let mins = whole(Lanes::ZERO - goal.offset, min, aside.1);
        let grades = Grades { scale, min, scales, mins };
        let moments = points.moments(grades.line().offset, grades.line().inverse(), 0.0, top);
        (grades, moments, moments.gain(grades.line()))
    };
    let (mut grades, mut moments, mut gain) = at((0.0, 0.0));
    for aside in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, -1.0)]
    {
        let (other, other_moments, other_gain) = at(aside);
        let better = gain.below(other_gain);
        grades.scales = better.pick(other.scales, grades.scales);
        grades.mins = better.pick(other.mins, grades.mins);
        gain = better.pick(other_gain, gain);
        moments = search::pick_moments(better, other_moments, moments);
    }
    (grades, moments)
}

/// The scale and the min of least squares, for the codes and whole scales that were chosen.
#[inline(always)]
fn fitted_units<const L: usize>(grades: &Grades<L>, moments: &Moments<L>) -> (f32, f32) {
    let Grades { scales: s, mins: m, .. } = *grades;
    let ss = (s * s * moments.sum_wll).sum();
    let sm = (s * m * moments.sum_wl).sum();
    let mm = (m * m * moments.sum_w).sum();
    let (sx, mx) = ((s * moments.sum_wlx).sum(), (m * moments.sum_wx).sum());
    let determinant = ss * mm - sm * sm;
    let (scale, min) = if determinant > 0.0 {
        ((sx * mm - sm * mx) / determinant, (sx * sm - ss * mx) / determinant)
    } else {
        (grades.scale, grades.min)
    };
    if scale > 0.0 && min >= 0.0 { (as_f16(scale), as_f16(min)) } else { (grades.scale, grades.min) }
}

/// A super-block of which a value in sub-block `j` is `scale * scales[j] * (code + bottom)`.
pub(super) struct Centred {
    pub scale: u16,
    pub scales: [i8; 16],
    pub codes: Codes,
}

/// Chooses codes `bottom..-bottom` and scales `lowest..-lowest`.
#[inline(always)]
pub(super) fn centred(values: &Values, weights: &Values, bottom: f32, lowest: f32) -> Centred {
    let points = &Points::<16, 16>::new(values, weights);
    let mut goal = points.scale(bottom);
    // The scale of largest magnitude becomes `lowest`, of which there is one more than of the highest.
    let mut unit = as_f16(furthest(goal) / lowest);
    let (mut best, mut best_gain) = ((unit, Lanes::ZERO), f32::NEG_INFINITY);
    for fit in 0..=FITS {
        let (scales, moments) = nearest_scales(points, bottom, lowest, unit, goal);
        let gain = moments.gain(Line { scale: scales * Lanes::all(unit), offset: Lanes::ZERO }).sum();
        if best_gain < gain {
            (best, best_gain) = ((unit, scales), gain);
        }
        let fitted = (scales * moments.sum_wlx).sum() / (scales * scales * moments.sum_wll).sum();
        let fitted = if fitted.is_finite() { as_f16(fitted) } else { unit };
        if fit == FITS || fitted == unit {
            break;
        }
        (goal, unit) = (scales * Lanes::all(fitted), fitted);
    }
    let (scale, scales) = best;
    let line = Line { scale: scales * Lanes::all(scale), offset: Lanes::ZERO };
    let mut codes = points.codes(line, bottom, -1.0 - bottom);
    for code in &mut codes {
        *code = *code - Lanes::all(bottom);
    }
    Centred { scale: to_f16(scale), scales: scales.0.map(|s| s as i8), codes: in_order(&codes) }
}

/// The whole scales around a goal that leave the smallest error, and the moments of their codes.
#[inline(always)]
fn nearest_scales(
    points: &Points<16, 16>,
    bottom: f32,
    lowest: f32,
    unit: f32,
    goal: Lanes<16>,
) -> (Lanes<16>, Moments<16>) {
    let inverse = if unit == 0.0 { 0.0 } else { 1.0 / unit };
    let at = |aside: f32| {
        let scales = goal * Lanes::all(inverse) + Lanes::all(aside);
        let scales = scales.rounded(Lanes::all(lowest), Lanes::all(-1.0 - lowest));
        let line = Line { scale: scales * Lanes::all(unit), offset: Lanes::ZERO };
        let moments = points.moments(Lanes::ZERO, line.inverse(), bottom, -1.0 - bottom);
        (scales, moments, moments.gain(line))
    };
    let (mut scales, mut moments, mut gain) = at(0.0);
    for aside in [-1.0, 1.0] {
        let (other, other_moments, other_gain) = at(aside);
        let better = gain.below(other_gain);
        scales = better.pick(other, scales);
        gain = better.pick(other_gain, gain);
        moments = search::pick_moments(better, other_moments, moments);
    }
    (scales, moments)
}

/// A value as f16 holds it.
#[inline(always)]
fn as_f16(value: f32) -> f32 {
    from_f16(to_f16(value))
}

#[inline(always)]
fn highest<const L: usize>(values: Lanes<L>) -> f32 {
    values.0.into_iter().fold(0.0, |highest, value| if value > highest { value } else { highest })
}

#[inline(always)]
fn furthest<const L: usize>(values: Lanes<L>) -> f32 {
    values.0.into_iter().fold(0.0, |furthest: f32, value| if value.abs() > furthest.abs() { value } else { furthest })
}

/// Codes of sub-blocks side by side, as the values lie.
#[inline(always)]
fn in_order<const L: usize, const N: usize>(lanes: &[Lanes<L>; N]) -> Codes {
    let mut codes = [0; LEN];
    for (lane, codes) in codes.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        for i in 0..N {
            codes[i] = lanes[i].0[lane] as u8;
        }
    }
    codes
}
