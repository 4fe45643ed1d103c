//! The checkpoints that are kept of lost attempts, and which attempts went on from one.

use drydock_spec::report::Checkpoint;
use drydock_spec::{Attempt, JobId, Report, ReportLine};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::rows::{attempt, json, signed, unsigned};
use super::{Lease, Store, StoreError};
use crate::checkpoints::Kept;

/// Where an attempt went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resumed {
    /// The job that had, where it is another one, which this one is to do better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The attempt that had come so far.
    pub attempt: u32,
    /// Optimizer steps that had been taken.
    pub step: u64,
}

impl Store {
    /// The checkpoint that the job's next attempt goes on from.
    pub async fn checkpoint(&self, job: JobId) -> Result<Option<Kept>, StoreError> {
        let row = sqlx::query(
            "-- store::checkpoints::checkpoint
             SELECT attempt, step, path, bytes, digest FROM checkpoints WHERE job_id = $1",
        )
        .bind(job.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Kept {
                attempt: attempt(row.try_get("attempt")?)?,
                step: unsigned(row.try_get("step")?)?,
                path: row.try_get("path")?,
                bytes: unsigned(row.try_get("bytes")?)?,
                digest: row.try_get("digest")?,
            })
        })
        .transpose()
    }

    /// Whether the checkpoint of this attempt may still be gone on from: it is being kept just now, or is the newest of
    /// a job that has not ended, that failed less than `kept_ms` ago, or that one goes back to which has not ended.
    pub async fn checkpoint_wanted(&self, job: JobId, attempt: Attempt, kept_ms: i64) -> Result<bool, StoreError> {
        let wanted: i64 = sqlx::query_scalar(
            "-- store::checkpoints::checkpoint_wanted
             SELECT EXISTS (SELECT 1 FROM attempts WHERE job_id = $1 AND attempt = $2 AND ended_ms IS NULL)
                    OR EXISTS (SELECT 1 FROM checkpoints JOIN jobs ON jobs.id = checkpoints.job_id
                               WHERE checkpoints.job_id = $1 AND checkpoints.attempt = $2
                                     AND (jobs.ended_ms IS NULL OR (jobs.state = 'failed' AND jobs.ended_ms > $3)
                                          OR EXISTS (SELECT 1 FROM jobs AS better WHERE better.remedy_of = $1
                                                     AND better.resumes AND better.ended_ms IS NULL)))",
        )
        .bind(job.to_string())
        .bind(i64::from(attempt.0))
        .bind(self.clock.now_ms() - kept_ms)
        .fetch_one(&self.pool)
        .await?;
        Ok(wanted != 0)
    }
}

impl Lease {
    /// The checkpoints that the attempt's worker has announced as whole, the newest first, `limit` at most.
    pub async fn announced_checkpoints(&self, limit: u32) -> Result<Vec<Checkpoint>, StoreError> {
        let texts: Vec<String> = sqlx::query_scalar(
            "-- store::checkpoints::announced_checkpoints
             SELECT report FROM reports WHERE job_id = $1 AND attempt = $2 AND type = 'checkpoint'
             ORDER BY seq DESC LIMIT $3",
        )
        .bind(self.job().id.to_string())
        .bind(i64::from(self.attempt().0))
        .bind(i64::from(limit))
        .fetch_all(&self.store.pool)
        .await?;
        let reports = texts.iter().map(|text| Ok(json::<ReportLine>(text)?.report));
        let checkpoints = reports.filter_map(|report| match report {
            Ok(Report::Checkpoint(checkpoint)) => Some(Ok(checkpoint)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        checkpoints.collect()
    }

    /// Writes down what the job's next attempt goes on from, in place of what was there.
    pub async fn keep_checkpoint(&self, kept: &Kept) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        let ours = self.statement(
            "-- store::checkpoints::keep_checkpoint
             UPDATE attempts SET token = token
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(ours.execute(&mut *tx).await?)?;
        sqlx::query(
            "-- store::checkpoints::keep_checkpoint
             INSERT INTO checkpoints (job_id, attempt, step, path, bytes, digest) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (job_id) DO UPDATE
             SET attempt = excluded.attempt, step = excluded.step, path = excluded.path, bytes = excluded.bytes,
                 digest = excluded.digest",
        )
        .bind(self.job().id.to_string())
        .bind(i64::from(kept.attempt.0))
        .bind(signed(kept.step))
        .bind(&kept.path)
        .bind(signed(kept.bytes))
        .bind(&kept.digest)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes down where the attempt is about to go on, before its container is told.
    pub async fn resuming(&self, from: Option<(JobId, &Kept)>) -> Result<(), StoreError> {
        let statement = self.statement(
            "-- store::checkpoints::resuming
             UPDATE attempts SET resumed_attempt = $4, resumed_step = $5, resumed_job = $6
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        let statement = statement.bind(from.map(|(_, kept)| i64::from(kept.attempt.0)));
        let statement = statement.bind(from.map(|(_, kept)| signed(kept.step)));
        let other = from.map(|(job, _)| job).filter(|job| *job != self.job().id);
        let statement = statement.bind(other.map(|job| job.to_string()));
        self.still_ours(statement.execute(&self.store.pool).await?)
    }
}
