//! The models and datasets that jobs may name.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::rows::{json, to_json};
use super::{Store, StoreError};

/// A model or a dataset by name. `M` is its manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogEntry<M> {
    pub name: String,
    /// sha256 of the content.
    pub digest: String,
    pub manifest: M,
    pub added_ms: i64,
}

fn entry<M: DeserializeOwned>(row: &SqliteRow) -> Result<CatalogEntry<M>, StoreError> {
    Ok(CatalogEntry {
        name: row.try_get("name")?,
        digest: row.try_get("digest")?,
        manifest: json(row.try_get("manifest")?)?,
        added_ms: row.try_get("added_ms")?,
    })
}

/// The same four statements for each of the two tables; their names are constants, never input.
macro_rules! catalog {
    ($table:literal, $put:ident, $get:ident, $list:ident, $remove:ident) => {
        impl Store {
            /// Enters it under its name; what had that name before loses it.
            pub async fn $put<M: Serialize>(&self, name: &str, digest: &str, manifest: &M) -> Result<(), StoreError> {
                sqlx::query(concat!(
                    "-- store::catalog::",
                    stringify!($put),
                    "\nINSERT INTO ",
                    $table,
                    " (name, digest, manifest, added_ms) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (name) DO UPDATE
                     SET digest = excluded.digest, manifest = excluded.manifest, added_ms = excluded.added_ms"
                ))
                .bind(name)
                .bind(digest)
                .bind(to_json(manifest)?)
                .bind(self.clock.now_ms())
                .execute(&self.pool)
                .await?;
                Ok(())
            }

            /// Looks it up by name.
            pub async fn $get<M: DeserializeOwned>(&self, name: &str) -> Result<Option<CatalogEntry<M>>, StoreError> {
                let row = sqlx::query(concat!(
                    "-- store::catalog::",
                    stringify!($get),
                    "\nSELECT name, digest, manifest, added_ms FROM ",
                    $table,
                    " WHERE name = $1"
                ))
                .bind(name)
                .fetch_optional(&self.pool)
                .await?;
                row.as_ref().map(entry).transpose()
            }

            /// All of them, by name.
            pub async fn $list<M: DeserializeOwned>(&self) -> Result<Vec<CatalogEntry<M>>, StoreError> {
                let rows = sqlx::query(concat!(
                    "-- store::catalog::",
                    stringify!($list),
                    "\nSELECT name, digest, manifest, added_ms FROM ",
                    $table,
                    " ORDER BY name"
                ))
                .fetch_all(&self.pool)
                .await?;
                rows.iter().map(entry).collect()
            }

            /// Forgets the name; says whether it was known.
            pub async fn $remove(&self, name: &str) -> Result<bool, StoreError> {
                let changed = sqlx::query(concat!(
                    "-- store::catalog::",
                    stringify!($remove),
                    "\nDELETE FROM ",
                    $table,
                    " WHERE name = $1"
                ))
                .bind(name)
                .execute(&self.pool)
                .await?
                .rows_affected();
                Ok(changed > 0)
            }
        }
    };
}

catalog!("models", put_model, model, models, remove_model);
catalog!("datasets", put_dataset, dataset, datasets, remove_dataset);
