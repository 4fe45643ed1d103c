//! A training computed on a GPU: what [`crate::training::engine::Cpu`] does, on the device.
//!
//! # What it costs
//! For a Llama of 8B (32 layers, hidden 4096, 32 heads that ask and 8 that answer of 128 values, MLP 14336, vocabulary
//! 128256) in bf16, rows of 2048 tokens, per token and layer: the projections have 218 M weights, so 2 * 218 M = 436
//! MFLOP forward; attention over 1024 keys on average 2 * 2 * 1024 * 4096 = 17 MFLOP, of which blocks of 256 queries
//! compute an eighth too much. A backward pass is twice the forward pass in full training, and once of it with frozen
//! weights, whose gradients are never made; attention's backward pass is 2.5 times its forward pass, with one product
//! made again. With the head (2 * 525 MFLOP a token) a token takes 47 GFLOP in full training and 32 GFLOP with an
//! adapter.
//!
//! Bytes that elementwise kernels move per token and layer, forward: norms and the stream 9 * 8 KiB, heads turned and
//! put back 8 * 8 KiB, the gate 3 * 28 KiB, scores and probabilities 32 heads * 1024 keys * (4 + 4 + 2 + 2) bytes = 384
//! KiB, together about 0.6 MiB; the backward pass moves 1.6 times as much. On an H100 (989 TFLOP/s, 3.35 TB/s) a token
//! and layer of full training are 1.3 us of products at 100 % and 0.5 us of bytes. With products at 70 % of the peak,
//! as cuBLAS reaches them at these sizes, that is 2.4 us: 55 % of the peak on paper, of which launches take little at
//! batches of 8192 tokens. The goal of 45 % leaves a fifth for what paper does not know; the first thing to better is
//! attention, two thirds of whose bytes a kernel that keeps its scores on the chip would not move.

use std::borrow::Cow;

use candle_core::{Device as CandleDevice, Tensor};
use drydock_spec::Recipe;

use super::device::Device;
use super::memory::Buffer;
use super::model::{Computed, Group, Model};
use super::operations::{Stepped, squares};
use super::speaker::Voice;
use super::tape::Tape;
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::generate::answers;
use crate::generate::greedy::{Answer, Prompt};
use crate::kernels::adamw::{Constants, Moments, Stretch};
use crate::kernels::read;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::model::tape::Pass;
use crate::model::tokenizer::Text;
use crate::training::engine::{Engine, Recorded, Sums, constants};

/// The moments of a group on the device.
struct OptimizerState {
    first: Buffer<f32>,
    second: Buffer<f32>,
}

pub struct Cuda<'a, T: Computed> {
    device: Device,
    decoder: &'a Decoder,
    trainables: &'a [Trainable],
    model: Model<T>,
    groups: Vec<Group>,
    gradients: Vec<Buffer<f32>>,
    /// Of every pass of the step, on the device until somebody asks.
    losses: Vec<Buffer<f32>>,
    moments: Vec<OptimizerState>,
    stretches: Vec<Vec<Stretch>>,
    constants: Constants,
    steps: i32,
}

impl<'a, T: Computed> Cuda<'a, T> {
    pub fn new(device: &Device, decoder: &'a Decoder, recipe: &Recipe, trainables: &'a [Trainable]) -> Result<Self> {
        let groups: Vec<Group> =
            trainables.iter().map(|trainable| on_device::<T>(device, trainable)).collect::<Result<_>>()?;
        let zeros = |group: &Group| Ok(device.zeros::<f32>(group.values.len())?);
        let state = |group: &Group| Ok(OptimizerState { first: zeros(group)?, second: zeros(group)? });
        Ok(Self {
            device: device.clone(),
            decoder,
            trainables,
            model: Model::load(device, decoder)?,
            gradients: groups.iter().map(zeros).collect::<Result<_>>()?,
            losses: Vec::new(),
            moments: groups.iter().map(state).collect::<Result<_>>()?,
            groups,
            stretches: trainables.iter().map(Trainable::stretches).collect(),
            constants: constants(recipe),
            steps: 0,
        })
    }

    /// The forward pass of a batch, which begins at a token of a larger pass.
    pub(super) fn forward(&mut self, batch: &Batch, first_token: usize, pass: Pass) -> Result<OnGpu<'_, T>> {
        let Self { device, decoder, model, groups, gradients, losses, .. } = self;
        let tape = Tape::record(device, decoder, (model, groups), (batch, first_token), pass, true)?;
        Ok(OnGpu { tape, gradients, losses })
    }

    /// The losses of every backward pass since the last time, when all of them are done.
    pub(super) fn take_losses(&mut self) -> Result<Vec<Vec<f64>>> {
        let losses = std::mem::take(&mut self.losses).iter().map(widened).collect::<Result<_>>()?;
        self.device.wait()?;
        Ok(losses)
    }

    /// The trained values of the groups.
    pub(super) fn values(&self) -> Result<Vec<Vec<f32>>> {
        self.groups.iter().map(|group| Ok(group.values.download()?)).collect()
    }

    pub(super) fn gradients_mut(&mut self) -> &mut [Buffer<f32>] {
        &mut self.gradients
    }

    /// L2 norm of all gradients together.
    pub(super) fn grad_norm(&self) -> Result<f64> {
        let squares = self.gradients.iter().map(|gradient| squares(&self.device, gradient));
        let squares = squares.collect::<super::error::Result<Vec<_>>>()?;
        let mut sum = 0.0;
        for parts in squares {
            sum += parts.download()?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum.sqrt())
    }
}

pub(super) fn on_device<T: Computed>(device: &Device, trainable: &Trainable) -> Result<Group> {
    let values = read(&trainable.var, |values| Ok(values.to_vec()))?;
    Group::new::<T>(device, &values)
}

fn widened(losses: &Buffer<f32>) -> Result<Vec<f64>> {
    Ok(losses.download()?.into_iter().map(f64::from).collect())
}

impl<T: Computed> Engine for Cuda<'_, T> {
    fn record<'e>(&'e mut self, batch: &'e Batch, pass: Pass) -> Result<Box<dyn Recorded + 'e>> {
        Ok(Box::new(self.forward(batch, 0, pass)?))
    }

    fn clear(&mut self) -> Result<()> {
        self.losses.clear();
        Ok(self.gradients.iter_mut().try_for_each(Buffer::clear)?)
    }

    fn sums(&mut self) -> Result<Sums> {
        Ok(Sums { grad_norm: self.grad_norm()?, losses: self.take_losses()? })
    }

    fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.steps += 1;
        let by = self.constants.coefficients(self.steps, learning_rate, gradient_scale);
        let groups = self.groups.iter_mut().zip(&self.gradients).zip(&mut self.moments).zip(&self.stretches);
        for (((group, gradient), moments), stretches) in groups {
            let mut from = 0;
            for stretch in stretches {
                let at = from..from + stretch.len;
                from = at.end;
                let stepped = Stepped {
                    values: group.values.part_mut(at.clone()),
                    copy: group.copy.as_mut().map(|copy| copy.part_mut(at.clone())),
                    gradient: gradient.part(at.clone()),
                    first: moments.first.part_mut(at.clone()),
                    second: moments.second.part_mut(at),
                };
                stepped.step(&self.device, by.of(*stretch))?;
            }
        }
        Ok(())
    }

    fn gradients(&self) -> Result<Cow<'_, [Vec<f32>]>> {
        let gradients = self.gradients.iter().map(|gradient| Ok(gradient.download()?));
        Ok(gradients.collect::<Result<Vec<_>>>()?.into())
    }

    fn moments(&self) -> Result<Cow<'_, [Moments]>> {
        let of_group = |OptimizerState { first, second }: &OptimizerState| {
            Ok(Moments { first: first.download()?, second: second.download()? })
        };
        Ok(self.moments.iter().map(of_group).collect::<Result<Vec<_>>>()?.into())
    }

    fn go_on(&mut self, moments: Vec<Moments>, steps: i32) -> Result<()> {
        for (state, Moments { first, second }) in self.moments.iter_mut().zip(moments) {
            state.first.write(&first)?;
            state.second.write(&second)?;
        }
        self.steps = steps;
        Ok(())
    }

    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        let Self { device, decoder, model, groups, .. } = self;
        Tape::record(device, decoder, (model, groups), (batch, 0), Pass::default(), false)?.losses()
    }

    fn answers(
        &self,
        text: &Text,
        prompts: &[Prompt],
        before_pass: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Answer>> {
        let Self { device, decoder, model, groups, .. } = self;
        answers(&Voice { device, decoder, model, groups }, text, prompts, before_pass)
    }

    fn take_values(&mut self) -> Result<()> {
        for (group, trainable) in self.groups.iter_mut().zip(self.trainables) {
            group.write(&read(&trainable.var, |values| Ok(values.to_vec()))?)?;
        }
        Ok(())
    }

    fn give_values(&self) -> Result<()> {
        for (group, trainable) in self.groups.iter().zip(self.trainables).filter(|(group, _)| !group.is_empty()) {
            let values = group.values.download()?;
            let len = values.len();
            trainable.var.set(&Tensor::from_vec(values, len, &CandleDevice::Cpu)?)?;
        }
        Ok(())
    }
}

pub(super) struct OnGpu<'e, T: Computed> {
    tape: Tape<'e, T>,
    gradients: &'e mut [Buffer<f32>],
    losses: &'e mut Vec<Buffer<f32>>,
}

impl<T: Computed> Recorded for OnGpu<'_, T> {
    fn losses(&mut self) -> Result<Vec<f64>> {
        self.tape.losses()
    }

    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        self.tape.beside(batch)?.losses()
    }

    fn backward(self: Box<Self>, scales: &[f32]) -> Result<()> {
        let Self { tape, gradients, losses } = *self;
        losses.push(tape.backward(scales, gradients)?);
        Ok(())
    }
}
