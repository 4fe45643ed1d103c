//! Computing on a GPU, on one made of the CPU.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../emulated_gpu/emulated_gpu.rs"]
mod emulated_gpu;
#[path = "../run/scene.rs"]
#[allow(dead_code, reason = "most of it is for jobs on the CPU")]
mod scene;
#[path = "../fixture/tiny.rs"]
mod tiny;

mod attempt;
mod device;
mod error;
mod evaluate;
mod memory;
mod ranks;
mod selfcheck;
mod training;
