//! The language model's head and its loss in one: logits exist for a few tokens at a time only.
//!
//! Tokens that do not count for the loss never meet the head at all. The gradient is computed together with the loss,
//! while the logits are at hand (as Liger's fused linear cross-entropy does), and scaled in the backward pass.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::matrix::{Matrix, multiplied};
use super::memory::{Parts, by_rows};
use super::simd::{dispatched, exp_and_sum, max};
use super::{argument, gradient, output, read};

/// What is to be predicted where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index of the token in the batch after which the prediction is made.
    pub position: usize,
    /// The token that follows it.
    pub token: u32,
}

/// Bytes of logits that are held at once.
const LOGIT_BYTES: usize = 64 << 20;

/// The sum (not the mean) of the negative log likelihoods of all targets, in nats, as a node of the tape over the
/// hidden states `[tokens, width]`. The frozen head is `[vocabulary, width]`.
pub struct CrossEntropy {
    head: Tensor,
    targets: Vec<Target>,
    /// The gradient for an incoming gradient of one, from the forward to the backward pass; `None` where no backward
    /// pass will come.
    kept: Option<Mutex<Vec<f32>>>,
}

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

impl CrossEntropy {
    /// `trained`: whether a backward pass will follow.
    pub fn new(head: Tensor, targets: Vec<Target>, trained: bool) -> Self {
        Self { head, targets, kept: trained.then(Mutex::default) }
    }

    fn forward(&self, x: &[f32], head: &[f32], width: usize) -> f64 {
        let vocabulary = head.len() / width;
        let mut dx = vec![0.0; if self.kept.is_some() { x.len() } else { 0 }];
        let mut loss = 0.0;
        let chunk = (LOGIT_BYTES / (4 * vocabulary)).max(1);
        for targets in self.targets.chunks(chunk) {
            let hidden: Vec<f32> =
                targets.iter().flat_map(|t| &x[t.position * width..(t.position + 1) * width]).copied().collect();
            let mut logits = multiplied(Matrix::new(&hidden, width), Matrix::new(head, width).t());
            loss += losses(&mut logits, targets, vocabulary).into_iter().sum::<f64>();
            if self.kept.is_some() {
                // The gradient of the logits: the probabilities, less one at the target.
                for (logits, target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
                    logits[target.token as usize] -= 1.0;
                }
                let part = multiplied(Matrix::new(&logits, vocabulary), Matrix::new(head, width));
                for (part, target) in part.chunks_exact(width).zip(targets) {
                    let dx = &mut dx[target.position * width..(target.position + 1) * width];
                    dx.iter_mut().zip(part).for_each(|(dx, part)| *dx += part);
                }
            }
        }
        if let Some(kept) = &self.kept {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = dx;
        }
        loss
    }
}

/// Each target's loss; logits become probabilities.
fn losses(logits: &mut [f32], targets: &[Target], vocabulary: usize) -> Vec<f64> {
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

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = self.head.dims2()?;
        let x = argument(storage, layout)?;
        let loss = read(&self.head, |head| Ok(self.forward(x, head, width)))?;
        Ok(output(vec![loss as f32], ()))
    }

    fn bwd(&self, x: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = &self.kept else { candle_core::bail!("this loss was not made for training") };
        let mut dx = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
        if dx.len() != x.elem_count() {
            candle_core::bail!("the backward pass of a loss can be taken once only");
        }
        let scale = dloss.to_scalar::<f32>()?;
        dx.iter_mut().for_each(|dx| *dx *= scale);
        gradient(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random};

    #[test]
    fn the_loss_and_its_gradient_are_those_of_the_slow_operations() {
        for (tokens, width, vocabulary) in [(1, 7, 5), (9, 16, 65), (40, 33, 1001)] {
            let x = random("x", (tokens, width));
            let head = random("head", (vocabulary, width)).as_tensor().detach();
            // Every other token counts.
            let targets: Vec<Target> = (0..tokens)
                .step_by(2)
                .map(|position| Target { position, token: (position * 31 % vocabulary) as u32 })
                .collect();
            let at = Tensor::from_iter(targets.iter().map(|t| t.position as u32), x.device()).unwrap();
            let tokens = Tensor::from_iter(targets.iter().map(|t| t.token), x.device()).unwrap();
            let logits = x.index_select(&at, 0).unwrap().matmul(&head.t().unwrap()).unwrap();
            let likelihoods = logits.exp().unwrap();
            let sums = likelihoods.sum_keepdim(1).unwrap().log().unwrap();
            let chosen = logits.gather(&tokens.unsqueeze(1).unwrap(), 1).unwrap();
            let want = ((sums - chosen).unwrap().sum_all().unwrap() * 0.37).unwrap();
            let fast = x.apply_op1(CrossEntropy::new(head.clone(), targets, true)).unwrap();
            let got = (fast * 0.37).unwrap();
            assert_close(&got, &want, 1e-5);
            let (got, want) = (got.backward().unwrap(), want.backward().unwrap());
            assert_close(got.get(&x).unwrap(), want.get(&x).unwrap(), 1e-5);
        }
    }
}
