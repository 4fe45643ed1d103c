//! The end of a language model in one: last norm, head and loss. Logits exist for a few tokens at a time only.
//!
//! Tokens that do not count for the loss never meet the head at all. The gradient is computed together with the loss,
//! while the logits are at hand (as Liger's fused linear cross-entropy does).

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use super::memory::{Apart, Parts, by_rows};
use super::norm::{rms_norm, rms_norm_backward};
use super::simd::{dispatched, exp_and_sum, max};
use super::softcap::{softcap, softcap_backward};
use super::weight::{Precision, Weight, weight_gradient};

/// What is to be predicted where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index of the token in the batch after which the prediction is made.
    pub position: usize,
    /// The token that follows it.
    pub token: u32,
}

/// The end of a model.
#[derive(Clone)]
pub struct Head<'a> {
    /// `[width]`
    pub norm: Cow<'a, [f32]>,
    pub epsilon: f32,
    /// `[vocabulary, width]`
    pub weight: Weight<'a>,
    /// What logits are bent to lie within.
    pub softcap: Option<f32>,
    pub precision: Precision,
}

/// Where the gradients of a sum of losses are added, each loss multiplied by a number of its own.
pub struct HeadGradient<'a> {
    /// One for each target.
    pub scales: &'a [f32],
    /// The stream's, `[tokens, width]`.
    pub x: &'a mut [f32],
    pub norm: Option<&'a mut [f32]>,
    pub weight: Option<&'a mut [f32]>,
}

/// Bytes of logits that are held at once.
const LOGIT_BYTES: usize = 64 << 20;

dispatched! {
    /// Turns a token's logits into probabilities and returns the target's negative log likelihood.
    fn softmax_loss(logits: &mut [f32], target: usize) -> f64 {
        let shift = max(logits);
        let at_target = logits[target] - shift;
        let sum = exp_and_sum(logits, shift);
        let inverse = 1.0 / sum;
        logits.iter_mut().for_each(|value| *value *= inverse);
        f64::from(sum).ln() - f64::from(at_target)
    }
}

impl Head<'_> {
    /// `[tokens, vocabulary]` of the stream `[tokens, width]`.
    pub fn logits(&self, x: &[f32]) -> Vec<f32> {
        let mut logits = vec![0.0; x.len() / self.weight.width * self.weight.out];
        self.logits_of(&rms_norm(x, &self.norm, self.epsilon), &mut logits);
        logits
    }

    /// The same after the norm.
    fn logits_of(&self, h: &[f32], logits: &mut [f32]) {
        self.weight.forward_into(h, logits, self.precision);
        if let Some(cap) = self.softcap {
            softcap(logits, cap);
        }
    }

    /// The negative log likelihood of each target in nats, for the stream `[tokens, width]`; with the gradients of
    /// their weighted sum, where they are asked for.
    pub fn losses(&self, x: &[f32], targets: &[Target], mut gradient: Option<HeadGradient<'_>>) -> Vec<f64> {
        let Weight { out: vocabulary, width, .. } = self.weight;
        let row = |position: usize| position * width..(position + 1) * width;
        let mut losses = Vec::with_capacity(targets.len());
        let at_once = (LOGIT_BYTES / (4 * vocabulary)).clamp(1, targets.len().max(1));
        // One buffer for all: the system clears every page of one as large as this before it hands it out.
        let mut logits = Apart::zeros(at_once * vocabulary);
        for targets in targets.chunks(at_once) {
            let some: Vec<f32> = targets.iter().flat_map(|target| &x[row(target.position)]).copied().collect();
            let h = rms_norm(&some, &self.norm, self.epsilon);
            let logits = &mut logits.values()[..targets.len() * vocabulary];
            self.logits_of(&h, logits);
            // Logits become probabilities; the way back through the softcap asks for what they were.
            let bent = gradient.as_ref().and(self.softcap).map(|cap| (logits.to_vec(), cap));
            let first = losses.len();
            losses.extend(losses_of(logits, targets, vocabulary));
            let Some(gradient) = &mut gradient else { continue };
            // The gradient of the logits: the probabilities, less one at the target.
            let dlogits = logits;
            for (dlogits, target) in dlogits.chunks_exact_mut(vocabulary).zip(targets) {
                dlogits[target.token as usize] -= 1.0;
            }
            if let Some((bent, cap)) = bent {
                softcap_backward(&bent, cap, dlogits);
            }
            // The scales are put on the narrow side of both products.
            let scales = &gradient.scales[first..losses.len()];
            if let Some(dweight) = gradient.weight.as_deref_mut() {
                weight_gradient(&scaled(h, scales), dlogits, dweight, width, self.precision);
            }
            let mut dh = Vec::new();
            self.weight.backward(dlogits, &mut dh, self.precision);
            let dh = scaled(dh, scales);
            let mut dsome = vec![0.0; some.len()];
            rms_norm_backward(&some, &self.norm, self.epsilon, &dh, &mut dsome, gradient.norm.as_deref_mut());
            for (dsome, target) in dsome.chunks_exact(width).zip(targets) {
                gradient.x[row(target.position)].iter_mut().zip(dsome).for_each(|(dx, more)| *dx += more);
            }
        }
        losses
    }
}

/// Each row multiplied by a number of its own.
fn scaled(mut rows: Vec<f32>, scales: &[f32]) -> Vec<f32> {
    let width = rows.len() / scales.len();
    for (row, scale) in rows.chunks_exact_mut(width).zip(scales) {
        row.iter_mut().for_each(|value| *value *= scale);
    }
    rows
}

/// Each target's loss; logits become probabilities.
fn losses_of(logits: &mut [f32], targets: &[Target], vocabulary: usize) -> Vec<f64> {
    let mut losses = vec![0.0; targets.len()];
    let out = Mutex::new(&mut losses);
    let parts = Parts::of(logits);
    by_rows(targets.len(), |rows| {
        // SAFETY: `by_rows` gives no row out twice.
        let logits = unsafe { parts.part(rows.start * vocabulary..rows.end * vocabulary) };
        let some: Vec<f64> = logits
            .chunks_exact_mut(vocabulary)
            .zip(&targets[rows.clone()])
            .map(|(logits, target)| softmax_loss(logits, target.token as usize))
            .collect();
        out.lock().unwrap_or_else(PoisonError::into_inner)[rows].copy_from_slice(&some);
    });
    losses
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    #[test]
    fn losses_and_their_gradients_are_those_of_the_slow_operations() {
        let shapes = [(1, 7, 5), (9, 16, 65), (40, 33, 1001)];
        for ((tokens, width, vocabulary), softcap) in
            shapes.into_iter().flat_map(|shape| [(shape, None), (shape, Some(0.8))])
        {
            let inputs =
                [random("x", (tokens, width)), random("norm", (1, width)), random("head", (vocabulary, width))];
            let inputs = inputs.each_ref();
            // Every other token counts.
            let targets: Vec<Target> = (0..tokens)
                .step_by(2)
                .map(|position| Target { position, token: (position * 31 % vocabulary) as u32 })
                .collect();
            let count = targets.len();
            let at = Tensor::from_iter(targets.iter().map(|t| t.position as u32), &Device::Cpu).unwrap();
            let chosen = Tensor::from_iter(targets.iter().map(|t| t.token), &Device::Cpu).unwrap();
            let slow = |x: &[&Tensor]| -> Result<Tensor> {
                let some = x[0].index_select(&at, 0)?;
                let rms = (some.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                let mut logits = some.broadcast_div(&rms)?.broadcast_mul(x[1])?.matmul(&x[2].t()?)?;
                if let Some(cap) = softcap {
                    logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
                }
                let sums = logits.exp()?.sum_keepdim(1)?.log()?;
                (sums - logits.gather(&chosen.unsqueeze(1)?, 1)?)?.flatten_all()
            };
            let head = move |x: &[&[f32]], gradient: Option<HeadGradient<'_>>, targets: &[Target]| {
                let weight = Weight::f32(x[2], width);
                let (norm, epsilon) = (x[1].into(), 1e-5);
                Head { norm, epsilon, weight, softcap, precision: Precision::F32 }.losses(x[0], targets, gradient)
            };
            let op = || {
                let (targets, again) = (targets.clone(), targets.clone());
                Kernel::new(
                    count,
                    move |x| head(x, None, &targets).into_iter().map(|loss| loss as f32).collect(),
                    move |x, dy| {
                        let [mut dx, mut norm, mut weight] = [x[0], x[1], x[2]].map(|x| vec![0.0; x.len()]);
                        let (norm_out, weight_out) = (Some(&mut norm[..]), Some(&mut weight[..]));
                        let gradient = HeadGradient { scales: dy, x: &mut dx, norm: norm_out, weight: weight_out };
                        head(x, Some(gradient), &again);
                        vec![dx, norm, weight]
                    },
                )
            };
            let (losses, want) = weighted_sum_gradients(slow, &inputs).unwrap();
            let (fast, got) = weighted_sum_gradients(|x| x[0].apply_op3(x[1], x[2], op()), &inputs).unwrap();
            assert_close(&fast, &losses, 1e-5);
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, 1e-5);
            }
        }
    }
}
