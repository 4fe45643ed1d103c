//! Frozen weights in the blocks of a file, which stay what they are on the device, too: a product widens them first.
//!
//! Widening reads about half a byte and writes two or four for each number, and the product reads them again: at a batch
//! of thousands of tokens, a few percent of the product's time.

use super::device::Device;
use super::error::Result;
use super::memory::{Buffer, ViewMut};
use super::model::Computed;
use super::module::{Shape, arguments};
use super::operations::named;
use crate::blocks::BlockKind;
use crate::kernels::weight::Held;
use crate::model::parameter::{Parameter, Place};

/// A matrix in blocks.
pub(super) struct Blocks {
    kind: BlockKind,
    bytes: Buffer<u8>,
    /// Numbers that the blocks hold.
    len: usize,
}

impl Blocks {
    /// Nothing where the parameter is not in quantized blocks.
    pub(super) fn load(device: &Device, parameter: &Parameter) -> Result<Option<Self>> {
        let Place::Frozen(stored) = &parameter.place else { return Ok(None) };
        match stored.as_weight().held {
            Held::Blocks(blocks) if blocks.kind.is_quantized() => {
                let bytes = device.upload(blocks.bytes)?;
                Ok(Some(Self { kind: blocks.kind, bytes, len: parameter.elements() }))
            }
            Held::Blocks(_) | Held::F32(_) => Ok(None),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Writes every value.
    pub(super) fn widen<T: Computed>(&self, device: &Device, values: ViewMut<'_, T>) -> Result<()> {
        assert_eq!(values.len(), self.len, "values in blocks, and room for them");
        let kernel = match self.kind {
            BlockKind::Q4_0 => named!(T, "widen_q4_0"),
            BlockKind::Q4_1 => named!(T, "widen_q4_1"),
            BlockKind::Q5_0 => named!(T, "widen_q5_0"),
            BlockKind::Q5_1 => named!(T, "widen_q5_1"),
            BlockKind::Q8_0 => named!(T, "widen_q8_0"),
            BlockKind::Q2K => named!(T, "widen_q2_k"),
            BlockKind::Q3K => named!(T, "widen_q3_k"),
            BlockKind::Q4K => named!(T, "widen_q4_k"),
            BlockKind::Q5K => named!(T, "widen_q5_k"),
            BlockKind::Q6K => named!(T, "widen_q6_k"),
            BlockKind::F32 | BlockKind::F16 | BlockKind::Bf16 => unreachable!("only what is quantized is loaded"),
        };
        device.launch(kernel, Shape::over(self.len, 256), arguments![&self.bytes, values, self.len as u64])
    }
}
