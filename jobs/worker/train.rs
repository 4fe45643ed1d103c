pub mod start;
pub mod text;
pub mod tokenizer;
