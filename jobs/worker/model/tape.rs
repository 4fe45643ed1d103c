//! A training pass: forward, and then backward along what the forward pass has kept.
//!
//! The tape is a list with an entry for each layer. Nothing else needs one: the model is a chain of layers, each of
//! which knows its own backward pass, and gradients go straight to where they are summed up.

use candle_core::Result;
use drydock_spec::Recipe;
use drydock_spec::recipe::DType;

use super::decoder::{Decoder, in_pool};
use super::head::Ends;
use super::layer::{Arithmetic, Kept};
use super::parameter::Gradients;
use crate::data::batch::Batch;
use crate::kernels::cross_entropy::HeadGradient;
use crate::kernels::weight::Precision;

/// How a training pass computes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass {
    /// Of the products with the model's weights; all else is f32, the trained values too.
    pub precision: Precision,
    pub dropout_seed: u64,
    /// Keep only what enters a layer, and compute the layer again when its backward pass comes (Chen et al. 2016).
    pub gradient_checkpointing: bool,
}

impl Pass {
    /// As a recipe asks for it.
    pub fn new(recipe: &Recipe, dropout_seed: u64) -> Self {
        let precision = match recipe.dtype {
            DType::F32 => Precision::F32,
            DType::Bf16 => Precision::Bf16,
        };
        Self { precision, dropout_seed, gradient_checkpointing: recipe.gradient_checkpointing }
    }

    fn arithmetic(self) -> Arithmetic {
        Arithmetic { precision: self.precision, dropout_seed: Some(self.dropout_seed) }
    }
}

/// What a forward pass has left.
pub struct Tape<'d> {
    decoder: &'d Decoder,
    batch: &'d Batch,
    pass: Pass,
    layers: Vec<Entry>,
    /// What the last layer has made of it all, `[tokens, hidden]`.
    stream: Vec<f32>,
    ahead: Option<Ahead>,
}

/// The losses, and the stream's gradient `[tokens, hidden]` where each of them counts once. Where nothing of the model's
/// end is trained, that is all there is to know of it: every token makes one prediction, so that what a loss counts
/// is a factor of its token's gradient, which may be put on later.
struct Ahead {
    losses: Vec<f64>,
    dstream: Vec<f32>,
}

/// A layer's input `[tokens, hidden]`, and what it kept, where it kept anything.
struct Entry {
    x: Vec<f32>,
    kept: Option<Kept>,
}

impl<'d> Tape<'d> {
    /// The forward pass of a batch, up to where its losses begin.
    pub fn record(decoder: &'d Decoder, batch: &'d Batch, pass: Pass) -> Result<Self> {
        in_pool(|| Self::forward(decoder, batch, pass))
    }

    fn forward(decoder: &'d Decoder, batch: &'d Batch, pass: Pass) -> Result<Self> {
        let mut layers = Vec::with_capacity(decoder.layers.len());
        let mut stream = decoder.embed(&batch.ids)?;
        for (index, layer) in decoder.layers.iter().enumerate() {
            let attention = decoder.attention(index, &batch.bounds);
            let (y, kept) = decoder.lent(decoder.layer_group(index), |trained| {
                layer.with(trained, pass.arithmetic()).forward(&stream, |q, k, v| attention.forward(q, k, v))
            })?;
            let kept = (!pass.gradient_checkpointing).then_some(kept);
            layers.push(Entry { x: std::mem::replace(&mut stream, y), kept });
        }
        Ok(Self { decoder, batch, pass, layers, stream, ahead: None })
    }

    /// The negative log likelihood of each of the batch's targets, in nats, for those who must know them before they
    /// can say what they count.
    pub fn losses(&mut self) -> Result<Vec<f64>> {
        in_pool(|| self.look_ahead())
    }

    fn look_ahead(&mut self) -> Result<Vec<f64>> {
        let Self { decoder, batch, pass, stream, .. } = self;
        if decoder.last.is_trained(&decoder.embedding) {
            return decoder.losses(stream, &batch.targets, pass.precision);
        }
        let (mut dstream, scales) = (vec![0.0; stream.len()], vec![1.0; batch.targets.len()]);
        let losses = decoder.with_ends(|trained| {
            let head = decoder.last.head(&decoder.embedding, trained, pass.precision);
            let gradient = HeadGradient { scales: &scales, x: &mut dstream, norm: None, weight: None };
            head.losses(stream, &batch.targets, Some(gradient))
        })?;
        self.ahead = Some(Ahead { losses: losses.clone(), dstream });
        Ok(losses)
    }

    /// Adds the gradients of the sum over the targets of `scales` times their losses, and returns the losses.
    pub fn backward(self, scales: &[f32], gradients: &mut Gradients) -> Result<Vec<f64>> {
        in_pool(|| self.back(scales, gradients.groups_mut()))
    }

    fn back(self, scales: &[f32], gradients: &mut [Vec<f32>]) -> Result<Vec<f64>> {
        let Self { decoder, batch, pass, layers, stream, ahead } = self;
        let Ahead { losses, mut dstream } = match ahead {
            Some(mut ahead) => {
                ahead.scale(batch, scales);
                ahead
            }
            None => {
                let mut dstream = vec![0.0; stream.len()];
                let losses = decoder.with_ends(|trained| {
                    let head = decoder.last.head(&decoder.embedding, trained, pass.precision);
                    let [norm, weight] = decoder.last.gradient(&decoder.embedding, ends_mut(gradients));
                    head.losses(&stream, &batch.targets, Some(HeadGradient { scales, x: &mut dstream, norm, weight }))
                })?;
                Ahead { losses, dstream }
            }
        };
        drop(stream);
        for (index, entry) in layers.into_iter().enumerate().rev() {
            let (group, attention) = (decoder.layer_group(index), decoder.attention(index, &batch.bounds));
            // Below the lowest group that is trained there is nothing to do.
            let further = gradients[..group].iter().any(|gradient| !gradient.is_empty());
            dstream = decoder.lent(group, |trained| {
                let layer = decoder.layers[index].with(trained, pass.arithmetic());
                let Entry { x, kept } = entry;
                let kept = kept.unwrap_or_else(|| layer.forward(&x, |q, k, v| attention.forward(q, k, v)).1);
                layer.backward(&x, kept, dstream, &attention, further, &mut gradients[group])
            })?;
            if !further {
                return Ok(losses);
            }
        }
        decoder.embedding_backward(&batch.ids, &dstream, &mut gradients[Decoder::EMBEDDING_GROUP]);
        Ok(losses)
    }
}

impl Ahead {
    /// What each loss counts comes to its token's gradient.
    fn scale(&mut self, batch: &Batch, scales: &[f32]) {
        let width = self.dstream.len() / batch.ids.len();
        for (target, scale) in batch.targets.iter().zip(scales) {
            self.dstream[target.position * width..][..width].iter_mut().for_each(|gradient| *gradient *= scale);
        }
    }
}

/// The gradients of the first and of the last group.
fn ends_mut(gradients: &mut [Vec<f32>]) -> Ends<&mut [f32]> {
    match gradients {
        [embedding, .., last] => Ends { embedding, last },
        _ => unreachable!("a model has a group for its embedding and one for its end"),
    }
}

#[cfg(test)]
mod tests;
