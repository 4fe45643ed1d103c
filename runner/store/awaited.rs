//! Jobs that read what other jobs leave: they wait in line for them, and fail with them.

use drydock_spec::{Attempt, Failure, FailureKind, JobEvent, JobId, JobState, Outcome, Stage};
use sqlx::{Row, Sqlite, Transaction};

use super::failures::{self, FailureRecord};
use super::jobs::{Job, apply, read};
use super::rows::job_id;
use super::trials::{self, Ended};
use super::{Store, StoreError};

/// What `jobs.awaited` has to say of a row of `jobs`. A result that is there or lost stays so.
macro_rules! awaited_now {
    () => {
        "CASE WHEN EXISTS (SELECT 1 FROM awaited_jobs JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
                           WHERE awaited_jobs.job_id = jobs.id AND input.state IN ('failed', 'cancelled')) THEN 'lost'
              WHEN EXISTS (SELECT 1 FROM awaited_jobs JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
                           WHERE awaited_jobs.job_id = jobs.id AND input.state <> 'succeeded') THEN 'open'
              ELSE 'there' END"
    };
}

/// Jobs that are failed in one pass.
const AT_ONCE: i64 = 64;

impl Store {
    /// Fails the queued jobs whose input jobs have ended without a result; those that wait for them fail in turn. Says
    /// how many there were. It may be repeated at any time.
    pub async fn fail_orphans_once(&self) -> Result<usize, StoreError> {
        let mut failed = 0;
        loop {
            let orphans = sqlx::query(
                "-- store::awaited::fail_orphans_once
                 SELECT id FROM jobs WHERE state = 'queued' AND awaited = 'lost'
                 ORDER BY priority DESC, position LIMIT $1",
            )
            .bind(AT_ONCE)
            .fetch_all(&self.pool)
            .await?;
            if orphans.is_empty() {
                return Ok(failed);
            }
            for row in orphans {
                failed += usize::from(self.fail_orphan(job_id(row.try_get("id")?)?).await?);
            }
        }
    }

    /// Looks again within a transaction: somebody may have cancelled the job meanwhile.
    async fn fail_orphan(&self, id: JobId) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let before = read(&mut tx, id).await?;
        let Some(failure) = first_awaited(&mut tx, id).await?.as_ref().and_then(lost_input) else { return Ok(false) };
        if !matches!(before.state, JobState::Queued { .. }) {
            return Ok(false);
        }
        let (now, record) = (self.clock.now_ms(), FailureRecord::of_message(&failure));
        // It never came to an attempt: this is how the first one would have ended.
        let number = failures::keep(&mut tx, (id, Attempt::FIRST, now), &failure, &record).await?;
        let outcome = Outcome::Failed(failure.clone());
        let ended = Ended { job: id, now, outcome: &outcome, failure: Some((number, &record)), followed: false };
        Box::pin(trials::settle(&mut tx, &ended)).await?;
        let after = apply(&mut tx, &before, JobEvent::InputFailed { failure }, now).await?;
        tx.commit().await?;
        self.announce(&after);
        Ok(true)
    }
}

/// Writes down which jobs a new job waits for, and how they stand.
pub(super) async fn write_awaited(
    tx: &mut Transaction<'_, Sqlite>,
    job: JobId,
    awaited: &[JobId],
) -> Result<(), StoreError> {
    for input in awaited {
        sqlx::query(
            "-- store::awaited::write_awaited
             INSERT INTO awaited_jobs (job_id, awaited_id) VALUES ($1, $2)",
        )
        .bind(job.to_string())
        .bind(input.to_string())
        .execute(&mut **tx)
        .await?;
    }
    if !awaited.is_empty() {
        sqlx::query(concat!(
            "-- store::awaited::write_awaited\nUPDATE jobs SET awaited = ",
            awaited_now!(),
            " WHERE id = $1"
        ))
        .bind(job.to_string())
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// Tells the jobs that wait for `ended` how it stands now.
pub(super) async fn settle_awaited(tx: &mut Transaction<'_, Sqlite>, ended: JobId) -> Result<(), StoreError> {
    sqlx::query(concat!(
        "-- store::awaited::settle_awaited
         UPDATE jobs SET awaited = ",
        awaited_now!(),
        " WHERE id IN (SELECT job_id FROM awaited_jobs WHERE awaited_id = $1)"
    ))
    .bind(ended.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The first job that `job` still waits for: one that has ended without a result comes before all others.
pub(super) async fn first_awaited(tx: &mut Transaction<'_, Sqlite>, job: JobId) -> Result<Option<Job>, StoreError> {
    let row = sqlx::query(
        "-- store::awaited::first_awaited
         SELECT input.id FROM awaited_jobs JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
         WHERE awaited_jobs.job_id = $1 AND input.state <> 'succeeded'
         ORDER BY input.state NOT IN ('failed', 'cancelled'), input.position LIMIT 1",
    )
    .bind(job.to_string())
    .fetch_optional(&mut **tx)
    .await?;
    match row {
        Some(row) => Ok(Some(read(tx, job_id(row.try_get("id")?)?).await?)),
        None => Ok(None),
    }
}

/// The failure of a job whose input job has ended like this.
fn lost_input(input: &Job) -> Option<Failure> {
    let how = match &input.state {
        JobState::Done(Outcome::Failed(failure)) => format!("failed: {failure}"),
        JobState::Done(Outcome::Cancelled) => "was cancelled".to_owned(),
        _ => return None,
    };
    let message = format!("job `{}`, whose result this one was to read, {how}", input.id);
    Some(Failure::new(FailureKind::InputFailed, message).at(Stage::Prepare))
}
