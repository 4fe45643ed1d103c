//! One layer of the decoder, as one node of candle's tape.
//!
//! A node for each operation would keep every intermediate result until the backward pass. One for the whole layer
//! keeps what is dear to compute (the projections and attention) and computes the rest again (norms and SwiGLU): a
//! little more than half of the memory for hardly any time.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use drydock_spec::finetune::TargetModule;

use crate::kernels::add::add_to;
use crate::kernels::attention::Attention;
use crate::kernels::gated::Activation;
use crate::kernels::linear::{Dropout, Linear, Lora, LoraGradient, mix};
use crate::kernels::norm::{rms_norm, rms_norm_backward};
use crate::kernels::{argument, gradient, output, read};

/// The frozen part of a layer, and where its adapters lie.
pub struct Layer {
    pub input_norm: Vec<f32>,
    pub post_attention_norm: Vec<f32>,
    pub epsilon: f32,
    /// In the order of [`TargetModule::ALL`].
    pub projections: [Projection; 7],
}

/// A linear projection: a frozen weight `[out, width]`, and perhaps an adapter.
pub struct Projection {
    pub weight: Vec<f32>,
    pub out: usize,
    pub width: usize,
    pub lora: Option<LoraPlace>,
}

/// An adapter's place among all of its layer's, which lie one after the other in one variable.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPlace {
    /// Where A `[rank, width]` lies.
    pub a: Range<usize>,
    /// Where B `[out, rank]` lies.
    pub b: Range<usize>,
    pub scale: f32,
    pub dropout: f32,
    /// A number that no other projection of the model has, for its dropout.
    pub number: u64,
}

/// What a forward pass leaves to the backward pass.
struct Kept {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    /// The stream between attention and MLP.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Layer {
    /// The projection with its adapter out of the layer's; `dropout_seed` is that of a training pass.
    fn linear<'a>(&'a self, module: TargetModule, adapters: &'a [f32], dropout_seed: Option<u64>) -> Linear<'a> {
        let projection = self.projection(module);
        let lora = projection.lora.as_ref().map(|place| Lora {
            a: &adapters[place.a.clone()],
            b: &adapters[place.b.clone()],
            scale: place.scale,
            dropout: dropout_seed
                .filter(|_| place.dropout > 0.0)
                .map(|seed| Dropout { rate: place.dropout, seed: mix(seed ^ mix(place.number)) }),
        });
        Linear { weight: &projection.weight, width: projection.width, lora }
    }

    fn projection(&self, module: TargetModule) -> &Projection {
        &self.projections[module as usize]
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`. `attend` makes of queries, keys and values what attention says.
    fn forward(
        &self,
        x: &[f32],
        adapters: &[f32],
        dropout_seed: Option<u64>,
        attend: impl FnOnce(&[f32], &[f32], &[f32]) -> Vec<f32>,
    ) -> (Vec<f32>, Kept) {
        let linear = |module| self.linear(module, adapters, dropout_seed);
        let h = rms_norm(x, &self.input_norm, self.epsilon);
        let q = linear(TargetModule::QProj).forward(&h);
        let k = linear(TargetModule::KProj).forward(&h);
        let v = linear(TargetModule::VProj).forward(&h);
        let attended = attend(&q, &k, &v);
        let mut middle = linear(TargetModule::OProj).forward(&attended);
        add_to(&mut middle, x);
        let h = rms_norm(&middle, &self.post_attention_norm, self.epsilon);
        let gate = linear(TargetModule::GateProj).forward(&h);
        let up = linear(TargetModule::UpProj).forward(&h);
        let mut y = linear(TargetModule::DownProj).forward(&Activation::Silu.gate(&gate, &up));
        add_to(&mut y, &middle);
        (y, Kept { q, k, v, attended, middle, gate, up })
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`, without a backward pass to come. `attend` makes of queries, keys and
    /// values what attention says.
    pub fn score(
        &self,
        x: &[f32],
        adapters: &[f32],
        attend: impl FnOnce(&[f32], &[f32], &[f32]) -> Vec<f32>,
    ) -> Vec<f32> {
        self.forward(x, adapters, None, attend).0
    }

    /// The gradients of `x` (where it is asked for) and of the adapters.
    fn backward(
        &self,
        x: &[f32],
        adapters: &[f32],
        pass: &TrainingPass,
        kept: Kept,
        dy: &[f32],
    ) -> (Option<Vec<f32>>, Vec<f32>) {
        let mut gradients = vec![0.0; adapters.len()];
        let mut back = |module, x: &[f32], dy: &[f32], dx: Option<&mut Vec<f32>>| {
            let gradient = self.projection(module).lora.as_ref().map(|place| place.split(&mut gradients));
            self.linear(module, adapters, Some(pass.dropout_seed)).backward(x, dy, dx, gradient);
        };
        let Kept { q, k, v, attended, middle, gate, up } = kept;

        let mut dinner = Vec::new();
        back(TargetModule::DownProj, &Activation::Silu.gate(&gate, &up), dy, Some(&mut dinner));
        let (dgate, dup) = Activation::Silu.gate_backward(&gate, &up, &dinner);
        let h = rms_norm(&middle, &self.post_attention_norm, self.epsilon);
        let mut dh = Vec::new();
        back(TargetModule::GateProj, &h, &dgate, Some(&mut dh));
        back(TargetModule::UpProj, &h, &dup, Some(&mut dh));
        let mut dmiddle = dy.to_vec();
        rms_norm_backward(&middle, &self.post_attention_norm, self.epsilon, &dh, &mut dmiddle);

        let mut dattended = Vec::new();
        back(TargetModule::OProj, &attended, &dmiddle, Some(&mut dattended));
        let [dq, dk, dv] = pass.attention.backward(&q, &k, &v, &dattended);
        let h = rms_norm(x, &self.input_norm, self.epsilon);
        let mut dh = pass.input_gradient.then(Vec::new);
        back(TargetModule::QProj, &h, &dq, dh.as_mut());
        back(TargetModule::KProj, &h, &dk, dh.as_mut());
        back(TargetModule::VProj, &h, &dv, dh.as_mut());
        let dx = dh.map(|dh| {
            let mut dx = dmiddle;
            rms_norm_backward(x, &self.input_norm, self.epsilon, &dh, &mut dx);
            dx
        });
        (dx, gradients)
    }
}

impl LoraPlace {
    fn split<'a>(&self, gradients: &'a mut [f32]) -> LoraGradient<'a> {
        // B follows A at once.
        let (a, b) = gradients[self.a.start..self.b.end].split_at_mut(self.a.len());
        LoraGradient { a, b }
    }
}

/// What a layer needs to know about a training pass.
pub struct TrainingPass {
    pub attention: Attention,
    pub dropout_seed: u64,
    /// Whether the layer's input needs a gradient; the first layer's does not.
    pub input_gradient: bool,
}

/// The layer as a node over its input `[tokens, hidden]` and the variable that holds its adapters.
pub struct TrainedLayer {
    layer: Arc<Layer>,
    pass: TrainingPass,
    kept: Mutex<Option<Kept>>,
}

impl TrainedLayer {
    pub fn new(layer: Arc<Layer>, pass: TrainingPass) -> Self {
        Self { layer, pass, kept: Mutex::default() }
    }
}

impl CustomOp2 for TrainedLayer {
    fn name(&self) -> &'static str {
        "decoder-layer"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, adapters) = (argument(s1, l1)?, argument(s2, l2)?);
        let attend = |q: &[f32], k: &[f32], v: &[f32]| self.pass.attention.forward(q, k, v);
        let (y, kept) = self.layer.forward(x, adapters, Some(self.pass.dropout_seed), attend);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(output(y, l1.shape()))
    }

    fn bwd(&self, x: &Tensor, adapters: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            candle_core::bail!("the backward pass of a layer can be taken once only");
        };
        let (dx, dadapters) = read(x, |x| {
            read(adapters, |adapters| read(dy, |dy| Ok(self.layer.backward(x, adapters, &self.pass, kept, dy))))
        })?;
        let dx = dx.map(|dx| gradient(dx, x.shape())).transpose()?;
        Ok((dx, Some(gradient(dadapters, adapters.shape())?)))
    }
}
