//! Projections of the same input, whose results lie side by side: one product makes them all, as far as it can.

use std::ops::Range;

use super::adapted::Adapted;
use super::blocks::Blocks;
use super::device::Device;
use super::dora::{Lengths, Stretched};
use super::memory::{Buffer, Element};
use super::model::{Computed, Group, Matrix, Vector, frozen};
use super::rows::{Rows, RowsMut};
use crate::ending::Result;
use crate::model::layer::{self, Adapter};

pub(super) struct Stack<T: Element> {
    pub(super) parts: Vec<Projection<T>>,
    whole: Whole<T>,
    /// Columns of all results.
    pub(super) out: usize,
    pub(super) width: usize,
}

/// All weights of a stack below one another, where all are frozen.
enum Whole<T: Element> {
    Values(Buffer<T>),
    /// One after the other in blocks, which products widen.
    Blocks(Vec<Blocks>),
    /// Some are trained: each part has its own.
    Apart,
}

pub(super) struct Projection<T: Element> {
    /// Nothing where it lies in the stack's whole.
    weight: Option<Matrix<T>>,
    pub(super) bias: Option<Vector>,
    pub(super) adapter: Option<Adapter>,
    pub(super) lengths: Option<Lengths>,
    /// Which columns of the stack's result are its own.
    pub(super) columns: Range<usize>,
}

/// A stack whose weights are ready for products.
pub(super) struct Opened<'s, T: Element> {
    stack: &'s Stack<T>,
    widened: Option<Buffer<T>>,
}

impl<T: Computed> Stack<T> {
    pub(super) fn load(device: &Device, projections: &[&layer::Projection]) -> Result<Self> {
        let whole = Whole::load(device, projections)?;
        let (mut parts, mut end) = (Vec::with_capacity(projections.len()), 0);
        for projection in projections {
            let columns = end..end + projection.weight.out();
            end = columns.end;
            parts.push(Projection {
                weight: match whole {
                    Whole::Apart => Some(Matrix::load(device, &projection.weight)?),
                    Whole::Values(_) | Whole::Blocks(_) => None,
                },
                bias: projection.bias.as_ref().map(|bias| Vector::load(device, bias)).transpose()?,
                lengths: match projection.adapter.as_ref().and_then(|adapter| adapter.magnitude.as_ref()) {
                    Some(lengths) => Some(Lengths::load(device, lengths)?),
                    None => None,
                },
                adapter: projection.adapter.clone(),
                columns,
            });
        }
        Ok(Self { parts, whole, out: end, width: projections[0].weight.width() })
    }

    /// Whether rows of its weights have trained lengths.
    pub(super) fn stretches(&self) -> bool {
        self.parts.iter().any(|part| part.lengths.is_some())
    }

    /// Finds what trained lengths come to for good: the values of the group stay as they are from here on.
    pub(super) fn settle(&mut self, device: &Device, group: &Group) -> super::error::Result<()> {
        if !self.stretches() {
            return Ok(());
        }
        let opened = self.open(device)?;
        let gains = |part| opened.stretched(part, (device, group), (None, 0)).map(Stretched::gains).transpose();
        let settled = self.parts.iter().map(gains).collect::<super::error::Result<Vec<_>>>()?;
        drop(opened);
        for (part, settled) in self.parts.iter_mut().zip(settled) {
            if let Some(lengths) = &mut part.lengths {
                lengths.settled = settled;
            }
        }
        Ok(())
    }

    /// Makes the weights ready; what takes memory for that lets go of it with what comes back.
    pub(super) fn open(&self, device: &Device) -> super::error::Result<Opened<'_, T>> {
        let Whole::Blocks(parts) = &self.whole else { return Ok(Opened { stack: self, widened: None }) };
        let mut widened = device.buffer(self.out * self.width)?;
        let mut from = 0;
        for part in parts {
            part.widen(device, widened.part_mut(from..from + part.len()))?;
            from += part.len();
        }
        Ok(Opened { stack: self, widened: Some(widened) })
    }
}

impl<T: Computed> Whole<T> {
    fn load(device: &Device, projections: &[&layer::Projection]) -> Result<Self> {
        if projections.iter().any(|part| part.weight.trained().is_some()) {
            return Ok(Self::Apart);
        }
        let blocks = projections.iter().map(|part| Blocks::load(device, &part.weight));
        if let Some(blocks) = blocks.collect::<super::error::Result<Option<Vec<_>>>>()? {
            return Ok(Self::Blocks(blocks));
        }
        let values: Vec<T> = projections.iter().flat_map(|part| frozen::<T>(&part.weight)).collect();
        Ok(Self::Values(device.upload(&values)?))
    }
}

impl<T: Computed> Opened<'_, T> {
    /// The weights that a product takes at once, and which columns of the result they make.
    pub(super) fn weights<'a>(&'a self, group: &'a Group) -> Vec<(Rows<'a, T>, Range<usize>)> {
        let Stack { parts, whole, out, width } = self.stack;
        match (whole, &self.widened) {
            (Whole::Values(values), _) | (_, Some(values)) => vec![(Rows::of(values, *width), 0..*out)],
            (Whole::Blocks(_) | Whole::Apart, None) => {
                let own = |part: &'a Projection<T>| Some((part.weight.as_ref()?.rows(group), part.columns.clone()));
                parts.iter().filter_map(own).collect()
            }
        }
    }
}

impl<'s, T: Computed> Opened<'s, T> {
    /// A part whose rows have trained lengths, in a pass with this seed of dropout, from this token of it on.
    pub(super) fn stretched<'a>(
        &'a self,
        part: &'a Projection<T>,
        (device, group): (&'a Device, &'a Group),
        (dropout_seed, first_token): (Option<u64>, usize),
    ) -> Option<Stretched<'a, T>> {
        let (adapter, lengths) = (part.adapter.as_ref()?, part.lengths.as_ref()?);
        let width = self.stack.width;
        let adapted = Adapted { device, adapter, group, width, dropout_seed, first_token };
        Some(Stretched { adapted, lengths, weight: self.of_part(part, group) })
    }

    fn of_part<'a>(&'a self, part: &'a Projection<T>, group: &'a Group) -> Rows<'a, T> {
        let width = self.stack.width;
        let at = part.columns.start * width..part.columns.end * width;
        match (&self.stack.whole, &self.widened, &part.weight) {
            (Whole::Values(values), _, _) | (_, Some(values), _) => Rows::new(values.part(at), width),
            (_, None, Some(weight)) => weight.rows(group),
            (_, None, None) => unreachable!("a part whose stack has no whole has a weight of its own"),
        }
    }
}

impl<T: Computed> Projection<T> {
    /// Where the weight's gradient lies among its group's, as far as it is trained.
    pub(super) fn weight_gradient<'a>(&self, gradients: &'a mut Buffer<f32>) -> Option<RowsMut<'a, f32>> {
        self.weight.as_ref().and_then(|weight| weight.gradient(gradients))
    }
}
