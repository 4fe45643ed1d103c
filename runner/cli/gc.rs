//! `drydock gc`

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::size;
use crate::api::{GcReport, GcRequest, Taken, TakenKind};

/// Whether to remove anything.
#[derive(Debug, clap::Args)]
pub(super) struct Gc {
    /// Only say what would be removed, and why
    #[arg(long)]
    dry_run: bool,
}

impl Gc {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let report: GcReport = client.import(&["v1", "gc"], &GcRequest { dry_run: self.dry_run }).await?;
        if out.json {
            out.document(&report)?;
            return Ok(Exit::Ok);
        }
        let row = |taken: &Taken| [word(taken.what).into(), taken.name.clone(), size(taken.bytes), taken.why.clone()];
        out.table(["WHAT", "NAME", "SIZE", "WHY"], report.taken.iter().map(row).collect())?;
        out.note(match (report.taken.len(), report.dry_run) {
            (0, _) => "nothing has had its time; [retention] of the configuration says what is kept".into(),
            (count, true) => format!("{count} would be removed, {}; `drydock gc` does it", size(report.bytes)),
            (count, false) => format!("{count} removed, {}", size(report.bytes)),
        });
        Ok(Exit::Ok)
    }
}

fn word(kind: TakenKind) -> &'static str {
    match kind {
        TakenKind::Artifacts => "artifacts",
        TakenKind::Reports => "reports",
        TakenKind::Model => "model",
        TakenKind::Dataset => "dataset",
        TakenKind::File => "file",
    }
}
