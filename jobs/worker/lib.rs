//! Runs one attempt of a drydock job.

pub mod kernels;
