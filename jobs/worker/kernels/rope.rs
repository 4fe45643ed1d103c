//! Rotary positions (RoFormer), in Hugging Face's order: of the values of a head that turn, value `i` turns together
//! with value `i + turning / 2`. What follows the turning values of a head passes unturned (partial rotary positions).

use super::simd::dispatched;

/// How fast the pairs of a head turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Angle per position for each pair.
    pub inverse: Vec<f32>,
    /// What turned values are multiplied by (the attention factor of YaRN and LongRoPE); 1 as a rule.
    pub factor: f32,
}

/// The angles of every position that a model may see.
#[derive(Debug)]
pub struct Rope {
    usual: Table,
    /// From how many positions a row is long, and what turns it then.
    long: Option<(usize, Table)>,
}

/// `[positions, turning / 2]` cosines and sines, times the factor.
#[derive(Debug)]
pub(super) struct Table {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    half: usize,
}

/// See [`Rope::angles`].
#[derive(Debug, Clone, PartialEq)]
pub struct Angles {
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
    /// Values in a row of either.
    pub half: usize,
}

/// Which way to turn: backward passes turn gradients back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

dispatched! {
    fn rotate(x: &[f32], cosines: &[f32], sines: &[f32], sign: f32, scale: f32, y: &mut [f32]) {
        let half = cosines.len();
        let (turning, passing) = x.split_at(2 * half);
        let (turned, passed) = y.split_at_mut(2 * half);
        let (x0, x1) = turning.split_at(half);
        let (y0, y1) = turned.split_at_mut(half);
        for (((y0, y1), (x0, x1)), (c, s)) in y0.iter_mut().zip(y1).zip(x0.iter().zip(x1)).zip(cosines.iter().zip(sines)) {
            let (a, b, s) = (x0 * scale, x1 * scale, s * sign);
            *y0 = a * c - b * s;
            *y1 = b * c + a * s;
        }
        passed.iter_mut().zip(passing).for_each(|(y, x)| *y = x * scale);
    }
}

impl Rope {
    /// The angle of position `p` in pair `i` is `p * inverse[i]`.
    pub fn new(frequencies: &Frequencies, positions: usize) -> Self {
        Self { usual: Table::new(frequencies, positions), long: None }
    }

    /// Rows of more than `most_usual` tokens turn as `long` says, from their first token on; the others as usual
    /// (LongRoPE).
    pub fn with_long(usual: &Frequencies, most_usual: usize, long: &Frequencies, positions: usize) -> Self {
        let long = (positions > most_usual).then(|| (most_usual + 1, Table::new(long, positions)));
        Self { usual: Table::new(usual, positions.min(most_usual)), long }
    }

    /// Whether a row of so many tokens turns in another way than shorter ones.
    pub fn is_long(&self, tokens: usize) -> bool {
        self.long.as_ref().is_some_and(|(from, _)| tokens >= *from)
    }

    /// Positions that the tables reach.
    pub fn positions(&self) -> usize {
        self.long.as_ref().map_or(&self.usual, |(_, long)| long).positions()
    }

    /// All angles, for somebody who turns elsewhere: cosines and sines `[rows, half]` times the factor, first the usual
    /// ones and below them those of long rows.
    pub fn angles(&self) -> Angles {
        let tables = || std::iter::once(&self.usual).chain(self.long.as_ref().map(|(_, long)| long));
        Angles {
            cosines: tables().flat_map(|table| table.cosines.iter().copied()).collect(),
            sines: tables().flat_map(|table| table.sines.iter().copied()).collect(),
            half: self.usual.half,
        }
    }

    /// Which row of the [`Rope::angles`] turns the first token of a row of so many.
    pub fn first_angle(&self, tokens: usize) -> usize {
        if self.is_long(tokens) { self.usual.positions() } else { 0 }
    }

    /// What turns a row of so many tokens.
    pub(super) fn table(&self, tokens: usize) -> &Table {
        match &self.long {
            Some((from, long)) if tokens >= *from => long,
            _ => &self.usual,
        }
    }
}

impl Table {
    fn new(frequencies: &Frequencies, positions: usize) -> Self {
        let Frequencies { inverse, factor } = frequencies;
        let angles = || (0..positions).flat_map(|p| inverse.iter().map(move |f| p as f32 * f));
        Self {
            cosines: angles().map(|angle| angle.cos() * factor).collect(),
            sines: angles().map(|angle| angle.sin() * factor).collect(),
            half: inverse.len(),
        }
    }

    fn positions(&self) -> usize {
        self.cosines.len() / self.half
    }

    /// Turns one head's values at one position, and multiplies them by `scale`. Turning back is the gradient of
    /// turning forth, and its inverse where the factor is 1.
    pub(super) fn turn(&self, position: usize, way: Turn, scale: f32, x: &[f32], y: &mut [f32]) {
        let at = position * self.half..(position + 1) * self.half;
        let sign = if way == Turn::Forward { 1.0 } else { -1.0 };
        rotate(x, &self.cosines[at.clone()], &self.sines[at], sign, scale, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(inverse: &[f32]) -> Frequencies {
        Frequencies { inverse: inverse.to_vec(), factor: 1.0 }
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn turning_forth_and_back_changes_nothing() {
        let rope = Rope::new(&plain(&[1.0, 0.1, 0.01]), 50);
        let x = [1.0, -2.0, 3.0, 0.5, 0.25, -1.5];
        let (mut there, mut back) = ([0.0; 6], [0.0; 6]);
        rope.table(50).turn(49, Turn::Forward, 1.0, &x, &mut there);
        rope.table(50).turn(49, Turn::Back, 1.0, &there, &mut back);
        assert_ne!(x, there);
        assert!(close(&x, &back));
    }

    #[test]
    fn the_factor_stretches_what_turns_and_the_rest_passes() {
        let rope = Rope::new(&Frequencies { inverse: vec![0.5], factor: 3.0 }, 4);
        let mut y = [0.0; 4];
        rope.table(4).turn(0, Turn::Forward, 2.0, &[1.0, -2.0, 5.0, 7.0], &mut y);
        assert_eq!(y, [6.0, -12.0, 10.0, 14.0]);
        rope.table(4).turn(1, Turn::Forward, 1.0, &[1.0, 0.0, 5.0, 7.0], &mut y);
        assert!(close(&y, &[3.0 * 0.5f32.cos(), 3.0 * 0.5f32.sin(), 5.0, 7.0]));
    }

    #[test]
    fn a_long_row_turns_in_its_own_way_from_its_first_token_on() {
        let rope = Rope::with_long(&plain(&[1.0]), 4, &plain(&[0.25]), 9);
        assert_eq!((rope.positions(), rope.is_long(4), rope.is_long(5)), (9, false, true));
        let turned = |tokens| {
            let mut y = [0.0; 2];
            rope.table(tokens).turn(2, Turn::Forward, 1.0, &[1.0, 0.0], &mut y);
            y
        };
        assert!(close(&turned(4), &[2f32.cos(), 2f32.sin()]));
        assert!(close(&turned(5), &[0.5f32.cos(), 0.5f32.sin()]));
        assert!(!Rope::with_long(&plain(&[1.0]), 4, &plain(&[0.25]), 4).is_long(5), "nobody needs the long table");
    }
}
