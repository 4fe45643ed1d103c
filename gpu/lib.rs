//! What a host has and what a job gets of it: pure rules, no I/O.

pub mod assign;
pub mod estimate;

pub use assign::{Capacity, Shortage};
pub use estimate::Decoder;
