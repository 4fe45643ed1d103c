//! The gateway over real HTTP, with a real store behind it and no engine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "gateway/again.rs"]
mod again;
#[path = "gateway/events.rs"]
mod events;
#[path = "fake_nvml/fake.rs"]
mod fake_nvml;
#[path = "gateway/gpus.rs"]
mod gpus;
#[path = "gateway/hostile.rs"]
mod hostile;
#[path = "gateway/house.rs"]
mod house;
#[path = "gateway/knowledge.rs"]
mod knowledge;
#[path = "gateway/mcp.rs"]
mod mcp;
#[path = "gateway/remedies.rs"]
mod remedies;
#[path = "gateway/rest.rs"]
mod rest;
#[path = "gateway/shutdown.rs"]
mod shutdown;
#[path = "gateway/stdio.rs"]
mod stdio;
#[path = "gateway/submit.rs"]
mod submit;
#[path = "support/tiny.rs"]
mod tiny;
#[path = "gateway/wording.rs"]
mod wording;
