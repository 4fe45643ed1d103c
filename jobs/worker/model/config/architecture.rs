//! What of each architecture stands in no configuration file.

use drydock_spec::FailureKind;
use drydock_spec::model::{ARCHITECTURES, Architecture};

use super::{Biases, Features};
use crate::ending::{Result, failed};
use crate::kernels::gated::Activation;

/// The architecture of this name; refused where the decoder does not have it.
pub fn architecture(name: &str) -> Result<Architecture> {
    match Architecture::named(name) {
        Some(architecture) => Ok(architecture),
        None => {
            let known = ARCHITECTURES.join(", ");
            failed(FailureKind::UnsupportedModel, format!("the model's architecture is `{name}`; known are: {known}"))
        }
    }
}

/// What is always so in this architecture; what its files may change stands as it usually is.
pub(super) fn features(architecture: Architecture, hidden: usize, head_dim: usize) -> Features {
    let gemma = architecture.is_gemma();
    Features {
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        biases: Biases { query_key_value: architecture.query_key_value_bias(), ..Biases::default() },
        query_key_norm: architecture.query_key_norm(),
        norms_after: architecture.norms_after(),
        norm_offset: if gemma { 1.0 } else { 0.0 },
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_softcap: None,
        logit_softcap: None,
        fused: architecture.fused(),
    }
}

/// Every second layer of Gemma 2 sees everything, every sixth of Gemma 3.
pub(super) fn window_pattern(architecture: Architecture) -> usize {
    if architecture == Architecture::Gemma2 { 2 } else { 6 }
}
