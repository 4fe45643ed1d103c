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
    /// Of its row.
    pub number: i64,
    pub job: JobId,
    pub attempt: Attempt,
    pub at_ms: i64,
    /// The one that stands for all failures that are the same.
    pub fingerprint: Fingerprint,
    pub failure: Failure,
    pub record: FailureRecord,
}

/// Which rows of `failures` the fingerprint `$1` stands for: itself and those that were joined with it. Written out, so
/// that the index on fingerprints is used.
macro_rules! stood_for {
    () => {
        "fingerprint IN (SELECT $1 UNION SELECT fingerprint FROM fingerprint_joins WHERE joined_to = $1)"
    };
}
pub(super) use stood_for;

pub(super) const COLUMNS: &str = "number, job_id, attempt, at_ms, same, failure, signature, evidence";

/// Failures that are the same.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureGroup {
    pub count: u64,
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
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::failures::failure_of
             SELECT {COLUMNS} FROM known_failures WHERE job_id = $1 AND attempt = $2"
        )))
        .bind(job.to_string())
        .bind(i64::from(number.0))
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(kept).transpose()
    }

    /// The newest failure of a job, if any of its attempts has failed.
    pub async fn newest_failure(&self, job: JobId) -> Result<Option<KeptFailure>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::failures::newest_failure
             SELECT {COLUMNS} FROM known_failures WHERE job_id = $1 ORDER BY number DESC LIMIT 1"
        )))
        .bind(job.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(kept).transpose()
    }

    /// The fingerprint that stands for this one and those that are the same.
    pub async fn stands_for(&self, fingerprint: Fingerprint) -> Result<Fingerprint, StoreError> {
        let joined: Option<String> = sqlx::query_scalar(
            "-- store::failures::stands_for
             SELECT joined_to FROM fingerprint_joins WHERE fingerprint = $1",
        )
        .bind(&fingerprint.0)
        .fetch_optional(&self.pool)
        .await?;
        Ok(joined.map_or(fingerprint, Fingerprint))
    }

    /// How often this failure has been seen.
    pub async fn seen(&self, fingerprint: &Fingerprint) -> Result<Seen, StoreError> {
        let row = sqlx::query(concat!(
            "-- store::failures::seen
             SELECT COUNT(*) AS count, COUNT(DISTINCT job_id) AS jobs FROM failures WHERE ",
            stood_for!()
        ))
        .bind(&fingerprint.0)
        .fetch_one(&self.pool)
        .await?;
        Ok(Seen { count: unsigned(row.try_get("count")?)?, jobs: unsigned(row.try_get("jobs")?)? })
    }

    /// The failures that there were, those that are the same together, the newest first.
    pub async fn failure_groups(&self, limit: u32) -> Result<Vec<FailureGroup>, StoreError> {
        let rows = sqlx::query(
            "-- store::failures::failure_groups
             WITH groups AS (SELECT same, COUNT(*) AS count, MAX(number) AS newest FROM known_failures GROUP BY same)
             SELECT groups.count, known_failures.* FROM groups
             JOIN known_failures ON known_failures.number = groups.newest
             ORDER BY groups.newest DESC LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| Ok(FailureGroup { count: unsigned(row.try_get("count")?)?, newest: kept(row)? }))
            .collect()
    }

    /// The newest failure of that fingerprint.
    pub async fn newest_of(&self, fingerprint: &Fingerprint) -> Result<Option<KeptFailure>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::failures::newest_of
             SELECT {COLUMNS} FROM known_failures WHERE number = (SELECT MAX(number) FROM failures WHERE {})",
            stood_for!()
        )))
        .bind(&fingerprint.0)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(kept).transpose()
    }

    /// Failures of other fingerprints whose messages and printed words are most like these, the likest first, each
    /// fingerprint once.
    pub async fn similar(&self, to: &KeptFailure, limit: u32) -> Result<Vec<KeptFailure>, StoreError> {
        let Some(words) = search_words(&to.record.signature.root.text) else { return Ok(Vec::new()) };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::failures::similar
             SELECT {COLUMNS}, MIN(likeness) AS likeness FROM (
                 SELECT rowid AS found, bm25(failure_texts, 4.0, 1.0) AS likeness FROM failure_texts
                 WHERE failure_texts MATCH $1 ORDER BY likeness LIMIT 200)
             JOIN known_failures ON known_failures.number = found
             WHERE same <> $2 GROUP BY same ORDER BY likeness LIMIT $3"
        )))
        .bind(words)
        .bind(&to.fingerprint.0)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(kept).collect()
    }

    /// Makes two fingerprints one: what is known of the first is looked for under the second from now on. Nothing is
    /// lost; [`Store::split_fingerprint`] undoes it.
    pub async fn join_fingerprints(&self, one: &Fingerprint, into: &Fingerprint) -> Result<Fingerprint, StoreError> {
        let mut tx = self.write().await?;
        let stands_for: Option<String> = sqlx::query_scalar(
            "-- store::failures::join_fingerprints
             SELECT joined_to FROM fingerprint_joins WHERE fingerprint = $1",
        )
        .bind(&into.0)
        .fetch_optional(&mut *tx)
        .await?;
        let target = stands_for.unwrap_or_else(|| into.0.clone());
        if target != one.0 {
            sqlx::query(
                "-- store::failures::join_fingerprints
                 UPDATE fingerprint_joins SET joined_to = $1 WHERE joined_to = $2",
            )
            .bind(&target)
            .bind(&one.0)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "-- store::failures::join_fingerprints
                 INSERT INTO fingerprint_joins (fingerprint, joined_to, at_ms) VALUES ($1, $2, $3)
                 ON CONFLICT (fingerprint) DO UPDATE SET joined_to = excluded.joined_to, at_ms = excluded.at_ms",
            )
            .bind(&one.0)
            .bind(&target)
            .bind(self.clock.now_ms())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(Fingerprint(target))
    }

    /// Lets a fingerprint stand for itself again. False if it does already.
    pub async fn split_fingerprint(&self, fingerprint: &Fingerprint) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "-- store::failures::split_fingerprint
             DELETE FROM fingerprint_joins WHERE fingerprint = $1",
        )
        .bind(&fingerprint.0)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Words that are looked for: those of a template, its slots left out. Any of them may be there; the rarer ones count.
fn search_words(template: &str) -> Option<String> {
    let words = template.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 2);
    let slots = ["number", "path", "quoted", "url", "time", "uuid", "name"];
    let wanted: Vec<_> =
        words.filter(|word| !slots.contains(word)).take(24).map(|word| format!("\"{word}\"")).collect();
    (!wanted.is_empty()).then(|| wanted.join(" OR "))
}

/// Keeps a failure, in the transaction that ends its attempt.
pub(super) async fn keep(
    tx: &mut Transaction<'_, Sqlite>,
    (job, number, at_ms): (JobId, Attempt, i64),
    failure: &Failure,
    record: &FailureRecord,
) -> Result<i64, StoreError> {
    let row: i64 = sqlx::query_scalar(
        "-- store::failures::keep
         INSERT INTO failures (job_id, attempt, at_ms, fingerprint, failure, signature, evidence, kind, stage, device)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING number",
    )
    .bind(job.to_string())
    .bind(i64::from(number.0))
    .bind(at_ms)
    .bind(record.signature.fingerprint().0)
    .bind(to_json(failure)?)
    .bind(to_json(&record.signature)?)
    .bind(to_json(&record.evidence)?)
    .bind(word(&failure.kind)?)
    .bind(failure.stage.as_ref().map(word).transpose()?.unwrap_or_default())
    .bind(record.evidence.environment.device.as_deref().unwrap_or_default())
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
    Ok(row)
}

/// The one word that a value is in JSON.
pub(super) fn word<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    Ok(to_json(value)?.trim_matches('"').to_owned())
}

pub(super) fn kept(row: &SqliteRow) -> Result<KeptFailure, StoreError> {
    Ok(KeptFailure {
        number: row.try_get("number")?,
        job: job_id(row.try_get("job_id")?)?,
        attempt: attempt(row.try_get("attempt")?)?,
        at_ms: row.try_get("at_ms")?,
        fingerprint: Fingerprint(row.try_get("same")?),
        failure: json(row.try_get("failure")?)?,
        record: FailureRecord {
            signature: json(row.try_get("signature")?)?,
            evidence: json(row.try_get("evidence")?)?,
        },
    })
}
