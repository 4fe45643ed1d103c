//! Remedies, as whoever decides on one sees them.

use drydock_spec::remedy::Meaning;
use drydock_spec::{Change, JobId, Remedy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::remedy::rank::Record;
use crate::remedy::verdict::Verdict;
use crate::remedy::{Chooser, Source};
use crate::store::{Advice, Against, Trial};

/// What is offered against a job's failure, the surest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemedyList {
    pub job: JobId,
    /// Of the failure that they are against.
    pub fingerprint: String,
    pub remedies: Vec<RemedyView>,
    /// What was tried for this job and for those that it goes back to, the newest first.
    pub tried: Vec<TrialView>,
    /// What to do next.
    pub next: String,
}

/// A remedy that is offered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemedyView {
    pub remedy: Remedy,
    /// What it does to this job, or what somebody has to do first.
    pub does: String,
    /// Whether the job still does the same.
    pub meaning: Meaning,
    pub changes: Vec<Change>,
    pub source: Source,
    pub record: Record,
    /// How sure it is to work, from 0 to 1: the lower bound of what its record says.
    pub sure: f64,
    /// The record in words, or what speaks for it while there is none.
    pub evidence: String,
    /// The step of the failed job's last checkpoint, where the next one can go on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_on_from: Option<u64>,
}

/// A remedy that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrialView {
    /// The job and its attempt that tried it.
    pub job: JobId,
    pub attempt: u32,
    pub remedy: Remedy,
    /// Of the failure that it was against.
    pub fingerprint: String,
    pub chosen_by: Chooser,
    /// What became of it; nothing while the attempt is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

impl From<Trial> for TrialView {
    fn from(trial: Trial) -> Self {
        let Trial { job, attempt, remedy, fingerprint, chosen_by, verdict } = trial;
        Self { job, attempt: attempt.0, remedy, fingerprint: fingerprint.0, chosen_by, verdict }
    }
}

/// A remedy to apply to a job that failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyRemedy {
    /// One that is offered, or any other; by default the surest that is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
    /// Begin at the beginning, also where a checkpoint could be gone on from.
    pub anew: bool,
    /// Answer with the plan and queue nothing.
    pub dry_run: bool,
    /// The same key with the same body gives the same job again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// Remedies that people advise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdviceList {
    /// The newest first.
    pub advice: Vec<AdviceView>,
}

/// A remedy that somebody advises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdviceView {
    pub number: i64,
    pub against: Against,
    pub remedy: Remedy,
    pub note: String,
    pub by_whom: String,
    /// The installation whose experience it is; absent for people's own advice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    pub at_ms: i64,
}

impl From<Advice> for AdviceView {
    fn from(advice: Advice) -> Self {
        let Advice { number, at_ms, advice } = advice;
        let origin = advice.origin.map(|(name, _)| name);
        Self {
            number,
            against: advice.against,
            remedy: advice.remedy,
            note: advice.note,
            by_whom: advice.by_whom,
            origin,
            at_ms,
        }
    }
}

/// A remedy to advise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advise {
    pub against: Against,
    pub remedy: Remedy,
    /// Why it helps.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Who says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_whom: Option<String>,
}

/// A fingerprint that another one stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinFingerprints {
    /// The one that stands for both from now on; without it the fingerprint stands for itself again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
}

/// What a fingerprint stands under.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JoinedFingerprint {
    pub fingerprint: String,
    /// The one that stands for it: itself, if no other does.
    pub stands_for: String,
}
