//! `drydock jobs`, `show`, `watch` and `cancel`; and how a job is named.

use std::time::Duration;

use drydock_spec::{JobId, report::Phase};

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::{ago, now_ms, one_line, shorten, size, span};
use super::{describe, watch};
use crate::api::{JobList, JobView};
use crate::scores;

/// Which jobs.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only jobs in these states: queued, running, stopping, succeeded, failed, cancelled
    #[arg(long, value_delimiter = ',', value_name = "STATES",
          value_parser = ["queued", "running", "stopping", "succeeded", "failed", "cancelled"])]
    state: Vec<String>,
    /// Jobs at most
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only jobs that were submitted before this one
    #[arg(long, value_name = "JOB")]
    before: Option<JobId>,
}

/// A job.
#[derive(Debug, clap::Args)]
pub(super) struct One {
    #[command(flatten)]
    job: Named,
}

/// A job, as people name it.
#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// A job's id, the first or last characters of one, or `last` for the newest
    #[arg(value_name = "JOB")]
    name: String,
}

/// Jobs asked for at a time while a name is looked up.
const PAGE: u32 = 100;
/// Jobs looked through for an abbreviated name; older ones are named in full.
const PAGES: usize = 10;

impl List {
    pub(super) async fn print(&self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend((!self.state.is_empty()).then(|| ("state", self.state.join(","))));
        query.extend(self.before.map(|id| ("before", id.to_string())));
        let list: JobList = client.get(&["v1", "jobs"], &query).await?;
        if out.json {
            out.document(&list)?;
            return Ok(Exit::Ok);
        }
        let now = now_ms();
        let rows = list.jobs.iter().map(|job| row(job, now)).collect();
        out.table(["ID", "STATE", "JOB", "SUBMITTED", "SUMMARY"], rows)?;
        if let Some(next) = list.next {
            out.note(format!("there are more: drydock jobs --before {next}"));
        }
        Ok(Exit::Ok)
    }
}

fn row(job: &JobView, now_ms: i64) -> [String; 5] {
    [
        job.id.to_string(),
        job.state.clone(),
        shorten(&job.about, 70),
        ago(job.submitted_ms, now_ms),
        shorten(&one_line(&job.summary), 90),
    ]
}

impl One {
    pub(super) async fn show(&self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let job = client.job(self.job.find(client).await?).await?;
        if out.json {
            out.document(&job)?
        } else {
            print(&job, out)?
        }
        Ok(Exit::Ok)
    }

    pub(super) async fn watch(&self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        watch::watch(client, self.job.find(client).await?, out).await
    }

    pub(super) async fn cancel(&self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let id = self.job.find(client).await?;
        let nothing = serde_json::Map::new();
        let job: JobView = client.post(&["v1", "jobs", &id.to_string(), "cancel"], &nothing).await?;
        if out.json {
            out.document(&job)?
        } else {
            out.line(format!("{id} {}", standing(&job)))?
        }
        Ok(Exit::Ok)
    }
}

impl Named {
    /// The id of the one job that is meant.
    pub(super) async fn find(&self, client: &Client) -> Result<JobId, CliError> {
        let name = self.name.to_uppercase();
        if let Ok(id) = name.parse() {
            return Ok(id);
        }
        let newest = name == "LAST";
        let mut query = vec![("limit", if newest { 1 } else { PAGE }.to_string())];
        let mut found = Vec::new();
        for _ in 0..PAGES {
            let page: JobList = client.get(&["v1", "jobs"], &query).await?;
            let meant = |id: &String| newest || id.starts_with(&name) || id.ends_with(&name);
            found.extend(page.jobs.iter().map(|job| job.id.to_string()).filter(meant));
            query.truncate(1);
            match page.next {
                Some(next) if !newest => query.push(("before", next.to_string())),
                _ => break,
            }
        }
        match found.as_slice() {
            [one] => one.parse().map_err(|_| not_found(&self.name)),
            [] => Err(not_found(&self.name)),
            several => Err(CliError::mistaken(
                format!("`{}` is the beginning or end of {} jobs: {}", self.name, several.len(), several.join(", ")),
                "give more characters of the id",
            )),
        }
    }
}

fn not_found(name: &str) -> CliError {
    CliError::mistaken(format!("no job `{name}`"), "`drydock jobs` lists the jobs there are")
}

/// The state and the summary, which often begins with it.
pub(super) fn standing(job: &JobView) -> String {
    let summary = one_line(&job.summary);
    if summary.starts_with(&job.state) { summary } else { format!("{}: {summary}", job.state) }
}

fn print(job: &JobView, out: &mut Out) -> Result<(), CliError> {
    let now = now_ms();
    out.line(format!("{} {}", job.id, job.state))?;
    out.line(format!("  {}", one_line(&job.summary)))?;
    out.line(format!("  {}", one_line(&job.about)))?;
    let mut times = format!("submitted {}", ago(job.submitted_ms, now));
    if let Some(started) = job.started_ms {
        let took = Duration::from_millis((job.ended_ms.unwrap_or(now) - started).max(0).unsigned_abs());
        let verb = if job.ended_ms.is_some() { "ran for" } else { "running for" };
        times.push_str(&format!(", {verb} {}", span(took)));
    }
    out.line(format!("  {times}; attempt {} of at most {}", job.attempt, job.max_attempts))?;
    if let Some(from) = &job.resumed_from {
        out.line(format!("  it went on from step {} of attempt {}", from.step, from.attempt))?;
    }
    if let Some(metrics) = job.progress.as_ref().and_then(|progress| progress.metrics.as_ref()) {
        let (step, total) = (metrics.step, metrics.total_steps);
        out.line(format!("  step {step}/{total}  {}", describe::metrics(metrics)))?;
        out.line(format!("  memory {}", size(metrics.rss_bytes)))?;
    }
    for reading in job.progress.iter().flat_map(|progress| &progress.gpus) {
        out.line(format!("  {}", describe::gpu(reading)))?;
    }
    if let Some(checkpoint) = job.progress.as_ref().and_then(|progress| progress.checkpoint.as_ref()) {
        out.line(format!("  checkpoint after step {}, {}", checkpoint.step, size(checkpoint.bytes)))?;
    }
    print_findings(job, out)?;
    for warning in &job.warnings {
        out.line(format!("  warning: {}", one_line(warning)))?;
    }
    if let Some(failure) = &job.failure {
        out.line(format!("  hint: {}", one_line(&failure.hint)))?;
    }
    out.line(format!("  trace id {}", job.trace_id))
}

/// What the job has found out: losses and answers before and after training, what became of weights, scores.
pub(super) fn print_findings(job: &JobView, out: &mut Out) -> Result<(), CliError> {
    for evaluation in &job.evaluations {
        let phase = describe::phase(evaluation.phase, evaluation.step);
        out.line(format!(
            "  held-out loss {phase:15} {:.4} (perplexity {:.2})",
            evaluation.loss, evaluation.perplexity
        ))?;
    }
    if let Some(made) = &job.quantized {
        out.line(format!("  {}", describe::quantized(made)))?;
    }
    for line in scores::lines(&job.scores) {
        out.line(format!("  {}", one_line(&line)))?;
    }
    let prompts: Vec<_> = job.samples.iter().filter(|sample| sample.phase == Phase::Before).collect();
    for before in prompts {
        out.line(format!("  question: {}", one_line(&before.prompt)))?;
        out.line(format!("    before: {}", one_line(before.completion.trim())))?;
        let after = job.samples.iter().find(|sample| sample.phase == Phase::After && sample.prompt == before.prompt);
        if let Some(after) = after {
            out.line(format!("    after:  {}", one_line(after.completion.trim())))?;
        }
    }
    Ok(())
}
