//! Several numbers computed side by side: lane `i` belongs to sub-block `i`.
//!
//! The searches of [`super::search`] do the same for each sub-block of a super-block, so they are written once for
//! numbers of this type. There is nothing to add up across lanes and nothing to branch on: the compiler makes one
//! vector instruction of each operator, with whatever width the CPU has.

use std::ops::{Add, Div, Mul, Sub};

#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(32))]
pub(super) struct Lanes<const L: usize>(pub [f32; L]);

impl<const L: usize> Lanes<L> {
    pub(super) const ZERO: Self = Self([0.0; L]);

    #[inline(always)]
    pub(super) fn all(value: f32) -> Self {
        Self([value; L])
    }

    /// The sum over the lanes.
    #[inline(always)]
    pub(super) fn sum(self) -> f32 {
        self.0.iter().sum()
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut result = self;
        for i in 0..L {
            result.0[i] = f(self.0[i], other.0[i]);
        }
        result
    }

    /// Where `self` is smaller than `other`; never where either is NaN.
    #[inline(always)]
    pub(super) fn below(self, other: Self) -> Mask<L> {
        let mut mask = Mask([false; L]);
        for i in 0..L {
            mask.0[i] = self.0[i] < other.0[i];
        }
        mask
    }

    #[inline(always)]
    pub(super) fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    pub(super) fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        self.zip(self, |a, _| a.abs())
    }

    /// To the nearest whole number, ties to even, then into `low..=high`; right for |value| < 2^22, and beyond that on
    /// the right side of the limits.
    #[inline(always)]
    pub(super) fn rounded(self, low: Self, high: Self) -> Self {
        /// Adding and subtracting 1.5 * 2^23 rounds.
        const ROUND: f32 = 12_582_912.0;
        self.zip(self, |a, _| (a + ROUND) - ROUND).max(low).min(high)
    }

    /// `self / other`, or zero where `other` is not above zero.
    #[inline(always)]
    pub(super) fn over(self, other: Self) -> Self {
        Self::ZERO.below(other).pick(self / other, Self::ZERO)
    }
}

macro_rules! operator {
    ($name:ident, $method:ident, $op:tt) => {
        impl<const L: usize> $name for Lanes<L> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.zip(other, |a, b| a $op b)
            }
        }
    };
}
operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

/// A decision for each lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask<const L: usize>(pub [bool; L]);

impl<const L: usize> Mask<L> {
    #[inline(always)]
    pub(super) fn pick(self, yes: Lanes<L>, no: Lanes<L>) -> Lanes<L> {
        let mut result = no;
        for i in 0..L {
            result.0[i] = if self.0[i] { yes.0[i] } else { no.0[i] };
        }
        result
    }
}
