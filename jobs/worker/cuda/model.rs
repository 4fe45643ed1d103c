//! A decoder's weights on the device, and what of them is trained.
//!
//! Frozen matrices are held in what products compute in, projections in a file's quantized blocks as they are; no
//! gradient is ever made for them.
//! Projections with the same input (queries, keys and values; gate and up) lie below one another, so that one product
//! makes them all. What is trained lies in the groups of [`crate::model::parameter`], in f32, and where products are computed in
//! bf16 rounded as well.

use std::ops::Range;

use drydock_spec::finetune::TargetModule;
use half::bf16;

use super::device::Device;
use super::memory::{Buffer, Element, View, ViewMut};
use super::product::{Factor, Product};
use super::rows::{Rows, RowsMut};
use super::stack::Stack;
use crate::ending::Result;
use crate::kernels::gated::Activation;
use crate::kernels::rope::Rope;
use crate::model::config::Config;
use crate::model::decoder::Decoder;
use crate::model::layer;
use crate::model::parameter::{Parameter, Place};

/// What products can compute in.
pub trait Computed: Factor + Product<Self> {
    /// What a group lends to products.
    fn of(group: &Group) -> &Buffer<Self>;

    /// Rounded from f32.
    fn rounded(values: Vec<f32>) -> Vec<Self>;

    /// Whether groups need a copy of their values.
    const COPIED: bool;

    /// One of a kernel's two names.
    fn kernel(of_f32: &'static str, of_bf16: &'static str) -> &'static str;
}

impl Computed for f32 {
    const COPIED: bool = false;

    fn kernel(of_f32: &'static str, _: &'static str) -> &'static str {
        of_f32
    }

    fn of(group: &Group) -> &Buffer<Self> {
        &group.values
    }

    fn rounded(values: Vec<f32>) -> Vec<Self> {
        values
    }
}

impl Computed for bf16 {
    const COPIED: bool = true;

    fn kernel(_: &'static str, of_bf16: &'static str) -> &'static str {
        of_bf16
    }

    fn of(group: &Group) -> &Buffer<Self> {
        group.copy.as_ref().expect("a group has a copy where products are computed in bf16")
    }

    fn rounded(values: Vec<f32>) -> Vec<Self> {
        values.into_iter().map(bf16::from_f32).collect()
    }
}

/// The trained values of the embedding, of a layer or of the model's end.
pub struct Group {
    pub values: Buffer<f32>,
    /// The values rounded, for products in bf16.
    pub copy: Option<Buffer<bf16>>,
}

impl Group {
    pub(super) fn new<T: Computed>(device: &Device, values: &[f32]) -> Result<Self> {
        let copy = if T::COPIED { Some(device.upload(&bf16::rounded(values.to_vec()))?) } else { None };
        Ok(Self { values: device.upload(values)?, copy })
    }

    /// The same values as the host's.
    pub(super) fn write(&mut self, values: &[f32]) -> Result<()> {
        self.values.write(values)?;
        if let Some(copy) = &mut self.copy {
            copy.write(&bf16::rounded(values.to_vec()))?;
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Where a matrix lies.
pub(super) enum Held<T: Element> {
    Frozen(Buffer<T>),
    /// In its group.
    Trained(Range<usize>),
}

impl<T: Element> Held<T> {
    fn place(&self) -> Option<&Range<usize>> {
        match self {
            Self::Frozen(_) => None,
            Self::Trained(range) => Some(range),
        }
    }
}

/// Lends two stretches of a group's gradients at once, each where there is one.
pub(super) fn lend_two<'g>(
    gradients: &'g mut Buffer<f32>,
    first: Option<&Range<usize>>,
    second: Option<&Range<usize>>,
) -> (Option<ViewMut<'g, f32>>, Option<ViewMut<'g, f32>>) {
    match (first, second) {
        (None, None) => (None, None),
        (Some(first), None) => (Some(gradients.part_mut(first.clone())), None),
        (None, Some(second)) => (None, Some(gradients.part_mut(second.clone()))),
        (Some(first), Some(second)) => {
            assert!(first.end <= second.start, "{first:?} lies before {second:?}");
            let (before, after) = gradients.view_mut().split(second.start);
            (Some(before.into_part(first.clone())), Some(after.into_part(..second.len())))
        }
    }
}

/// A matrix `[out, width]`.
pub(super) struct Matrix<T: Element> {
    pub held: Held<T>,
    pub width: usize,
}

impl<T: Computed> Matrix<T> {
    pub(super) fn load(device: &Device, parameter: &Parameter) -> Result<Self> {
        let held = match &parameter.place {
            Place::Trained(range) => Held::Trained(range.clone()),
            Place::Frozen(_) => Held::Frozen(device.upload(&frozen::<T>(parameter))?),
        };
        Ok(Self { held, width: parameter.width() })
    }

    pub(super) fn rows<'a>(&'a self, group: &'a Group) -> Rows<'a, T> {
        let at = match &self.held {
            Held::Frozen(buffer) => buffer.view(),
            Held::Trained(range) => T::of(group).part(range.clone()),
        };
        Rows::new(at, self.width)
    }

    /// Where it lies in its group, if it is trained.
    pub(super) fn place(&self) -> Option<&Range<usize>> {
        self.held.place()
    }

    /// Where its gradient lies among its group's, as far as it is trained.
    pub(super) fn gradient<'a>(&self, gradients: &'a mut Buffer<f32>) -> Option<RowsMut<'a, f32>> {
        let place = self.place()?;
        Some(RowsMut::new(gradients.part_mut(place.clone()), self.width))
    }
}

/// A vector, always in f32.
pub(super) struct Vector(Held<f32>);

impl Vector {
    pub(super) fn load(device: &Device, parameter: &Parameter) -> Result<Self> {
        Ok(Self(match &parameter.place {
            Place::Trained(range) => Held::Trained(range.clone()),
            Place::Frozen(_) => Held::Frozen(device.upload(&frozen::<f32>(parameter))?),
        }))
    }

    pub(super) fn values<'a>(&'a self, group: &'a Group) -> View<'a, f32> {
        match &self.0 {
            Held::Frozen(buffer) => buffer.view(),
            Held::Trained(range) => group.values.part(range.clone()),
        }
    }

    /// Where it lies in its group, if it is trained.
    pub(super) fn place(&self) -> Option<&Range<usize>> {
        self.0.place()
    }

    /// Where its gradient lies among its group's, as far as it is trained.
    pub(super) fn gradient<'a>(&self, gradients: &'a mut Buffer<f32>) -> Option<ViewMut<'a, f32>> {
        let place = self.place()?;
        Some(gradients.part_mut(place.clone()))
    }
}

pub(super) struct Norm {
    pub weight: Vector,
    pub offset: f32,
    pub epsilon: f32,
}

impl Norm {
    fn load(device: &Device, norm: &layer::Norm) -> Result<Self> {
        Ok(Self { weight: Vector::load(device, &norm.weight)?, offset: norm.offset, epsilon: norm.epsilon })
    }
}

pub(super) struct Layer<T: Element> {
    pub input_norm: Norm,
    pub query_key_norms: Option<[Norm; 2]>,
    pub attention_after_norm: Option<Norm>,
    pub mlp_norm: Norm,
    pub mlp_after_norm: Option<Norm>,
    pub activation: Activation,
    pub query_key_value: Stack<T>,
    pub output: Stack<T>,
    pub gate_up: Stack<T>,
    pub down: Stack<T>,
    /// Whether its heads turn as those of layers with a window do.
    pub turns_as_window: bool,
}

impl<T: Computed> Layer<T> {
    fn load(device: &Device, layer: &layer::Layer, turns_as_window: bool) -> Result<Self> {
        use TargetModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let norm = |norm: &layer::Norm| Norm::load(device, norm);
        let stack = |modules: &[TargetModule]| {
            let parts: Vec<_> = modules.iter().map(|&module| &layer.projections[module as usize]).collect();
            Stack::load(device, &parts)
        };
        Ok(Self {
            input_norm: norm(&layer.input_norm)?,
            query_key_norms: match &layer.query_key_norms {
                Some([of_q, of_k]) => Some([norm(of_q)?, norm(of_k)?]),
                None => None,
            },
            attention_after_norm: layer.attention_after_norm.as_ref().map(norm).transpose()?,
            mlp_norm: norm(&layer.mlp_norm)?,
            mlp_after_norm: layer.mlp_after_norm.as_ref().map(norm).transpose()?,
            activation: layer.activation,
            query_key_value: stack(&[QProj, KProj, VProj])?,
            output: stack(&[OProj])?,
            gate_up: stack(&[GateProj, UpProj])?,
            down: stack(&[DownProj])?,
            turns_as_window,
        })
    }
}

/// The tables that turn heads; see [`Rope::angles`].
pub(super) struct Angles {
    pub cosines: Buffer<f32>,
    pub sines: Buffer<f32>,
    pub half: usize,
}

impl Angles {
    fn load(device: &Device, rope: &Rope) -> Result<Self> {
        let angles = rope.angles();
        Ok(Self { cosines: device.upload(&angles.cosines)?, sines: device.upload(&angles.sines)?, half: angles.half })
    }
}

/// The decoder.
pub(super) struct Model<T: Element> {
    pub config: Config,
    pub embedding: Matrix<T>,
    pub layers: Vec<Layer<T>>,
    pub norm: Norm,
    /// Nothing where the embedding is the head, too.
    pub head: Option<Matrix<T>>,
    pub softcap: Option<f32>,
    pub angles: Angles,
    /// Of layers with a window, where those differ.
    pub window_angles: Option<Angles>,
}

impl<T: Computed> Model<T> {
    pub(super) fn load(device: &Device, decoder: &Decoder) -> Result<Self> {
        let config = decoder.config.clone();
        let turning_as_window = (0..config.layers).find(|&layer| config.turns_as_window(layer));
        let turning = (0..config.layers).find(|&layer| !config.turns_as_window(layer)).or(turning_as_window);
        let layers = decoder.layers.iter().enumerate();
        Ok(Self {
            embedding: Matrix::load(device, &decoder.embedding)?,
            layers: layers
                .map(|(index, layer)| Layer::load(device, layer, config.turns_as_window(index)))
                .collect::<Result<_>>()?,
            norm: Norm::load(device, &decoder.last.norm)?,
            head: decoder.last.head.as_ref().map(|head| Matrix::load(device, head)).transpose()?,
            softcap: decoder.last.softcap,
            angles: Angles::load(device, decoder.rope_of(turning.unwrap_or(0)))?,
            window_angles: match turning_as_window {
                Some(layer) => Some(Angles::load(device, decoder.rope_of(layer))?),
                None => None,
            },
            config,
        })
    }
}

impl<T: Computed> Model<T> {
    /// The values of the groups stay as they are from here on: what follows from them is found once.
    pub(super) fn settle(&mut self, device: &Device, decoder: &Decoder, groups: &[Group]) -> Result<()> {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let group = &groups[decoder.layer_group(index)];
            for stack in [&mut layer.query_key_value, &mut layer.output, &mut layer.gate_up, &mut layer.down] {
                stack.settle(device, group)?;
            }
        }
        Ok(())
    }
}

/// A frozen parameter's values in the form in which the device has them; nothing of a trained one.
pub(super) fn frozen<T: Computed>(parameter: &Parameter) -> Vec<T> {
    let mut values = Vec::with_capacity(parameter.elements());
    if parameter.trained().is_none() {
        parameter.append_to(&[], &mut values);
    }
    T::rounded(values)
}
