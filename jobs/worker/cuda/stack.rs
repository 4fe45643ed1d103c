//! Projections of the same input, whose results lie side by side: one product makes them all, as far as it can.

use std::ops::Range;

use drydock_spec::FailureKind;

use super::blocks::Blocks;
use super::device::Device;
use super::memory::{Buffer, Element};
use super::model::{Computed, Group, Matrix, Vector, frozen};
use super::rows::{Rows, RowsMut};
use crate::ending::{Result, failed};
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
        if projections.iter().any(|part| part.adapter.as_ref().is_some_and(|adapter| adapter.magnitude.is_some())) {
            let message = "method \"dora\" is not computed on a GPU; method \"lora\" is, or the job without GPUs";
            return failed(FailureKind::BadOption, message);
        }
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
                adapter: projection.adapter.clone(),
                columns,
            });
        }
        Ok(Self { parts, whole, out: end, width: projections[0].weight.width() })
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

impl<T: Computed> Projection<T> {
    /// Where the weight's gradient lies among its group's, as far as it is trained.
    pub(super) fn weight_gradient<'a>(&self, gradients: &'a mut Buffer<f32>) -> Option<RowsMut<'a, f32>> {
        self.weight.as_ref().and_then(|weight| weight.gradient(gradients))
    }
}
