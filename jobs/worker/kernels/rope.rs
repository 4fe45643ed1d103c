//! Rotary positions (RoFormer), in Hugging Face's order: value `i` of a head turns together with value `i + dim / 2`.

use super::simd::dispatched;

/// The angles of every position that a model may see, as `[positions, dim / 2]` cosines and sines.
#[derive(Debug)]
pub struct Rope {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    half: usize,
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
        let (x0, x1) = x.split_at(half);
        let (y0, y1) = y.split_at_mut(half);
        for (((y0, y1), (x0, x1)), (c, s)) in y0.iter_mut().zip(y1).zip(x0.iter().zip(x1)).zip(cosines.iter().zip(sines)) {
            let (a, b, s) = (x0 * scale, x1 * scale, s * sign);
            *y0 = a * c - b * s;
            *y1 = b * c + a * s;
        }
    }
}

impl Rope {
    /// The angle of position `p` in pair `i` is `p * inverse_frequencies[i]`.
    pub fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let half = inverse_frequencies.len();
        let angles: Vec<f32> =
            (0..positions).flat_map(|p| inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
        Self {
            cosines: angles.iter().map(|angle| angle.cos()).collect(),
            sines: angles.iter().map(|angle| angle.sin()).collect(),
            half,
        }
    }

    /// Positions that the table reaches.
    pub fn positions(&self) -> usize {
        self.cosines.len() / self.half
    }

    /// Turns one head's values at one position, and multiplies them by `scale`.
    pub(super) fn turn(&self, position: usize, way: Turn, scale: f32, x: &[f32], y: &mut [f32]) {
        let at = position * self.half..(position + 1) * self.half;
        let sign = if way == Turn::Forward { 1.0 } else { -1.0 };
        rotate(x, &self.cosines[at.clone()], &self.sines[at], sign, scale, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_forth_and_back_changes_nothing() {
        let rope = Rope::new(&[1.0, 0.1, 0.01], 50);
        let x = [1.0, -2.0, 3.0, 0.5, 0.25, -1.5];
        let (mut there, mut back) = ([0.0; 6], [0.0; 6]);
        rope.turn(49, Turn::Forward, 1.0, &x, &mut there);
        rope.turn(49, Turn::Back, 1.0, &there, &mut back);
        assert_ne!(x, there);
        assert!(x.iter().zip(back).all(|(x, back)| (x - back).abs() < 1e-6));
    }
}
