//! drydock: runs finetuning jobs in sealed containers and tells the truth about them.

pub mod sandbox;
