//! A row of the table.

use std::fmt;
use std::pin::Pin;

/// Measures what belongs together.
pub(crate) type Row = fn(Length) -> Pin<Box<dyn Future<Output = Vec<Finding>>>>;

/// How long a measurement takes: as the goals are stated, or a tenth of it to see that it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Full,
    Short,
}

impl Length {
    /// `full`, or a tenth of it.
    pub(crate) fn of(self, full: usize) -> usize {
        match self {
            Self::Full => full,
            Self::Short => full.div_ceil(10),
        }
    }
}

/// What was found, in words: figures have their units.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) drydock: String,
    /// The peer's figure and what the peer is; empty where there is none.
    pub(crate) peer: String,
    /// What is held against the goal.
    pub(crate) came_to: String,
    pub(crate) goal: String,
    pub(crate) met: bool,
}

pub(crate) const HEAD: &str = "| what | drydock | peer | came to | goal | |\n|---|---|---|---|---|---|";

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, drydock, peer, came_to, goal, met } = self;
        let met = if *met { "met" } else { "**missed**" };
        write!(f, "| {what} | {drydock} | {peer} | {came_to} | {goal} | {met} |")
    }
}
