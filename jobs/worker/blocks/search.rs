//! Which scale (and offset) stands best for a sub-block: weighted least squares over candidates of the step.
//!
//! Given a step, each value has its nearest code; given the codes, the best scale and offset are those of a line through
//! the points (code, value), in closed form. The codes depend on the step and the step on the codes, so a number of
//! steps around the obvious one (the range over the number of codes) are tried and the best line wins, as llama.cpp's
//! K-quants do it. Here the winner is then improved by Lloyd's alternation: nearest codes of the line, best line of the
//! codes, as long as it pays.
//!
//! The error of a line is `sum w (s l + m - x)^2 = constant - gain`; comparing gains saves a second pass over the values.
//!
//! Everything is done for `L` sub-blocks of `N` values at once: they lie side by side, the first values of all, then the
//! second ones, so that a loop over the lanes is one vector instruction for each of its operators, without a branch and
//! with nothing to add up across lanes. The loops are small functions of their own, as larger ones are taken apart by the
//! compiler before it thinks of vectors.

use crate::kernels::simd::dispatched;

/// The candidates: how many codes more than there are the range is divided into. A step narrower than the range asks for
/// cuts off the extremes, which often is a good bargain.
const STEPS: [f32; 19] =
    [-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Rounds of Lloyd's alternation after the search.
const ALTERNATIONS: usize = 3;

/// Ranges below this are as good as none, and the inverse of a step so small might not be a number.
const NO_RANGE: f32 = 1e-15;

/// Sub-blocks side by side, and how much an error of each value counts.
pub(super) struct Points<const L: usize, const N: usize> {
    values: [[f32; L]; N],
    weights: [[f32; L]; N],
    sum_w: [f32; L],
    sum_wx: [f32; L],
}

/// The best that was found so far, sub-block by sub-block: a value is `scale * code + offset`.
pub(super) struct Lines<const L: usize> {
    pub scale: [f32; L],
    pub offset: [f32; L],
    gain: [f32; L],
}

/// The best whole scales and mins that were found so far, and their codes' sums of `w l`, `w l l` and `w l x` over
/// weights `w`, codes `l` and values `x`.
#[derive(Clone)]
pub(super) struct Grades<const L: usize> {
    pub scales: [f32; L],
    pub mins: [f32; L],
    gain: [f32; L],
    sum_wl: [f32; L],
    sum_wll: [f32; L],
    sum_wlx: [f32; L],
}

impl<const L: usize> Grades<L> {
    pub(super) fn none() -> Self {
        let zero = [0.0; L];
        let gain = [f32::NEG_INFINITY; L];
        Self { scales: zero, mins: zero, gain, sum_wl: zero, sum_wll: zero, sum_wlx: zero }
    }

    /// Scales and mins that were found otherwise.
    pub(super) fn at(scales: [f32; L], mins: [f32; L]) -> Self {
        Self { scales, mins, ..Self::none() }
    }

    /// How much smaller the error is than that of nothing at all.
    pub(super) fn gain(&self) -> f32 {
        self.gain.iter().sum()
    }
}

impl<const L: usize, const N: usize> Points<L, N> {
    pub(super) fn new(values: &[f32], weights: &[f32]) -> Self {
        let mut points = Self { values: [[0.0; L]; N], weights: [[0.0; L]; N], sum_w: [0.0; L], sum_wx: [0.0; L] };
        lay_side_by_side(values, weights, &mut points);
        points
    }

    /// The best line for codes `0..=top`, with an offset of zero or less, so that zero is never far from a code. Scales
    /// are never negative.
    pub(super) fn lines(&self, top: f32) -> Lines<L> {
        let (low, high) = self.ranges();
        // Of values that do not differ, the offset alone is kept.
        let mut best = Lines { scale: [0.0; L], offset: low, gain: [f32::NEG_INFINITY; L] };
        for step in STEPS {
            let inverse = std::array::from_fn(|lane| {
                let range = high[lane] - low[lane];
                if range > NO_RANGE { (top + step) / range } else { 0.0 }
            });
            try_lines(self, &low, &inverse, top, &mut best);
        }
        for _ in 0..ALTERNATIONS {
            let (offset, inverse) = (best.offset, best.scale.map(inverse));
            try_lines(self, &offset, &inverse, top, &mut best);
        }
        best
    }

    /// The best scale for codes `bottom..-bottom`, without an offset. As there is one code more below zero than above,
    /// the scale may be negative: it turns the largest value to that side.
    pub(super) fn scales(&self, bottom: f32) -> [f32; L] {
        let (low, high) = self.ranges();
        let extreme: [f32; L] =
            std::array::from_fn(|lane| if high[lane] > -low[lane] { high[lane] } else { low[lane] });
        let mut best = Lines { scale: [0.0; L], offset: [0.0; L], gain: [0.0; L] };
        for step in STEPS {
            let inverse = extreme.map(|extreme| if extreme.abs() > NO_RANGE { (bottom - step) / extreme } else { 0.0 });
            try_scales(self, &inverse, bottom, &mut best);
        }
        for _ in 0..ALTERNATIONS {
            let inverse = best.scale.map(inverse);
            try_scales(self, &inverse, bottom, &mut best);
        }
        best.scale
    }

    /// The smallest values, or zero, and the largest ones, or zero.
    fn ranges(&self) -> ([f32; L], [f32; L]) {
        let (mut low, mut high) = ([0.0; L], [0.0; L]);
        find_ranges(&self.values, &mut low, &mut high);
        (low, high)
    }

    /// The scale and the min of least squares for whole scales and mins, and the codes that they were chosen with:
    /// `x ≈ scale * s * l - min * m`. None where the values do not say.
    pub(super) fn units(&self, grades: &Grades<L>) -> Option<(f32, f32)> {
        let (mut ss, mut sm, mut mm, mut sx, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for lane in 0..L {
            let (s, m) = (grades.scales[lane], grades.mins[lane]);
            ss += s * s * grades.sum_wll[lane];
            sm += s * m * grades.sum_wl[lane];
            mm += m * m * self.sum_w[lane];
            sx += s * grades.sum_wlx[lane];
            mx += m * self.sum_wx[lane];
        }
        if mm == 0.0 {
            return (ss > 0.0).then(|| (sx / ss, 0.0));
        }
        let determinant = ss * mm - sm * sm;
        (determinant > 0.0).then(|| ((sx * mm - sm * mx) / determinant, (sx * sm - ss * mx) / determinant))
    }
}

/// One over a scale; zero where there is none.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale.abs() > NO_RANGE / 1024.0 { 1.0 / scale } else { 0.0 }
}

/// The nearest whole number (ties to even) in `low..=high`: adding and subtracting 1.5 * 2^23 rounds.
#[inline(always)]
pub(super) fn nearest(value: f32, low: f32, high: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let value = (value + ROUND) - ROUND;
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// Sums over the codes nearest to `offset + code / inverse`: of `w l`, `w l l` and `w l x`.
#[inline(always)]
fn sums<const L: usize, const N: usize>(
    points: &Points<L, N>,
    offset: &[f32; L],
    inverse: &[f32; L],
    low: f32,
    high: f32,
) -> [[f32; L]; 3] {
    let mut sums = [[0.0; L]; 3];
    for i in 0..N {
        for lane in 0..L {
            let value = points.values[i][lane];
            let code = nearest((value - offset[lane]) * inverse[lane], low, high);
            let weighted = points.weights[i][lane] * code;
            sums[0][lane] += weighted;
            sums[1][lane] += weighted * code;
            sums[2][lane] += weighted * value;
        }
    }
    sums
}

dispatched! {
    fn lay_side_by_side<const L: usize, const N: usize>(
        values: &[f32],
        weights: &[f32],
        points: &mut Points<L, N>,
    ) {
        let sub_blocks = values.as_chunks::<N>().0.iter().zip(weights.as_chunks::<N>().0);
        for (lane, (values, weights)) in sub_blocks.enumerate().take(L) {
            for i in 0..N {
                points.values[i][lane] = values[i];
                points.weights[i][lane] = weights[i];
            }
        }
        for i in 0..N {
            for lane in 0..L {
                points.sum_w[lane] += points.weights[i][lane];
                points.sum_wx[lane] += points.weights[i][lane] * points.values[i][lane];
            }
        }
    }
}

dispatched! {
    fn find_ranges<const L: usize, const N: usize>(values: &[[f32; L]; N], low: &mut [f32; L], high: &mut [f32; L]) {
        for values in values {
            for lane in 0..L {
                low[lane] = if values[lane] < low[lane] { values[lane] } else { low[lane] };
                high[lane] = if values[lane] > high[lane] { values[lane] } else { high[lane] };
            }
        }
    }
}

dispatched! {
    /// Finds the line of least squares through the codes that an offset and the inverse of a step give, and keeps it
    /// where it is better.
    fn try_lines<const L: usize, const N: usize>(
        points: &Points<L, N>,
        offset: &[f32; L],
        inverse: &[f32; L],
        top: f32,
        best: &mut Lines<L>,
    ) {
        let [sum_wl, sum_wll, sum_wlx] = sums(points, offset, inverse, 0.0, top);
        for lane in 0..L {
            let (w, wx) = (points.sum_w[lane], points.sum_wx[lane]);
            let (wl, wll, wlx) = (sum_wl[lane], sum_wll[lane], sum_wlx[lane]);
            let determinant = w * wll - wl * wl;
            let (free, offset) = ((w * wlx - wx * wl) / determinant, (wll * wx - wl * wlx) / determinant);
            // Where all codes are the same but for rounding, a line has no direction of its own: it goes through zero,
            // and so does one that would lie above zero there. (Of codes that are all zero no number comes.)
            let is_free = determinant > 1e-6 * w * wll && offset <= 0.0;
            let scale = if is_free { free } else { wlx / wll };
            let offset = if is_free { offset } else { 0.0 };
            let gain = scale * (2.0 * (wlx - offset * wl) - scale * wll) + offset * (2.0 * wx - offset * w);
            let better = gain > best.gain[lane];
            best.scale[lane] = if better { scale } else { best.scale[lane] };
            best.offset[lane] = if better { offset } else { best.offset[lane] };
            best.gain[lane] = if better { gain } else { best.gain[lane] };
        }
    }
}

dispatched! {
    /// As [`try_lines`], through zero and for codes on both sides of it.
    fn try_scales<const L: usize, const N: usize>(
        points: &Points<L, N>,
        inverse: &[f32; L],
        bottom: f32,
        best: &mut Lines<L>,
    ) {
        let [_, sum_wll, sum_wlx] = sums(points, &[0.0; L], inverse, bottom, -1.0 - bottom);
        for lane in 0..L {
            let scale = sum_wlx[lane] / sum_wll[lane];
            let gain = scale * sum_wlx[lane];
            // A sum of zero makes no number, which is never better.
            let better = gain > best.gain[lane];
            best.scale[lane] = if better { scale } else { best.scale[lane] };
            best.gain[lane] = if better { gain } else { best.gain[lane] };
        }
    }
}

dispatched! {
    /// Measures whole scales and mins, in units of `unit`, with the codes `low..=high` nearest to them, and keeps them
    /// where they are better.
    pub(super) fn try_grades<const L: usize, const N: usize>(
        points: &Points<L, N>,
        scales: &[f32; L],
        mins: &[f32; L],
        unit: (f32, f32),
        range: (f32, f32),
        best: &mut Grades<L>,
    ) {
        let (mut offset, mut inverses) = ([0.0; L], [0.0; L]);
        for lane in 0..L {
            offset[lane] = -(mins[lane] * unit.1);
            inverses[lane] = inverse(scales[lane] * unit.0);
        }
        let [sum_wl, sum_wll, sum_wlx] = sums(points, &offset, &inverses, range.0, range.1);
        for lane in 0..L {
            let (scale, offset) = (scales[lane] * unit.0, offset[lane]);
            let slope = scale * (2.0 * (sum_wlx[lane] - offset * sum_wl[lane]) - scale * sum_wll[lane]);
            let gain = slope + offset * (2.0 * points.sum_wx[lane] - offset * points.sum_w[lane]);
            let better = gain > best.gain[lane];
            best.scales[lane] = if better { scales[lane] } else { best.scales[lane] };
            best.mins[lane] = if better { mins[lane] } else { best.mins[lane] };
            best.gain[lane] = if better { gain } else { best.gain[lane] };
            best.sum_wl[lane] = if better { sum_wl[lane] } else { best.sum_wl[lane] };
            best.sum_wll[lane] = if better { sum_wll[lane] } else { best.sum_wll[lane] };
            best.sum_wlx[lane] = if better { sum_wlx[lane] } else { best.sum_wlx[lane] };
        }
    }
}

dispatched! {
    /// The codes `low..=high` nearest to whole scales and mins, as the values lie, counted from `low`.
    pub(super) fn put_codes<const L: usize, const N: usize>(
        points: &Points<L, N>,
        grades: &Grades<L>,
        unit: (f32, f32),
        range: (f32, f32),
        codes: &mut [u8],
    ) {
        let mut side_by_side = [[0.0; L]; N];
        let (mut offset, mut inverses) = ([0.0; L], [0.0; L]);
        for lane in 0..L {
            offset[lane] = -(grades.mins[lane] * unit.1);
            inverses[lane] = inverse(grades.scales[lane] * unit.0);
        }
        for (codes, values) in side_by_side.iter_mut().zip(&points.values) {
            for lane in 0..L {
                codes[lane] = nearest((values[lane] - offset[lane]) * inverses[lane], range.0, range.1) - range.0;
            }
        }
        for (lane, codes) in codes.as_chunks_mut::<N>().0.iter_mut().enumerate().take(L) {
            for i in 0..N {
                codes[i] = side_by_side[i][lane] as u8;
            }
        }
    }
}
