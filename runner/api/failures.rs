//! Failures, as whoever looks for what goes wrong sees them.

use drydock_spec::{Failure, FailureKind, JobId, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diagnose::difference::Change;
use crate::diagnose::evidence::Evidence;
use crate::store::FailureGroup;

/// The failures that there were, those that are the same together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureList {
    /// The one that was seen last comes first.
    pub failures: Vec<FailureGroupView>,
}

/// Failures that are the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureGroupView {
    /// What makes them the same, after the version of the rules that it was made by.
    pub fingerprint: String,
    pub kind: FailureKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The message, with slots for what differs from one to the next.
    pub template: String,
    /// Attempts that failed so.
    pub count: u64,
    pub last_seen_ms: i64,
    /// The job that failed so last, and its message.
    pub job: JobId,
    pub message: String,
}

impl From<FailureGroup> for FailureGroupView {
    fn from(group: FailureGroup) -> Self {
        let FailureGroup { fingerprint, count, last_seen_ms, newest } = group;
        Self {
            fingerprint: fingerprint.0,
            kind: newest.failure.kind,
            stage: newest.failure.stage,
            template: newest.record.signature.root.text,
            count,
            last_seen_ms,
            job: newest.job,
            message: newest.failure.message,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub job: JobId,
    /// The attempt that failed last.
    pub attempt: u32,
    pub at_ms: i64,
    pub failure: Failure,
    /// What makes it the same as others.
    pub fingerprint: String,
    /// The message, with slots for what differs from one to the next.
    pub template: String,
    /// The place in the worker, where what it printed tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Attempts that have failed so, this one included, and the jobs that they were of.
    pub seen: u64,
    pub seen_by_jobs: u64,
    pub evidence: Evidence,
    /// What is different from a job that went well, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
}

/// A job of the same kind that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LastGood {
    pub job: JobId,
    pub same_model: bool,
    pub same_dataset: bool,
    /// What is different in the job that failed.
    pub changes: Vec<Change>,
}
