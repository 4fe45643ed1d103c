//! What the worker of an attempt has said, for whoever speaks for the attempt.

use std::collections::HashMap;

use drydock_spec::report::{GpuReading, Started};
use drydock_spec::{Report, ReportLine};

use super::rows::json;
use super::{Lease, StoreError};

impl Lease {
    /// The last report of this attempt's worker, if it has any.
    pub async fn last_report(&self) -> Result<Option<ReportLine>, StoreError> {
        let text: Option<String> = sqlx::query_scalar(
            "-- store::lease::last_report
             SELECT report FROM reports WHERE job_id = $1 AND attempt = $2 AND type <> 'gpus'
             ORDER BY seq DESC LIMIT 1",
        )
        .bind(self.job().id.to_string())
        .bind(i64::from(self.attempt().0))
        .fetch_optional(&self.store.pool)
        .await?;
        text.map(|text| json(&text)).transpose()
    }

    /// What the attempt's worker said of itself when it began.
    pub async fn started(&self) -> Result<Option<Started>, StoreError> {
        let text: Option<String> = sqlx::query_scalar(
            "-- store::lease::started
             SELECT report FROM reports WHERE job_id = $1 AND attempt = $2 AND type = 'started' ORDER BY seq LIMIT 1",
        )
        .bind(self.job().id.to_string())
        .bind(i64::from(self.attempt().0))
        .fetch_optional(&self.store.pool)
        .await?;
        let line: Option<ReportLine> = text.map(|text| json(&text)).transpose()?;
        Ok(line.and_then(|line| match line.report {
            Report::Started(started) => Some(started),
            _ => None,
        }))
    }

    /// What the host has said last of the attempt's GPUs.
    pub async fn gpus_said(&self) -> Result<Vec<GpuReading>, StoreError> {
        let text: Option<String> = sqlx::query_scalar(
            "-- store::lease::gpus_said
             SELECT report FROM reports WHERE job_id = $1 AND attempt = $2 AND type = 'gpus' ORDER BY seq DESC LIMIT 1",
        )
        .bind(self.job().id.to_string())
        .bind(i64::from(self.attempt().0))
        .fetch_optional(&self.store.pool)
        .await?;
        let line: Option<ReportLine> = text.map(|text| json(&text)).transpose()?;
        Ok(line.map_or(Vec::new(), |line| match line.report {
            Report::Gpus { gpus } => gpus,
            _ => Vec::new(),
        }))
    }

    /// What the worker calls the files it made: role by path.
    pub async fn announced_artifacts(&self) -> Result<HashMap<String, String>, StoreError> {
        let texts: Vec<String> = sqlx::query_scalar(
            "-- store::lease::announced_artifacts
             SELECT report FROM reports WHERE job_id = $1 AND attempt = $2 AND type = 'artifact'",
        )
        .bind(self.job().id.to_string())
        .bind(i64::from(self.attempt().0))
        .fetch_all(&self.store.pool)
        .await?;
        let mut roles = HashMap::new();
        for text in texts {
            if let Report::Artifact { path, role } = json::<ReportLine>(&text)?.report {
                roles.insert(path, role);
            }
        }
        Ok(roles)
    }
}
