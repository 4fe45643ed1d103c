//! A batch on the device.

use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use super::memory::Buffer;
use super::operations::small;
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::model::decoder::Decoder;

/// What goes through the model at once.
pub(super) struct OnDevice {
    /// Tokens.
    pub len: usize,
    pub ids: Buffer<u32>,
    /// Where each row begins, and after the last one where it ends.
    bounds: Arc<[usize]>,
    /// Which row of the tables turns each token, in layers that see everything and in those with a window.
    angles: [Buffer<u32>; 2],
    /// After which tokens the targets are predicted.
    pub positions: Buffer<u32>,
    pub targets: Buffer<u32>,
}

impl OnDevice {
    pub(super) fn new(device: &Device, decoder: &Decoder, batch: &Batch) -> Result<Self> {
        let angles = |window: bool| {
            let layer = (0..decoder.config.layers).find(|&layer| decoder.config.turns_as_window(layer) == window);
            let rows = batch.bounds.windows(2).map(|bounds| bounds[1] - bounds[0]);
            let of_row = |tokens: usize| {
                let first = layer.map_or(0, |layer| decoder.rope_of(layer).first_angle(tokens));
                (first..first + tokens).map(small)
            };
            device.upload(&rows.flat_map(of_row).collect::<Vec<u32>>())
        };
        Ok(Self {
            len: batch.ids.len(),
            ids: device.upload(&batch.ids)?,
            bounds: batch.bounds.clone(),
            angles: [angles(false)?, angles(true)?],
            positions: device.upload(&batch.targets.iter().map(|target| small(target.position)).collect::<Vec<_>>())?,
            targets: device.upload(&batch.targets.iter().map(|target| target.token).collect::<Vec<_>>())?,
        })
    }

    /// The rows of tokens.
    pub(super) fn rows(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.bounds.windows(2).map(|bounds| bounds[0]..bounds[1])
    }

    /// The longest row, in tokens.
    pub(super) fn longest(&self) -> usize {
        self.rows().map(|row| row.len()).max().unwrap_or(0)
    }

    pub(super) fn angles(&self, window: bool) -> &Buffer<u32> {
        &self.angles[usize::from(window)]
    }
}
