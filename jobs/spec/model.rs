//! Which models drydock's worker can take: the gateway refuses by these lists at the door, the worker reads by them.

/// A decoder whose arithmetic the worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    /// Without its eyes.
    Gemma3,
    Phi3,
}

/// Architectures whose arithmetic the worker has, as `model_type` and `general.architecture` name them. `gemma3_text`
/// is Hugging Face's name of a `gemma3` that only reads text.
pub const ARCHITECTURES: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "phi3"];

/// Ways to stretch a model's context, as `rope_type` names them.
pub const ROPE_SCALINGS: [&str; 6] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];

/// Activations of the gate, as `hidden_act` names them.
pub const ACTIVATIONS: [&str; 4] = ["silu", "swish", "gelu_pytorch_tanh", "gelu_new"];

/// Kinds of tokenizers that can be rebuilt from a GGUF file's `tokenizer.ggml.model`: byte-level BPE, and SentencePiece.
pub const TOKENIZERS: [&str; 2] = ["gpt2", "llama"];

/// Ways to cut text before its tokens are merged, as llama.cpp names them in a GGUF file's `tokenizer.ggml.pre`.
pub const PRE_TOKENIZERS: [&str; 5] = ["smollm", "gpt-2", "default", "llama-bpe", "qwen2"];

impl Architecture {
    /// By the name that `model_type` or `general.architecture` give it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma2" => Self::Gemma2,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            "phi3" => Self::Phi3,
            _ => return None,
        })
    }

    /// As GGUF files call it, and Hugging Face except for Gemma 3.
    #[must_use]
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

    #[must_use]
    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Whether queries, keys and values always have biases.
    #[must_use]
    pub fn query_key_value_bias(self) -> bool {
        self == Self::Qwen2
    }

    /// Whether `config.json` may ask for biases of all of attention's projections.
    #[must_use]
    pub fn may_have_attention_bias(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen3 | Self::Gemma2 | Self::Gemma3)
    }

    /// Whether queries and keys go through a norm of their own.
    #[must_use]
    pub fn query_key_norm(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether what attention and MLP give goes through a norm before it joins the stream.
    #[must_use]
    pub fn norms_after(self) -> bool {
        self.is_gemma()
    }

    /// Whether the files hold queries, keys and values as one projection, gate and up as another.
    #[must_use]
    pub fn fused(self) -> bool {
        self == Self::Phi3
    }

    /// The field of `config.json` that names the activation.
    #[must_use]
    pub fn activation_field(self) -> &'static str {
        if self.is_gemma() { "hidden_activation" } else { "hidden_act" }
    }

    /// Values of a head where `config.json` does not say it and does not mean `hidden_size / num_attention_heads`.
    #[must_use]
    pub fn usual_head_dim(self) -> Option<u32> {
        match self {
            Self::Gemma2 | Self::Gemma3 => Some(256),
            Self::Qwen3 => Some(128),
            _ => None,
        }
    }

    /// Tokens and positions of an architecture whose `config.json` may leave them out.
    #[must_use]
    pub fn usual_vocabulary_and_positions(self) -> Option<[u32; 2]> {
        match self {
            Self::Gemma2 => Some([256_000, 8192]),
            Self::Gemma3 => Some([262_208, 131_072]),
            _ => None,
        }
    }

    /// Heads that ask and heads that answer, the same.
    #[must_use]
    pub fn usual_heads(self) -> Option<[u32; 2]> {
        self.is_gemma().then_some([8, 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_of_the_list_is_known_and_no_other() {
        assert!(ARCHITECTURES.iter().all(|name| Architecture::named(name).is_some()));
        assert!(
            ARCHITECTURES
                .iter()
                .filter_map(|name| Architecture::named(name))
                .all(|a| ARCHITECTURES.contains(&a.name()))
        );
        assert_eq!((Architecture::named("mamba"), Architecture::named("")), (None, None));
    }
}
