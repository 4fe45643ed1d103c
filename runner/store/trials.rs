//! Remedies that were applied, and what became of them.

use std::collections::BTreeMap;

use drydock_spec::{Attempt, JobId, Outcome, Remedy};
use sqlx::{Row, Sqlite, Transaction};

use super::failures::{COLUMNS, FailureRecord, KeptFailure, kept, word as as_word};
use super::rows::{to_json, unsigned};
use super::{Store, StoreError};
use crate::diagnose::fingerprint::Fingerprint;
use crate::remedy::rank::{Count, Record};
use crate::remedy::verdict::{Place, Verdict, verdict};
use crate::remedy::{Chooser, Source};

/// A remedy that is about to be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTrial {
    /// The row of the failure that it is against.
    pub of_failure: i64,
    pub remedy: Remedy,
    pub source: Source,
    pub chosen_by: Chooser,
}

/// A remedy that was tried for a job, or for one that it goes back to.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    pub job: JobId,
    pub attempt: Attempt,
    pub remedy: Remedy,
    /// Of the failure that it was against.
    pub fingerprint: Fingerprint,
    pub chosen_by: Chooser,
    pub verdict: Option<Verdict>,
}

impl KeptFailure {
    /// Where it happened.
    #[must_use]
    pub fn place(&self) -> Place {
        place(self.failure.stage, &self.record)
    }
}

fn place(stage: Option<drydock_spec::Stage>, record: &FailureRecord) -> Place {
    Place { stage, step: record.evidence.metrics.as_ref().map(|metrics| metrics.step) }
}

impl Store {
    /// The records of all remedies that were tried against failures of the kind at the stage.
    pub async fn records(&self, of: &KeptFailure) -> Result<BTreeMap<String, Record>, StoreError> {
        let device = of.record.evidence.environment.device.as_deref().unwrap_or_default();
        let rows = sqlx::query(
            "-- store::trials::records
             SELECT remedy, known.same = $1 AS same, known.same = $1 AND known.device = $2 AS here, COUNT(*) AS tried,
                    SUM(verdict = 'worked') AS worked
             FROM known_failures AS known JOIN trials ON trials.of_failure = known.number
             WHERE known.kind = $3 AND known.stage = $4 AND verdict IN ('worked', 'failed')
             GROUP BY remedy, same, here",
        )
        .bind(&of.fingerprint.0)
        .bind(device)
        .bind(as_word(&of.failure.kind)?)
        .bind(of.failure.stage.as_ref().map(as_word).transpose()?.unwrap_or_default())
        .fetch_all(&self.pool)
        .await?;
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        for row in rows {
            let count = Count { worked: unsigned(row.try_get("worked")?)?, tried: unsigned(row.try_get("tried")?)? };
            let record = records.entry(row.try_get("remedy")?).or_default();
            match (row.try_get::<bool, _>("same")?, row.try_get::<bool, _>("here")?) {
                (_, true) => record.here = count,
                (true, false) => record.elsewhere = count,
                (false, false) => record.kind = count,
            }
        }
        Ok(records)
    }

    /// What was tried for the job and for those that it goes back to, the newest first.
    pub async fn trials(&self, job: JobId) -> Result<Vec<Trial>, StoreError> {
        let rows = sqlx::query(
            "-- store::trials::trials
             WITH RECURSIVE line (id) AS (
                 SELECT $1 UNION SELECT jobs.remedy_of FROM jobs JOIN line ON jobs.id = line.id
                 WHERE jobs.remedy_of IS NOT NULL)
             SELECT trials.job_id, trials.attempt, remedy, same, chosen_by, verdict
             FROM trials JOIN known_failures ON known_failures.number = trials.of_failure
             WHERE trials.job_id IN (SELECT id FROM line) ORDER BY trials.number DESC",
        )
        .bind(job.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Trial {
                    job: super::rows::job_id(row.try_get("job_id")?)?,
                    attempt: super::rows::attempt(row.try_get("attempt")?)?,
                    remedy: remedy(row.try_get("remedy")?)?,
                    fingerprint: Fingerprint(row.try_get("same")?),
                    chosen_by: word(row.try_get("chosen_by")?)?,
                    verdict: row.try_get::<Option<String>, _>("verdict")?.as_deref().map(word).transpose()?,
                })
            })
            .collect()
    }

    /// The newest job that was made to do better than this one, and whether it has succeeded.
    pub async fn remedied_by(&self, job: JobId) -> Result<Option<(JobId, bool)>, StoreError> {
        let row = sqlx::query(
            "-- store::trials::remedied_by
             SELECT id, state = 'succeeded' AS succeeded FROM jobs WHERE remedy_of = $1
             ORDER BY succeeded DESC, position DESC LIMIT 1",
        )
        .bind(job.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| Ok((super::rows::job_id(row.try_get("id")?)?, row.try_get("succeeded")?))).transpose()
    }
}

/// A value from the one word that it is in JSON.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_value(text.into()).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn remedy(text: &str) -> Result<Remedy, StoreError> {
    text.parse().map_err(|error| StoreError::Corrupt(format!("{error}")))
}

/// Writes down that an attempt will try a remedy, in the transaction that makes it wait for its turn.
pub(super) async fn begin(
    tx: &mut Transaction<'_, Sqlite>,
    (job, attempt, now): (JobId, Attempt, i64),
    trial: &NewTrial,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::trials::begin
         INSERT INTO trials (job_id, attempt, of_failure, remedy, source, chosen_by, at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(job.to_string())
    .bind(i64::from(attempt.0))
    .bind(trial.of_failure)
    .bind(trial.remedy.to_string())
    .bind(to_json(&trial.source)?)
    .bind(as_word(&trial.chosen_by)?)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) job: JobId,
    pub(super) now: i64,
    pub(super) outcome: &'a Outcome,
    /// The row of its failure, and what is known of it.
    pub(super) failure: Option<(i64, &'a FailureRecord)>,
    /// Whether another attempt follows, with the same options.
    pub(super) followed: bool,
}

impl Ended<'_> {
    /// What it says of a remedy against this failure.
    pub(super) async fn verdict_on(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        against: &KeptFailure,
    ) -> Result<Verdict, StoreError> {
        let stage = if let Outcome::Failed(failure) = self.outcome { failure.stage } else { None };
        let came_to = self.failure.map_or(Place { stage, step: None }, |(_, record)| place(stage, record));
        let came_back = match self.failure {
            Some((number, _)) => same_as(tx, number).await? == against.fingerprint,
            None => false,
        };
        Ok(verdict(self.outcome, against.place(), came_to, came_back))
    }
}

/// The fingerprint that stands for a failure.
async fn same_as(tx: &mut Transaction<'_, Sqlite>, number: i64) -> Result<Fingerprint, StoreError> {
    let same = sqlx::query_scalar(
        "-- store::trials::same_as
         SELECT same FROM known_failures WHERE number = $1",
    )
    .bind(number)
    .fetch_one(&mut **tx)
    .await?;
    Ok(Fingerprint(same))
}

/// Settles what the job was trying, in the transaction that ends its attempt. A trial of which nothing was seen goes on
/// with the next attempt. Says whether one is still open.
pub(super) async fn settle(tx: &mut Transaction<'_, Sqlite>, ended: &Ended<'_>) -> Result<bool, StoreError> {
    let open = sqlx::query(
        "-- store::trials::settle
         SELECT number, of_failure FROM trials WHERE job_id = $1 AND verdict IS NULL",
    )
    .bind(ended.job.to_string())
    .fetch_all(&mut **tx)
    .await?;
    let mut still_open = false;
    for row in open {
        let against = by_number(tx, row.try_get("of_failure")?).await?;
        let verdict = ended.verdict_on(tx, &against).await?;
        if verdict == Verdict::Unknown && ended.followed {
            still_open = true;
            continue;
        }
        sqlx::query(
            "-- store::trials::settle
             UPDATE trials SET verdict = $1, settled_ms = $2 WHERE number = $3",
        )
        .bind(as_word(&verdict)?)
        .bind(ended.now)
        .bind(row.try_get::<i64, _>("number")?)
        .execute(&mut **tx)
        .await?;
    }
    Ok(still_open)
}

/// What a job was about to try that ends before its attempt: nothing is known of it.
pub(super) async fn leave(tx: &mut Transaction<'_, Sqlite>, job: JobId, now: i64) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::trials::leave
         UPDATE trials SET verdict = 'unknown', settled_ms = $1 WHERE job_id = $2 AND verdict IS NULL",
    )
    .bind(now)
    .bind(job.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn by_number(tx: &mut Transaction<'_, Sqlite>, number: i64) -> Result<KeptFailure, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "-- store::trials::by_number
         SELECT {COLUMNS} FROM known_failures WHERE number = $1"
    )))
    .bind(number)
    .fetch_one(&mut **tx)
    .await?;
    kept(&row)
}
