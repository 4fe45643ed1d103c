//! `drydock explain`

use std::time::Duration;

use serde_json::Value;

use super::client::Client;
use super::error::{CliError, Exit};
use super::jobs::Named;
use super::out::Out;
use super::remedies::meaning;
use super::text::{ago, now_ms, one_line, shorten, size, span};
use crate::api::{Explanation, LastGood, ModelWords, TrialView};

/// Changes that are shown.
const MOST_CHANGES: usize = 6;
/// Longer than a gateway may be told to wait for words.
const WORDS: Duration = Duration::from_secs(330);

/// A job that failed.
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    #[command(flatten)]
    job: Named,
    /// Have the gateway's language model say it in its words as well; see wording.endpoint
    #[arg(long)]
    in_words: bool,
}

impl Explain {
    pub(super) async fn print(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let id = self.job.find(client).await?;
        let path = ["v1", "jobs", &id.to_string(), "failure"];
        let told: Explanation = match self.in_words {
            true => client.get_within(WORDS, &path, &[("words", "true".to_owned())]).await?,
            false => client.get(&path, &[]).await?,
        };
        if out.json {
            out.document(&told)?;
            return Ok(Exit::Ok);
        }
        for line in lines(&told, now_ms()) {
            out.line(line)?;
        }
        match &told.in_words {
            Some(ModelWords::Said { model, text }) => {
                out.line(format!("in words  {} (says {}, a language model)", one_line(text), one_line(model)))?;
            }
            Some(ModelWords::Silent { note }) => out.note(format!("no words: {note}")),
            None => {}
        }
        Ok(Exit::Ok)
    }
}

fn lines(told: &Explanation, now_ms: i64) -> Vec<String> {
    let Explanation { failure, evidence, .. } = told;
    let at = failure.stage.map(|stage| format!(" at stage {stage}")).unwrap_or_default();
    let mut lines = vec![
        format!("attempt {} of {} failed{at}, {}", told.attempt, told.job, ago(told.at_ms, now_ms)),
        format!("what      {}: {}", failure.kind, one_line(&failure.message)),
    ];
    let mut facts = Vec::new();
    if let Some(code) = evidence.exit_code {
        facts.push(format!("exit code {code}"));
    }
    if evidence.oom_killed {
        facts.push("killed by the kernel for memory".into());
    }
    if evidence.outage {
        facts.push("the engine was restarted meanwhile".into());
    }
    if let Some(bytes) = evidence.peak_rss_bytes {
        facts.push(format!("{} of memory at its last report", size(bytes)));
    }
    if let Some(metrics) = &evidence.metrics {
        facts.push(format!("step {} of {}, loss {:.4}", metrics.step, metrics.total_steps, metrics.loss));
    }
    facts.push(format!("after {}", span(Duration::from_millis(evidence.elapsed_ms.unsigned_abs()))));
    lines.push(format!("facts     {}", facts.join(", ")));
    if let Some(frame) = &told.frame {
        lines.push(format!("where     {}", one_line(frame)));
    }
    lines.push(seen(told));
    lines.extend(told.last_good.as_ref().map(changed));
    if let Some(similar) = told.similar.first() {
        let said = shorten(&one_line(&similar.message), 70);
        lines.push(format!("like      {}: {said} ({})", similar.kind, similar.fingerprint));
    }
    let tried: Vec<_> = told.tried.iter().filter(|trial| trial.verdict.is_some()).take(3).map(tried).collect();
    if !tried.is_empty() {
        lines.push(format!("tried     {}", tried.join("; ")));
    }
    match told.remedies.first() {
        None => lines.push(format!("to do     {}", one_line(&failure.hint))),
        Some(best) => {
            lines.push(format!("to do     {}", one_line(&best.does)));
            lines.push(format!(
                "how sure  {:.0} %: {}; meaning: {}",
                best.sure * 100.0,
                one_line(&best.evidence),
                meaning(best.meaning)
            ));
        }
    }
    lines
}

/// How often the failure was seen, here and elsewhere.
fn seen(told: &Explanation) -> String {
    let here = match told.seen {
        1 => "seen      for the first time".to_owned(),
        times => format!("seen      {times} times, by {} jobs ({})", told.seen_by_jobs, told.fingerprint),
    };
    let elsewhere = told.seen_elsewhere.iter().take(3);
    let elsewhere = elsewhere.map(|one| format!("; {} times at {}", one.count, one_line(&one.installation)));
    std::iter::once(here).chain(elsewhere).collect()
}

/// A remedy that was tried, and what became of it.
fn tried(trial: &TrialView) -> String {
    let verdict = trial.verdict.map(|verdict| format!("{verdict:?}").to_lowercase()).unwrap_or_default();
    format!("{} ({verdict})", one_line(&trial.remedy.to_string()))
}

/// What is different from the job that went well.
fn changed(good: &LastGood) -> String {
    let on = match (good.same_model, good.same_dataset) {
        (true, true) => "on the same model and rows",
        (true, false) => "on the same model",
        (false, true) => "on the same rows",
        (false, false) => "on another model and other rows",
    };
    let word = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        value => shorten(&one_line(&value.to_string()), 30),
    };
    let mut changes: Vec<_> = good
        .changes
        .iter()
        .take(MOST_CHANGES)
        .map(|change| format!("{} {} instead of {}", one_line(&change.name), word(&change.now), word(&change.before)))
        .collect();
    if good.changes.len() > MOST_CHANGES {
        changes.push(format!("and {} more", good.changes.len() - MOST_CHANGES));
    }
    let changes = if changes.is_empty() { "nothing".to_owned() } else { changes.join("; ") };
    format!("changed   since {}, which succeeded {on}: {changes}", good.job)
}
