//! The architectures, and what of each one stands in no configuration file.

use drydock_spec::FailureKind;
use drydock_spec::model::ARCHITECTURES;

use super::{Biases, Features};
use crate::ending::{Result, failed};
use crate::kernels::gated::Activation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
}

/// Refuses an architecture that the decoder does not have.
pub fn check_architecture(name: &str) -> Result<()> {
    Family::named(name).map(drop)
}

impl Family {
    /// By the name that `model_type` or `general.architecture` give it.
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma2" => Self::Gemma2,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            "phi3" => Self::Phi3,
            _ => {
                let known = ARCHITECTURES.join(", ");
                let message = format!("the model's architecture is `{name}`; known are: {known}");
                return failed(FailureKind::UnsupportedModel, message);
            }
        })
    }

    /// As GGUF files call it, and Hugging Face except for Gemma 3.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Every second layer of Gemma 2 sees everything, every sixth of Gemma 3.
    pub(super) fn window_pattern(self) -> usize {
        if self == Self::Gemma2 { 2 } else { 6 }
    }

    /// What is always so in this family; what its files may change stands as it usually is.
    pub(super) fn features(self, hidden: usize, head_dim: usize) -> Features {
        Features {
            activation: if self.is_gemma() { Activation::GeluTanh } else { Activation::Silu },
            biases: Biases { query_key_value: self == Self::Qwen2, ..Biases::default() },
            query_key_norm: matches!(self, Self::Qwen3 | Self::Gemma3),
            norms_after: self.is_gemma(),
            norm_offset: if self.is_gemma() { 1.0 } else { 0.0 },
            embedding_scale: if self.is_gemma() { (hidden as f32).sqrt() } else { 1.0 },
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_softcap: None,
            logit_softcap: None,
            fused: self == Self::Phi3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_of_the_list_is_known_and_no_other() {
        assert!(ARCHITECTURES.iter().all(|name| Family::named(name).is_ok()));
        assert!(Family::named("mamba").is_err() && Family::named("").is_err());
    }
}
