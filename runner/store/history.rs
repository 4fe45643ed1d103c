//! A job's log: its events and its workers' reports in one numbered line, for streams that can be cut and resumed.

use drydock_spec::report::{Metrics, Phase};
use drydock_spec::{Attempt, JobEvent, JobId, Report, ReportLine};
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
        let rows = sqlx::query(
            "-- store::history::log
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
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(log_line).collect()
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

    /// How far the job has come: the newest stage, dataset, metrics, progress, checkpoint and finish of its newest
    /// attempt that has reports. Each is found by its index, however many reports there are.
    pub async fn newest_reports(&self, job: JobId) -> Result<Vec<ReportLine>, StoreError> {
        let rows = sqlx::query(
            "-- store::history::newest_reports
             SELECT report AS line FROM reports
             WHERE job_id = $1
                   AND attempt = (SELECT attempt FROM reports WHERE job_id = $1 ORDER BY seq DESC LIMIT 1)
                   AND seq IN (
                       SELECT MAX(seq) FROM reports WHERE job_id = $1 AND type = 'stage' UNION ALL
                       SELECT MAX(seq) FROM reports WHERE job_id = $1 AND type = 'dataset' UNION ALL
                       SELECT MAX(seq) FROM reports WHERE job_id = $1 AND type = 'metrics' UNION ALL
                       SELECT MAX(seq) FROM reports WHERE job_id = $1 AND type = 'progress' UNION ALL
                       SELECT MAX(seq) FROM reports WHERE job_id = $1 AND type = 'checkpoint' UNION ALL
                       SELECT MAX(seq) FROM reports WHERE job_id = $1 AND type = 'finished')
             ORDER BY seq",
        )
        .bind(job.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| json(row.try_get("line")?)).collect()
    }

    /// The evaluations, samples, scores and what was quantized of the job's newest attempt: the few reports that people
    /// compare. Of very many the first and the last are given, which a training is judged by. An attempt that went on from
    /// a checkpoint does not measure again what was measured before it, so that counts as its own.
    pub async fn findings(&self, job: JobId) -> Result<Vec<ReportLine>, StoreError> {
        let rows = sqlx::query(
            "-- store::history::findings
             WITH RECURSIVE course (attempt, step) AS (
                 SELECT (SELECT attempt FROM reports WHERE job_id = $1 ORDER BY seq DESC LIMIT 1), NULL
                 UNION ALL
                 SELECT resumed_attempt, resumed_step FROM attempts JOIN course ON attempts.attempt = course.attempt
                 WHERE job_id = $1 AND resumed_attempt IS NOT NULL),
             findings AS (
                 SELECT seq, report, step FROM reports JOIN course ON course.attempt = reports.attempt
                 WHERE job_id = $1 AND type IN ('evaluation', 'sample', 'warning', 'score', 'quantized'))
             SELECT report AS line, step FROM findings
             WHERE seq IN (SELECT seq FROM (SELECT seq FROM findings ORDER BY seq LIMIT 100) AS first)
                   OR seq IN (SELECT seq FROM (SELECT seq FROM findings ORDER BY seq DESC LIMIT 100) AS last)
             ORDER BY seq",
        )
        .bind(job.to_string())
        .fetch_all(&self.pool)
        .await?;
        let mut findings = Vec::new();
        for row in rows {
            let line: ReportLine = json(row.try_get("line")?)?;
            let until: Option<i64> = row.try_get("step")?;
            if until.is_none_or(|step| came_before(&line.report, step)) {
                findings.push(line);
            }
        }
        Ok(findings)
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

/// Whether something was found before so many steps were taken, by the attempt that took them.
fn came_before(report: &Report, steps: i64) -> bool {
    match report {
        Report::Evaluation(found) => match found.phase {
            Phase::Before => true,
            Phase::During => found.step.is_some_and(|step| i64::try_from(step).is_ok_and(|step| step <= steps)),
            Phase::After => false,
        },
        Report::Sample(sample) => sample.phase == Phase::Before,
        _ => false,
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
