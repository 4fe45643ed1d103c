//! `drydock failures`

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::remedies::Join;
use super::text::{ago, now_ms, one_line, shorten};
use crate::api::{FailureGroupView, FailureList};

/// Which failures.
#[derive(Debug, clap::Args)]
pub(super) struct Failures {
    /// Kinds of failures at most
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Have one fingerprint stand for another that turned out to be the same failure, or for itself again
    Join(Join),
}

impl Failures {
    pub(super) async fn print(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        if let Some(Action::Join(join)) = self.action {
            join.run(client, out).await?;
            return Ok(Exit::Ok);
        }
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
                best(group),
                shorten(&one_line(&format!("{}: {}", group.kind, group.message)), 70),
            ]
        };
        out.table(
            ["FINGERPRINT", "COUNT", "LAST SEEN", "LAST JOB", "WHAT HELPS BEST", "LAST TIME IT SAID"],
            list.failures.iter().map(row).collect(),
        )?;
        if list.failures.is_empty() {
            out.note("nothing has failed yet");
        }
        Ok(Exit::Ok)
    }
}

/// The surest remedy and its record.
fn best(group: &FailureGroupView) -> String {
    let Some(best) = &group.best else { return "-".to_owned() };
    let (here, elsewhere) = (best.record.here, best.record.elsewhere);
    let (worked, tried) = (here.worked + elsewhere.worked, here.tried + elsewhere.tried);
    let record = if tried > 0 { format!("worked {worked} of {tried} times") } else { "not tried yet".to_owned() };
    format!("{} ({record})", shorten(&best.remedy.to_string(), 60))
}
