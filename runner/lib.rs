//! drydock: runs finetuning jobs in sealed containers and tells the truth about them.

pub mod api;
pub mod artifacts;
pub mod cli;
pub mod clock;
pub mod config;
pub mod datasets;
pub mod desk;
pub mod doctor;
pub mod engine;
pub mod models;
pub mod plan;
pub mod sandbox;
pub mod serve;
pub mod store;
