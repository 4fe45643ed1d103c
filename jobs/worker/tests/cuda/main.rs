//! Computing on a GPU, on one made of the CPU.

#[path = "../emulated_gpu/emulated_gpu.rs"]
mod emulated_gpu;

mod device;
mod error;
