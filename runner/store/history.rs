//! A job's log: its events and its workers' reports in one numbered line, for streams that can be cut and resumed.

use drydock_spec::report::Metrics;
use drydock_spec::{Attempt, JobEvent, JobId, Report, ReportLine};
use futures::TryStreamExt as _;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::rows::{attempt, json, unsigned};
use super::{Store, StoreError};
use crate::artifacts::Artifact;

/// What a line of the log says.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Event(JobEvent),
    Report { attempt: Attempt, line: ReportLine },
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Counts up from 1 within the job, without gaps.
    pub seq: i64,
    pub at_ms: i64,
    pub entry: Entry,
}

/// The metrics of some optimizer steps.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsLine {
    pub seq: i64,
    pub at_ms: i64,
    pub attempt: Attempt,
    pub metrics: Metrics,
}

impl Store {
    /// At most `limit` lines of the job's log that come after number `after`.
    pub async fn log(&self, job: JobId, after: i64, limit: u32) -> Result<Vec<LogLine>, StoreError> {
        self.log_within(job, after, limit, usize::MAX).await
    }

    /// The same, but no more of them once they have come to so many bytes: a line may be long.
    pub async fn log_within(
        &self,
        job: JobId,
        after: i64,
        limit: u32,
        most_bytes: usize,
    ) -> Result<Vec<LogLine>, StoreError> {
        let mut rows = sqlx::query(
            "-- store::history::log_within
             SELECT seq, at_ms, 0 AS attempt, event AS line, TRUE AS is_event FROM job_events
             WHERE job_id = $1 AND seq > $2
             UNION ALL
             SELECT seq, at_ms, attempt, report, FALSE FROM reports
             WHERE job_id = $1 AND seq > $2
             ORDER BY seq LIMIT $3",
        )
        .bind(job.to_string())
        .bind(after)
        .bind(i64::from(limit))
        .fetch(&self.pool);
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            bytes += row.try_get::<&str, _>("line")?.len();
            lines.push(log_line(&row)?);
            if bytes >= most_bytes {
                break;
            }
        }
        Ok(lines)
    }

    /// The last `limit` lines of the job's log, oldest first.
    pub async fn log_tail(&self, job: JobId, limit: u32) -> Result<Vec<LogLine>, StoreError> {
        let last = self.job(job).await?.last_seq;
        self.log(job, last - i64::from(limit), limit).await
    }

    /// Metrics that come after line `after` of the log, at most `limit`, oldest first.
    pub async fn metrics(&self, job: JobId, after: i64, limit: u32) -> Result<Vec<MetricsLine>, StoreError> {
        let rows = sqlx::query(
            "-- store::history::metrics
             SELECT seq, at_ms, attempt, report AS line FROM reports
             WHERE job_id = $1 AND type = 'metrics' AND seq > $2 ORDER BY seq LIMIT $3",
        )
        .bind(job.to_string())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().filter_map(|row| metrics_line(row).transpose()).collect()
    }

    /// The last words of the newest attempt of the job that left any.
    pub async fn last_words(&self, job: JobId) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::history::last_words
             SELECT last_words FROM attempts WHERE job_id = $1 AND last_words IS NOT NULL
             ORDER BY attempt DESC LIMIT 1",
        )
        .bind(job.to_string())
        .fetch_optional(&self.pool)
        .await?)
    }

    /// What the job has made, by path.
    pub async fn artifacts(&self, job: JobId) -> Result<Vec<Artifact>, StoreError> {
        let rows = sqlx::query(
            "-- store::history::artifacts
             SELECT path, role, bytes, sha256 FROM artifacts WHERE job_id = $1 ORDER BY path",
        )
        .bind(job.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Artifact {
                    path: row.try_get("path")?,
                    role: row.try_get("role")?,
                    bytes: unsigned(row.try_get("bytes")?)?,
                    sha256: row.try_get("sha256")?,
                })
            })
            .collect()
    }
}

fn log_line(row: &SqliteRow) -> Result<LogLine, StoreError> {
    let text: &str = row.try_get("line")?;
    let entry = if row.try_get("is_event")? {
        Entry::Event(json(text)?)
    } else {
        Entry::Report { attempt: attempt(row.try_get("attempt")?)?, line: json(text)? }
    };
    Ok(LogLine { seq: row.try_get("seq")?, at_ms: row.try_get("at_ms")?, entry })
}

fn metrics_line(row: &SqliteRow) -> Result<Option<MetricsLine>, StoreError> {
    let line: ReportLine = json(row.try_get("line")?)?;
    let Report::Metrics(metrics) = line.report else { return Ok(None) };
    Ok(Some(MetricsLine {
        seq: row.try_get("seq")?,
        at_ms: row.try_get("at_ms")?,
        attempt: attempt(row.try_get("attempt")?)?,
        metrics,
    }))
}
