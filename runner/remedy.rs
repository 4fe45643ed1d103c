//! What helps against failures: where remedies come from, how often they worked, and which is offered first.
//!
//! Candidates come from rules ([`rules`]), from the failure's own numbers ([`fit`]), from jobs that followed a failed
//! one with other options ([`learned`]), and from people. Each is worked into the job and put before the planner: what
//! would be refused is not offered. What is left is ranked by its record ([`rank`]).

use drydock_spec::JobId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod fit;
pub mod learned;
pub mod rank;
pub mod rules;
mod suggest;
pub mod verdict;

pub use suggest::{CannotApply, Remedies, Suggested};

/// Where a remedy came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Source {
    /// A rule of drydock's own, and what it goes back to.
    Rule { source: String },
    /// What the failure's numbers say is needed.
    Numbers { said: String },
    /// Jobs that followed failed ones with other options, and passed.
    History { jobs: Vec<JobId> },
    /// Somebody who knows.
    Person { name: String, note: String },
    /// The experience of another installation.
    Installation { name: String, worked: u64, tried: u64 },
    /// It worked against a failure that reads much the same.
    Similar { fingerprint: String },
    /// Whoever applied it, without saying why.
    Asked,
}

/// Who chose to apply a remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Chooser {
    /// Whoever asked for it.
    Caller,
    /// drydock, as the job's `on_failure` says.
    Auto,
    /// drydock, to see how often the same again helps.
    Control,
    /// drydock, as it does after failures of the infrastructure.
    Retry,
}
