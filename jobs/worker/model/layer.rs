//! One layer of the decoder, forward and backward.
//!
//! Keeping every intermediate result until the backward pass would take twice the memory. A layer keeps what is dear to
//! compute (the projections and attention) and computes the rest again (norms and gates) for hardly any time.

use std::borrow::Cow;
use std::ops::Range;

use drydock_spec::finetune::TargetModule;

use super::parameter::{Parameter, lend};
use crate::kernels::add::add_to;
use crate::kernels::attention::Attention;
use crate::kernels::bias::{add_bias, bias_gradient};
use crate::kernels::dora::Magnitude;
use crate::kernels::gated::Activation;
use crate::kernels::linear::{Dropout, Linear, LinearGradient, Lora, mix};
use crate::kernels::norm::{rms_norm, rms_norm_backward};
use crate::kernels::weight::Precision;

pub struct Layer {
    /// Before attention.
    pub input_norm: Norm,
    /// Of queries and of keys, head by head.
    pub query_key_norms: Option<[Norm; 2]>,
    /// Of what attention gives, before it joins the stream.
    pub attention_after_norm: Option<Norm>,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// Of what the MLP gives, before it joins the stream.
    pub mlp_after_norm: Option<Norm>,
    pub activation: Activation,
    /// In the order of [`TargetModule::ALL`].
    pub projections: [Projection; 7],
}

/// An RMSNorm.
pub struct Norm {
    pub weight: Parameter,
    /// What is added to the weight: the files of some models hold the distance from 1.
    pub offset: f32,
    pub epsilon: f32,
}

/// A linear projection, and perhaps its adapter.
pub struct Projection {
    /// `[out, width]`
    pub weight: Parameter,
    /// `[out]`
    pub bias: Option<Parameter>,
    pub adapter: Option<Adapter>,
}

/// An adapter's place among its layer's trained values.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Where A `[rank, width]` lies.
    pub a: Range<usize>,
    /// Where B `[out, rank]` lies.
    pub b: Range<usize>,
    /// DoRA's lengths of the weight's rows.
    pub magnitude: Option<RowLengths>,
    pub scale: f32,
    pub dropout: f32,
    /// A number that no other projection of the model has, for its dropout.
    pub number: u64,
}

/// DoRA's magnitude of a projection.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLengths {
    /// Where the trained lengths `[out]` lie.
    pub trained: Range<usize>,
    /// The squared lengths of the frozen weight's rows.
    pub frozen_squares: Vec<f32>,
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
    /// What the norm after attention is about; empty where there is none.
    attention_out: Vec<f32>,
    /// The stream between attention and MLP.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What the norm after the MLP is about; empty where there is none.
    mlp_out: Vec<f32>,
}

impl Norm {
    /// What rows are multiplied by.
    pub(super) fn factors<'a>(&'a self, trained: &'a [f32]) -> Cow<'a, [f32]> {
        let weight = self.weight.vector(trained);
        if self.offset == 0.0 { weight.into() } else { weight.iter().map(|weight| weight + self.offset).collect() }
    }

    fn forward(&self, x: &[f32], trained: &[f32]) -> Vec<f32> {
        rms_norm(x, &self.factors(trained), self.epsilon)
    }

    /// Adds the gradient of `x` to `dx`, and the weight's to its group's.
    fn backward(&self, x: &[f32], trained: &[f32], dy: &[f32], dx: &mut [f32], gradients: &mut [f32]) {
        let [dweight] = lend(gradients, [self.weight.trained()]);
        rms_norm_backward(x, &self.factors(trained), self.epsilon, dy, dx, dweight);
    }

    /// The same where nothing else goes into the gradient of `x`.
    fn backward_alone(&self, x: &[f32], trained: &[f32], dy: &[f32], gradients: &mut [f32]) -> Vec<f32> {
        let mut dx = vec![0.0; x.len()];
        self.backward(x, trained, dy, &mut dx, gradients);
        dx
    }
}

impl Projection {
    /// As the kernel takes it; `trained` are the layer's trained values.
    fn linear<'a>(&'a self, trained: &'a [f32], arithmetic: Arithmetic) -> Linear<'a> {
        let lora = self.adapter.as_ref().map(|adapter| Lora {
            a: &trained[adapter.a.clone()],
            b: &trained[adapter.b.clone()],
            scale: adapter.scale,
            dropout: arithmetic
                .dropout_seed
                .filter(|_| adapter.dropout > 0.0)
                .map(|seed| Dropout { rate: adapter.dropout, seed: mix(seed ^ mix(adapter.number)) }),
            magnitude: adapter.magnitude.as_ref().map(|lengths| Magnitude {
                values: &trained[lengths.trained.clone()],
                row_squares: &lengths.frozen_squares,
            }),
        });
        Linear { weight: self.weight.matrix(trained), lora, precision: arithmetic.precision }
    }

    /// The weight with the adapter worked in.
    pub(super) fn merged(&self, trained: &[f32]) -> Vec<f32> {
        self.linear(trained, Arithmetic::default()).merged()
    }

    fn gradient<'g>(&self, gradients: &'g mut [f32]) -> LinearGradient<'g> {
        let adapter = self.adapter.as_ref();
        let magnitude = adapter.and_then(|adapter| adapter.magnitude.as_ref()).map(|lengths| &lengths.trained);
        let (a, b) = (adapter.map(|adapter| &adapter.a), adapter.map(|adapter| &adapter.b));
        let [weight, a, b, magnitude] = lend(gradients, [self.weight.trained(), a, b, magnitude]);
        LinearGradient { weight, a, b, magnitude }
    }
}

impl Layer {
    /// Every tensor of the model that belongs to the layer.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norms = [&self.input_norm, &self.mlp_norm].into_iter().chain(self.query_key_norms.iter().flatten());
        let norms = norms.chain(&self.attention_after_norm).chain(&self.mlp_after_norm).map(|norm| &norm.weight);
        let projections = self.projections.iter();
        projections.flat_map(|projection| std::iter::once(&projection.weight).chain(&projection.bias)).chain(norms)
    }

    /// The same, to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let norms = [&mut self.input_norm, &mut self.mlp_norm].into_iter();
        let norms = norms.chain(self.query_key_norms.iter_mut().flatten());
        let norms = norms.chain(&mut self.attention_after_norm).chain(&mut self.mlp_after_norm);
        let projections = self.projections.iter_mut();
        let of_projections =
            projections.flat_map(|projection| std::iter::once(&mut projection.weight).chain(&mut projection.bias));
        of_projections.chain(norms.map(|norm| &mut norm.weight))
    }

    /// The layer with the values that are trained in it.
    pub fn with<'a>(&'a self, trained: &'a [f32], arithmetic: Arithmetic) -> Complete<'a> {
        Complete { layer: self, trained, arithmetic, hear: None }
    }
}

/// Is told of a projection and of what goes into it, `[tokens, width]`.
pub type Hear<'a> = dyn Fn(TargetModule, &[f32]) + 'a;

/// A layer, complete with its trained values and with the way in which it is to compute.
#[derive(Clone, Copy)]
pub struct Complete<'a> {
    layer: &'a Layer,
    trained: &'a [f32],
    arithmetic: Arithmetic,
    /// Is lent what goes into each projection of a forward pass.
    hear: Option<&'a Hear<'a>>,
}

impl<'a> Complete<'a> {
    /// The same, heard by somebody who wants to know what goes into each projection.
    pub fn heard(self, hear: &'a Hear<'a>) -> Self {
        Self { hear: Some(hear), ..self }
    }

    fn linear(&self, module: TargetModule, x: &[f32]) -> Vec<f32> {
        if let Some(hear) = self.hear {
            hear(module, x);
        }
        let projection = &self.layer.projections[module as usize];
        let mut y = projection.linear(self.trained, self.arithmetic).forward(x);
        if let Some(bias) = &projection.bias {
            add_bias(&mut y, bias.vector(self.trained));
        }
        y
    }

    /// The backward pass of a projection; see [`Linear::backward`].
    fn back(&self, module: TargetModule, x: &[f32], dy: &[f32], dx: Option<&mut Vec<f32>>, gradients: &mut [f32]) {
        let projection = &self.layer.projections[module as usize];
        if let [Some(dbias)] = lend(gradients, [projection.bias.as_ref().and_then(Parameter::trained)]) {
            bias_gradient(dy, dbias);
        }
        let gradient = projection.gradient(gradients);
        projection.linear(self.trained, self.arithmetic).backward(x, dy, dx, gradient);
    }

    /// Queries and keys as attention takes them.
    fn normed<'x>(&self, q: &'x [f32], k: &'x [f32]) -> [Cow<'x, [f32]>; 2] {
        match &self.layer.query_key_norms {
            None => [q.into(), k.into()],
            Some([of_q, of_k]) => [of_q.forward(q, self.trained).into(), of_k.forward(k, self.trained).into()],
        }
    }

    /// What attention or the MLP gives, as it joins the stream `x`; and what is to be kept of it.
    fn joined(&self, norm: Option<&Norm>, mut out: Vec<f32>, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let Some(norm) = norm else {
            add_to(&mut out, x);
            return (out, Vec::new());
        };
        let mut y = norm.forward(&out, self.trained);
        add_to(&mut y, x);
        (y, out)
    }

    /// From the gradient of the stream to that of what attention or the MLP gave.
    fn parted<'g>(&self, norm: Option<&Norm>, out: &[f32], dy: &'g [f32], gradients: &mut [f32]) -> Cow<'g, [f32]> {
        norm.map_or(dy.into(), |norm| norm.backward_alone(out, self.trained, dy, gradients).into())
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`. `attend` makes of queries, keys and values what attention says.
    pub fn forward(&self, x: &[f32], attend: impl FnOnce(&[f32], &[f32], &[f32]) -> Vec<f32>) -> (Vec<f32>, Kept) {
        let layer = self.layer;
        let h = layer.input_norm.forward(x, self.trained);
        let q = self.linear(TargetModule::QProj, &h);
        let k = self.linear(TargetModule::KProj, &h);
        let v = self.linear(TargetModule::VProj, &h);
        let [asking, answering] = self.normed(&q, &k);
        let attended = attend(&asking, &answering, &v);
        drop((asking, answering));
        let attention_out = self.linear(TargetModule::OProj, &attended);
        let (middle, attention_out) = self.joined(layer.attention_after_norm.as_ref(), attention_out, x);
        let h = layer.mlp_norm.forward(&middle, self.trained);
        let gate = self.linear(TargetModule::GateProj, &h);
        let up = self.linear(TargetModule::UpProj, &h);
        let mlp_out = self.linear(TargetModule::DownProj, &layer.activation.gate(&gate, &up));
        let (y, mlp_out) = self.joined(layer.mlp_after_norm.as_ref(), mlp_out, &middle);
        (y, Kept { q, k, v, attended, attention_out, middle, gate, up, mlp_out })
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
        let Kept { q, k, v, attended, attention_out, middle, gate, up, mlp_out } = kept;

        let dmlp = self.parted(layer.mlp_after_norm.as_ref(), &mlp_out, &dy, gradients);
        let mut dinner = Vec::new();
        let inner = layer.activation.gate(&gate, &up);
        self.back(TargetModule::DownProj, &inner, &dmlp, Some(&mut dinner), gradients);
        drop((inner, dmlp));
        let (dgate, dup) = layer.activation.gate_backward(&gate, &up, &dinner);
        // What is widest goes as soon as it can: the layer's own peak is in the plan's estimate.
        drop((gate, up, dinner));
        let h = layer.mlp_norm.forward(&middle, trained);
        let mut dh = Vec::new();
        self.back(TargetModule::GateProj, &h, &dgate, Some(&mut dh), gradients);
        self.back(TargetModule::UpProj, &h, &dup, Some(&mut dh), gradients);
        drop((h, dgate, dup));
        let mut dmiddle = dy;
        layer.mlp_norm.backward(&middle, trained, &dh, &mut dmiddle, gradients);
        drop(dh);

        let dattention = self.parted(layer.attention_after_norm.as_ref(), &attention_out, &dmiddle, gradients);
        let mut dattended = Vec::new();
        self.back(TargetModule::OProj, &attended, &dattention, Some(&mut dattended), gradients);
        drop(dattention);
        let [asking, answering] = self.normed(&q, &k);
        let [dasking, danswering, dv] = attention.backward(&asking, &answering, &v, &dattended);
        drop((asking, answering, dattended, attended));
        let [dq, dk] = match &layer.query_key_norms {
            None => [dasking, danswering],
            Some([of_q, of_k]) => [
                of_q.backward_alone(&q, trained, &dasking, gradients),
                of_k.backward_alone(&k, trained, &danswering, gradients),
            ],
        };
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

#[cfg(test)]
impl Kept {
    /// How many numbers there is room for.
    pub(super) fn numbers(&self) -> usize {
        let Self { q, k, v, attended, attention_out, middle, gate, up, mlp_out } = self;
        [q, k, v, attended, attention_out, middle, gate, up, mlp_out].iter().map(|values| values.capacity()).sum()
    }
}
