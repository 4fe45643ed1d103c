//! `drydock watch`: a job's progress as it happens.

use std::time::Duration;

use drydock_spec::{JobEvent, JobId, Report, Stage};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::Client;
use super::error::{CliError, Exit};
use super::follow::{Follow, News};
use super::out::Out;
use super::text::{clean, one_line, shorten, span};
use super::{describe, jobs};
use crate::api::{EntryView, JobView, LogLineView};

/// While a job waits, nothing is streamed; the reason for its waiting is asked for so often.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Shows the job's progress until it ends; the exit code tells how it ended. An interrupt ends the watching only.
pub(super) async fn watch(client: &Client, id: JobId, out: &mut Out) -> Result<Exit, CliError> {
    let mut interrupts = interrupts()?;
    let job = client.job(id).await?;
    let mut screen = Screen::new(out, &job);
    let interrupted = follow(client, &job, &mut interrupts, &mut screen, out).await;
    screen.clear();
    if interrupted? {
        return Ok(detached(id, out));
    }
    let job = client.job(id).await?;
    if out.json {
        out.json_line(&serde_json::json!({ "job": job }))?;
    } else {
        conclude(&job, out)?;
    }
    Ok(Exit::of(&job))
}

/// From here on, Ctrl-C ends no process but comes as a signal to wait for.
pub(super) fn interrupts() -> Result<Signal, CliError> {
    signal(SignalKind::interrupt()).map_err(CliError::io("signals"))
}

/// Says that the job goes on, and how to come back to it.
pub(super) fn detached(id: JobId, out: &mut Out) -> Exit {
    out.note(format!("the job goes on; come back with `drydock watch {id}`, end it with `drydock cancel {id}`"));
    Exit::Interrupted
}

/// Shows what comes until the job ends (false) or the person in front of it has seen enough (true).
async fn follow(
    client: &Client,
    job: &JobView,
    interrupts: &mut Signal,
    screen: &mut Screen,
    out: &mut Out,
) -> Result<bool, CliError> {
    let mut follow = Follow::new(client, job.id, 0);
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            news = follow.next() => match news? {
                Some(News::Line(line)) if out.json => out.json_line(&line)?,
                Some(News::Line(line)) => screen.show(&line, out),
                Some(News::Lost(reason)) => screen.say(&format!("connection lost ({reason}); trying again"), out),
                Some(News::Back) => screen.say("connected again", out),
                None => return Ok(false),
            },
            _ = interrupts.recv() => return Ok(true),
            _ = look_again.tick(), if screen.waits() => {
                // The stream tells when the gateway is away; this is only about the reason for waiting.
                if let Ok(job) = client.job(job.id).await {
                    screen.wait(&job);
                }
            }
        }
    }
}

/// The end of the story, for people.
fn conclude(job: &JobView, out: &mut Out) -> Result<(), CliError> {
    out.line(format!("{} {}", job.id, jobs::standing(job)))?;
    jobs::print_findings(job, out)?;
    match &job.failure {
        Some(failure) => out.line(format!("  hint: {}", one_line(&failure.hint))),
        None if job.state == "succeeded" => out.line(format!("  artifacts: drydock artifacts {}", job.id)),
        None => Ok(()),
    }
}

/// Where progress is shown: a bar at the bottom of a terminal, otherwise plain lines.
struct Screen {
    bar: Option<ProgressBar>,
    /// The stage under way, and when it began, in milliseconds since 1970.
    stage: Option<(Stage, i64)>,
    waiting: bool,
    /// Fiftieths of the work that plain lines have told of.
    told: u64,
    /// Whether the job trains nothing, so that the parts of its stages are the work.
    counts_parts: bool,
}

impl Screen {
    fn new(out: &mut Out, job: &JobView) -> Self {
        let bar = (out.live && !out.json).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let (waiting, counts_parts) = (job.state == "queued", job.counts_parts());
        let mut screen = Self { bar, stage: None, waiting, told: 0, counts_parts };
        if !out.json {
            screen.say(&format!("{} {}", job.id, one_line(&job.about)), out);
        }
        screen.wait(job);
        screen
    }

    fn waits(&self) -> bool {
        self.waiting && self.bar.is_some()
    }

    /// Shows why a job does not run yet.
    fn wait(&mut self, job: &JobView) {
        if let Some(bar) = &self.bar
            && self.waiting
        {
            bar.set_message(shorten(&one_line(&job.summary), 100));
        }
    }

    /// A line that stays.
    fn say(&mut self, text: &str, out: &mut Out) {
        match &self.bar {
            Some(bar) => bar.println(clean(text)),
            None => out.note(text),
        }
    }

    fn show(&mut self, line: &LogLineView, out: &mut Out) {
        match &line.entry {
            EntryView::Event(event) => {
                self.end_stage(line.at_ms, out);
                self.waiting =
                    matches!(event, JobEvent::Submitted | JobEvent::Ended { .. } | JobEvent::Remedied { .. });
                self.spin(&describe::line(line));
                self.say(&describe::line(line), out);
            }
            EntryView::Report(report) => match &report.line.report {
                Report::Stage { stage } => {
                    self.end_stage(line.at_ms, out);
                    self.stage = Some((*stage, line.at_ms));
                    self.spin(&stage.to_string());
                }
                Report::Metrics(metrics) => {
                    self.fill(metrics.step, metrics.total_steps, &describe::metrics(metrics));
                    self.tell(metrics.step, metrics.total_steps, line, out);
                }
                Report::Progress { stage, done, total } => {
                    self.fill(*done, *total, &stage.to_string());
                    if self.counts_parts {
                        self.tell(*done, *total, line, out);
                    }
                }
                // Every few seconds anew; `drydock show` says what it is now, `drydock logs` what it was.
                Report::Gpus { .. } => {}
                _ => self.say(&describe::line(line), out),
            },
        }
    }

    /// Without a bar, a long job is told in about fifty lines.
    fn tell(&mut self, step: u64, total: u64, line: &LogLineView, out: &mut Out) {
        let share = (step * 50).checked_div(total).unwrap_or(0);
        if self.bar.is_none() && (share != self.told || step == 1 || step == total) {
            self.told = share;
            out.note(describe::line(line));
        }
    }

    fn spin(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_style(style("{spinner} {msg}  {elapsed}"));
            bar.reset_elapsed();
            bar.set_message(text.to_owned());
        }
    }

    fn fill(&mut self, done: u64, total: u64, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_style(style("{spinner} {bar:24} {pos}/{len}  {msg}"));
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(text.to_owned());
        }
    }

    /// By the job's own clock: lines of the past come all at once.
    fn end_stage(&mut self, at_ms: i64, out: &mut Out) {
        if let Some((stage, since_ms)) = self.stage.take() {
            let took = Duration::from_millis((at_ms - since_ms).max(0).unsigned_abs());
            self.say(&format!("{stage} took {}", span(took)), out);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("=> ")
        .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}
