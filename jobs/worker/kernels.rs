//! The arithmetic of training on a CPU: a handful of fused operations, each with a backward pass of its own.
//!
//! Kernels take slices and return vectors; they know of no tape. Every loop is compiled for the vector units of the
//! machine that it runs on (see [`simd`]). Gradients are added to buffers that the caller owns, and only those that are
//! asked for are computed: a frozen weight has none. What of a forward pass is kept for the backward pass, and what is
//! computed again, is decided where the kernels are put together: in [`crate::model::layer`].
//!
//! Rows of different lengths are laid end to end without padding: a batch is `[tokens, width]`, and only attention
//! needs to know where a row begins.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod bias;
pub mod cross_entropy;
pub mod dora;
mod few;
pub mod gated;
pub mod linear;
mod matrix;
mod memory;
pub mod narrow;
pub mod norm;
pub mod quantized;
pub mod rope;
pub mod simd;
pub mod softcap;
#[cfg(test)]
mod testing;
pub mod weight;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

/// The values of an operation's argument. Every operation here asks for contiguous f32.
pub(crate) fn argument<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => candle_core::bail!("a contiguous argument is expected, not {layout:?}"),
    }
}

/// Lends the values of a contiguous f32 tensor on the CPU to `f`.
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(argument(storage, layout)?),
        _ => candle_core::bail!("a tensor on the CPU is expected"),
    }
}
