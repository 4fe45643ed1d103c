//! Remedies that people, or the experience of another installation, advise.

use drydock_spec::{FailureKind, Remedy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::failures::{KeptFailure, word};
use super::rows::{signed, unsigned};
use super::trials::remedy;
use super::{Store, StoreError};
use crate::diagnose::fingerprint::Fingerprint;
use crate::remedy::rank::Count;

/// What advice is against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// Failures with this fingerprint.
    Fingerprint(Fingerprint),
    /// All failures of the kind.
    Kind(FailureKind),
}

/// A remedy that somebody advises.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAdvice {
    pub against: Against,
    pub remedy: Remedy,
    /// Why, in words.
    pub note: String,
    pub by_whom: String,
    /// The installation that knows it, and how often it worked there.
    pub origin: Option<(String, Count)>,
}

/// Advice that was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    pub number: i64,
    pub at_ms: i64,
    pub advice: NewAdvice,
}

impl Store {
    /// Keeps advice; the same again takes the place of what was there.
    pub async fn advise(&self, new: &NewAdvice) -> Result<Advice, StoreError> {
        let mut tx = self.write().await?;
        let now = self.clock.now_ms();
        let number = keep(&mut tx, new, now).await?;
        tx.commit().await?;
        Ok(Advice { number, at_ms: now, advice: new.clone() })
    }

    /// All advice, the newest first.
    pub async fn all_advice(&self) -> Result<Vec<Advice>, StoreError> {
        let rows = sqlx::query(
            "-- store::advice::all_advice
             SELECT number, fingerprint, kind, remedy, note, by_whom, origin, worked, tried, at_ms FROM advice
             ORDER BY number DESC",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(advice).collect()
    }

    /// The advice against a failure: against its fingerprint or any that was joined with it, or against its kind.
    pub async fn advice_against(&self, failure: &KeptFailure) -> Result<Vec<Advice>, StoreError> {
        let rows = sqlx::query(
            "-- store::advice::advice_against
             SELECT number, advice.fingerprint, kind, remedy, note, by_whom, origin, worked, tried, advice.at_ms
             FROM advice LEFT JOIN fingerprint_joins ON fingerprint_joins.fingerprint = advice.fingerprint
             WHERE COALESCE(joined_to, advice.fingerprint) = $1 OR kind = $2 ORDER BY number DESC",
        )
        .bind(&failure.fingerprint.0)
        .bind(word(&failure.failure.kind)?)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(advice).collect()
    }

    /// Takes advice back. False if there is none of that number.
    pub async fn remove_advice(&self, number: i64) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "-- store::advice::remove_advice
             DELETE FROM advice WHERE number = $1",
        )
        .bind(number)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// What the same origin advises already: the same remedy against the same.
pub(super) async fn same_advice(
    tx: &mut Transaction<'_, Sqlite>,
    new: &NewAdvice,
) -> Result<Option<NewAdvice>, StoreError> {
    let (fingerprint, kind) = columns(&new.against)?;
    let row = sqlx::query(
        "-- store::advice::same_advice
         SELECT number, fingerprint, kind, remedy, note, by_whom, origin, worked, tried, at_ms FROM advice
         WHERE COALESCE(fingerprint, '') = $1 AND COALESCE(kind, '') = $2 AND remedy = $3
               AND COALESCE(origin, '') = $4",
    )
    .bind(fingerprint.unwrap_or_default())
    .bind(kind.unwrap_or_default())
    .bind(new.remedy.to_string())
    .bind(new.origin.as_ref().map_or("", |(name, _)| name))
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.as_ref().map(advice).transpose()?.map(|known| known.advice))
}

/// The columns `fingerprint` and `kind` of what advice is against.
fn columns(against: &Against) -> Result<(Option<String>, Option<String>), StoreError> {
    Ok(match against {
        Against::Fingerprint(fingerprint) => (Some(fingerprint.0.clone()), None),
        Against::Kind(kind) => (None, Some(word(kind)?)),
    })
}

pub(super) async fn keep(tx: &mut Transaction<'_, Sqlite>, new: &NewAdvice, now: i64) -> Result<i64, StoreError> {
    let (fingerprint, kind) = columns(&new.against)?;
    let count = new.origin.as_ref().map(|(_, count)| *count).unwrap_or_default();
    Ok(sqlx::query_scalar(
        "-- store::advice::keep
         INSERT INTO advice (fingerprint, kind, remedy, note, by_whom, origin, worked, tried, at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (COALESCE(fingerprint, ''), COALESCE(kind, ''), remedy, COALESCE(origin, '')) DO UPDATE
         SET note = excluded.note, by_whom = excluded.by_whom, worked = excluded.worked, tried = excluded.tried,
             at_ms = excluded.at_ms
         RETURNING number",
    )
    .bind(fingerprint)
    .bind(kind)
    .bind(new.remedy.to_string())
    .bind(&new.note)
    .bind(&new.by_whom)
    .bind(new.origin.as_ref().map(|(name, _)| name))
    .bind(signed(count.worked))
    .bind(signed(count.tried))
    .bind(now)
    .fetch_one(&mut **tx)
    .await?)
}

fn advice(row: &SqliteRow) -> Result<Advice, StoreError> {
    let fingerprint: Option<String> = row.try_get("fingerprint")?;
    let kind: Option<String> = row.try_get("kind")?;
    let against = match (fingerprint, kind) {
        (Some(fingerprint), _) => Against::Fingerprint(Fingerprint(fingerprint)),
        (None, Some(kind)) => {
            Against::Kind(serde_json::from_value(kind.into()).map_err(|error| StoreError::Corrupt(error.to_string()))?)
        }
        (None, None) => return Err(StoreError::Corrupt("advice against nothing".into())),
    };
    let count = Count { worked: unsigned(row.try_get("worked")?)?, tried: unsigned(row.try_get("tried")?)? };
    let origin: Option<String> = row.try_get("origin")?;
    Ok(Advice {
        number: row.try_get("number")?,
        at_ms: row.try_get("at_ms")?,
        advice: NewAdvice {
            against,
            remedy: remedy(row.try_get("remedy")?)?,
            note: row.try_get("note")?,
            by_whom: row.try_get("by_whom")?,
            origin: origin.map(|name| (name, count)),
        },
    })
}
