//! From columns to values: what the database holds is checked again on the way out.

use std::str::FromStr;

use drydock_spec::{Attempt, Failure, JobId, JobState, Outcome};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

pub(super) fn job_id(text: &str) -> Result<JobId, StoreError> {
    JobId::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn attempt(number: i64) -> Result<Attempt, StoreError> {
    u32::try_from(number).map(Attempt).map_err(|_| StoreError::Corrupt(format!("attempt {number}")))
}

pub(super) fn unsigned(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Corrupt(format!("{number} is negative")))
}

/// Several jobs as one parameter: `SELECT value FROM json_each($1)`.
pub(super) fn job_ids(jobs: &[JobId]) -> String {
    let ids: Vec<_> = jobs.iter().map(JobId::to_string).collect();
    serde_json::json!(ids).to_string()
}

/// BIGINT is signed; sizes and counts that do not fit do not occur on real hosts.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A job's state from its columns `state`, `attempt` and `failure`.
pub(super) fn state(word: &str, number: i64, failure: Option<&str>) -> Result<JobState, StoreError> {
    let attempt = attempt(number)?;
    Ok(match (word, failure) {
        ("queued", _) => JobState::Queued { next: attempt },
        ("running", _) => JobState::Running { attempt },
        ("stopping", _) => JobState::Stopping { attempt },
        ("succeeded", _) => JobState::Done(Outcome::Succeeded),
        ("cancelled", _) => JobState::Done(Outcome::Cancelled),
        ("failed", Some(failure)) => JobState::Done(Outcome::Failed(json::<Failure>(failure)?)),
        _ => return Err(StoreError::Corrupt(format!("job state `{word}`"))),
    })
}

/// The columns `attempt` and `failure` of a state; a job that is done keeps the attempt it had.
pub(super) fn state_columns(state: &JobState, before: i64) -> Result<(i64, Option<String>), StoreError> {
    Ok(match state {
        JobState::Queued { next: attempt } | JobState::Running { attempt } | JobState::Stopping { attempt } => {
            (i64::from(attempt.0), None)
        }
        JobState::Done(Outcome::Failed(failure)) => (before, Some(to_json(failure)?)),
        JobState::Done(Outcome::Succeeded | Outcome::Cancelled) => (before, None),
    })
}
