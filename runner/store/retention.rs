//! What is left of jobs that have ended, and what goes. A removal is written down before anything is deleted.

use drydock_spec::JobId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::rows::{job_id, json, unsigned};
use super::{Store, StoreError};
use crate::plan::ResolvedInputs;

/// Something that is left of a job that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub job: JobId,
    pub ended_ms: i64,
    pub bytes: u64,
    /// Whether another job reads it, or stands on it.
    pub wanted: bool,
}

/// Holds for a row of `jobs` that a job waits for which has not ended, or whose own artifacts are of use only with it.
macro_rules! is_read {
    () => {
        "EXISTS (SELECT 1 FROM awaited_jobs JOIN jobs AS reader ON reader.id = awaited_jobs.job_id
                 WHERE awaited_jobs.awaited_id = jobs.id
                       AND (reader.ended_ms IS NULL
                            OR (reader.artifacts_removed_ms IS NULL
                                AND EXISTS (SELECT 1 FROM artifacts AS own WHERE own.job_id = reader.id))))"
    };
}

/// What a job says on its way: of interest while it runs, and to whoever looks back. What it found out is not among it.
const ON_THE_WAY: [&str; 5] = ["metrics", "progress", "stage", "checkpoint", "gpus"];

impl Store {
    /// The artifacts that there are, those of the newest end first.
    pub async fn artifacts_left(&self) -> Result<Vec<Left>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- store::retention::artifacts_left
             SELECT jobs.id, jobs.ended_ms, SUM(artifacts.bytes) AS bytes, ",
            is_read!(),
            " AS wanted
             FROM jobs JOIN artifacts ON artifacts.job_id = jobs.id
             WHERE jobs.ended_ms IS NOT NULL AND jobs.artifacts_removed_ms IS NULL
             GROUP BY jobs.id, jobs.ended_ms ORDER BY jobs.ended_ms DESC, jobs.position DESC"
        ))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok(Left { wanted: row.try_get("wanted")?, ..left(row)? })).collect()
    }

    /// What jobs that have ended said on their way, those of the newest end first.
    pub async fn reports_left(&self) -> Result<Vec<Left>, StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "-- store::retention::reports_left
             SELECT jobs.id, jobs.ended_ms, SUM(LENGTH(reports.report)) AS bytes
             FROM jobs JOIN reports ON reports.job_id = jobs.id
             WHERE jobs.ended_ms IS NOT NULL AND jobs.reports_removed_ms IS NULL AND reports.type IN (",
        );
        let mut types = sql.separated(", ");
        for name in ON_THE_WAY {
            types.push_bind(name);
        }
        sql.push(") GROUP BY jobs.id, jobs.ended_ms ORDER BY jobs.ended_ms DESC, jobs.position DESC");
        let rows = sql.build().fetch_all(&self.pool).await?;
        rows.iter().map(left).collect()
    }

    /// What every job reads that has not ended, or that has left something which stands on it.
    pub async fn inputs_in_use(&self) -> Result<Vec<ResolvedInputs>, StoreError> {
        let rows = sqlx::query(
            "-- store::retention::inputs_in_use
             SELECT inputs FROM jobs
             WHERE ended_ms IS NULL
                   OR (artifacts_removed_ms IS NULL AND EXISTS (SELECT 1 FROM artifacts WHERE job_id = jobs.id))",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| json(row.try_get("inputs")?)).collect()
    }

    /// Writes down that a job's artifacts are removed, before they are. False if they must stay after all.
    pub async fn remove_artifacts(&self, job: JobId) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let changed = sqlx::query(concat!(
            "-- store::retention::remove_artifacts
             UPDATE jobs SET artifacts_removed_ms = $1
             WHERE id = $2 AND ended_ms IS NOT NULL AND artifacts_removed_ms IS NULL AND NOT ",
            is_read!()
        ))
        .bind(self.clock.now_ms())
        .bind(job.to_string())
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        Ok(changed == 1)
    }

    /// Whether the job's artifacts were removed; false of a job that nobody knows.
    pub async fn artifacts_removed(&self, job: JobId) -> Result<bool, StoreError> {
        let removed: i64 = sqlx::query_scalar(
            "-- store::retention::artifacts_removed
             SELECT COUNT(*) FROM jobs WHERE id = $1 AND artifacts_removed_ms IS NOT NULL",
        )
        .bind(job.to_string())
        .fetch_one(&self.pool)
        .await?;
        Ok(removed > 0)
    }

    /// Removes what an ended job said on its way, but for the last of each kind in each attempt, by which it is shown.
    pub async fn remove_reports(&self, job: JobId) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let changed = sqlx::query(
            "-- store::retention::remove_reports
             UPDATE jobs SET reports_removed_ms = $1
             WHERE id = $2 AND ended_ms IS NOT NULL AND reports_removed_ms IS NULL",
        )
        .bind(self.clock.now_ms())
        .bind(job.to_string())
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if changed != 1 {
            return Ok(false);
        }
        let mut sql =
            QueryBuilder::<Sqlite>::new("-- store::retention::remove_reports\nDELETE FROM reports WHERE job_id = ");
        sql.push_bind(job.to_string()).push(" AND type IN (");
        let mut types = sql.separated(", ");
        for name in ON_THE_WAY {
            types.push_bind(name);
        }
        sql.push(") AND seq NOT IN (SELECT MAX(seq) FROM reports WHERE job_id = ");
        sql.push_bind(job.to_string()).push(" GROUP BY attempt, type)");
        sql.build().execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// What is left of a job, wanted by nobody.
fn left(row: &SqliteRow) -> Result<Left, StoreError> {
    Ok(Left {
        job: job_id(row.try_get("id")?)?,
        ended_ms: row.try_get("ended_ms")?,
        bytes: unsigned(row.try_get("bytes")?)?,
        wanted: false,
    })
}
