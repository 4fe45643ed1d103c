//! GGUF, llama.cpp's file format for models: one file with metadata, tokenizer and tensors.
//!
//! A file is a header and the tensors' bytes. The header: the letters `GGUF`, a version (u32), the counts of tensors and
//! of metadata entries (u64 each), the entries, then each tensor's name, dimensions (the row's width first), kind of
//! blocks, and where its bytes lie counted from the end of the header. Both the end of the header and each tensor are
//! padded to a multiple of `general.alignment`, 32 where it is not given. All numbers are little-endian; a string is its
//! length (u64) and that many bytes of UTF-8.
//!
//! What these files mean to a decoder is told in [`crate::model::gguf`]; here they are read and written as they are.

pub mod metadata;
pub mod read;
#[cfg(test)]
mod tests;
pub mod write;

pub use metadata::{Metadata, Value};
pub use read::{GgufFile, TensorPlace};
pub use write::{GgufWriter, Planned};

const MAGIC: &[u8; 4] = b"GGUF";

/// Of tensors and of the header, where the metadata does not say otherwise.
const DEFAULT_ALIGNMENT: usize = 32;
