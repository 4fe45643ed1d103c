//! GPUs that no job gets, until somebody says otherwise: kept here, as neither a restart of the gateway nor one of the
//! host mends a GPU.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError};

/// A GPU that no job gets, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cordon {
    /// The GPU's, never a slice's.
    pub uuid: String,
    /// In words.
    pub reason: String,
    pub at_ms: i64,
    /// `drydock`, or who said so.
    pub by: String,
    /// Whether it is so damaged that what runs on it is ended.
    pub fatal: bool,
}

/// Who cordons what is damaged.
pub const BY_DRYDOCK: &str = "drydock";

impl Store {
    /// Writes down that no job gets the GPU. The first reason stays, but one for which nothing may go on there takes the
    /// place of one that lets what runs go on. False if nothing is new.
    pub async fn cordon(&self, uuid: &str, reason: &str, by: &str, fatal: bool) -> Result<bool, StoreError> {
        let changed = sqlx::query(
            "-- store::cordons::cordon
             INSERT INTO cordons (uuid, reason, at_ms, by_whom, fatal) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (uuid) DO UPDATE
             SET reason = excluded.reason, at_ms = excluded.at_ms, by_whom = excluded.by_whom, fatal = excluded.fatal
             WHERE cordons.fatal = 0 AND excluded.fatal = 1",
        )
        .bind(uuid)
        .bind(reason)
        .bind(self.clock.now_ms())
        .bind(by)
        .bind(i64::from(fatal))
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(changed == 1)
    }

    /// Lets jobs have the GPU again. False if it was not cordoned.
    pub async fn uncordon(&self, uuid: &str) -> Result<bool, StoreError> {
        let removed = sqlx::query(
            "-- store::cordons::uncordon
             DELETE FROM cordons WHERE uuid = $1",
        )
        .bind(uuid)
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(removed == 1)
    }

    /// All of them, the oldest first.
    pub async fn cordons(&self) -> Result<Vec<Cordon>, StoreError> {
        let rows = sqlx::query(
            "-- store::cordons::cordons
             SELECT uuid, reason, at_ms, by_whom, fatal FROM cordons ORDER BY at_ms, uuid",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(cordon).collect()
    }
}

fn cordon(row: &SqliteRow) -> Result<Cordon, StoreError> {
    Ok(Cordon {
        uuid: row.try_get("uuid")?,
        reason: row.try_get("reason")?,
        at_ms: row.try_get("at_ms")?,
        by: row.try_get("by_whom")?,
        fatal: row.try_get::<i64, _>("fatal")? != 0,
    })
}
