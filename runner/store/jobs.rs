//! Jobs: submitted, looked at, cancelled.

use std::fmt::Write as _;

use drydock_spec::{Attempt, JobEvent, JobId, JobSpec, JobState, Limits, OnFailure, Owner, Priority, TraceId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::awaited::{settle_awaited, write_awaited};
use super::failures::word;
use super::rows::{attempt, job_id, json, signed, state, state_columns, to_json};
use super::trials::{self, NewTrial};
use super::{Store, StoreError};
use crate::api::Estimate;
use crate::plan::ResolvedInputs;

/// No retry waits for longer than this, in milliseconds.
pub const LONGEST_WAIT_MS: i64 = 300_000;

/// A job to be.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: JobId,
    pub owner: Owner,
    pub trace_id: TraceId,
    pub spec: JobSpec,
    pub inputs: ResolvedInputs,
    pub limits: Limits,
    /// What its plan predicted.
    pub estimate: Option<Estimate>,
    pub priority: Priority,
    pub idempotency_key: Option<String>,
    /// Digest of what the caller sent, to tell a repeated submission from another one under the same key.
    pub request_digest: String,
    pub on_failure: OnFailure,
    /// The failed job that this one is to do better, and how.
    pub remedy: Option<RemedyOf>,
}

/// What a job that applies a remedy goes back to.
#[derive(Debug, Clone, PartialEq)]
pub struct RemedyOf {
    /// The job that failed.
    pub job: JobId,
    /// Whether this one goes on from that one's last checkpoint.
    pub resumes: bool,
    pub trial: NewTrial,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub owner: Owner,
    pub trace_id: TraceId,
    pub spec: JobSpec,
    pub inputs: ResolvedInputs,
    pub limits: Limits,
    /// What its plan predicted, where that was kept.
    pub estimate: Option<Estimate>,
    pub priority: Priority,
    pub state: JobState,
    /// The next attempt while the job is queued, otherwise the current or last one.
    pub attempt: Attempt,
    /// Number of the newest line of the job's log.
    pub last_seq: i64,
    /// A queued job does not start before.
    pub not_before_ms: i64,
    pub submitted_ms: i64,
    pub started_ms: Option<i64>,
    pub ended_ms: Option<i64>,
    /// When its artifacts were removed, though the job's account stays.
    pub artifacts_removed_ms: Option<i64>,
    /// When what it said on its way was removed.
    pub reports_removed_ms: Option<i64>,
    pub on_failure: OnFailure,
    /// The failed job that this one is to do better.
    pub remedy_of: Option<JobId>,
    /// Whether it goes on from that one's last checkpoint.
    pub resumes: bool,
}

impl Job {
    /// How long a queued job still has to wait before it may be tried again, in milliseconds; at most [`LONGEST_WAIT_MS`].
    #[must_use]
    pub fn waits_ms(&self, now_ms: i64) -> i64 {
        match self.not_before_ms - now_ms {
            wait if wait > LONGEST_WAIT_MS => 0,
            wait => wait.max(0),
        }
    }

    /// The last attempt that the job may take.
    #[must_use]
    pub fn last_attempt(&self) -> Attempt {
        Attempt(self.limits.max_attempts)
    }
}

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    pub job: Job,
    /// False if the same submission was accepted before under its idempotency key.
    pub created: bool,
}

pub(super) const COLUMNS: &str = "id, owner, trace_id, spec, inputs, limits, priority, state, attempt, failure, \
     last_seq, not_before_ms, submitted_ms, started_ms, ended_ms, artifacts_removed_ms, reports_removed_ms, \
     on_failure, remedy_of, resumes, estimate";

pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    let number: i64 = row.try_get("attempt")?;
    Ok(Job {
        id: job_id(row.try_get("id")?)?,
        owner: Owner(row.try_get("owner")?),
        trace_id: TraceId(row.try_get("trace_id")?),
        spec: json(row.try_get("spec")?)?,
        inputs: json(row.try_get("inputs")?)?,
        limits: json(row.try_get("limits")?)?,
        estimate: row.try_get::<Option<&str>, _>("estimate")?.map(json).transpose()?,
        priority: priority(row.try_get("priority")?)?,
        state: state(row.try_get("state")?, number, row.try_get("failure")?)?,
        attempt: attempt(number)?,
        last_seq: row.try_get("last_seq")?,
        not_before_ms: row.try_get("not_before_ms")?,
        submitted_ms: row.try_get("submitted_ms")?,
        started_ms: row.try_get("started_ms")?,
        ended_ms: row.try_get("ended_ms")?,
        artifacts_removed_ms: row.try_get("artifacts_removed_ms")?,
        reports_removed_ms: row.try_get("reports_removed_ms")?,
        on_failure: serde_json::from_value(row.try_get::<String, _>("on_failure")?.into())
            .map_err(|error| StoreError::Corrupt(error.to_string()))?,
        remedy_of: row.try_get::<Option<&str>, _>("remedy_of")?.map(job_id).transpose()?,
        resumes: row.try_get("resumes")?,
    })
}

pub(super) fn priority(number: i64) -> Result<Priority, StoreError> {
    let priority = i8::try_from(number).ok().and_then(|value| Priority::new(value).ok());
    priority.ok_or_else(|| StoreError::Corrupt(format!("priority {number}")))
}

impl Store {
    /// Queues a job: its row and its first event in one transaction. The same submission under the same idempotency
    /// key gives the job that it gave before.
    pub async fn submit(&self, new: NewJob) -> Result<Submitted, StoreError> {
        let mut tx = self.write().await?;
        if let Some(key) = &new.idempotency_key
            && let Some(row) = sqlx::query(
                "-- store::jobs::submit
                 SELECT id, request_digest FROM jobs WHERE owner = $1 AND idempotency_key = $2",
            )
            .bind(&new.owner.0)
            .bind(key)
            .fetch_optional(&mut *tx)
            .await?
        {
            let id = job_id(row.try_get("id")?)?;
            if row.try_get::<String, _>("request_digest")? != new.request_digest {
                return Err(StoreError::KeyReused { key: key.clone(), job: id });
            }
            return Ok(Submitted { job: read(&mut tx, id).await?, created: false });
        }
        let now = self.clock.now_ms();
        sqlx::query(
            "-- store::jobs::submit
             INSERT INTO jobs (id, owner, trace_id, kind, spec, inputs, limits, max_attempts, cpu_millis, memory_bytes,
                               priority, position, state, attempt, last_seq, not_before_ms, idempotency_key,
                               request_digest, submitted_ms, on_failure, remedy_of, resumes, estimate, likeness)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                     $11, (SELECT COALESCE(MAX(position), 0) + 1 FROM jobs), 'queued', 1, 1, 0, $13, $14, $12,
                     $15, $16, $17, $18, $19)",
        )
        .bind(new.id.to_string())
        .bind(&new.owner.0)
        .bind(&new.trace_id.0)
        .bind(new.spec.kind())
        .bind(to_json(&new.spec)?)
        .bind(to_json(&new.inputs)?)
        .bind(to_json(&new.limits)?)
        .bind(i64::from(new.limits.max_attempts))
        .bind(i64::from(new.limits.cpu_millis))
        .bind(signed(new.limits.memory_bytes))
        .bind(i64::from(new.priority.get()))
        .bind(now)
        .bind(&new.idempotency_key)
        .bind(&new.request_digest)
        .bind(word(&new.on_failure)?)
        .bind(new.remedy.as_ref().map(|remedy| remedy.job.to_string()))
        .bind(new.remedy.as_ref().is_some_and(|remedy| remedy.resumes))
        .bind(new.estimate.as_ref().map(to_json).transpose()?)
        .bind(new.inputs.likeness(new.spec.kind()))
        .execute(&mut *tx)
        .await?;
        write_awaited(&mut tx, new.id, &new.inputs.awaited()).await?;
        write_event(&mut tx, new.id, 1, now, &JobEvent::Submitted).await?;
        if let Some(remedy) = &new.remedy {
            trials::begin(&mut tx, (new.id, Attempt::FIRST, now), &remedy.trial).await?;
        }
        let job = read(&mut tx, new.id).await?;
        tx.commit().await?;
        self.changes.queue_moved();
        Ok(Submitted { job, created: true })
    }

    /// The job that a submission under `key` gave, with the digest of that submission.
    pub async fn job_by_key(&self, owner: &Owner, key: &str) -> Result<Option<(Job, String)>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::jobs::job_by_key
             SELECT {COLUMNS}, request_digest FROM jobs WHERE owner = $1 AND idempotency_key = $2"
        )))
        .bind(&owner.0)
        .bind(key)
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| Ok((job(&row)?, row.try_get("request_digest")?))).transpose()
    }

    /// The job as it stands.
    pub async fn job(&self, id: JobId) -> Result<Job, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::jobs::job
             SELECT {COLUMNS} FROM jobs WHERE id = $1"
        )))
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        job(&row.ok_or(StoreError::NoSuchJob(id))?)
    }

    /// The newest jobs of a kind that have succeeded, the newest first.
    pub async fn succeeded(&self, kind: &str, limit: u32) -> Result<Vec<Job>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::jobs::succeeded
             SELECT {COLUMNS} FROM jobs WHERE state = 'succeeded' AND kind = $1 ORDER BY position DESC LIMIT $2"
        )))
        .bind(kind)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(job).collect()
    }

    /// The newest jobs of a kind that have succeeded or failed on these models and rows, the newest first.
    pub async fn like(&self, kind: &str, inputs: &ResolvedInputs, limit: u32) -> Result<Vec<Job>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- store::jobs::like
             SELECT {COLUMNS} FROM jobs WHERE likeness = $1 AND state IN ('succeeded', 'failed')
             ORDER BY position DESC LIMIT $2"
        )))
        .bind(inputs.likeness(kind))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(job).collect()
    }

    /// When the next waiting retry may start.
    pub async fn next_retry_ms(&self) -> Result<Option<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::jobs::next_retry_ms
             SELECT MIN(not_before_ms) FROM jobs WHERE state = 'queued' AND not_before_ms > $1",
        )
        .bind(self.clock.now_ms())
        .fetch_one(&self.pool)
        .await?)
    }

    /// CPU (thousandths) and memory (bytes) that the attempts under way have been given.
    pub async fn reserved(&self) -> Result<(u64, u64), StoreError> {
        let row = sqlx::query(
            "-- store::jobs::reserved
             SELECT COALESCE(SUM(cpu_millis), 0) AS cpu, COALESCE(SUM(memory_bytes), 0) AS memory
             FROM jobs WHERE state IN ('running', 'stopping')",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((super::rows::unsigned(row.try_get("cpu")?)?, super::rows::unsigned(row.try_get("memory")?)?))
    }

    /// Jobs by state, for `/metrics` and `doctor`.
    pub async fn counts(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let rows = sqlx::query(
            "-- store::jobs::counts
             SELECT state, COUNT(*) AS n FROM jobs GROUP BY state ORDER BY state",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("state")?, super::rows::unsigned(row.try_get("n")?)?))).collect()
    }

    /// Asks for the job's end. A queued job ends at once, a running one when its attempt does; one that is stopping or
    /// done stays as it is, so asking twice does no harm.
    pub async fn request_cancel(&self, id: JobId) -> Result<Job, StoreError> {
        let mut tx = self.write().await?;
        let before = read(&mut tx, id).await?;
        if matches!(before.state, JobState::Stopping { .. } | JobState::Done(_)) {
            return Ok(before);
        }
        let now = self.clock.now_ms();
        let after = apply(&mut tx, &before, JobEvent::CancelRequested, now).await?;
        if after.state.is_done() {
            trials::leave(&mut tx, id, now).await?;
        }
        tx.commit().await?;
        self.announce(&after);
        Ok(after)
    }

    pub(super) fn announce(&self, job: &Job) {
        self.changes.job_grew(job.id, job.last_seq);
        self.changes.queue_moved();
    }
}

pub(super) async fn read(tx: &mut Transaction<'_, Sqlite>, id: JobId) -> Result<Job, StoreError> {
    let mut sql = String::from("-- store::jobs::read\nSELECT ");
    write!(sql, "{COLUMNS} FROM jobs WHERE id = $1").map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(&mut **tx).await?;
    job(&row.ok_or(StoreError::NoSuchJob(id))?)
}

/// Takes a job from one state to the next: the only place where a job's row and its events change, and they change
/// together.
pub(super) async fn apply(
    tx: &mut Transaction<'_, Sqlite>,
    before: &Job,
    event: JobEvent,
    now: i64,
) -> Result<Job, StoreError> {
    let after = before.state.clone().apply(event.clone(), before.last_attempt())?;
    let (number, failure) = state_columns(&after, i64::from(before.attempt.0))?;
    let seq = before.last_seq + 1;
    write_event(tx, before.id, seq, now, &event).await?;
    let started = before.started_ms.or(matches!(after, JobState::Running { .. }).then_some(now));
    let changed = sqlx::query(
        "-- store::jobs::apply
         UPDATE jobs SET state = $1, attempt = $2, failure = $3, last_seq = $4, started_ms = $5, ended_ms = $6
         WHERE id = $7 AND last_seq = $8",
    )
    .bind(after.word())
    .bind(number)
    .bind(failure)
    .bind(seq)
    .bind(started)
    .bind(after.is_done().then_some(now))
    .bind(before.id.to_string())
    .bind(before.last_seq)
    .execute(&mut **tx)
    .await?
    .rows_affected();
    if changed != 1 {
        return Err(StoreError::Corrupt(format!("job `{}` changed within a transaction", before.id)));
    }
    if after.is_done() {
        settle_awaited(tx, before.id).await?;
    }
    read(tx, before.id).await
}

async fn write_event(
    tx: &mut Transaction<'_, Sqlite>,
    id: JobId,
    seq: i64,
    now: i64,
    event: &JobEvent,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::jobs::write_event
         INSERT INTO job_events (job_id, seq, at_ms, event) VALUES ($1, $2, $3, $4)",
    )
    .bind(id.to_string())
    .bind(seq)
    .bind(now)
    .bind(to_json(event)?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
