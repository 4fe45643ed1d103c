//! A training pass on the device: [`crate::model::tape`], step by step.

use super::attention::Attention;
use super::batch::OnDevice;
use super::device::Device;
use super::head::{Head, HeadGradient};
use super::layer::{Complete, Kept};
use super::memory::Buffer;
use super::model::{Computed, Group, Model};
use super::operations::{Uses, take_rows};
use super::rows::{Rows, RowsMut};
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::model::decoder::Decoder;
use crate::model::tape::Pass;

/// What a forward pass has left.
pub(super) struct Tape<'m, T: Computed> {
    device: &'m Device,
    decoder: &'m Decoder,
    model: &'m Model<T>,
    groups: &'m [Group],
    ids: Vec<u32>,
    batch: OnDevice,
    /// Tokens of the pass that lie before the batch, which may be a part of it.
    first_token: usize,
    pass: Pass,
    /// Whether there is dropout: not where nobody learns.
    learns: bool,
    layers: Vec<Entry<T>>,
    /// What the last layer has made of it all, `[tokens, hidden]`.
    stream: Buffer<T>,
}

/// A layer's input `[tokens, hidden]`, and what it kept, where it kept anything.
struct Entry<T: Computed> {
    x: Buffer<T>,
    kept: Option<Kept<T>>,
}

impl<'m, T: Computed> Tape<'m, T> {
    /// The forward pass of a batch, which begins at a token of a larger pass, up to where its losses begin; for its own
    /// sake, where nobody `learns` from it.
    pub(super) fn record(
        device: &'m Device,
        decoder: &'m Decoder,
        (model, groups): (&'m Model<T>, &'m [Group]),
        (batch, first_token): (&Batch, usize),
        pass: Pass,
        learns: bool,
    ) -> Result<Self> {
        let tokens = (batch.ids.clone(), OnDevice::new(device, decoder, batch)?, first_token);
        Self::through(device, decoder, (model, groups), tokens, pass, learns)
    }

    /// Tokens, the first of which lies there in its pass, through all layers.
    pub(super) fn through(
        device: &'m Device,
        decoder: &'m Decoder,
        (model, groups): (&'m Model<T>, &'m [Group]),
        (ids, batch, first_token): (Vec<u32>, OnDevice, usize),
        pass: Pass,
        learns: bool,
    ) -> Result<Self> {
        let embedding = model.embedding.rows(&groups[Decoder::EMBEDDING_GROUP]);
        let stream = take_rows(device, embedding, batch.ids.view(), model.config.features.embedding_scale)?;
        let layers = Vec::new();
        let mut tape = Self { device, decoder, model, groups, ids, batch, first_token, pass, learns, layers, stream };
        for index in 0..model.layers.len() {
            let (y, kept) = tape.layer(index).forward(&tape.stream)?;
            let x = std::mem::replace(&mut tape.stream, y);
            if learns {
                tape.layers.push(Entry { x, kept: (!pass.gradient_checkpointing).then_some(kept) });
            }
        }
        Ok(tape)
    }

    /// Another pass with the same values, for its own sake.
    pub(super) fn beside(&self, batch: &Batch) -> Result<Self> {
        Self::record(self.device, self.decoder, (self.model, self.groups), (batch, 0), self.pass, false)
    }

    /// The negative log likelihood of each of the batch's targets, in nats.
    pub(super) fn losses(&self) -> Result<Vec<f64>> {
        let losses = self.head().losses(&self.stream, &self.batch, None)?;
        Ok(losses.download()?.into_iter().map(f64::from).collect())
    }

    /// The likeliest token after each of the tokens in these places of the pass.
    pub(super) fn next_tokens(&self, places: &[usize]) -> Result<Vec<Option<u32>>> {
        Ok(self.head().likeliest(&self.stream, places)?)
    }

    /// Adds the gradients of the sum over the targets of `scales` times their losses, and returns the losses, for which
    /// nobody has waited yet.
    pub(super) fn backward(mut self, scales: &[f32], gradients: &mut [Buffer<f32>]) -> Result<Buffer<f32>> {
        let device = self.device;
        let scales = device.upload(scales)?;
        let mut dstream = device.zeros(self.stream.len())?;
        let losses = {
            let [embedding, .., last] = &mut *gradients else { unreachable!("a model has two ends") };
            let gradient = HeadGradient {
                scales: scales.view(),
                x: &mut dstream,
                norm: None,
                weight: match &self.model.head {
                    Some(_) => None,
                    None => self.model.embedding.gradient(embedding),
                },
            };
            self.head_losses(gradient, last)?
        };
        let layers = std::mem::take(&mut self.layers);
        for (index, Entry { x, kept }) in layers.into_iter().enumerate().rev() {
            let group = self.decoder.layer_group(index);
            // Below the lowest group that is trained there is nothing to do.
            let further = self.groups[..group].iter().any(|group| !group.is_empty());
            let layer = self.layer(index);
            let kept = match kept {
                Some(kept) => kept,
                None => layer.forward(&x)?.1,
            };
            match layer.backward(&x, kept, dstream, further, &mut gradients[group])? {
                Some(dx) => dstream = dx,
                None => return Ok(losses),
            }
        }
        let (width, scale) = (self.model.embedding.width, self.model.config.features.embedding_scale);
        if let Some(dtable) = self.model.embedding.gradient(&mut gradients[Decoder::EMBEDDING_GROUP]) {
            assert_eq!(dtable.width, width, "the embedding's gradient is as wide as the embedding");
            Uses::new(device, &self.ids)?.add_gradient(device, &dstream, scale, dtable)?;
        }
        Ok(losses)
    }

    /// The losses with the gradients at the model's end, of which `last` is the group.
    fn head_losses(&self, gradient: HeadGradient<'_, T>, last: &mut Buffer<f32>) -> Result<Buffer<f32>> {
        let HeadGradient { scales, x, weight: tied, .. } = gradient;
        let norm = self.model.norm.weight.place();
        let head = self.model.head.as_ref().and_then(|head| head.place());
        let width = self.model.embedding.width;
        let (norm, head) = super::model::lend_two(last, norm, head);
        let weight = head.map(|head| RowsMut::new(head, width)).or(tied);
        Ok(self.head().losses(&self.stream, &self.batch, Some(HeadGradient { scales, x, norm, weight }))?)
    }

    fn head(&self) -> Head<'_, T> {
        let last = &self.groups[self.decoder.last_group()];
        let weight: Rows<'_, T> = match &self.model.head {
            Some(head) => head.rows(last),
            None => self.model.embedding.rows(&self.groups[Decoder::EMBEDDING_GROUP]),
        };
        Head { device: self.device, norm: self.model.norm.weighted(last), weight, softcap: self.model.softcap }
    }

    fn layer(&self, index: usize) -> Complete<'_, T> {
        let (model, layer) = (self.model, &self.model.layers[index]);
        let window_angles = model.window_angles.as_ref().filter(|_| layer.turns_as_window);
        Complete {
            device: self.device,
            layer,
            group: &self.groups[self.decoder.layer_group(index)],
            hidden: model.config.hidden,
            attention: Attention {
                device: self.device,
                layer: index,
                heads: model.config.heads,
                scoring: model.config.scoring(index),
                angles: window_angles.unwrap_or(&model.angles),
                turns_as_window: layer.turns_as_window,
                batch: &self.batch,
            },
            dropout_seed: self.learns.then_some(self.pass.dropout_seed),
            first_token: self.first_token,
        }
    }
}
