//! The sandbox on a real Docker engine, with a probe in the worker's place.
//!
//! These tests need an engine and fail without one. `DOCKER_HOST` says where it is, as for Docker's own client.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere, its scaffolding too")]

mod ends;
mod engine;
#[path = "../fake_nvml/fake.rs"]
mod fake_nvml;
mod gpu_jobs;
mod gpus;
mod greed;
mod image;
mod kernel;
mod life;
mod log;
mod other_engines;
mod outputs;
mod own_engine;
mod stage;
mod told;
mod walls;
