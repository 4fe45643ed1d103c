//! What is told of jobs beside their rows, for many of them at once: a page of a list takes as many queries as one job.

use std::collections::HashMap;

use drydock_spec::report::Phase;
use drydock_spec::{Failure, JobEvent, JobId, Outcome, Report, ReportLine};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::checkpoints::Resumed;
use super::jobs::LONGEST_WAIT_MS;
use super::rows::{attempt, job_id, job_ids, json, unsigned};
use super::{Store, StoreError};

/// Jobs ahead of another one are counted up to here: nobody waits differently behind more, and a count of the whole line
/// would cost more with every job in it.
pub const MOST_AHEAD: u64 = 1000;

/// A job whose result another one reads, and which has not succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwaitedJob {
    pub id: JobId,
    /// A word of [`drydock_spec::JobState::word`].
    pub state: String,
}

/// What the reports of some jobs come to.
#[derive(Debug, Default)]
pub struct Glance {
    /// See [`Store::newest_reports`].
    pub newest: HashMap<JobId, Vec<ReportLine>>,
    /// The evaluations, samples, warnings, scores and what was quantized of each job's newest attempt: the few reports
    /// that people compare. Of very many the first and the last are given, which a training is judged by. An attempt that
    /// went on from a checkpoint does not measure again what was measured before it, so that counts as its own.
    pub findings: HashMap<JobId, Vec<ReportLine>>,
    /// Where attempts went on that did not begin at the beginning.
    pub resumed: HashMap<JobId, Resumed>,
}

impl Store {
    /// What the reports of the jobs come to.
    pub async fn glance(&self, jobs: &[JobId]) -> Result<Glance, StoreError> {
        if jobs.is_empty() {
            return Ok(Glance::default());
        }
        // One connection for all of it: handing it out and back costs more than the queries do.
        let mut connection = self.pool.acquire().await?;
        Ok(Glance {
            newest: newest(&mut connection, jobs).await?,
            findings: findings(&mut connection, jobs).await?,
            resumed: resumed(&mut connection, jobs).await?,
        })
    }

    /// How far each job has come: the newest stage, dataset, metrics, progress, checkpoint, GPUs and finish of its newest
    /// attempt that has reports. Each is found by its index, however many reports there are.
    pub async fn newest_reports(&self, jobs: &[JobId]) -> Result<HashMap<JobId, Vec<ReportLine>>, StoreError> {
        newest(&mut *self.pool.acquire().await?, jobs).await
    }

    /// How the last attempt of jobs ended that are in line to be tried again: that is the last that happened to them.
    pub async fn last_failures(&self, jobs: &[JobId]) -> Result<HashMap<JobId, Failure>, StoreError> {
        let rows = self.of_jobs(
            "-- store::glance::last_failures
             SELECT job_id, event FROM json_each($1) AS asked JOIN job_events ON job_id = asked.value
             WHERE seq = (SELECT MAX(seq) FROM job_events WHERE job_id = asked.value)",
            jobs,
        );
        one_by_job(&rows.await?, |row| {
            Ok(match json(row.try_get("event")?)? {
                JobEvent::Ended { outcome: Outcome::Failed(failure), .. } | JobEvent::Remedied { failure, .. } => {
                    Some(failure)
                }
                _ => None,
            })
        })
    }

    /// The first job that each of the jobs still waits for: one that has ended without a result comes before all others.
    pub async fn awaited(&self, jobs: &[JobId]) -> Result<HashMap<JobId, AwaitedJob>, StoreError> {
        let rows = self.of_jobs(
            "-- store::glance::awaited
             SELECT awaited_jobs.job_id, input.id, input.state FROM json_each($1) AS asked
             JOIN awaited_jobs ON awaited_jobs.job_id = asked.value
             JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
             WHERE input.state <> 'succeeded'
             ORDER BY input.state NOT IN ('failed', 'cancelled'), input.position",
            jobs,
        );
        one_by_job(&rows.await?, |row| {
            Ok(Some(AwaitedJob { id: job_id(row.try_get("id")?)?, state: row.try_get("state")? }))
        })
    }

    /// How many queued jobs stand before each of the jobs and wait for nothing but their turn, up to [`MOST_AHEAD`].
    pub async fn ahead_of(&self, jobs: &[JobId]) -> Result<HashMap<JobId, u64>, StoreError> {
        if jobs.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query(
            "-- store::glance::ahead_of
             SELECT own.id AS job_id, (SELECT COUNT(*) FROM (
                 SELECT 1 FROM jobs
                 WHERE state = 'queued' AND awaited = 'there' AND priority > own.priority
                       AND (not_before_ms <= $2 OR not_before_ms > $2 + $3)
                 UNION ALL
                 SELECT 1 FROM jobs
                 WHERE state = 'queued' AND awaited = 'there' AND priority = own.priority AND position < own.position
                       AND (not_before_ms <= $2 OR not_before_ms > $2 + $3)
                 LIMIT $4)) AS ahead
             FROM json_each($1) AS asked JOIN jobs AS own ON own.id = asked.value",
        )
        .bind(job_ids(jobs))
        .bind(self.clock.now_ms())
        .bind(LONGEST_WAIT_MS)
        .bind(super::rows::signed(MOST_AHEAD))
        .fetch_all(&self.pool)
        .await?;
        one_by_job(&rows, |row| Ok(Some(unsigned(row.try_get("ahead")?)?)))
    }

    /// The rows of a query whose only parameter is the jobs; none are asked for if there are no jobs.
    async fn of_jobs(&self, sql: &'static str, jobs: &[JobId]) -> Result<Vec<SqliteRow>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        Ok(sqlx::query(sql).bind(job_ids(jobs)).fetch_all(&self.pool).await?)
    }
}

async fn newest(
    connection: &mut SqliteConnection,
    jobs: &[JobId],
) -> Result<HashMap<JobId, Vec<ReportLine>>, StoreError> {
    let rows = sqlx::query(
        "-- store::glance::newest_reports
         SELECT job_id, report AS line FROM json_each($1) AS asked JOIN reports ON job_id = asked.value
         WHERE attempt = (SELECT attempt FROM reports WHERE job_id = asked.value ORDER BY seq DESC LIMIT 1)
               AND seq IN (
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'stage' UNION ALL
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'dataset' UNION ALL
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'metrics' UNION ALL
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'progress' UNION ALL
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'checkpoint' UNION ALL
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'gpus' UNION ALL
                   SELECT MAX(seq) FROM reports WHERE job_id = asked.value AND type = 'finished')
         ORDER BY job_id, seq",
    );
    let rows = rows.bind(job_ids(jobs)).fetch_all(connection).await?;
    by_job(&rows, |row| Ok(Some(json(row.try_get("line")?)?)))
}

async fn findings(
    connection: &mut SqliteConnection,
    jobs: &[JobId],
) -> Result<HashMap<JobId, Vec<ReportLine>>, StoreError> {
    let rows = sqlx::query(
        "-- store::glance::findings
         WITH RECURSIVE course (job_id, of_job, attempt, step, back) AS (
             SELECT value, value, (SELECT attempt FROM reports WHERE job_id = value ORDER BY seq DESC LIMIT 1), NULL, 0
             FROM json_each($1)
             UNION ALL
             SELECT course.job_id, COALESCE(resumed_job, of_job), resumed_attempt, resumed_step, back + 1 FROM course
             JOIN attempts ON attempts.job_id = of_job AND attempts.attempt = course.attempt
             WHERE resumed_attempt IS NOT NULL),
         findings AS (
             SELECT course.job_id, back, seq, report, step,
                    ROW_NUMBER() OVER (PARTITION BY course.job_id ORDER BY back DESC, seq) AS n,
                    COUNT(*) OVER (PARTITION BY course.job_id) AS found
             FROM course JOIN reports ON reports.job_id = of_job AND reports.attempt = course.attempt
             WHERE type IN ('evaluation', 'sample', 'warning', 'score', 'quantized'))
         SELECT job_id, report AS line, step FROM findings WHERE n <= 100 OR n > found - 100
         ORDER BY job_id, back DESC, seq",
    );
    let rows = rows.bind(job_ids(jobs)).fetch_all(connection).await?;
    by_job(&rows, |row| {
        let line: ReportLine = json(row.try_get("line")?)?;
        let until: Option<i64> = row.try_get("step")?;
        Ok(until.is_none_or(|step| came_before(&line.report, step)).then_some(line))
    })
}

async fn resumed(connection: &mut SqliteConnection, jobs: &[JobId]) -> Result<HashMap<JobId, Resumed>, StoreError> {
    let rows = sqlx::query(
        "-- store::glance::resumed
         SELECT jobs.id AS job_id, resumed_attempt, resumed_step, resumed_job FROM json_each($1) AS asked
         JOIN jobs ON jobs.id = asked.value
         JOIN attempts ON attempts.job_id = jobs.id AND attempts.attempt = jobs.attempt
         WHERE resumed_attempt IS NOT NULL",
    );
    let rows = rows.bind(job_ids(jobs)).fetch_all(connection).await?;
    one_by_job(&rows, |row| {
        let attempt = attempt(row.try_get("resumed_attempt")?)?;
        Ok(Some(Resumed { job: resumed_job(row)?, attempt: attempt.0, step: unsigned(row.try_get("resumed_step")?)? }))
    })
}

/// What the rows hold, in their order, by their `job_id`.
/// The job that had come so far, where it is another one.
fn resumed_job(row: &SqliteRow) -> Result<Option<JobId>, StoreError> {
    row.try_get::<Option<&str>, _>("resumed_job")?.map(job_id).transpose()
}

fn by_job<T>(
    rows: &[SqliteRow],
    read: impl Fn(&SqliteRow) -> Result<Option<T>, StoreError>,
) -> Result<HashMap<JobId, Vec<T>>, StoreError> {
    let mut found: HashMap<_, Vec<T>> = HashMap::new();
    for row in rows {
        if let Some(one) = read(row)? {
            found.entry(job_id(row.try_get("job_id")?)?).or_default().push(one);
        }
    }
    Ok(found)
}

/// What the first row of each `job_id` holds.
fn one_by_job<T>(
    rows: &[SqliteRow],
    read: impl Fn(&SqliteRow) -> Result<Option<T>, StoreError>,
) -> Result<HashMap<JobId, T>, StoreError> {
    Ok(by_job(rows, read)?.into_iter().filter_map(|(job, all)| Some((job, all.into_iter().next()?))).collect())
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
