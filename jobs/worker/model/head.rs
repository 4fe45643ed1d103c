//! The end of the decoder, as the last node of candle's tape.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::kernels::cross_entropy::{Head, Target};
use crate::kernels::{argument, gradient, output};

/// The frozen norm and head.
pub struct LastLayer {
    pub norm: Vec<f32>,
    pub epsilon: f32,
    /// `[vocabulary, hidden]`; the embedding where the two are tied.
    pub weight: Arc<Vec<f32>>,
}

impl LastLayer {
    pub fn head(&self) -> Head<'_> {
        Head { norm: &self.norm, epsilon: self.epsilon, weight: &self.weight }
    }
}

/// The loss of a batch (the sum over its targets) as a node over the stream `[tokens, hidden]`.
///
/// The gradient is computed in the forward pass, while the logits are at hand, and scaled in the backward pass.
pub struct TrainedLoss {
    last: Arc<LastLayer>,
    targets: Vec<Target>,
    gradient: Mutex<Option<Vec<f32>>>,
}

impl TrainedLoss {
    pub fn new(last: Arc<LastLayer>, targets: Vec<Target>) -> Self {
        Self { last, targets, gradient: Mutex::default() }
    }
}

impl CustomOp1 for TrainedLoss {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = argument(storage, layout)?;
        let mut dx = vec![0.0; x.len()];
        let loss = self.last.head().loss(x, &self.targets, Some(&mut dx));
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = Some(dx);
        Ok(output(vec![loss as f32], ()))
    }

    fn bwd(&self, x: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let Some(mut dx) = self.gradient.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            candle_core::bail!("the backward pass of a loss can be taken once only");
        };
        let scale = dloss.to_scalar::<f32>()?;
        dx.iter_mut().for_each(|dx| *dx *= scale);
        gradient(dx, x.shape()).map(Some)
    }
}
