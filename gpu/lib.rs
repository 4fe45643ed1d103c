//! What a host has and what a job gets of it: pure rules. Only [`nvml`] asks anybody.

pub mod assign;
pub mod estimate;
pub mod health;
pub mod inventory;
pub mod nvml;

pub use assign::{Capacity, Shortage};
pub use estimate::Decoder;
