//! The end of a language model in one: last norm, head and loss. Logits exist for a few tokens at a time only.
//!
//! Tokens that do not count for the loss never meet the head at all. The gradient is computed together with the loss,
//! while the logits are at hand (as Liger's fused linear cross-entropy does).

use std::sync::{Mutex, PoisonError};

use super::matrix::{Matrix, multiplied};
use super::memory::{Parts, by_rows};
use super::norm::{rms_norm, rms_norm_backward};
use super::simd::{dispatched, exp_and_sum, max};

/// What is to be predicted where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index of the token in the batch after which the prediction is made.
    pub position: usize,
    /// The token that follows it.
    pub token: u32,
}

/// The frozen end of a model.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[width]`
    pub norm: &'a [f32],
    pub epsilon: f32,
    /// `[vocabulary, width]`
    pub weight: &'a [f32],
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
        let h = rms_norm(x, self.norm, self.epsilon);
        multiplied(Matrix::new(&h, self.norm.len()), Matrix::new(self.weight, self.norm.len()).t())
    }

    /// The sum (not the mean) of the negative log likelihoods of all targets, in nats, for the stream
    /// `[tokens, width]`; its gradient is added to `dx`, where that is given.
    pub fn loss(&self, x: &[f32], targets: &[Target], mut dx: Option<&mut [f32]>) -> f64 {
        let width = self.norm.len();
        let vocabulary = self.weight.len() / width;
        let row = |position: usize| position * width..(position + 1) * width;
        let mut loss = 0.0;
        for targets in targets.chunks((LOGIT_BYTES / (4 * vocabulary)).max(1)) {
            let some: Vec<f32> = targets.iter().flat_map(|target| &x[row(target.position)]).copied().collect();
            let mut logits = self.logits(&some);
            loss += losses(&mut logits, targets, vocabulary).into_iter().sum::<f64>();
            let Some(dx) = dx.as_deref_mut() else { continue };
            // The gradient of the logits: the probabilities, less one at the target.
            for (logits, target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
                logits[target.token as usize] -= 1.0;
            }
            let dh = multiplied(Matrix::new(&logits, vocabulary), Matrix::new(self.weight, width));
            let mut dsome = vec![0.0; some.len()];
            rms_norm_backward(&some, self.norm, self.epsilon, &dh, &mut dsome);
            for (dsome, target) in dsome.chunks_exact(width).zip(targets) {
                dx[row(target.position)].iter_mut().zip(dsome).for_each(|(dx, more)| *dx += more);
            }
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

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, frozen, random};

    #[test]
    fn the_loss_and_its_gradient_are_those_of_the_slow_operations() {
        for (tokens, width, vocabulary) in [(1, 7, 5), (9, 16, 65), (40, 33, 1001)] {
            let x = random("x", (tokens, width));
            let (norm, norm_values) = frozen("norm", (1, width));
            let (weight, weight_values) = frozen("head", (vocabulary, width));
            // Every other token counts.
            let targets: Vec<Target> = (0..tokens)
                .step_by(2)
                .map(|position| Target { position, token: (position * 31 % vocabulary) as u32 })
                .collect();
            let at = Tensor::from_iter(targets.iter().map(|t| t.position as u32), x.device()).unwrap();
            let chosen = Tensor::from_iter(targets.iter().map(|t| t.token), x.device()).unwrap();
            let some = x.index_select(&at, 0).unwrap();
            let rms = (some.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-5).unwrap().sqrt().unwrap();
            let h = some.broadcast_div(&rms).unwrap().broadcast_mul(&norm).unwrap();
            let logits = h.matmul(&weight.t().unwrap()).unwrap();
            let sums = logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
            let likely = logits.gather(&chosen.unsqueeze(1).unwrap(), 1).unwrap();
            let want = ((sums - likely).unwrap().sum_all().unwrap() * 0.37).unwrap();

            let op = Kernel::new(
                (),
                {
                    let (norm, weight, targets) = (norm_values.clone(), weight_values.clone(), targets.clone());
                    move |x| {
                        let head = Head { norm: &norm, epsilon: 1e-5, weight: &weight };
                        vec![head.loss(x[0], &targets, None) as f32]
                    }
                },
                move |x, dy| {
                    let head = Head { norm: &norm_values, epsilon: 1e-5, weight: &weight_values };
                    let mut dx = vec![0.0; x[0].len()];
                    head.loss(x[0], &targets, Some(&mut dx));
                    dx.iter_mut().for_each(|dx| *dx *= dy[0]);
                    vec![dx]
                },
            );
            let got = (x.apply_op1(op).unwrap() * 0.37).unwrap();
            assert_close(&got, &want, 1e-5);
            let (got, want) = (got.backward().unwrap(), want.backward().unwrap());
            assert_close(got.get(&x).unwrap(), want.get(&x).unwrap(), 1e-5);
        }
    }
}
