//! One layer of the decoder, forward and backward.
//!
//! Keeping every intermediate result until the backward pass would take twice the memory. A layer keeps what is dear to
//! compute (the projections and attention) and computes the rest again (norms and SwiGLU) for hardly any time.

use std::ops::Range;

use drydock_spec::finetune::TargetModule;

use super::parameter::{Parameter, lend};
use crate::kernels::add::add_to;
use crate::kernels::attention::Attention;
use crate::kernels::linear::{Dropout, Linear, LinearGradient, Lora, mix};
use crate::kernels::norm::{rms_norm, rms_norm_backward};
use crate::kernels::swiglu::{swiglu, swiglu_backward};
use crate::kernels::weight::Precision;

pub struct Layer {
    pub input_norm: Norm,
    pub post_attention_norm: Norm,
    /// In the order of [`TargetModule::ALL`].
    pub projections: [Projection; 7],
}

/// An RMSNorm.
pub struct Norm {
    pub weight: Parameter,
    pub epsilon: f32,
}

/// A linear projection, and perhaps its adapter.
pub struct Projection {
    /// `[out, width]`
    pub weight: Parameter,
    pub adapter: Option<Adapter>,
}

/// An adapter's place among its layer's trained values.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Where A `[rank, width]` lies.
    pub a: Range<usize>,
    /// Where B `[out, rank]` lies.
    pub b: Range<usize>,
    pub scale: f32,
    pub dropout: f32,
    /// A number that no other projection of the model has, for its dropout.
    pub number: u64,
}

/// How a pass through a layer computes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arithmetic {
    /// What the operands of the big products are rounded to.
    pub precision: Precision,
    /// The seed of a training pass's dropout.
    pub dropout_seed: Option<u64>,
}

/// What a forward pass leaves to the backward pass.
pub struct Kept {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    /// The stream between attention and MLP.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Norm {
    fn forward(&self, x: &[f32], trained: &[f32]) -> Vec<f32> {
        rms_norm(x, self.weight.vector(trained), self.epsilon)
    }

    /// Adds the gradient of `x` to `dx`, and the weight's to its group's.
    fn backward(&self, x: &[f32], trained: &[f32], dy: &[f32], dx: &mut [f32], gradients: &mut [f32]) {
        let [dweight] = lend(gradients, [self.weight.trained()]);
        rms_norm_backward(x, self.weight.vector(trained), self.epsilon, dy, dx, dweight);
    }
}

impl Projection {
    /// As the kernel takes it; `trained` are the layer's trained values.
    pub(super) fn linear<'a>(&'a self, trained: &'a [f32], arithmetic: Arithmetic) -> Linear<'a> {
        let lora = self.adapter.as_ref().map(|adapter| Lora {
            a: &trained[adapter.a.clone()],
            b: &trained[adapter.b.clone()],
            scale: adapter.scale,
            dropout: arithmetic
                .dropout_seed
                .filter(|_| adapter.dropout > 0.0)
                .map(|seed| Dropout { rate: adapter.dropout, seed: mix(seed ^ mix(adapter.number)) }),
        });
        Linear { weight: self.weight.matrix(trained), lora, precision: arithmetic.precision }
    }

    fn gradient<'g>(&self, gradients: &'g mut [f32]) -> LinearGradient<'g> {
        let adapter = self.adapter.as_ref();
        let ranges = [self.weight.trained(), adapter.map(|adapter| &adapter.a), adapter.map(|adapter| &adapter.b)];
        let [weight, a, b] = lend(gradients, ranges);
        LinearGradient { weight, a, b }
    }
}

impl Layer {
    /// Every tensor of the model that belongs to the layer.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norms = [&self.input_norm, &self.post_attention_norm].map(|norm| &norm.weight);
        self.projections.iter().map(|projection| &projection.weight).chain(norms)
    }

    /// The same, to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let norms = [&mut self.input_norm, &mut self.post_attention_norm].map(|norm| &mut norm.weight);
        self.projections.iter_mut().map(|projection| &mut projection.weight).chain(norms)
    }

    /// The layer with the values that are trained in it.
    pub fn with<'a>(&'a self, trained: &'a [f32], arithmetic: Arithmetic) -> Complete<'a> {
        Complete { layer: self, trained, arithmetic }
    }
}

/// A layer, complete with its trained values and with the way in which it is to compute.
#[derive(Clone, Copy)]
pub struct Complete<'a> {
    layer: &'a Layer,
    trained: &'a [f32],
    arithmetic: Arithmetic,
}

impl Complete<'_> {
    fn linear(&self, module: TargetModule, x: &[f32]) -> Vec<f32> {
        self.layer.projections[module as usize].linear(self.trained, self.arithmetic).forward(x)
    }

    /// The backward pass of a projection; see [`Linear::backward`].
    fn back(&self, module: TargetModule, x: &[f32], dy: &[f32], dx: Option<&mut Vec<f32>>, gradients: &mut [f32]) {
        let projection = &self.layer.projections[module as usize];
        let gradient = projection.gradient(gradients);
        projection.linear(self.trained, self.arithmetic).backward(x, dy, dx, gradient);
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`. `attend` makes of queries, keys and values what attention says.
    pub fn forward(&self, x: &[f32], attend: impl FnOnce(&[f32], &[f32], &[f32]) -> Vec<f32>) -> (Vec<f32>, Kept) {
        let h = self.layer.input_norm.forward(x, self.trained);
        let q = self.linear(TargetModule::QProj, &h);
        let k = self.linear(TargetModule::KProj, &h);
        let v = self.linear(TargetModule::VProj, &h);
        let attended = attend(&q, &k, &v);
        let mut middle = self.linear(TargetModule::OProj, &attended);
        add_to(&mut middle, x);
        let h = self.layer.post_attention_norm.forward(&middle, self.trained);
        let gate = self.linear(TargetModule::GateProj, &h);
        let up = self.linear(TargetModule::UpProj, &h);
        let mut y = self.linear(TargetModule::DownProj, &swiglu(&gate, &up));
        add_to(&mut y, &middle);
        (y, Kept { q, k, v, attended, middle, gate, up })
    }

    /// From the gradient `dy` of the output to that of the input `x`. It is empty unless `further` asks for it: below
    /// the first layer there may be nothing to train. The trained values' gradients are added to `gradients`.
    pub fn backward(
        &self,
        x: &[f32],
        kept: Kept,
        dy: Vec<f32>,
        attention: &Attention,
        further: bool,
        gradients: &mut [f32],
    ) -> Vec<f32> {
        let &Self { layer, trained, .. } = self;
        let Kept { q, k, v, attended, middle, gate, up } = kept;

        let mut dinner = Vec::new();
        self.back(TargetModule::DownProj, &swiglu(&gate, &up), &dy, Some(&mut dinner), gradients);
        let (dgate, dup) = swiglu_backward(&gate, &up, &dinner);
        let h = layer.post_attention_norm.forward(&middle, trained);
        let mut dh = Vec::new();
        self.back(TargetModule::GateProj, &h, &dgate, Some(&mut dh), gradients);
        self.back(TargetModule::UpProj, &h, &dup, Some(&mut dh), gradients);
        let mut dmiddle = dy;
        layer.post_attention_norm.backward(&middle, trained, &dh, &mut dmiddle, gradients);

        let mut dattended = Vec::new();
        self.back(TargetModule::OProj, &attended, &dmiddle, Some(&mut dattended), gradients);
        let [dq, dk, dv] = attention.backward(&q, &k, &v, &dattended);
        let h = layer.input_norm.forward(x, trained);
        // The norm's own gradient asks for that of its output, too.
        let mut dh = (further || layer.input_norm.weight.trained().is_some()).then(Vec::new);
        self.back(TargetModule::QProj, &h, &dq, dh.as_mut(), gradients);
        self.back(TargetModule::KProj, &h, &dk, dh.as_mut(), gradients);
        self.back(TargetModule::VProj, &h, &dv, dh.as_mut(), gradients);
        let Some(dh) = dh else { return Vec::new() };
        layer.input_norm.backward(x, trained, &dh, &mut dmiddle, gradients);
        if further { dmiddle } else { Vec::new() }
    }
}
