//! Failures, as whoever looks for what goes wrong sees them.

use drydock_spec::{Change, Failure, FailureKind, JobId, Remedy, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RemedyView, TrialView};
use crate::diagnose::evidence::Evidence;
use crate::remedy::rank::Record;
use crate::store::{FailureGroup, SeenElsewhere};

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
    /// The surest remedy, as far as is known without a job to work it into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestRemedy>,
}

/// The surest remedy against a failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BestRemedy {
    pub remedy: Remedy,
    pub record: Record,
    /// How sure it is to work, from 0 to 1.
    pub sure: f64,
}

impl FailureGroupView {
    pub(crate) fn new(group: FailureGroup, best: Option<BestRemedy>) -> Self {
        let FailureGroup { count, newest } = group;
        Self {
            fingerprint: newest.fingerprint.0,
            kind: newest.failure.kind,
            stage: newest.failure.stage,
            template: newest.record.signature.root.text,
            count,
            last_seen_ms: newest.at_ms,
            job: newest.job,
            message: newest.failure.message,
            best,
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
    /// How often other installations have seen it, as far as they have told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen_elsewhere: Vec<SeenElsewhere>,
    pub evidence: Evidence,
    /// What is different from a job that went well, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
    /// What helps, the surest first. None while the job goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<RemedyView>,
    /// What was tried for this job and for those that it goes back to, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<TrialView>,
    /// Failures that read much the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub similar: Vec<SimilarFailure>,
    /// The same in a language model's words, where they were asked for. Nothing is decided by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_words: Option<ModelWords>,
}

/// What a language model made of an explanation, or why it made nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelWords {
    Said { model: String, text: String },
    Silent { note: String },
}

/// A failure that reads much the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SimilarFailure {
    pub fingerprint: String,
    pub kind: FailureKind,
    /// The job that failed so last, and its message.
    pub job: JobId,
    pub message: String,
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
