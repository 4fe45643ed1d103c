//! Computing on NVIDIA GPUs, with kernels of our own and cuBLAS for the products.
//!
//! As on the CPU the trainer has its own kernels and its own tape, and candle only holds tensors: candle's CUDA kernels
//! have no backward passes. `cudarc`, through which candle speaks to CUDA, is used directly, and opens the driver and
//! cuBLAS when the first [`device::Device`] is opened: one program serves hosts with and without a GPU.
//!
//! The kernels lie in `cuda/kernels`, and beside each CPU kernel in [`crate::kernels`] stands the formula that they
//! mirror. nvcc turns them into machine code for several generations of GPUs, which is a part of the program; for tests
//! without a GPU the host's C++ compiler makes an emulated one of them, in `tests/emulated_gpu`.
//!
//! Everything goes through one stream, in the order in which it was asked for; only copies to the host wait. Several GPUs
//! compute one training as [`ranks`], with the same values in each of them.

mod adapted;
mod attention;
mod batch;
mod blocks;
pub mod conversation;
mod deal;
pub mod device;
mod dora;
pub mod engine;
pub mod error;
pub mod exchange;
mod head;
mod layer;
pub mod memory;
mod model;
pub mod module;
mod nccl;
mod operations;
pub mod product;
pub mod ranks;
mod rows;
pub mod selfcheck;
pub mod speaker;
mod stack;
mod tape;

pub use model::Computed;
