//! How long rows are in tokens, as workers have counted them.

use drydock_spec::Report;
use drydock_spec::lengths::RowLengths;
use drydock_spec::report::DatasetReport;
use sqlx::{Sqlite, Transaction};

use super::jobs::Job;
use super::rows::{json, to_json};
use super::{Store, StoreError};
use crate::plan::lengths::Counting;

impl Store {
    /// What was counted of these rows; nothing where nobody has seen all of them yet.
    pub async fn row_lengths(&self, of: &Counting) -> Result<Option<RowLengths>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "-- store::lengths::row_lengths
             SELECT lengths FROM row_lengths WHERE dataset = $1 AND model = $2 AND reading = $3",
        )
        .bind(&of.dataset)
        .bind(&of.model)
        .bind(&of.reading)
        .fetch_optional(&self.pool)
        .await?;
        found.as_deref().map(json).transpose()
    }

    /// Keeps what a preview has counted, in place of what was known before.
    pub async fn keep_row_lengths(&self, of: &Counting, lengths: &RowLengths) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::lengths::keep_row_lengths
             INSERT INTO row_lengths (dataset, model, reading, lengths, at_ms) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (dataset, model, reading) DO UPDATE SET lengths = excluded.lengths, at_ms = excluded.at_ms",
        )
        .bind(&of.dataset)
        .bind(&of.model)
        .bind(&of.reading)
        .bind(to_json(lengths)?)
        .bind(self.clock.now_ms())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Keeps what an attempt's worker has said of its rows, in the transaction that ends it. It says less than a preview does,
/// whose word stays.
pub(super) async fn keep(
    tx: &mut Transaction<'_, Sqlite>,
    (job, at_ms): (&Job, i64),
    said: &[Report],
) -> Result<(), StoreError> {
    let report = said.iter().find_map(|report| if let Report::Dataset(report) = report { Some(report) } else { None });
    let (Some(of), Some(lengths)) = (Counting::of(&job.spec, &job.inputs), report.and_then(uncut)) else {
        return Ok(());
    };
    sqlx::query(
        "-- store::lengths::keep
         INSERT INTO row_lengths (dataset, model, reading, lengths, at_ms) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (dataset, model, reading) DO NOTHING",
    )
    .bind(&of.dataset)
    .bind(&of.model)
    .bind(&of.reading)
    .bind(to_json(&lengths)?)
    .bind(at_ms)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// What the rows come to that were learnt from, if none was cut: then the longest of them, or of those that were held out,
/// is as long as it ever is.
fn uncut(report: &DatasetReport) -> Option<RowLengths> {
    let &DatasetReport { train_rows, train_tokens, longest_row, truncated_rows, .. } = report;
    let is_whole = truncated_rows == 0 && train_rows > 0 && longest_row > 0;
    is_whole.then(|| RowLengths {
        rows: train_rows,
        tokens: train_tokens,
        longest: longest_row,
        ..RowLengths::default()
    })
}
