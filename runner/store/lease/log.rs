//! What is said of an attempt while it is under way: by its worker, and by the host.

use drydock_spec::{Report, ReportLine};
use sqlx::{Sqlite, Transaction};

use super::Lease;
use crate::store::StoreError;
use crate::store::rows::{signed, to_json};

/// Reports read from an events file, with the part of the file that they came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportBatch {
    pub lines: Vec<ReportLine>,
    /// Offset behind the last byte read.
    pub end_offset: u64,
}

impl Lease {
    /// Stores reports and, in the same transaction, how far the events file has been read: so no report is lost or
    /// stored twice, wherever the gateway dies.
    pub async fn record(&mut self, batch: &ReportBatch) -> Result<(), StoreError> {
        if batch.end_offset == self.row.report_offset {
            return Ok(());
        }
        let mut tx = self.store.write().await?;
        let now = self.store.clock.now_ms();
        let last_report = if batch.lines.is_empty() { self.row.last_report_ms } else { Some(now) };
        let statement = self.statement(
            "-- store::lease::record
             UPDATE attempts SET report_offset = $4, last_report_ms = $5, orphaned = 0
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND report_offset = $6 AND ended_ms IS NULL",
        );
        let statement = statement.bind(signed(batch.end_offset)).bind(last_report).bind(signed(self.row.report_offset));
        self.still_ours(statement.execute(&mut *tx).await?)?;
        let last_seq = self.add(&mut tx, now, &batch.lines).await?;
        tx.commit().await?;
        self.row.report_offset = batch.end_offset;
        self.row.last_report_ms = last_report;
        self.job.last_seq = last_seq;
        if !batch.lines.is_empty() {
            self.store.changes.job_grew(self.job.id, last_seq);
        }
        Ok(())
    }

    /// Stores what the host has to say of the attempt, among its reports. It is no sign of life of the worker.
    pub async fn observe(&mut self, report: Report) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        let now = self.store.clock.now_ms();
        let statement = self.statement(
            "-- store::lease::observe
             UPDATE attempts SET lease_until_ms = lease_until_ms
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.execute(&mut *tx).await?)?;
        let since_launch = now - self.row.launched_ms.unwrap_or(self.row.claimed_ms);
        let line = ReportLine { elapsed_ms: u64::try_from(since_launch).unwrap_or_default(), report };
        let last_seq = self.add(&mut tx, now, std::slice::from_ref(&line)).await?;
        tx.commit().await?;
        self.job.last_seq = last_seq;
        self.store.changes.job_grew(self.job.id, last_seq);
        Ok(())
    }

    /// Adds lines to the job's log; says the number of the last one.
    async fn add(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        now_ms: i64,
        lines: &[ReportLine],
    ) -> Result<i64, StoreError> {
        let count = signed(lines.len() as u64);
        let last_seq: i64 = sqlx::query_scalar(
            "-- store::lease::add
             UPDATE jobs SET last_seq = last_seq + $1 WHERE id = $2 RETURNING last_seq",
        )
        .bind(count)
        .bind(self.job.id.to_string())
        .fetch_one(&mut **tx)
        .await?;
        for (seq, line) in (last_seq + 1 - count..).zip(lines) {
            sqlx::query(
                "-- store::lease::add
                 INSERT INTO reports (job_id, seq, attempt, at_ms, type, report) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(self.job.id.to_string())
            .bind(seq)
            .bind(i64::from(self.row.attempt.0))
            .bind(now_ms)
            .bind(line.report.name())
            .bind(to_json(line)?)
            .execute(&mut **tx)
            .await?;
        }
        Ok(last_seq)
    }
}
