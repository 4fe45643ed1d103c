//! Runs one attempt of a drydock job: reads its spec, trains, writes artifacts, and reports on the way.
//!
//! The same binary runs inside a sealed container (no shell, no network, read-only inputs) and by hand.

pub mod attempt;
pub mod blocks;
pub mod compute;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod data;
pub mod ending;
pub mod evaluate;
pub mod finetune;
pub mod foreign;
pub mod forget;
pub mod generate;
pub mod gguf;
pub mod kernels;
pub mod logits;
pub mod merge;
pub mod model;
pub mod preview;
pub mod process;
pub mod quantize;
pub mod random;
pub mod report;
pub mod save;
pub mod schedule;
pub mod shard;
pub mod stop;
pub mod train;
pub mod training;

/// As it stands in the first report.
pub const NAME_AND_VERSION: &str = concat!("drydock-worker ", env!("CARGO_PKG_VERSION"));
