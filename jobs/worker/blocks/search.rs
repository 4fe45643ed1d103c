//! Which scale (and offset) stands best for a sub-block: weighted least squares over candidates of the step.
//!
//! Given a step, each value has its nearest code; given the codes, the best scale and offset are those of a line through
//! the points (code, value), in closed form. The codes depend on the step and the step on the codes, so a number of
//! steps around the obvious one (the range over the number of codes) are tried and the best line wins, as llama.cpp's
//! K-quants do it. Here the winner is then improved by Lloyd's alternation: nearest codes of the line, best line of the
//! codes, as long as it pays.
//!
//! The error of a line is `sum w (s l + m - x)^2 = constant - gain`; comparing gains saves a second pass over the values.

use super::lanes::{Lanes, Mask};

/// Rounds of Lloyd's alternation after the search.
const ALTERNATIONS: usize = 3;

/// Ranges below this are as good as none, and their inverse might not be a number.
const NO_RANGE: f32 = 1e-15;

/// Sub-blocks of `N` values side by side, and how much an error of each value counts.
pub(super) struct Points<const L: usize, const N: usize> {
    values: [Lanes<L>; N],
    weights: [Lanes<L>; N],
    sum_w: Lanes<L>,
    sum_wx: Lanes<L>,
}

impl<const L: usize, const N: usize> Points<L, N> {
    #[inline(always)]
    pub(super) fn new(values: &[f32], weights: &[f32]) -> Self {
        let (values, weights) = (side_by_side(values), side_by_side(weights));
        let (mut sum_w, mut sum_wx) = (Lanes::ZERO, Lanes::ZERO);
        for i in 0..N {
            sum_w = sum_w + weights[i];
            sum_wx = sum_wx + weights[i] * values[i];
        }
        Self { values, weights, sum_w, sum_wx }
    }

    /// The codes nearest to a line, in `low..=high`; zero where it has no scale.
    #[inline(always)]
    pub(super) fn codes(&self, line: Line<L>, low: f32, high: f32) -> [Lanes<L>; N] {
        let (inverse, low, high) = (line.inverse(), Lanes::all(low), Lanes::all(high));
        let mut codes = self.values;
        for code in &mut codes {
            *code = ((*code - line.offset) * inverse).rounded(low, high);
        }
        codes
    }

    /// What the codes nearest to `offset + code / inverse` have to do with the values.
    #[inline(always)]
    pub(super) fn moments(&self, offset: Lanes<L>, inverse: Lanes<L>, low: f32, high: f32) -> Moments<L> {
        let (low, high) = (Lanes::all(low), Lanes::all(high));
        let (mut sum_wl, mut sum_wll, mut sum_wlx) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
        for i in 0..N {
            let code = ((self.values[i] - offset) * inverse).rounded(low, high);
            let weighted = self.weights[i] * code;
            sum_wl = sum_wl + weighted;
            sum_wll = sum_wll + weighted * code;
            sum_wlx = sum_wlx + weighted * self.values[i];
        }
        Moments { sum_w: self.sum_w, sum_wx: self.sum_wx, sum_wl, sum_wll, sum_wlx }
    }

    /// The best line for codes `0..=top`, with an offset of zero or less, so that zero is never far from a code. Scales
    /// are never negative.
    #[inline(always)]
    pub(super) fn line(&self, top: f32) -> Line<L> {
        let (mut low, mut high) = (Lanes::ZERO, self.values[0]);
        for value in &self.values {
            low = low.min(*value);
            high = high.max(*value);
        }
        let range = high - low;
        let wide = Lanes::all(NO_RANGE).below(range);
        // Of values that do not differ, the offset alone is kept.
        let mut best = Line { scale: Lanes::ZERO, offset: low };
        let mut best_gain = Lanes::all(f32::NEG_INFINITY);
        let consider = |offset: Lanes<L>, inverse: Lanes<L>, best: &mut Line<L>, best_gain: &mut Lanes<L>| {
            let moments = self.moments(offset, inverse, 0.0, top);
            let (found, solved) = moments.line();
            let gain = solved.pick(moments.gain(found), Lanes::all(f32::NEG_INFINITY));
            let better = best_gain.below(gain);
            *best = better.pick_line(found, *best);
            *best_gain = better.pick(gain, *best_gain);
        };
        // A step narrower than the range asks for cuts off the extremes: often a good bargain.
        const CANDIDATES: u32 = 18;
        for step in 0..=CANDIDATES {
            let inverse = wide.pick(Lanes::all(top - 0.9 + 0.1 * step as f32) / range, Lanes::ZERO);
            consider(low, inverse, &mut best, &mut best_gain);
        }
        for _ in 0..ALTERNATIONS {
            consider(best.offset, best.inverse(), &mut best, &mut best_gain);
        }
        best
    }

    /// The best scale for codes `bottom..-bottom`, without an offset. As there is one code more below zero than above,
    /// the scale may be negative: it turns the largest value to that side.
    #[inline(always)]
    pub(super) fn scale(&self, bottom: f32) -> Lanes<L> {
        let mut extreme = self.values[0];
        for value in &self.values {
            extreme = extreme.abs().below(value.abs()).pick(*value, extreme);
        }
        let wide = Lanes::all(NO_RANGE).below(extreme.abs());
        let mut best = Lanes::ZERO;
        let mut best_gain = Lanes::ZERO;
        let consider = |inverse: Lanes<L>, best: &mut Lanes<L>, best_gain: &mut Lanes<L>| {
            let moments = self.moments(Lanes::ZERO, inverse, bottom, -1.0 - bottom);
            let found = moments.scale();
            let gain = found * moments.sum_wlx;
            let better = best_gain.below(gain);
            *best = better.pick(found, *best);
            *best_gain = better.pick(gain, *best_gain);
        };
        const CANDIDATES: i32 = 9;
        for step in -CANDIDATES..=CANDIDATES {
            let inverse = Lanes::all(bottom + 0.1 * step as f32) / extreme;
            consider(wide.pick(inverse, Lanes::ZERO), &mut best, &mut best_gain);
        }
        for _ in 0..ALTERNATIONS {
            let inverse = Line { scale: best, offset: Lanes::ZERO }.inverse();
            consider(inverse, &mut best, &mut best_gain);
        }
        best
    }
}

/// Sums over a sub-block: of weights `w`, codes `l` and values `x`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments<const L: usize> {
    pub sum_w: Lanes<L>,
    pub sum_wx: Lanes<L>,
    pub sum_wl: Lanes<L>,
    pub sum_wll: Lanes<L>,
    pub sum_wlx: Lanes<L>,
}

impl<const L: usize> Moments<L> {
    /// The line of least squares whose offset is not above zero, and where there is one: not where all codes are equal.
    #[inline(always)]
    fn line(&self) -> (Line<L>, Mask<L>) {
        let determinant = self.sum_w * self.sum_wll - self.sum_wl * self.sum_wl;
        let free = Line {
            scale: (self.sum_w * self.sum_wlx - self.sum_wx * self.sum_wl) / determinant,
            offset: (self.sum_wll * self.sum_wx - self.sum_wl * self.sum_wlx) / determinant,
        };
        let through_zero = Line { scale: self.scale(), offset: Lanes::ZERO };
        let line = Lanes::ZERO.below(free.offset).pick_line(through_zero, free);
        (line, Lanes::ZERO.below(determinant))
    }

    /// The scale of least squares without an offset.
    #[inline(always)]
    fn scale(&self) -> Lanes<L> {
        self.sum_wlx.over(self.sum_wll)
    }

    /// How much smaller the error of a line is than that of nothing at all: `sum w x^2 - sum w (s l + m - x)^2`.
    #[inline(always)]
    pub(super) fn gain(&self, line: Line<L>) -> Lanes<L> {
        let Line { scale: s, offset: m } = line;
        let slope = s * (Lanes::all(2.0) * (self.sum_wlx - m * self.sum_wl) - s * self.sum_wll);
        slope + m * (Lanes::all(2.0) * self.sum_wx - m * self.sum_w)
    }
}

/// A value is `scale * code + offset`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<const L: usize> {
    pub scale: Lanes<L>,
    pub offset: Lanes<L>,
}

impl<const L: usize> Line<L> {
    /// The nearest code is `round((x - offset) * inverse)`.
    #[inline(always)]
    pub(super) fn inverse(self) -> Lanes<L> {
        // The inverse of less than this could be infinite.
        let some = Lanes::all(NO_RANGE / 1024.0).below(self.scale.abs());
        some.pick(Lanes::all(1.0) / self.scale, Lanes::ZERO)
    }
}

impl<const L: usize> Mask<L> {
    #[inline(always)]
    fn pick_line(self, yes: Line<L>, no: Line<L>) -> Line<L> {
        Line { scale: self.pick(yes.scale, no.scale), offset: self.pick(yes.offset, no.offset) }
    }
}

/// The first values of all sub-blocks, then the second ones...
#[inline(always)]
fn side_by_side<const L: usize, const N: usize>(values: &[f32]) -> [Lanes<L>; N] {
    let mut result = [Lanes::ZERO; N];
    for (lane, values) in values.as_chunks::<N>().0.iter().take(L).enumerate() {
        for i in 0..N {
            result[i].0[lane] = values[i];
        }
    }
    result
}

#[inline(always)]
pub(super) fn pick_moments<const L: usize>(mask: Mask<L>, yes: Moments<L>, no: Moments<L>) -> Moments<L> {
    Moments {
        sum_w: yes.sum_w,
        sum_wx: yes.sum_wx,
        sum_wl: mask.pick(yes.sum_wl, no.sum_wl),
        sum_wll: mask.pick(yes.sum_wll, no.sum_wll),
        sum_wlx: mask.pick(yes.sum_wlx, no.sum_wlx),
    }
}
