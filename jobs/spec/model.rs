//! Which models drydock's worker can take: the gateway refuses by these lists at the door, the worker reads by them.

/// Architectures whose arithmetic the worker has, as `model_type` and `general.architecture` name them.
pub const ARCHITECTURES: [&str; 2] = ["llama", "mistral"];

/// Ways to cut text before its tokens are merged, as llama.cpp names them in a GGUF file's `tokenizer.ggml.pre`.
pub const PRE_TOKENIZERS: [&str; 5] = ["smollm", "gpt-2", "default", "llama-bpe", "qwen2"];
