//! Which models drydock's worker can take: the gateway refuses by these lists at the door, the worker reads by them.

/// Architectures whose arithmetic the worker has, as `model_type` and `general.architecture` name them. `gemma3_text`
/// is Hugging Face's name of `gemma3` without eyes.
pub const ARCHITECTURES: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "phi3"];

/// Ways to stretch a model's context, as `rope_type` names them.
pub const ROPE_SCALINGS: [&str; 5] = ["default", "linear", "llama3", "yarn", "longrope"];

/// Ways to cut text before its tokens are merged, as llama.cpp names them in a GGUF file's `tokenizer.ggml.pre`.
pub const PRE_TOKENIZERS: [&str; 5] = ["smollm", "gpt-2", "default", "llama-bpe", "qwen2"];
