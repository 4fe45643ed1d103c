//! `drydock finetune`, `train`, `quantize` and `evaluate`: one command a kind of job, the same in all but the options.

use drydock_spec::{LimitArgs, OnFailure, Priority};

use super::client::Client;
use super::error::{CliError, Exit};
use super::flags::{Flags, Kind};
use super::out::Out;
use super::text::{count, one_line, size, span};
use super::watch;
use crate::api::{Estimate, PlanView, Submission, SubmittedView};
use crate::plan::forecast::Quantity;

/// The job, and what to do about it.
#[derive(Debug, clap::Args)]
pub(super) struct Submit<T: Kind> {
    #[command(flatten)]
    job: Flags<T>,
    #[command(flatten)]
    limits: Flags<LimitArgs>,
    /// From -10 (whenever there is room) to 10 (before everything else)
    #[arg(long, allow_negative_numbers = true, default_value = "0", value_name = "N", value_parser = priority)]
    priority: Priority,
    /// The same key with the same options gives the same job again
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// What happens when it fails for a reason of its own: it ends and its remedies wait for you, or drydock applies one
    /// that leaves its meaning the same, or none is applied at all [default: as the configuration says]
    #[arg(long, value_name = "WHAT")]
    on_failure: Option<Choice>,
    /// Say what would be done and what it needs, and queue nothing
    #[arg(long)]
    dry_run: bool,
    /// Follow the job to its end [default: if stderr is a terminal]
    #[arg(long, overrides_with = "no_watch")]
    watch: bool,
    /// Leave as soon as the job is queued
    #[arg(long)]
    no_watch: bool,
}

/// [`OnFailure`] as a flag.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Choice {
    Ask,
    Auto,
    Never,
}

impl From<Choice> for OnFailure {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Ask => Self::Ask,
            Choice::Auto => Self::Auto,
            Choice::Never => Self::Never,
        }
    }
}

fn priority(text: &str) -> Result<Priority, String> {
    let value: i8 = text.parse().map_err(|_| "a whole number from -10 to 10 is expected".to_owned())?;
    Priority::new(value).map_err(|error| error.to_string())
}

impl<T: Kind> Submit<T> {
    pub(super) async fn submit(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let watch = self.watch || (out.live && !self.no_watch);
        let submission = Submission {
            job: self.job.0.job(),
            priority: self.priority,
            limits: self.limits.0,
            idempotency_key: self.idempotency_key,
            dry_run: self.dry_run,
            on_failure: self.on_failure.map(Into::into),
        };
        if submission.dry_run {
            let plan: PlanView = client.post(&["v1", "jobs"], &submission).await?;
            return print_plan(&plan, out);
        }
        let submitted: SubmittedView = client.post(&["v1", "jobs"], &submission).await?;
        queued(client, submitted, watch, out).await
    }
}

/// Tells of a job that was accepted, and follows it where that is wanted.
pub(super) async fn queued(
    client: &Client,
    submitted: SubmittedView,
    watch: bool,
    out: &mut Out,
) -> Result<Exit, CliError> {
    let id = submitted.job.id;
    for warning in &submitted.warnings {
        out.note(format!("warning: {}", one_line(warning)));
    }
    match (out.json, watch) {
        (true, true) => out.json_line(&submitted)?,
        (true, false) => out.document(&submitted)?,
        // The id alone on stdout: what scripts want.
        (false, _) => out.line(id.to_string())?,
    }
    if watch {
        return watch::watch(client, id, out).await;
    }
    out.note(match submitted.created {
        true => format!("queued; follow it with `drydock watch {id}`"),
        false => format!("accepted before under this key; it is {}", submitted.job.state),
    });
    Ok(Exit::Ok)
}

/// What each need is made of, the largest part first, and how sure it is.
fn print_needs(estimate: &Estimate, out: &mut Out) -> Result<(), CliError> {
    for (quantity, need) in &estimate.needs {
        let said = |amount: u64| match quantity {
            Quantity::Time => span(std::time::Duration::from_secs(amount.div_ceil(1000))),
            Quantity::Memory | Quantity::GpuMemory | Quantity::Disk => size(amount),
        };
        let name = match quantity {
            Quantity::GpuMemory => "gpu",
            other => other.name(),
        };
        let range = match need.range {
            Some(range) => format!("{} to {} ({})", said(range.low), said(range.high), range.grounds()),
            None => format!("{} (by formula alone)", said(need.expected)),
        };
        out.line(format!("{name:<8} {range}"))?;
        let mut parts: Vec<_> = need.parts.iter().collect();
        parts.sort_by_key(|(part, amount)| (std::cmp::Reverse(**amount), *part));
        for (part, amount) in parts {
            out.line(format!("         {part:<12} {:>11}", said(*amount)))?;
        }
    }
    Ok(())
}

pub(super) fn print_plan(plan: &PlanView, out: &mut Out) -> Result<Exit, CliError> {
    if out.json {
        out.document(plan)?;
        return Ok(Exit::Ok);
    }
    let (limits, estimate) = (&plan.limits, &plan.estimate);
    let time = |ms: i64| span(std::time::Duration::from_millis(ms.unsigned_abs()));
    out.line(one_line(&plan.job.about()))?;
    for job in plan.inputs.awaited() {
        out.line(format!("waits    for job {job} to end"))?;
    }
    out.line(format!(
        "needs    about {} of memory, {} for artifacts, {} to download",
        size(estimate.memory_bytes),
        size(estimate.disk_bytes),
        size(estimate.download_bytes)
    ))?;
    print_needs(estimate, out)?;
    if estimate.trainable_parameters > 0 {
        out.line(format!("trains   {} parameters", count(estimate.trainable_parameters)))?;
    }
    out.line(format!(
        "limits   {} of memory, {:.1} CPUs, {} on disk, {} in all, {} between reports, {} attempts",
        size(limits.memory_bytes),
        f64::from(limits.cpu_millis) / 1e3,
        size(limits.disk_bytes),
        time(limits.time_ms),
        time(limits.silence_ms),
        limits.max_attempts
    ))?;
    if let Some(steps) = plan.total_steps {
        out.line(format!("steps    {}", count(steps)))?;
    }
    for warning in &plan.warnings {
        out.line(format!("warning  {}", one_line(warning)))?;
    }
    if let Some(rows) = &plan.rows {
        super::datasets::print_rows(rows, out)?;
    }
    out.note("nothing was queued; leave out --dry-run to submit it");
    Ok(Exit::Ok)
}
