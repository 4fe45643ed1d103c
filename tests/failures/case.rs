//! One failure: how it is provoked, what it has to be known for, and what makes the job pass.

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
/// The one that is mended.
pub(crate) const MENDED: u32 = 0;

#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: FailureKind,
    pub(crate) stage: Option<Stage>,
    pub(crate) order: fn(Guise) -> Order,
    pub(crate) mend: Option<Mend>,
}

/// What makes a job pass that failed so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mend {
    /// As its text begins: one of the first two that are offered.
    pub(crate) remedy: &'static str,
    pub(crate) deed: Deed,
}

/// What somebody does who is told to do something outside the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Nothing,
    /// Brings the model and the rows again under their names, from where they came from.
    BringsAgain,
    /// Waits until the hub is in order, has its licences, or corrects what is on it.
    MendsHub,
    /// Mends the job whose result is read.
    MendsInput,
    /// Gives jobs more room for scratch files and more processes, in the gateway's configuration.
    Configures,
    /// Uses a worker without the fault.
    MendsWorker,
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

impl Case {
    /// A job that failed so passes with this remedy, and nothing else.
    pub(crate) const fn mended(self, remedy: &'static str) -> Self {
        self.mended_by(Deed::Nothing, remedy)
    }

    pub(crate) const fn mended_by(self, deed: Deed, remedy: &'static str) -> Self {
        Self { mend: Some(Mend { remedy, deed }), ..self }
    }
}

impl Deed {
    /// Whether the gateway has to be started anew for it.
    pub(crate) fn restarts(self) -> bool {
        match self {
            Self::Configures | Self::MendsWorker => true,
            Self::Nothing | Self::BringsAgain | Self::MendsHub | Self::MendsInput => false,
        }
    }
}
