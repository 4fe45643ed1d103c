//! What was predicted of jobs, beside what they came to.

use drydock_spec::{Attempt, Outcome, Report, ReportLine};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use super::jobs::Job;
use super::lengths;
use super::rows::{json, signed, unsigned};
use super::{Store, StoreError};
use crate::artifacts::Artifact;
use crate::plan::forecast::{self, Forecast, Measured, Quantity};

/// Predictions of a kind and method that are looked at: what was measured long ago says little of what is predicted today.
const NEWEST: u32 = 500;

impl Store {
    /// The kinds of jobs, with the methods of finetunes, of which anything was measured.
    pub async fn measured_kinds(&self) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let rows = sqlx::query(
            "-- store::forecasts::measured_kinds
             SELECT DISTINCT kind, method FROM forecasts ORDER BY kind, method",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("kind")?, some(row.try_get("method")?)))).collect()
    }

    /// The newest predictions of jobs of a kind, whatever their method.
    pub async fn forecasts_of_kind(&self, kind: &str) -> Result<Vec<Forecast>, StoreError> {
        let rows = sqlx::query(
            "-- store::forecasts::forecasts_of_kind
             SELECT method, quantity, predicted, measured, ran_out FROM forecasts
             WHERE kind = $1 ORDER BY number DESC LIMIT $2",
        )
        .bind(kind)
        .bind(i64::from(NEWEST))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| forecast(row, kind, some(row.try_get("method")?))).collect()
    }

    /// The newest predictions of jobs of a kind, and of a method where it is a finetune.
    pub async fn forecasts(&self, kind: &str, method: Option<&str>) -> Result<Vec<Forecast>, StoreError> {
        let rows = sqlx::query(
            "-- store::forecasts::forecasts
             SELECT quantity, predicted, measured, ran_out FROM forecasts
             WHERE kind = $1 AND method = $2 ORDER BY number DESC LIMIT $3",
        )
        .bind(kind)
        .bind(method.unwrap_or_default())
        .bind(i64::from(NEWEST))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| forecast(row, kind, method.map(str::to_owned))).collect()
    }
}

fn forecast(row: &SqliteRow, kind: &str, method: Option<String>) -> Result<Forecast, StoreError> {
    let value = unsigned(row.try_get("measured")?)?;
    let ran_out = row.try_get::<i64, _>("ran_out")? != 0;
    Ok(Forecast {
        kind: kind.to_owned(),
        method,
        quantity: quantity(row.try_get("quantity")?)?,
        predicted: unsigned(row.try_get("predicted")?)?,
        measured: if ran_out { Measured::MoreThan(value) } else { Measured::Exactly(value) },
    })
}

/// Keeps what an attempt came to beside what was predicted of its job, in the transaction that ends it.
pub(super) async fn keep(
    tx: &mut Transaction<'_, Sqlite>,
    (job, number, at_ms): (&Job, Attempt, i64),
    outcome: &Outcome,
    artifacts: &[Artifact],
) -> Result<(), StoreError> {
    let Some(estimate) = &job.estimate else { return Ok(()) };
    let lines = said(tx, job, number).await?;
    let elapsed = lines.iter().find(|line| matches!(line.report, Report::Finished(_))).map(|line| line.elapsed_ms);
    let said: Vec<Report> = lines.into_iter().map(|line| line.report).collect();
    let artifact_bytes = artifacts.iter().map(|artifact| artifact.bytes).sum();
    lengths::keep(tx, (job, at_ms), &said).await?;
    let measured = forecast::measured(outcome, &job.limits, &said, artifact_bytes);
    for (quantity, measured) in measured.into_iter().chain(forecast::took(outcome, number, elapsed)) {
        let predicted = quantity.of(estimate);
        if predicted == 0 {
            continue;
        }
        let (bytes, ran_out) = match measured {
            Measured::Exactly(bytes) => (bytes, 0),
            Measured::MoreThan(bytes) => (bytes, 1),
        };
        sqlx::query(
            "-- store::forecasts::keep
             INSERT INTO forecasts (job_id, attempt, at_ms, kind, method, quantity, predicted, measured, ran_out)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(job.id.to_string())
        .bind(i64::from(number.0))
        .bind(at_ms)
        .bind(job.spec.kind())
        .bind(forecast::method_of(&job.spec, job.limits.gpus).unwrap_or_default())
        .bind(quantity.name())
        .bind(signed(predicted))
        .bind(signed(bytes))
        .bind(ran_out)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// The attempt's final report, its last two checkpoints, as so many lie on the disk at once, what the host said last of its
/// GPUs, and what became of the rows.
async fn said(tx: &mut Transaction<'_, Sqlite>, job: &Job, number: Attempt) -> Result<Vec<ReportLine>, StoreError> {
    let mut said = Vec::new();
    for (kind, most) in [("finished", 1), ("checkpoint", 2), ("gpus", 1), ("dataset", 1)] {
        let texts: Vec<String> = sqlx::query_scalar(
            "-- store::forecasts::said
             SELECT report FROM reports WHERE job_id = $1 AND type = $2 AND attempt = $3 ORDER BY seq DESC LIMIT $4",
        )
        .bind(job.id.to_string())
        .bind(kind)
        .bind(i64::from(number.0))
        .bind(most)
        .fetch_all(&mut **tx)
        .await?;
        for text in texts {
            said.push(json::<ReportLine>(&text)?);
        }
    }
    Ok(said)
}

fn some(method: String) -> Option<String> {
    Some(method).filter(|method| !method.is_empty())
}

fn quantity(name: &str) -> Result<Quantity, StoreError> {
    [Quantity::Memory, Quantity::Disk, Quantity::GpuMemory, Quantity::Time]
        .into_iter()
        .find(|quantity| quantity.name() == name)
        .ok_or_else(|| StoreError::Corrupt(format!("quantity `{name}`")))
}
