//! `drydock failures`

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::{ago, now_ms, one_line, shorten};
use crate::api::{FailureGroupView, FailureList};

/// Which failures.
#[derive(Debug, clap::Args)]
pub(super) struct Failures {
    /// Kinds of failures at most
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

impl Failures {
    pub(super) async fn print(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let list: FailureList = client.get(&["v1", "failures"], &[("limit", self.limit.to_string())]).await?;
        if out.json {
            out.document(&list)?;
            return Ok(Exit::Ok);
        }
        let now = now_ms();
        let row = |group: &FailureGroupView| {
            [
                group.fingerprint.clone(),
                group.count.to_string(),
                ago(group.last_seen_ms, now),
                group.job.to_string(),
                shorten(&one_line(&format!("{}: {}", group.kind, group.message)), 90),
            ]
        };
        out.table(
            ["FINGERPRINT", "COUNT", "LAST SEEN", "LAST JOB", "LAST TIME IT SAID"],
            list.failures.iter().map(row).collect(),
        )?;
        if list.failures.is_empty() {
            out.note("nothing has failed yet");
        }
        Ok(Exit::Ok)
    }
}
