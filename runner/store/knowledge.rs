//! What leaves for another installation, and what comes from one.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row, Sqlite, Transaction};

use super::advice::{self, NewAdvice};
use super::rows::{json, signed, unsigned};
use super::{Store, StoreError};
use crate::diagnose::fingerprint::Fingerprint;
use crate::knowledge::{Known, Origin, Tried};
use crate::remedy::learned::learn;
use crate::remedy::rank::Count;

/// Failures of which something leaves, the newest, and jobs that are learnt from for each.
const MOST_FAILURES: u32 = 10_000;
const MOST_FOLLOWERS: u32 = 100;
/// A text of a job's options that is longer is prose and no name.
const LONGEST_NAME: usize = 200;

/// The experience of another installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Experience {
    pub origin: Origin,
    /// What has failed there, and how often.
    pub failures: Vec<(Fingerprint, u64)>,
    /// What helped there.
    pub advice: Vec<NewAdvice>,
}

/// What an import came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Imported {
    /// Remedies that were not known from that installation.
    pub added: u64,
    /// Remedies of which it has more, or other, experience than when it was heard last.
    pub changed: u64,
    pub unchanged: u64,
    /// Kinds of failures that were seen there.
    pub failures: u64,
}

/// How often another installation has seen a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeenElsewhere {
    /// What it is called, or its id.
    pub installation: String,
    pub count: u64,
}

impl Store {
    /// The id by which other installations know this one: the beginning of its instance's.
    pub async fn public_id(&self) -> Result<String, StoreError> {
        let instance: String = sqlx::query_scalar(
            "-- store::knowledge::public_id
             SELECT value FROM installation WHERE name = 'instance'",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(instance.chars().take(8).collect())
    }

    /// Everything that is known about failures.
    pub async fn known(&self) -> Result<Known, StoreError> {
        let failures = self.failure_groups(MOST_FAILURES).await?;
        let mut learned = Vec::new();
        for fingerprint in self.followed().await? {
            let failed = self.failed_so(&fingerprint, MOST_FOLLOWERS).await?;
            let taught = learn(&self.followers(&fingerprint, MOST_FOLLOWERS).await?, &failed, "");
            learned.extend(taught.into_iter().map(|one| (fingerprint.clone(), one)));
        }
        Ok(Known { failures, tried: self.tried().await?, learned, advice: self.all_advice().await? })
    }

    /// Failures after which somebody changed something.
    async fn followed(&self) -> Result<Vec<Fingerprint>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "-- store::knowledge::followed
             SELECT DISTINCT same FROM followers JOIN known_failures ON known_failures.number = followers.of_failure
             ORDER BY same LIMIT $1",
        )
        .bind(i64::from(MOST_FAILURES))
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(Fingerprint).collect())
    }

    async fn tried(&self) -> Result<Vec<Tried>, StoreError> {
        let rows = sqlx::query(
            "-- store::knowledge::tried
             SELECT known.same, known.device, remedy, MAX(source) AS source, COUNT(*) AS tried,
                    SUM(verdict = 'worked') AS worked
             FROM trials JOIN known_failures AS known ON known.number = trials.of_failure
             WHERE verdict IN ('worked', 'failed')
             GROUP BY known.same, known.device, remedy ORDER BY MAX(trials.number) DESC LIMIT $1",
        )
        .bind(i64::from(MOST_FAILURES) * 10)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Tried {
                    fingerprint: Fingerprint(row.try_get("same")?),
                    device: row.try_get("device")?,
                    remedy: super::trials::remedy(row.try_get("remedy")?)?,
                    source: json(row.try_get("source")?)?,
                    count: Count { worked: unsigned(row.try_get("worked")?)?, tried: unsigned(row.try_get("tried")?)? },
                })
            })
            .collect()
    }

    /// Names that must not leave: of models and datasets, of people, and whatever failed jobs were told in a word.
    pub async fn private_names(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut names: BTreeSet<String> = sqlx::query_scalar::<_, String>(
            "-- store::knowledge::private_names
             SELECT name FROM models UNION SELECT name FROM datasets UNION SELECT by_whom FROM advice
             UNION SELECT DISTINCT owner FROM jobs WHERE owner <> 'local'",
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .collect();
        let documents: Vec<String> = sqlx::query_scalar(
            "-- store::knowledge::private_names
             SELECT DISTINCT spec FROM jobs WHERE id IN (SELECT job_id FROM failures)
             UNION SELECT DISTINCT inputs FROM jobs WHERE id IN (SELECT job_id FROM failures)",
        )
        .fetch_all(&self.pool)
        .await?;
        for document in documents {
            collect_names(&json(&document)?, &mut names);
        }
        Ok(names)
    }

    /// Takes over what another installation knows: all of it or nothing. The same again changes nothing.
    pub async fn import(&self, experience: &Experience) -> Result<Imported, StoreError> {
        let mut tx = self.write().await?;
        let now = self.clock.now_ms();
        call_it_by_its_name(&mut tx, &experience.origin).await?;
        let mut imported = Imported { failures: experience.failures.len() as u64, ..Imported::default() };
        for new in &experience.advice {
            match advice::same_advice(&mut tx, new).await? {
                Some(known) if known == *new => {
                    imported.unchanged += 1;
                    continue;
                }
                Some(_) => imported.changed += 1,
                None => imported.added += 1,
            }
            advice::keep(&mut tx, new, now).await?;
        }
        for (fingerprint, count) in &experience.failures {
            sqlx::query(
                "-- store::knowledge::import
                 INSERT INTO failures_elsewhere (fingerprint, installation, name, count, at_ms)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (fingerprint, installation) DO UPDATE
                 SET name = excluded.name, count = excluded.count, at_ms = excluded.at_ms
                 WHERE name <> excluded.name OR count <> excluded.count",
            )
            .bind(&fingerprint.0)
            .bind(&experience.origin.installation)
            .bind(experience.origin.to_string())
            .bind(signed(*count))
            .bind(now)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(imported)
    }

    /// Who else has seen this failure, the one that has most often first.
    pub async fn seen_elsewhere(&self, fingerprint: &Fingerprint) -> Result<Vec<SeenElsewhere>, StoreError> {
        let rows = sqlx::query(
            "-- store::knowledge::seen_elsewhere
             SELECT name, SUM(count) AS count FROM failures_elsewhere AS elsewhere
             LEFT JOIN fingerprint_joins ON fingerprint_joins.fingerprint = elsewhere.fingerprint
             WHERE COALESCE(joined_to, elsewhere.fingerprint) = $1 GROUP BY name ORDER BY SUM(count) DESC, name LIMIT 10",
        )
        .bind(&fingerprint.0)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(SeenElsewhere { installation: row.try_get("name")?, count: unsigned(row.try_get("count")?)? })
            })
            .collect()
    }
}

/// What was heard of an installation under another name stands under the one that it has now.
async fn call_it_by_its_name(tx: &mut Transaction<'_, Sqlite>, origin: &Origin) -> Result<(), StoreError> {
    let name = origin.to_string();
    sqlx::query(
        "-- store::knowledge::call_it_by_its_name
         UPDATE advice SET origin = $1, by_whom = $1
         WHERE (origin = $2 OR origin LIKE '% (' || $2 || ')') AND origin <> $1",
    )
    .bind(&name)
    .bind(&origin.installation)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "-- store::knowledge::call_it_by_its_name
         UPDATE failures_elsewhere SET name = $1 WHERE installation = $2 AND name <> $1",
    )
    .bind(&name)
    .bind(&origin.installation)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The texts of one word in a document: names of files, models and columns rather than prose.
fn collect_names(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::String(text) if text.len() <= LONGEST_NAME && !text.contains(char::is_whitespace) => {
            names.insert(text.clone());
        }
        Value::Array(values) => values.iter().for_each(|value| collect_names(value, names)),
        Value::Object(fields) => fields.values().for_each(|value| collect_names(value, names)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
