//! DoRA on the device, as [`crate::kernels::dora`] and [`crate::kernels::linear`] have it: an adapted weight whose rows
//! have their lengths trained. As there, the norms of the rows are constants in the backward pass, and the sum of weight
//! and adapter is never made.

use std::ops::Range;
use std::sync::Arc;

use super::adapted::Adapted;
use super::device::Device;
use super::error::Result;
use super::memory::{Buffer, View, ViewMut};
use super::model::Computed;
use super::module::{Argument, Shape, arguments};
use super::operations::{PIECE, named, pieces, small, sum_partials};
use super::product::Mix;
use super::rows::{Rows, RowsMut};
use crate::model::layer::RowLengths;

/// The trained lengths of an adapted weight's rows.
pub(super) struct Lengths {
    /// Where they lie in their group.
    trained: Range<usize>,
    /// The squared lengths of the frozen weight's rows.
    row_squares: Buffer<f32>,
    /// What they come to, where the values stay as they are.
    pub settled: Option<Arc<Gains>>,
}

/// What lengths come to for an adapter's values of the moment.
pub(super) struct Gains {
    /// By length and norm, `[out]`.
    gains: Buffer<f32>,
    /// By norm alone, `[out]`.
    inverse_norms: Buffer<f32>,
}

impl Lengths {
    pub(super) fn load(device: &Device, lengths: &RowLengths) -> Result<Self> {
        let RowLengths { trained, frozen_squares } = lengths;
        Ok(Self { trained: trained.clone(), row_squares: device.upload(frozen_squares)?, settled: None })
    }
}

/// An adapted projection with lengths.
#[derive(Clone, Copy)]
pub(super) struct Stretched<'a, T: Computed> {
    pub adapted: Adapted<'a>,
    pub lengths: &'a Lengths,
    /// The frozen weight, `[out, width]`.
    pub weight: Rows<'a, T>,
}

impl<T: Computed> Stretched<'_, T> {
    pub(super) fn gains(self) -> Result<Arc<Gains>> {
        let Self { adapted, lengths, weight } = self;
        if let Some(settled) = &lengths.settled {
            return Ok(settled.clone());
        }
        let (device, out, rank) = (adapted.device, weight.rows, adapted.rank());
        let (a, b) = (adapted.a::<T>(), adapted.b::<T>());
        let (mut across, mut gram) = (device.buffer::<f32>(rank * out)?, device.buffer::<f32>(rank * rank)?);
        device.multiply(a.matrix(), weight.matrix().t(), Mix::SET, RowsMut::of(&mut across, out).matrix())?;
        device.multiply(a.matrix(), a.matrix().t(), Mix::SET, RowsMut::of(&mut gram, rank).matrix())?;
        let mut gains = Gains { gains: device.buffer(out)?, inverse_norms: device.buffer(out)? };
        device.launch(
            named!(T, "dora_gains"),
            Shape::of(out.div_ceil(128), 128),
            arguments![
                &across,
                &gram,
                b.at,
                &lengths.row_squares,
                adapted.group.values.part(lengths.trained.clone()),
                adapted.adapter.scale,
                &mut gains.gains,
                &mut gains.inverse_norms,
                small(out),
                small(rank)
            ],
        )?;
        Ok(Arc::new(gains))
    }

    /// Makes of `y`, which is what the weight makes of `x`, what the adapted one makes of it. With `d` for what dropout
    /// leaves of `x` and `g` for the gains, that is `y + (g - 1) d Wᵀ + g s d Aᵀ Bᵀ`.
    pub(super) fn add(self, x: &Buffer<T>, mut y: RowsMut<'_, T>) -> Result<()> {
        let Self { adapted, weight, .. } = self;
        let (device, gains) = (adapted.device, self.gains()?);
        let Some(seen) = adapted.dropped(x)? else {
            adapted.add(x, y.again())?;
            return gains.scale(device, y);
        };
        let seen_rows = Rows::of(&seen, adapted.width);
        let mut more = device.buffer(y.rows * y.width)?;
        device.multiply(seen_rows.matrix(), weight.matrix().t(), Mix::SET, RowsMut::of(&mut more, y.width).matrix())?;
        gains.add(device, Rows::of(&more, y.width), -1.0, y.again())?;
        let reduced = adapted.reduced(&seen)?;
        let reduced = Rows::of(&reduced, adapted.rank()).matrix();
        let b = adapted.b().matrix().t();
        device.multiply(reduced, b, Mix::SET, RowsMut::of(&mut more, y.width).matrix())?;
        gains.add(device, Rows::of(&more, y.width), 0.0, y)
    }

    /// What an adapter's backward pass leaves to be done: adds the gradient of the lengths to `gradients` and, where there
    /// is dropout, that of `x` by the weight's share in what is stretched to `dx`. Without dropout it is in `dx` already,
    /// by a product of the weight with the gradient before the gains.
    pub(super) fn backward(
        self,
        gains: &Gains,
        x: &Buffer<T>,
        dy: Rows<'_, T>,
        dx: Option<&mut Buffer<T>>,
        gradients: &mut Buffer<f32>,
    ) -> Result<()> {
        let Self { adapted, lengths, weight } = self;
        let device = adapted.device;
        let mut sum = device.buffer(dy.rows * dy.width)?;
        {
            let dropped = adapted.dropped(x)?;
            let seen = dropped.as_ref().unwrap_or(x);
            let reduced = adapted.reduced(seen)?;
            let (seen, reduced) = (Rows::of(seen, adapted.width), Rows::of(&reduced, adapted.rank()));
            let into = RowsMut::of(&mut sum, dy.width).matrix();
            device.multiply(seen.matrix(), weight.matrix().t(), Mix::SET, into)?;
            let into = RowsMut::of(&mut sum, dy.width).matrix();
            device.multiply(reduced.matrix(), adapted.b().matrix().t(), Mix::ADD, into)?;
        }
        gains.add_gradient(device, &sum, dy, gradients.part_mut(lengths.trained.clone()))?;
        let (Some(dx), true) = (dx, adapted.drops()) else { return Ok(()) };
        let mut changed = sum;
        gains.put(device, Some(dy), -1.0, RowsMut::of(&mut changed, dy.width), false)?;
        let mut dseen = device.buffer(dx.len())?;
        let into = RowsMut::of(&mut dseen, adapted.width).matrix();
        device.multiply(Rows::of(&changed, dy.width).matrix(), weight.matrix(), Mix::SET, into)?;
        drop(changed);
        adapted.undrop(&dseen, dx)
    }
}

impl Gains {
    /// Multiplies each column by its gain.
    pub(super) fn scale<T: Computed>(&self, device: &Device, y: RowsMut<'_, T>) -> Result<()> {
        self.put(device, None, 0.0, y, false)
    }

    /// `y += (gains + shift) * x`
    fn add<T: Computed>(&self, device: &Device, x: Rows<'_, T>, shift: f32, y: RowsMut<'_, T>) -> Result<()> {
        self.put(device, Some(x), shift, y, true)
    }

    /// `(gains + shift) * x`, or of what is in `y`, takes the place of that or is added to it.
    fn put<T: Computed>(
        &self,
        device: &Device,
        x: Option<Rows<'_, T>>,
        shift: f32,
        y: RowsMut<'_, T>,
        add: bool,
    ) -> Result<()> {
        let (at, stride) = x.map_or((Argument::NULL, 0), |x| (x.at.into(), x.stride));
        let width = small(y.width);
        device.launch(
            named!(T, "stretch"),
            Shape::of(y.rows, 256),
            arguments![at, stride as u64, &self.gains, shift, y.at, y.stride as u64, i32::from(add), width],
        )
    }

    /// Adds the gradient of the lengths: the sum over the tokens of `u dy / n`, where `u` is the result before the gains.
    fn add_gradient<T: Computed>(
        &self,
        device: &Device,
        u: &Buffer<T>,
        dy: Rows<'_, T>,
        dlengths: ViewMut<'_, f32>,
    ) -> Result<()> {
        let inverses: View<'_, f32> = self.inverse_norms.view();
        let mut partials: Buffer<f32> = device.buffer(dy.rows.div_ceil(PIECE) * dy.width)?;
        device.launch(
            named!(T, "length_partials"),
            pieces(dy.rows, dy.width),
            arguments![
                u,
                dy.at,
                dy.stride as u64,
                inverses,
                &mut partials,
                small(dy.rows),
                small(PIECE),
                small(dy.width)
            ],
        )?;
        sum_partials(device, &partials, dlengths)
    }
}
