//! The trainer against PyTorch, Transformers and PEFT: fixtures made by the scripts in `tests/reference/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod dora;
mod evaluate;
mod full;
mod lora;
mod preferences;
mod reference;
#[path = "../fixture/tiny.rs"]
mod tiny;
