//! Jobs that read what other jobs leave: they wait in line for them, and fail with them.

use drydock_spec::{Failure, FailureKind, JobEvent, JobId, JobState, Outcome, Stage};
use sqlx::{Row, Sqlite, Transaction};

use super::jobs::{Job, apply, read};
use super::rows::job_id;
use super::{Store, StoreError};

/// Holds for a row of `jobs` that waits for no other job. What has succeeded stays so, so that it never ceases to hold.
macro_rules! waits_for_no_job {
    () => {
        "NOT EXISTS (SELECT 1 FROM awaited_jobs JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
                     WHERE awaited_jobs.job_id = jobs.id AND input.state <> 'succeeded')"
    };
}
pub(super) use waits_for_no_job;

/// Jobs that are failed in one pass.
const AT_ONCE: i64 = 64;

impl Store {
    /// The first job that `job` still waits for, as it stands.
    pub async fn awaited_by(&self, job: JobId) -> Result<Option<Job>, StoreError> {
        let mut tx = self.pool.begin().await?;
        first_awaited(&mut tx, job).await
    }

    /// Fails the queued jobs whose input jobs have ended without a result; those that wait for them fail in turn. Says
    /// how many there were. It may be repeated at any time.
    pub async fn fail_orphans_once(&self) -> Result<usize, StoreError> {
        let mut failed = 0;
        loop {
            let orphans = sqlx::query(
                "-- store::awaited::fail_orphans_once
                 SELECT DISTINCT jobs.id FROM jobs
                 JOIN awaited_jobs ON awaited_jobs.job_id = jobs.id
                 JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
                 WHERE jobs.state = 'queued' AND input.state IN ('failed', 'cancelled')
                 ORDER BY jobs.id LIMIT $1",
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
        let after = apply(&mut tx, &before, JobEvent::InputFailed { failure }, self.clock.now_ms()).await?;
        tx.commit().await?;
        self.announce(&after);
        Ok(true)
    }
}

/// Writes down which jobs a new job waits for.
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
