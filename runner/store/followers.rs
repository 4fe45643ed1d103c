//! Jobs that followed a failed one on the same things: what somebody changed, and whether the failure was gone.

use drydock_spec::remedy::limit_args;
use drydock_spec::{Change, JobId};
use serde_json::{Value, json};
use sqlx::{Row, Sqlite, Transaction};

use super::jobs::{COLUMNS, Job, job};
use super::rows::{job_id, json, to_json};
use super::trials::{Ended, by_number};
use super::{Store, StoreError};
use crate::diagnose::difference;
use crate::diagnose::fingerprint::Fingerprint;
use crate::remedy::learned::Follower;
use crate::remedy::verdict::Verdict;

/// Ended jobs of the kind among which the one before is looked for.
const LOOKED_AT: i64 = 20;

impl Store {
    /// The jobs that followed those that failed so, the newest first.
    pub async fn followers(&self, fingerprint: &Fingerprint, limit: u32) -> Result<Vec<Follower>, StoreError> {
        let rows = sqlx::query(
            "-- store::followers::followers
             SELECT followers.job_id, changes, worked
             FROM followers JOIN known_failures ON known_failures.number = followers.of_failure
             WHERE same = $1 ORDER BY followers.at_ms DESC LIMIT $2",
        )
        .bind(&fingerprint.0)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Follower {
                    job: job_id(row.try_get("job_id")?)?,
                    changes: json(row.try_get("changes")?)?,
                    worked: row.try_get("worked")?,
                })
            })
            .collect()
    }
}

/// Writes down what a job that has ended says of the failure of the one before it, in the transaction that ends it. The
/// one before is the last job of the owner that did the same to the same things; if it went well there is nothing to
/// say, and of a job that was made by a remedy its trial says it.
pub(super) async fn note(tx: &mut Transaction<'_, Sqlite>, one: &Job, ended: &Ended<'_>) -> Result<(), StoreError> {
    let Some(before) = job_before(tx, one).await? else { return Ok(()) };
    let number: Option<i64> = sqlx::query_scalar(
        "-- store::followers::note
         SELECT MAX(number) FROM failures WHERE job_id = $1",
    )
    .bind(before.id.to_string())
    .fetch_one(&mut **tx)
    .await?;
    let Some(number) = number.filter(|_| before.state.word() == "failed") else { return Ok(()) };
    let against = by_number(tx, number).await?;
    let verdict = ended.verdict_on(tx, &against).await?;
    if verdict == Verdict::Unknown {
        return Ok(());
    }
    write(tx, one.id, number, ended.now, &difference::between(&options(&before), &options(one)), verdict).await
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
fn options(job: &Job) -> Value {
    let mut spec = json!(job.spec);
    let mut options = spec.get_mut(job.spec.kind()).map(Value::take).unwrap_or_default();
    if let Value::Object(fields) = &mut options {
        fields.insert("limits".into(), json!(limit_args(&job.limits)));
    }
    options
}
