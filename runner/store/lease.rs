//! The right to speak for an attempt.
//!
//! Whoever claims a job gets a [`Lease`], and nothing else can change the job while it runs: each statement below
//! matches job, attempt and token, and if it changes no row, the lease is lost and its holder stops quietly.

use drydock_spec::{Attempt, JobEvent, JobId, JobState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteQueryResult, SqliteRow};
use sqlx::{Row, Sqlite, Transaction};

use super::awaited::first_awaited;
use super::failures::FailureRecord;
use super::jobs::{Job, apply, read};
use super::line::{may_have, note_oldest};
use super::rows::{attempt, job_id, json, to_json};
use super::{Store, StoreError};

mod finish;
mod log;

pub use finish::Cure;
pub use log::ReportBatch;

/// Why we ended an attempt ourselves, written before the signal is sent: intent before effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Termination {
    /// Somebody cancelled the job.
    Cancelled,
    /// The time limit passed.
    TimeLimit,
    /// No report came for too long.
    Silent,
    /// The output folder is full.
    DiskFull,
    /// The worker broke the container contract.
    ContractBroken,
    /// A GPU of the attempt is damaged, or lost to the host.
    GpuLost,
}

/// What the database knows of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    pub job: JobId,
    pub attempt: Attempt,
    /// Label of the attempt's container.
    pub fence: String,
    pub claimed_ms: i64,
    /// When a container was about to be created.
    pub launched_ms: Option<i64>,
    /// When it was first about to be started: from then on its worker may have run.
    pub starting_ms: Option<i64>,
    /// The engine's incarnation when the container was about to be created.
    pub incarnation: Option<String>,
    /// Bytes of the events file that are in the reports.
    pub report_offset: u64,
    pub last_report_ms: Option<i64>,
    /// When and why we asked the container to end.
    pub terminated: Option<(i64, Termination)>,
    /// Processes that died while they spoke for the attempt, one after the other and without a report in between.
    pub orphaned: u32,
    /// What `launched` and `terminated` are as steady times, and since which boot these count.
    pub boot: Option<String>,
    pub launched_steady_ms: Option<i64>,
    pub terminated_steady_ms: Option<i64>,
    /// UUIDs of the GPUs and MIG slices that it has.
    pub gpus: Vec<String>,
}

/// A process that speaks for attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Another one in every process.
    pub name: String,
    /// How long a lease holds without being renewed, in milliseconds.
    pub lease_ms: i64,
}

/// The right to speak for an attempt. [`Lease::finish`] consumes it.
#[derive(Debug)]
pub struct Lease {
    pub(super) store: Store,
    token: String,
    job: Job,
    row: AttemptRow,
    /// What is known of the failure that the attempt is about to end with, and what the next one does otherwise.
    explanation: Option<FailureRecord>,
    cure: Option<Cure>,
}

impl Store {
    /// Takes a queued job out of the line, for the CPU. `None` if it is no longer there to be taken, or waits for another
    /// job.
    pub async fn claim(&self, id: JobId, holder: &Holder) -> Result<Option<Lease>, StoreError> {
        self.claim_on(id, holder, &[]).await
    }

    /// The same for these GPUs and MIG slices, by their UUIDs. `None` also if they are not as many as the job asks for, or
    /// somebody else has one of them.
    pub async fn claim_on(&self, id: JobId, holder: &Holder, gpus: &[String]) -> Result<Option<Lease>, StoreError> {
        let mut tx = self.write().await?;
        let before = read(&mut tx, id).await?;
        let JobState::Queued { next } = before.state else { return Ok(None) };
        if first_awaited(&mut tx, id).await?.is_some() || !may_have(&mut tx, &before.limits, gpus).await? {
            return Ok(None);
        }
        let now = self.clock.now_ms();
        let job = apply(&mut tx, &before, JobEvent::Claimed { attempt: next }, now).await?;
        let token = fresh_token();
        sqlx::query(
            "-- store::lease::claim
             INSERT INTO attempts (job_id, attempt, holder, token, fence, lease_until_ms, claimed_ms, report_offset, gpus)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8)",
        )
        .bind(id.to_string())
        .bind(i64::from(next.0))
        .bind(&holder.name)
        .bind(&token)
        .bind(fresh_token())
        .bind(now + holder.lease_ms)
        .bind(now)
        .bind(to_json(&gpus)?)
        .execute(&mut *tx)
        .await?;
        note_oldest(&mut tx, &job, now).await?;
        let row = attempt_row(&mut tx, id, next).await?;
        tx.commit().await?;
        self.announce(&job);
        Ok(Some(Lease { store: self.clone(), token, job, row, explanation: None, cure: None }))
    }

    /// The attempts that nobody speaks for, oldest first: those whose lease has run out, and those whose holder is
    /// another process, as the state folder is locked and no other process can be alive. A lease that runs for longer
    /// than any is given for was given before the host's clock was set back, and counts as run out.
    pub async fn abandoned(&self, holder: &Holder) -> Result<Vec<(JobId, Attempt)>, StoreError> {
        let now = self.clock.now_ms();
        let rows = sqlx::query(
            "-- store::lease::abandoned
             SELECT job_id, attempt FROM attempts
             WHERE ended_ms IS NULL AND (holder <> $1 OR lease_until_ms < $2 OR lease_until_ms > $3)
             ORDER BY claimed_ms",
        )
        .bind(&holder.name)
        .bind(now)
        .bind(now + holder.lease_ms)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((job_id(row.try_get("job_id")?)?, attempt(row.try_get("attempt")?)?))).collect()
    }

    /// Takes an attempt over that is under way. Whoever spoke for it before has lost the right.
    pub async fn take_over(&self, id: JobId, number: Attempt, holder: &Holder) -> Result<Option<Lease>, StoreError> {
        let mut tx = self.write().await?;
        let token = fresh_token();
        let taken = sqlx::query(
            "-- store::lease::take_over
             UPDATE attempts
             SET holder = $1, token = $2, lease_until_ms = $3,
                 orphaned = orphaned + CASE WHEN holder IN ($1, '') THEN 0 ELSE 1 END
             WHERE job_id = $4 AND attempt = $5 AND ended_ms IS NULL",
        )
        .bind(&holder.name)
        .bind(&token)
        .bind(self.clock.now_ms() + holder.lease_ms)
        .bind(id.to_string())
        .bind(i64::from(number.0))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if taken != 1 {
            return Ok(None);
        }
        let job = read(&mut tx, id).await?;
        let row = attempt_row(&mut tx, id, number).await?;
        tx.commit().await?;
        Ok(Some(Lease { store: self.clone(), token, job, row, explanation: None, cure: None }))
    }

    /// The attempts that are under way, by job: what containers may exist and with which fence.
    pub async fn attempts_under_way(&self) -> Result<Vec<AttemptRow>, StoreError> {
        let rows = sqlx::query(
            "-- store::lease::attempts_under_way
             SELECT job_id, attempt, fence, claimed_ms, launched_ms, incarnation, report_offset, last_report_ms,
                    terminated_ms, termination, orphaned, boot, launched_steady_ms, terminated_steady_ms, starting_ms,
                    gpus
             FROM attempts WHERE ended_ms IS NULL",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(from_row).collect()
    }

    /// Whether somebody may still speak for the attempt.
    pub async fn attempt_under_way(&self, job: JobId, attempt: Attempt) -> Result<bool, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "-- store::lease::attempt_under_way
             SELECT COUNT(*) FROM attempts WHERE job_id = $1 AND attempt = $2 AND ended_ms IS NULL",
        )
        .bind(job.to_string())
        .bind(i64::from(attempt.0))
        .fetch_one(&self.pool)
        .await?;
        Ok(count > 0)
    }
}

impl Lease {
    /// The job as it stood when the lease last looked.
    #[must_use]
    pub fn job(&self) -> &Job {
        &self.job
    }

    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.row.attempt
    }

    /// What the database knows of the attempt.
    #[must_use]
    pub fn row(&self) -> &AttemptRow {
        &self.row
    }

    /// Looks at the job again: has it been asked to stop?
    pub async fn refresh(&mut self) -> Result<&Job, StoreError> {
        self.job = self.store.job(self.job.id).await?;
        Ok(&self.job)
    }

    /// Keeps the lease for another `lease_ms`.
    pub async fn renew(&self, lease_ms: i64) -> Result<(), StoreError> {
        let statement = self.statement(
            "-- store::lease::renew
             UPDATE attempts SET lease_until_ms = $4
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.bind(self.store.clock.now_ms() + lease_ms).execute(&self.store.pool).await?)
    }

    /// Lets go of the attempt in good order, for the next process to take up.
    pub async fn leave(self) -> Result<(), StoreError> {
        let statement = self.statement(
            "-- store::lease::leave
             UPDATE attempts SET holder = ''
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.execute(&self.store.pool).await?)
    }

    /// Writes down that a container is about to be created, before it is.
    pub async fn launching(&mut self, incarnation: &str) -> Result<(), StoreError> {
        let now = self.store.clock.now_ms();
        let statement = self.statement(
            "-- store::lease::launching
             UPDATE attempts SET launched_ms = $4, incarnation = $5, boot = $6, launched_steady_ms = $7
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        let (boot, steady) = (self.store.clock.boot().map(str::to_owned), self.store.clock.steady_ms());
        let statement = statement.bind(now).bind(incarnation).bind(boot.clone()).bind(steady);
        self.still_ours(statement.execute(&self.store.pool).await?)?;
        self.row.launched_ms = Some(now);
        (self.row.boot, self.row.launched_steady_ms) = (boot, Some(steady));
        self.row.incarnation = Some(incarnation.to_owned());
        Ok(())
    }

    /// Writes down that the container is about to be started, before it is.
    pub async fn starting(&mut self) -> Result<(), StoreError> {
        if self.row.starting_ms.is_some() {
            return Ok(());
        }
        let now = self.store.clock.now_ms();
        let statement = self.statement(
            "-- store::lease::starting
             UPDATE attempts SET starting_ms = $4
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.bind(now).execute(&self.store.pool).await?)?;
        self.row.starting_ms = Some(now);
        Ok(())
    }

    /// Takes back that the container was about to be started: it was not, and another one will be.
    pub async fn not_started(&mut self) -> Result<(), StoreError> {
        let statement = self.statement(
            "-- store::lease::not_started
             UPDATE attempts SET starting_ms = NULL
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.execute(&self.store.pool).await?)?;
        self.row.starting_ms = None;
        Ok(())
    }

    /// Writes down that the container is about to be asked to end, and why. The first reason stays.
    pub async fn terminating(&mut self, why: Termination) -> Result<(), StoreError> {
        if self.row.terminated.is_some() {
            return Ok(());
        }
        let now = self.store.clock.now_ms();
        let statement = self.statement(
            "-- store::lease::terminating
             UPDATE attempts SET terminated_ms = $4, termination = $5, terminated_steady_ms = $6
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        let steady = self.store.clock.steady_ms();
        let statement = statement.bind(now).bind(to_json(&why)?).bind(steady);
        self.still_ours(statement.execute(&self.store.pool).await?)?;
        self.row.terminated = Some((now, why));
        self.row.terminated_steady_ms = Some(steady);
        Ok(())
    }

    /// Keeps the end of what the container wrote to stdout and stderr, for people to read when it is gone.
    pub async fn keep_last_words(&self, text: &str) -> Result<(), StoreError> {
        let statement = self.statement(
            "-- store::lease::keep_last_words
             UPDATE attempts SET last_words = $4
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.bind(text).execute(&self.store.pool).await?)
    }

    /// A statement whose first three parameters are what makes the attempt ours: job, attempt and token.
    pub(super) fn statement(&self, sql: &'static str) -> Query<'_, Sqlite, SqliteArguments> {
        sqlx::query(sql).bind(self.job.id.to_string()).bind(i64::from(self.row.attempt.0)).bind(&self.token)
    }

    pub(super) fn still_ours(&self, done: SqliteQueryResult) -> Result<(), StoreError> {
        if done.rows_affected() == 1 {
            Ok(())
        } else {
            Err(StoreError::LeaseLost { job: self.job.id, attempt: self.row.attempt.0 })
        }
    }
}

fn fresh_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

async fn attempt_row(tx: &mut Transaction<'_, Sqlite>, id: JobId, number: Attempt) -> Result<AttemptRow, StoreError> {
    let row = sqlx::query(
        "-- store::lease::attempt_row
         SELECT job_id, attempt, fence, claimed_ms, launched_ms, incarnation, report_offset, last_report_ms,
                terminated_ms, termination, orphaned, boot, launched_steady_ms, terminated_steady_ms, starting_ms,
                gpus
         FROM attempts WHERE job_id = $1 AND attempt = $2",
    )
    .bind(id.to_string())
    .bind(i64::from(number.0))
    .fetch_one(&mut **tx)
    .await?;
    from_row(&row)
}

fn from_row(row: &SqliteRow) -> Result<AttemptRow, StoreError> {
    let terminated: Option<i64> = row.try_get("terminated_ms")?;
    let why: Option<String> = row.try_get("termination")?;
    Ok(AttemptRow {
        job: job_id(row.try_get("job_id")?)?,
        attempt: attempt(row.try_get("attempt")?)?,
        fence: row.try_get("fence")?,
        claimed_ms: row.try_get("claimed_ms")?,
        launched_ms: row.try_get("launched_ms")?,
        starting_ms: row.try_get("starting_ms")?,
        incarnation: row.try_get("incarnation")?,
        report_offset: super::rows::unsigned(row.try_get("report_offset")?)?,
        last_report_ms: row.try_get("last_report_ms")?,
        terminated: match (terminated, why) {
            (Some(at), Some(why)) => Some((at, json(&why)?)),
            _ => None,
        },
        orphaned: u32::try_from(row.try_get::<i64, _>("orphaned")?).unwrap_or(u32::MAX),
        boot: row.try_get("boot")?,
        launched_steady_ms: row.try_get("launched_steady_ms")?,
        terminated_steady_ms: row.try_get("terminated_steady_ms")?,
        gpus: json(row.try_get("gpus")?)?,
    })
}
