//! Adapters (LoRA) on the device: `scale * drop(x) Aᵀ Bᵀ`, as [`crate::kernels::linear`] has it.

use super::device::Device;
use super::error::Result;
use super::memory::Buffer;
use super::model::{Computed, Group};
use super::operations::add;
use super::product::Mix;
use super::rows::{Rows, RowsMut};
use crate::kernels::linear::{Dropout, mix};
use crate::model::layer::Adapter;

/// An adapter of a projection, with its values.
#[derive(Clone, Copy)]
pub(super) struct Adapted<'a> {
    pub device: &'a Device,
    pub adapter: &'a Adapter,
    /// Where its values lie.
    pub group: &'a Group,
    /// Of the projection's input.
    pub width: usize,
    /// The seed of a training pass's dropout.
    pub dropout_seed: Option<u64>,
    /// Where in its pass `x` begins, in tokens.
    pub first_token: usize,
}

impl Adapted<'_> {
    /// Adds to `y` what the adapter makes of `x`.
    pub(super) fn add<T: Computed>(self, x: &Buffer<T>, y: RowsMut<'_, T>) -> Result<()> {
        let dropped = self.dropped(x)?;
        let reduced = self.reduced(dropped.as_ref().unwrap_or(x))?;
        self.device.multiply(Rows::of(&reduced, self.rank()).matrix(), self.b().matrix().t(), Mix::ADD, y.matrix())
    }

    /// Adds the gradients of A and B to `gradients`, and that of `x` to `dx`, where it is asked for. What A made of `x`,
    /// and which of its inputs were dropped, is found again: a rank is small, and the mask a function of its place.
    pub(super) fn backward<T: Computed>(
        self,
        x: &Buffer<T>,
        dy: Rows<'_, T>,
        dx: Option<&mut Buffer<T>>,
        gradients: &mut Buffer<f32>,
    ) -> Result<()> {
        let Self { device, adapter, width, .. } = self;
        let rank = self.rank();
        let dropped = self.dropped(x)?;
        let seen = dropped.as_ref().unwrap_or(x);
        let reduced = self.reduced(seen)?;
        let db = RowsMut::new(gradients.part_mut(adapter.b.clone()), rank);
        device.multiply(dy.matrix().t(), Rows::of(&reduced, rank).matrix(), Mix::ADD, db.matrix())?;
        let mut dreduced = reduced;
        let into = RowsMut::of(&mut dreduced, rank).matrix();
        device.multiply(dy.matrix(), self.b().matrix(), Mix::scaled(adapter.scale), into)?;
        let dreduced = Rows::of(&dreduced, rank).matrix();
        let da = RowsMut::new(gradients.part_mut(adapter.a.clone()), width);
        device.multiply(dreduced.t(), Rows::of(seen, width).matrix(), Mix::ADD, da.matrix())?;
        let Some(dx) = dx else { return Ok(()) };
        match self.dropout() {
            None => device.multiply(dreduced, self.a().matrix(), Mix::ADD, RowsMut::of(dx, width).matrix()),
            Some(_) => {
                let mut dseen = device.buffer(dx.len())?;
                let into = RowsMut::of(&mut dseen, width).matrix();
                device.multiply(dreduced, self.a().matrix(), Mix::SET, into)?;
                self.undrop(&dseen, dx)
            }
        }
    }

    /// `scale * seen Aᵀ`, `[tokens, rank]`.
    pub(super) fn reduced<T: Computed>(self, seen: &Buffer<T>) -> Result<Buffer<T>> {
        let seen = Rows::of(seen, self.width);
        let mut reduced = self.device.buffer(seen.rows * self.rank())?;
        let into = RowsMut::of(&mut reduced, self.rank()).matrix();
        let scale = Mix::scaled(self.adapter.scale);
        self.device.multiply(seen.matrix(), self.a().matrix().t(), scale, into)?;
        Ok(reduced)
    }

    /// What dropout leaves of `x`, where there is any.
    pub(super) fn dropped<T: Computed>(self, x: &Buffer<T>) -> Result<Option<Buffer<T>>> {
        self.dropout().map(|dropout| dropout.of(self.device, self.first_value(), x)).transpose()
    }

    /// Whether anything is dropped in this pass.
    pub(super) fn drops(self) -> bool {
        self.dropout().is_some()
    }

    /// Adds the gradient of what is left of `x` to that of `x`.
    pub(super) fn undrop<T: Computed>(self, dseen: &Buffer<T>, dx: &mut Buffer<T>) -> Result<()> {
        match self.dropout() {
            Some(dropout) => dropout.add(self.device, self.first_value(), dseen, dx),
            None => add(self.device, dseen, dx),
        }
    }

    fn dropout(self) -> Option<Dropout> {
        let Adapter { dropout: rate, number, .. } = *self.adapter;
        self.dropout_seed.filter(|_| rate > 0.0).map(|seed| Dropout { rate, seed: mix(seed ^ mix(number)) })
    }

    /// The place of `x`'s first value in its pass.
    fn first_value(self) -> u64 {
        (self.first_token * self.width) as u64
    }

    pub(super) fn rank(self) -> usize {
        self.adapter.a.len() / self.width
    }
}

impl<'a> Adapted<'a> {
    pub(super) fn a<T: Computed>(self) -> Rows<'a, T> {
        Rows::new(T::of(self.group).part(self.adapter.a.clone()), self.width)
    }

    pub(super) fn b<T: Computed>(self) -> Rows<'a, T> {
        Rows::new(T::of(self.group).part(self.adapter.b.clone()), self.rank())
    }
}
