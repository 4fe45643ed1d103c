//! The end of the model on the device, as [`crate::kernels::cross_entropy`]: last norm, head and loss, with logits for a
//! few tokens at a time only.

use drydock_spec::device::targets_at_once;

use super::batch::OnDevice;
use super::device::Device;
use super::error::Result;
use super::memory::{Buffer, Element, View, ViewMut};
use super::model::Computed;
use super::module::{Argument, Shape, arguments};
use super::operations::{Weighted, named, put_rows, small, take_rows};
use super::product::Mix;
use super::rows::{Rows, RowsMut};

/// The end of a model.
pub(super) struct Head<'a, T: Element> {
    pub device: &'a Device,
    pub norm: Weighted<'a>,
    /// `[vocabulary, hidden]`
    pub weight: Rows<'a, T>,
    pub softcap: Option<f32>,
}

/// Where the gradients of a sum of losses go, each loss multiplied by a number of its own.
pub(super) struct HeadGradient<'a, T: Element> {
    /// One for each target.
    pub scales: View<'a, f32>,
    /// The stream's, `[tokens, hidden]`; zero before. Every token makes one prediction.
    pub x: &'a mut Buffer<T>,
    pub norm: Option<ViewMut<'a, f32>>,
    pub weight: Option<RowsMut<'a, f32>>,
}

impl<T: Computed> Head<'_, T> {
    /// The likeliest token after each of these of the stream `[tokens, hidden]`.
    pub(super) fn likeliest(&self, x: &Buffer<T>, places: &[usize]) -> Result<Vec<Option<u32>>> {
        const NONE: u32 = u32::MAX;
        let Self { device, norm, weight, softcap } = *self;
        let (vocabulary, hidden) = (weight.rows, weight.width);
        let places = device.upload(&places.iter().map(|&place| small(place)).collect::<Vec<_>>())?;
        let mut found = device.buffer::<u32>(places.len())?;
        let at_once = targets_at_once(vocabulary as u64, places.len() as u64) as usize;
        let mut logits: Buffer<f32> = device.buffer(at_once * vocabulary)?;
        for from in (0..places.len()).step_by(at_once) {
            let chosen = from..(from + at_once).min(places.len());
            let some = take_rows(device, Rows::of(x, hidden), places.part(chosen.clone()), 1.0)?;
            let h = norm.forward(device, Rows::of(&some, hidden))?;
            let into = RowsMut::new(logits.part_mut(..chosen.len() * vocabulary), vocabulary).matrix();
            device.multiply(Rows::of(&h, hidden).matrix(), weight.matrix().t(), Mix::SET, into)?;
            let (shape, softcap) = (Shape::of(chosen.len(), 512), softcap.unwrap_or(0.0));
            device.launch(
                "likeliest",
                shape,
                arguments![&logits, found.part_mut(chosen), softcap, small(vocabulary)],
            )?;
        }
        Ok(found.download()?.into_iter().map(|token| (token != NONE).then_some(token)).collect())
    }

    /// The negative log likelihood of each target in nats, for the stream `[tokens, hidden]`; with the gradients of
    /// their weighted sum, where they are asked for.
    pub(super) fn losses(
        &self,
        x: &Buffer<T>,
        batch: &OnDevice,
        mut gradient: Option<HeadGradient<'_, T>>,
    ) -> Result<Buffer<f32>> {
        let Self { device, norm, weight, softcap } = *self;
        let (vocabulary, hidden, targets) = (weight.rows, weight.width, batch.targets.len());
        let mut losses = device.buffer(targets)?;
        let at_once = targets_at_once(vocabulary as u64, targets as u64) as usize;
        let mut logits: Buffer<f32> = device.buffer(at_once * vocabulary)?;
        let mut dlogits: Option<Buffer<T>> = match &gradient {
            Some(_) => Some(device.buffer(at_once * vocabulary)?),
            None => None,
        };
        for from in (0..targets).step_by(at_once) {
            let chosen = from..(from + at_once).min(targets);
            let count = chosen.len();
            let positions = batch.positions.part(chosen.clone());
            let some = take_rows(device, Rows::of(x, hidden), positions, 1.0)?;
            let h = norm.forward(device, Rows::of(&some, hidden))?;
            let h = Rows::of(&h, hidden);
            let into = RowsMut::new(logits.part_mut(..count * vocabulary), vocabulary);
            device.multiply(h.matrix(), weight.matrix().t(), Mix::SET, into.matrix())?;
            device.launch(
                named!(T, "cross_entropy"),
                Shape::of(count, 512),
                arguments![
                    &logits,
                    batch.targets.part(chosen.clone()),
                    gradient.as_ref().map(|gradient| gradient.scales.part(chosen.clone())),
                    softcap.unwrap_or(0.0),
                    losses.part_mut(chosen),
                    dlogits.as_mut().map_or(Argument::NULL, Argument::from),
                    small(vocabulary)
                ],
            )?;
            let (Some(gradient), Some(dlogits)) = (&mut gradient, &dlogits) else { continue };
            let dlogits = Rows::new(dlogits.part(..count * vocabulary), vocabulary).matrix();
            if let Some(dweight) = &mut gradient.weight {
                device.multiply(dlogits.t(), h.matrix(), Mix::ADD, dweight.again().matrix())?;
            }
            let mut dh = device.buffer(some.len())?;
            device.multiply(dlogits, weight.matrix(), Mix::SET, RowsMut::of(&mut dh, hidden).matrix())?;
            let mut dsome = device.buffer(some.len())?;
            let dnorm = gradient.norm.as_mut().map(ViewMut::again);
            let into = (RowsMut::of(&mut dsome, hidden), false);
            norm.backward(device, Rows::of(&some, hidden), &dh, into, dnorm)?;
            put_rows(device, Rows::of(&dsome, hidden), positions, gradient.x)?;
        }
        Ok(losses)
    }
}
