//! drydock: runs finetuning jobs in sealed containers and tells the truth about them.

pub mod api;
pub mod artifacts;
pub mod blobs;
pub mod clock;
pub mod config;
pub mod data_dirs;
pub mod datasets;
pub mod desk;
pub mod engine;
pub mod hub;
pub mod models;
pub mod names;
pub mod plan;
pub mod sandbox;
pub mod store;
