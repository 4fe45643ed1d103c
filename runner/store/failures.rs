//! Why attempts failed: one row for each, by which a failure is known again.

use drydock_spec::{Attempt, Failure, JobId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::rows::{attempt, job_id, json, to_json, unsigned};
use super::{Store, StoreError};
use crate::diagnose::evidence::Evidence;
use crate::diagnose::fingerprint::{Fingerprint, Signature, Witness};

/// What is to be kept of a failure, beside the failure.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureRecord {
    pub signature: Signature,
    pub evidence: Evidence,
}

impl FailureRecord {
    /// Of a failure of which there is nothing but its message.
    pub(super) fn of_message(failure: &Failure) -> Self {
        Self { signature: Signature::of(failure, Witness::Message), evidence: Evidence::default() }
    }
}

/// A failure that was kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptFailure {
    pub job: JobId,
    pub attempt: Attempt,
    pub at_ms: i64,
    pub fingerprint: Fingerprint,
    pub failure: Failure,
    pub record: FailureRecord,
}

/// Failures that are the same.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureGroup {
    pub fingerprint: Fingerprint,
    pub count: u64,
    pub last_seen_ms: i64,
    /// The newest of them.
    pub newest: KeptFailure,
}

/// How often a failure has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub count: u64,
    pub jobs: u64,
}

impl Store {
    /// How the attempt failed, if it did.
    pub async fn failure_of(&self, job: JobId, number: Attempt) -> Result<Option<KeptFailure>, StoreError> {
        let row = sqlx::query(
            "-- store::failures::failure_of
             SELECT job_id, attempt, at_ms, fingerprint, failure, signature, evidence FROM failures
             WHERE job_id = $1 AND attempt = $2",
        )
        .bind(job.to_string())
        .bind(i64::from(number.0))
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(kept).transpose()
    }

    /// How often this failure has been seen.
    pub async fn seen(&self, fingerprint: &Fingerprint) -> Result<Seen, StoreError> {
        let row = sqlx::query(
            "-- store::failures::seen
             WITH same AS (
                 SELECT $1 AS fingerprint UNION
                 SELECT joined_to FROM fingerprint_joins WHERE fingerprint = $1 UNION
                 SELECT fingerprint FROM fingerprint_joins
                 WHERE joined_to IN (SELECT $1 UNION SELECT joined_to FROM fingerprint_joins WHERE fingerprint = $1))
             SELECT COUNT(*) AS count, COUNT(DISTINCT job_id) AS jobs FROM failures
             WHERE fingerprint IN (SELECT fingerprint FROM same)",
        )
        .bind(&fingerprint.0)
        .fetch_one(&self.pool)
        .await?;
        Ok(Seen { count: unsigned(row.try_get("count")?)?, jobs: unsigned(row.try_get("jobs")?)? })
    }

    /// The failures that there were, those that are the same together, the newest first.
    pub async fn failure_groups(&self, limit: u32) -> Result<Vec<FailureGroup>, StoreError> {
        let rows = sqlx::query(
            "-- store::failures::failure_groups
             WITH known AS (
                 SELECT failures.*, COALESCE(joined_to, failures.fingerprint) AS same
                 FROM failures LEFT JOIN fingerprint_joins ON fingerprint_joins.fingerprint = failures.fingerprint),
             groups AS (SELECT same, COUNT(*) AS count, MAX(number) AS newest FROM known GROUP BY same)
             SELECT same, count, job_id, attempt, at_ms, fingerprint, failure, signature, evidence
             FROM groups JOIN failures ON failures.number = groups.newest
             ORDER BY newest DESC LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let newest = kept(row)?;
                Ok(FailureGroup {
                    fingerprint: Fingerprint(row.try_get("same")?),
                    count: unsigned(row.try_get("count")?)?,
                    last_seen_ms: newest.at_ms,
                    newest,
                })
            })
            .collect()
    }
}

/// Keeps a failure, in the transaction that ends its attempt.
pub(super) async fn keep(
    tx: &mut Transaction<'_, Sqlite>,
    (job, number, at_ms): (JobId, Attempt, i64),
    failure: &Failure,
    record: &FailureRecord,
) -> Result<(), StoreError> {
    let row: i64 = sqlx::query_scalar(
        "-- store::failures::keep
         INSERT INTO failures (job_id, attempt, at_ms, fingerprint, failure, signature, evidence)
         VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING number",
    )
    .bind(job.to_string())
    .bind(i64::from(number.0))
    .bind(at_ms)
    .bind(record.signature.fingerprint().0)
    .bind(to_json(failure)?)
    .bind(to_json(&record.signature)?)
    .bind(to_json(&record.evidence)?)
    .fetch_one(&mut **tx)
    .await?;
    sqlx::query(
        "-- store::failures::keep
         INSERT INTO failure_texts (rowid, message, output)
         SELECT $1, $2, COALESCE((SELECT last_words FROM attempts WHERE job_id = $3 AND attempt = $4), '')",
    )
    .bind(row)
    .bind(&failure.message)
    .bind(job.to_string())
    .bind(i64::from(number.0))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn kept(row: &SqliteRow) -> Result<KeptFailure, StoreError> {
    Ok(KeptFailure {
        job: job_id(row.try_get("job_id")?)?,
        attempt: attempt(row.try_get("attempt")?)?,
        at_ms: row.try_get("at_ms")?,
        fingerprint: Fingerprint(row.try_get("fingerprint")?),
        failure: json(row.try_get("failure")?)?,
        record: FailureRecord {
            signature: json(row.try_get("signature")?)?,
            evidence: json(row.try_get("evidence")?)?,
        },
    })
}
