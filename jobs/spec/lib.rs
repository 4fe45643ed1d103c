//! What a drydock job is: its options, limits, states, reports and failures.
//!
//! Everything here is a value or a pure rule over values; there is no I/O and no clock, so that the gateway, the
//! worker and the tests can share one truth about a job.

pub mod change;
pub mod contract;
pub mod dataset;
pub mod device;
pub mod evaluate;
pub mod failure;
pub mod finetune;
pub mod id;
pub mod job;
pub mod lengths;
pub mod limits;
pub mod model;
pub mod option;
pub mod pattern;
pub mod preview;
pub mod quantize;
pub mod recipe;
pub mod remedy;
pub mod report;
pub mod state;
pub mod tape;
pub mod train;

pub use change::Change;
pub use contract::{AttemptSpec, Inputs, ModelInput};
pub use evaluate::{EvaluateArgs, EvaluateSpec};
pub use failure::{Failure, FailureKind, Stage};
pub use finetune::{FinetuneArgs, FinetuneSpec};
pub use id::{Attempt, JobId, Owner, TraceId};
pub use job::{JobArgs, JobSpec, Priority};
pub use limits::{LimitArgs, Limits};
pub use option::{InvalidOption, InvalidOptions};
pub use preview::Preview;
pub use quantize::{QuantizeArgs, QuantizeSpec};
pub use recipe::Recipe;
pub use remedy::Remedy;
pub use report::{Report, ReportLine};
pub use state::{InvalidTransition, JobEvent, JobState, OnFailure, Outcome};
pub use train::{TrainArgs, TrainSpec};
