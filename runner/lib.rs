//! drydock: runs finetuning jobs in sealed containers and tells the truth about them.

pub mod artifacts;
mod hostile;
pub mod sandbox;
