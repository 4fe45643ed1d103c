//! A batch on the device.

use std::ops::Range;

use super::conversation::Recalled;
use super::device::Device;
use super::memory::Buffer;
use super::operations::small;
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::kernels::cross_entropy::Target;
use crate::model::conversation::News;
use crate::model::decoder::Decoder;

/// What goes through the model at once.
pub(super) struct OnDevice {
    /// Tokens.
    pub len: usize,
    pub ids: Buffer<u32>,
    /// The rows whose tokens attend to each other, and to nobody else.
    rows: Vec<Range<usize>>,
    /// Where tokens are remembered, if they are: those outside of `rows` look back at that.
    pub recalled: Option<Recalled>,
    /// Which row of the tables turns each token, in layers that see everything and in those with a window.
    angles: [Buffer<u32>; 2],
    /// After which tokens the targets are predicted.
    pub positions: Buffer<u32>,
    pub targets: Buffer<u32>,
}

impl OnDevice {
    /// Rows of which nothing is remembered.
    pub(super) fn new(device: &Device, decoder: &Decoder, batch: &Batch) -> Result<Self> {
        let rows: Vec<_> = batch.bounds.windows(2).map(|at| at[0]..at[1]).collect();
        let of_rows: Vec<_> = rows.iter().map(|row| 0..row.len()).collect();
        Self::of(device, decoder, &batch.ids, &of_rows, (rows, None), &batch.targets)
    }

    /// Conversations that go on.
    pub(super) fn of_news(
        device: &Device,
        decoder: &Decoder,
        news: &News,
        targets: &[Target],
        recalled: Recalled,
    ) -> Result<Self> {
        let rows = || news.bounds.windows(2).map(|at| at[0]..at[1]).zip(&news.before);
        let places: Vec<_> = rows().map(|(row, &before)| before..before + row.len()).collect();
        let whole = rows().filter(|(_, before)| **before == 0).map(|(row, _)| row).collect();
        Self::of(device, decoder, &news.ids, &places, (whole, Some(recalled)), targets)
    }

    /// `places` are those of each row's tokens, of which there may be more before.
    fn of(
        device: &Device,
        decoder: &Decoder,
        ids: &[u32],
        places: &[Range<usize>],
        (rows, recalled): (Vec<Range<usize>>, Option<Recalled>),
        targets: &[Target],
    ) -> Result<Self> {
        let angles = |window: bool| {
            let layer = (0..decoder.config.layers).find(|&layer| decoder.config.turns_as_window(layer) == window);
            let of_row = |places: &Range<usize>| {
                let first = layer.map_or(0, |layer| decoder.rope_of(layer).first_angle(places.end));
                (first + places.start..first + places.end).map(small)
            };
            device.upload(&places.iter().flat_map(of_row).collect::<Vec<u32>>())
        };
        Ok(Self {
            len: ids.len(),
            ids: device.upload(ids)?,
            rows,
            recalled,
            angles: [angles(false)?, angles(true)?],
            positions: device.upload(&targets.iter().map(|target| small(target.position)).collect::<Vec<_>>())?,
            targets: device.upload(&targets.iter().map(|target| target.token).collect::<Vec<_>>())?,
        })
    }

    /// The rows whose tokens attend to each other.
    pub(super) fn rows(&self) -> &[Range<usize>] {
        &self.rows
    }

    /// The longest of them, in tokens.
    pub(super) fn longest(&self) -> usize {
        self.rows.iter().map(|row| row.len()).max().unwrap_or(0)
    }

    pub(super) fn angles(&self, window: bool) -> &Buffer<u32> {
        &self.angles[usize::from(window)]
    }
}
