//! Jobs that followed a failed one on the same things: what somebody changed, and whether the failure was gone.

use drydock_spec::remedy::limit_args;
use drydock_spec::{Change, JobId, JobSpec, Limits};
use serde_json::{Value, json};
use sqlx::{Row, Sqlite, Transaction};

use super::failures::KeptFailure;
use super::failures::stood_for;
use super::jobs::{COLUMNS, Job, job, read};
use super::rows::{job_id, json, to_json};
use super::trials::{Ended, by_number, remedy};
use super::{Store, StoreError};
use crate::diagnose::difference;
use crate::diagnose::fingerprint::Fingerprint;
use crate::remedy::learned::{FailedJob, Follower};
use crate::remedy::verdict::Verdict;

/// Ended jobs of the kind among which the one before is looked for.
const LOOKED_AT: i64 = 20;

impl Store {
    /// The jobs that followed those that failed so, the newest first.
    pub async fn followers(&self, fingerprint: &Fingerprint, limit: u32) -> Result<Vec<Follower>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- store::followers::followers
             SELECT followers.job_id, device, changes, worked,
                    (SELECT MIN(remedy) FROM trials WHERE trials.job_id = followers.job_id AND attempt = 1) AS applied
             FROM failures JOIN followers ON followers.of_failure = failures.number
             WHERE ",
            stood_for!(),
            " ORDER BY followers.at_ms DESC LIMIT $2"
        ))
        .bind(&fingerprint.0)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Follower {
                    job: job_id(row.try_get("job_id")?)?,
                    device: row.try_get("device")?,
                    changes: json(row.try_get("changes")?)?,
                    worked: row.try_get("worked")?,
                    applied: row.try_get::<Option<String>, _>("applied")?.as_deref().map(remedy).transpose()?,
                })
            })
            .collect()
    }

    /// What the jobs were made with whose last attempts failed so, the newest first.
    pub async fn failed_so(&self, fingerprint: &Fingerprint, limit: u32) -> Result<Vec<FailedJob>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- store::followers::failed_so
             SELECT device, spec, limits FROM failures
             JOIN jobs ON jobs.id = failures.job_id AND jobs.attempt = failures.attempt
             WHERE ",
            stood_for!(),
            " ORDER BY number DESC LIMIT $2"
        ))
        .bind(&fingerprint.0)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let (spec, limits) = (json(row.try_get("spec")?)?, json(row.try_get("limits")?)?);
                Ok(FailedJob { device: row.try_get("device")?, options: options(&spec, &limits) })
            })
            .collect()
    }
}

/// Writes down what a job that has ended says of the failure of the one before it, in the transaction that ends it. The
/// one before is the one that it was to do better, or the last job of the owner that did the same to the same things; if
/// that went well there is nothing to say. Where several in a row have failed the same, each with another remedy, the
/// changes are those since the first of them: what was tried in between and taken back is no change.
pub(super) async fn note(tx: &mut Transaction<'_, Sqlite>, one: &Job, ended: &Ended<'_>) -> Result<(), StoreError> {
    let before = match one.remedy_of {
        Some(id) => Some(read(tx, id).await?),
        None => job_before(tx, one).await?,
    };
    let Some(mut before) = before else { return Ok(()) };
    let Some(mut against) = failure(tx, &before).await? else { return Ok(()) };
    while let Some(id) = before.remedy_of {
        let earlier = read(tx, id).await?;
        match failure(tx, &earlier).await? {
            Some(same) if same.fingerprint == against.fingerprint => (before, against) = (earlier, same),
            _ => break,
        }
    }
    let verdict = ended.verdict_on(tx, &against).await?;
    if verdict == Verdict::Unknown {
        return Ok(());
    }
    let changes = difference::between(&options(&before.spec, &before.limits), &options(&one.spec, &one.limits));
    write(tx, one.id, against.number, ended.now, &changes, verdict).await
}

/// The newest failure of a job that has failed.
async fn failure(tx: &mut Transaction<'_, Sqlite>, of: &Job) -> Result<Option<KeptFailure>, StoreError> {
    if of.state.word() != "failed" {
        return Ok(None);
    }
    let number: Option<i64> = sqlx::query_scalar(
        "-- store::followers::failure
         SELECT MAX(number) FROM failures WHERE job_id = $1",
    )
    .bind(of.id.to_string())
    .fetch_one(&mut **tx)
    .await?;
    match number {
        Some(number) => Ok(Some(by_number(tx, number).await?)),
        None => Ok(None),
    }
}

async fn write(
    tx: &mut Transaction<'_, Sqlite>,
    job: JobId,
    of_failure: i64,
    now: i64,
    changes: &[Change],
    verdict: Verdict,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::followers::write
         INSERT INTO followers (job_id, of_failure, at_ms, changes, worked) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (job_id, of_failure) DO UPDATE SET worked = excluded.worked",
    )
    .bind(job.to_string())
    .bind(of_failure)
    .bind(now)
    .bind(to_json(&changes)?)
    .bind(verdict == Verdict::Worked)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The last job before this one that its owner had do the same to the same model and rows.
async fn job_before(tx: &mut Transaction<'_, Sqlite>, one: &Job) -> Result<Option<Job>, StoreError> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "-- store::followers::job_before
         SELECT {COLUMNS} FROM jobs
         WHERE owner = $1 AND kind = $2 AND position < (SELECT position FROM jobs WHERE id = $3)
               AND state IN ('succeeded', 'failed')
         ORDER BY position DESC LIMIT $4"
    )))
    .bind(&one.owner.0)
    .bind(one.spec.kind())
    .bind(one.id.to_string())
    .bind(LOOKED_AT)
    .fetch_all(&mut **tx)
    .await?;
    for row in &rows {
        let before = job(row)?;
        if before.spec.model() == one.spec.model() && before.spec.dataset() == one.spec.dataset() {
            return Ok(Some(before));
        }
    }
    Ok(None)
}

/// A job's options, limits and inputs by the names that remedies know them by.
fn options(spec: &JobSpec, limits: &Limits) -> Value {
    let mut document = json!(spec);
    let mut options = document.get_mut(spec.kind()).map(Value::take).unwrap_or_default();
    if let Value::Object(fields) = &mut options {
        fields.insert("limits".into(), json!(limit_args(limits)));
    }
    options
}
