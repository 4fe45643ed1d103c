//! One failure: how it is provoked, and what it has to be known for.

use drydock_spec::{FailureKind, Stage};

use crate::order::Order;

/// The same failure in another guise: other numbers, names and sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guise {
    /// From 0.
    pub(crate) number: u32,
    /// Makes every model's weights their own, so that no two cases share files.
    pub(crate) seed: u64,
}

/// Guises that each case is provoked in.
pub(crate) const GUISES: u32 = 2;

#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: FailureKind,
    pub(crate) stage: Option<Stage>,
    pub(crate) order: fn(Guise) -> Order,
}

impl Guise {
    pub(crate) fn of(case: &str, number: u32) -> Self {
        let seed = case.bytes().fold(u64::from(number), |sum, byte| sum.wrapping_mul(131).wrapping_add(byte.into()));
        Self { number, seed }
    }

    /// One of these, the same one each time.
    pub(crate) fn pick<T: Copy>(self, values: [T; GUISES as usize]) -> T {
        values[self.number as usize]
    }
}
