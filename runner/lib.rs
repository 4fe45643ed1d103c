//! drydock: runs jobs that train, finetune, quantize and evaluate models in sealed containers, and tells the truth
//! about them.

pub mod api;
pub mod artifacts;
pub mod attempt;
pub mod blobs;
pub mod checkpoints;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dirs;
pub mod datasets;
pub mod desk;
pub mod diagnose;
pub mod disk;
pub mod dispatch;
pub mod doctor;
pub mod engine;
pub mod fail_point;
pub mod gateway;
mod hostile;
pub mod house;
pub mod hub;
pub mod inputs;
pub mod legible;
pub mod memory;
pub mod models;
pub mod names;
pub mod plan;
pub mod preview;
pub mod reaper;
pub mod remedy;
pub mod retention;
pub mod sandbox;
pub mod scores;
pub mod serve;
pub mod store;
