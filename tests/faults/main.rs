//! Whatever dies, the account of every job stays true: the real gateway on real Docker, a probe in the worker's place,
//! and somebody who kills, cuts, delays and garbles what lies between them.
//!
//! `make test` takes every named step and every kind of fault once; `make test-faults` (`DRYDOCK_FAULTS=full`) takes
//! them at full length. Both need an engine, like every test of the sandbox.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../harness/harness.rs"]
mod harness;
#[path = "../sandbox/image.rs"]
mod image;

mod account;
mod engine;
mod full;
mod kills;
mod outages;
mod proxy;
mod replies;
mod yard;

use std::io::Write as _;

/// Whether the suite is asked for at full length.
fn full_length() -> bool {
    std::env::var("DRYDOCK_FAULTS").is_ok_and(|length| length == "full")
}

/// Says something past the harness's capture of what tests print: figures for the record, and what was not tried here.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
