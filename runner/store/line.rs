//! The line: who waits for nothing but a turn, who runs, and what their owners have had.

use std::collections::HashMap;

use drydock_gpu::assign::Standing;
use drydock_spec::{JobId, Limits, Owner, Priority};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::jobs::{Job, LONGEST_WAIT_MS, priority};
use super::rows::{job_id, json};
use super::{Store, StoreError};
use crate::api::Estimate;

/// Owners whose jobs are looked at in one pass: those whose oldest job came first.
const OWNERS: i64 = 64;
/// Attempts that are counted in one transaction.
const AT_ONCE: i64 = 256;

/// A job in line, as far as its turn depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    pub id: JobId,
    pub owner: Owner,
    pub priority: Priority,
    /// In order of submission.
    pub position: i64,
    pub submitted_ms: i64,
    pub limits: Limits,
    pub estimate: Option<Estimate>,
}

/// A job that has an attempt under way.
#[derive(Debug, Clone, PartialEq)]
pub struct UnderWay {
    pub id: JobId,
    pub owner: Owner,
    pub limits: Limits,
    pub estimate: Option<Estimate>,
    /// UUIDs of the GPUs and MIG slices that the attempt has.
    pub gpus: Vec<String>,
    pub claimed_ms: i64,
    pub launched_ms: Option<i64>,
}

/// The front of the line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Front {
    pub jobs: Vec<Queued>,
    /// Whether there are others behind them.
    pub more: bool,
}

impl Store {
    /// The first `each` jobs of every owner that wait for nothing but their turn, by priority and then in order of
    /// submission, in which a job that is tried again keeps its place; and the oldest of each, whatever its priority.
    /// Left out are retries that still wait, and jobs that wait for others. A retry that would wait for longer than any
    /// has to was written down before the host's clock was set back, and waits no more.
    pub async fn front(&self, each: u32) -> Result<Front, StoreError> {
        let rows = sqlx::query(
            "-- store::line::front
             WITH RECURSIVE present (owner) AS (
                 SELECT MIN(owner) FROM jobs INDEXED BY line_by_age WHERE state = 'queued'
                 UNION ALL
                 SELECT (SELECT MIN(owner) FROM jobs INDEXED BY line_by_age
                         WHERE state = 'queued' AND owner > present.owner)
                 FROM present WHERE present.owner IS NOT NULL),
             oldest (owner, id, position) AS (
                 SELECT jobs.owner, jobs.id, jobs.position FROM present JOIN jobs ON jobs.id = (
                     SELECT id FROM jobs INDEXED BY line_by_age
                     WHERE state = 'queued' AND owner = present.owner AND awaited = 'there'
                           AND (not_before_ms <= $1 OR not_before_ms > $1 + $2)
                     ORDER BY position LIMIT 1)
                 ORDER BY jobs.position LIMIT $4)
             SELECT jobs.id, jobs.owner, jobs.priority, jobs.position, jobs.submitted_ms, jobs.limits, jobs.estimate
             FROM oldest JOIN jobs ON jobs.id IN (
                 SELECT oldest.id
                 UNION
                 SELECT id FROM (
                     SELECT id FROM jobs INDEXED BY line_by_rank
                     WHERE state = 'queued' AND owner = oldest.owner AND awaited = 'there'
                           AND (not_before_ms <= $1 OR not_before_ms > $1 + $2)
                     ORDER BY priority DESC, position LIMIT $3))
             ORDER BY jobs.priority DESC, jobs.position",
        )
        .bind(self.clock.now_ms())
        .bind(LONGEST_WAIT_MS)
        .bind(i64::from(each))
        .bind(OWNERS)
        .fetch_all(&self.pool)
        .await?;
        let jobs = rows.iter().map(queued).collect::<Result<Vec<_>, _>>()?;
        let mut of_owner = HashMap::<&Owner, u32>::new();
        for job in &jobs {
            *of_owner.entry(&job.owner).or_default() += 1;
        }
        let more = of_owner.len() as i64 >= OWNERS || of_owner.values().any(|count| *count >= each);
        Ok(Front { jobs, more })
    }

    /// The jobs that run, those that are being stopped among them.
    pub async fn under_way(&self) -> Result<Vec<UnderWay>, StoreError> {
        let rows = sqlx::query(
            "-- store::line::under_way
             SELECT jobs.id, jobs.owner, jobs.limits, jobs.estimate, attempts.gpus, attempts.claimed_ms,
                    attempts.launched_ms
             FROM attempts JOIN jobs ON jobs.id = attempts.job_id
             WHERE attempts.ended_ms IS NULL
             ORDER BY attempts.claimed_ms, jobs.id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(under_way).collect()
    }

    /// What is remembered of the owners of jobs.
    pub async fn owners(&self) -> Result<HashMap<Owner, Standing>, StoreError> {
        let rows = sqlx::query(
            "-- store::line::owners
             SELECT owner, mean, as_of_ms, oldest_started_ms FROM owners",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(standing).collect()
    }

    /// Adds what attempts have had that have ended since the last time to their owners' means. `count` gets the owner's
    /// standing, the limits that the attempt had and the time that it took, from when to when, and the time that it is.
    pub async fn count_ended_once(
        &self,
        count: impl Fn(Standing, &Limits, (i64, i64), i64) -> Standing,
    ) -> Result<(), StoreError> {
        loop {
            let left: i64 = sqlx::query_scalar(
                "-- store::line::count_ended_once
                 SELECT COUNT(*) FROM (SELECT 1 FROM attempts WHERE ended_ms IS NOT NULL AND counted = 0 LIMIT $1)",
            )
            .bind(AT_ONCE)
            .fetch_one(&self.pool)
            .await?;
            if left == 0 {
                return Ok(());
            }
            self.count_some(&count).await?;
        }
    }

    async fn count_some(
        &self,
        count: &impl Fn(Standing, &Limits, (i64, i64), i64) -> Standing,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let rows = sqlx::query(
            "-- store::line::count_some
             SELECT attempts.job_id, attempts.attempt, attempts.claimed_ms, attempts.ended_ms, jobs.owner, jobs.limits,
                    COALESCE(mean, 0.0) AS mean, COALESCE(as_of_ms, 0) AS as_of_ms,
                    COALESCE(oldest_started_ms, 0) AS oldest_started_ms
             FROM attempts JOIN jobs ON jobs.id = attempts.job_id LEFT JOIN owners ON owners.owner = jobs.owner
             WHERE attempts.ended_ms IS NOT NULL AND attempts.counted = 0
             ORDER BY attempts.ended_ms LIMIT $1",
        )
        .bind(AT_ONCE)
        .fetch_all(&mut *tx)
        .await?;
        let now = self.clock.now_ms();
        let mut standings = HashMap::new();
        for row in &rows {
            let (owner, before) = standing(row)?;
            let known = standings.entry(owner).or_insert(before);
            let time = (row.try_get("claimed_ms")?, row.try_get("ended_ms")?);
            *known = count(*known, &json(row.try_get("limits")?)?, time, now);
            sqlx::query(
                "-- store::line::count_some
                 UPDATE attempts SET counted = 1 WHERE job_id = $1 AND attempt = $2",
            )
            .bind(row.try_get::<&str, _>("job_id")?)
            .bind(row.try_get::<i64, _>("attempt")?)
            .execute(&mut *tx)
            .await?;
        }
        for (owner, standing) in standings {
            sqlx::query(
                "-- store::line::count_some
                 INSERT INTO owners (owner, mean, as_of_ms, oldest_started_ms) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (owner) DO UPDATE SET mean = excluded.mean, as_of_ms = excluded.as_of_ms",
            )
            .bind(owner.0)
            .bind(standing.mean)
            .bind(standing.as_of_ms)
            .bind(standing.oldest_started_ms)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// Notes that the job, which has just been claimed, was its owner's oldest in line, if it was.
pub(super) async fn note_oldest(tx: &mut Transaction<'_, Sqlite>, job: &Job, now: i64) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::line::note_oldest
         INSERT INTO owners (owner, mean, as_of_ms, oldest_started_ms)
         SELECT $1, 0.0, $2, $2 WHERE NOT EXISTS (
             SELECT 1 FROM jobs
             WHERE state = 'queued' AND owner = $1 AND awaited = 'there'
                   AND position < (SELECT position FROM jobs WHERE id = $3)
                   AND (not_before_ms <= $2 OR not_before_ms > $2 + $4))
         ON CONFLICT (owner) DO UPDATE SET oldest_started_ms = excluded.oldest_started_ms",
    )
    .bind(&job.owner.0)
    .bind(now)
    .bind(job.id.to_string())
    .bind(LONGEST_WAIT_MS)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Whether the units are the job's to have: as many as it asks for, and none that somebody else has, unless all share it.
pub(super) async fn may_have(
    tx: &mut Transaction<'_, Sqlite>,
    limits: &Limits,
    units: &[String],
) -> Result<bool, StoreError> {
    if units.len() != limits.gpus as usize {
        return Ok(false);
    }
    if units.is_empty() {
        return Ok(true);
    }
    let rows = sqlx::query(
        "-- store::line::may_have
         SELECT attempts.gpus, jobs.limits FROM attempts JOIN jobs ON jobs.id = attempts.job_id
         WHERE attempts.ended_ms IS NULL AND attempts.gpus <> '[]'",
    )
    .fetch_all(&mut **tx)
    .await?;
    for row in &rows {
        let (theirs, of): (Vec<String>, Limits) = (json(row.try_get("gpus")?)?, json(row.try_get("limits")?)?);
        let all_share = limits.gpu_memory_bytes.is_some() && of.gpu_memory_bytes.is_some();
        if !all_share && units.iter().any(|unit| theirs.contains(unit)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn queued(row: &SqliteRow) -> Result<Queued, StoreError> {
    Ok(Queued {
        id: job_id(row.try_get("id")?)?,
        owner: Owner(row.try_get("owner")?),
        priority: priority(row.try_get("priority")?)?,
        position: row.try_get("position")?,
        submitted_ms: row.try_get("submitted_ms")?,
        limits: json(row.try_get("limits")?)?,
        estimate: row.try_get::<Option<&str>, _>("estimate")?.map(json).transpose()?,
    })
}

fn under_way(row: &SqliteRow) -> Result<UnderWay, StoreError> {
    Ok(UnderWay {
        id: job_id(row.try_get("id")?)?,
        owner: Owner(row.try_get("owner")?),
        limits: json(row.try_get("limits")?)?,
        estimate: row.try_get::<Option<&str>, _>("estimate")?.map(json).transpose()?,
        gpus: json(row.try_get("gpus")?)?,
        claimed_ms: row.try_get("claimed_ms")?,
        launched_ms: row.try_get("launched_ms")?,
    })
}

fn standing(row: &SqliteRow) -> Result<(Owner, Standing), StoreError> {
    let standing = Standing {
        mean: row.try_get("mean")?,
        as_of_ms: row.try_get("as_of_ms")?,
        oldest_started_ms: row.try_get("oldest_started_ms")?,
    };
    Ok((Owner(row.try_get("owner")?), standing))
}
