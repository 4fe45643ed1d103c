//! `drydock remedies`, `apply` and `remedy`

use drydock_spec::remedy::Meaning;
use drydock_spec::{FailureKind, Remedy};

use super::client::Client;
use super::error::{CliError, Exit};
use super::jobs::Named;
use super::out::Out;
use super::submit::{print_plan, queued};
use super::text::{ago, now_ms, one_line, shorten};
use crate::api::{
    AdviceList, AdviceView, Advise, ApplyRemedy, JoinFingerprints, JoinedFingerprint, PlanView, RemedyList, RemedyView,
    SubmittedView,
};
use crate::diagnose::fingerprint::Fingerprint;
use crate::store::Against;

/// A job that failed.
#[derive(Debug, clap::Args)]
pub(super) struct Remedies {
    #[command(flatten)]
    job: Named,
}

impl Remedies {
    pub(super) async fn print(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let id = self.job.find(client).await?;
        let list: RemedyList = client.get(&["v1", "jobs", &id.to_string(), "remedies"], &[]).await?;
        if out.json {
            out.document(&list)?;
            return Ok(Exit::Ok);
        }
        let row = |one: &RemedyView| {
            [
                format!("{:.0} %", one.sure * 100.0),
                meaning(one.meaning).to_owned(),
                one.remedy.to_string(),
                shorten(&one_line(&one.does), 90),
                shorten(&one_line(&one.evidence), 90),
            ]
        };
        out.table(["SURE", "MEANING", "REMEDY", "WHAT IT DOES", "WHY"], list.remedies.iter().map(row).collect())?;
        for trial in &list.tried {
            let verdict = trial.verdict.map_or("under way".to_owned(), |verdict| format!("{verdict:?}").to_lowercase());
            out.note(format!("tried by {}: {}: {verdict}", trial.job, trial.remedy));
        }
        match list.remedies.first() {
            Some(first) => out.note(format!("apply one with `drydock apply {id} '{}'`", first.remedy)),
            None => out.note("nothing is known that would help and has not been tried"),
        }
        Ok(Exit::Ok)
    }
}

/// Whether a job still does the same, in a word.
pub(super) fn meaning(meaning: Meaning) -> &'static str {
    match meaning {
        Meaning::Same => "same",
        Meaning::Close => "close",
        Meaning::Different => "different",
    }
}

/// A job that failed, and what to do about it.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    #[command(flatten)]
    job: Named,
    /// One that `drydock remedies` offers, or any other, such as 'learning_rate * 0.1' [default: the surest on offer]
    #[arg(value_parser = remedy)]
    remedy: Option<Remedy>,
    /// Begin at the beginning, also where a checkpoint could be gone on from
    #[arg(long)]
    anew: bool,
    /// The same key with the same options gives the same job again
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Say what would be done, and queue nothing
    #[arg(long)]
    dry_run: bool,
    /// Follow the job to its end [default: if stderr is a terminal]
    #[arg(long, overrides_with = "no_watch")]
    watch: bool,
    /// Leave as soon as the job is queued
    #[arg(long)]
    no_watch: bool,
}

fn remedy(text: &str) -> Result<Remedy, String> {
    text.parse().map_err(|error| format!("{error}"))
}

impl Apply {
    pub(super) async fn apply(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let id = self.job.find(client).await?.to_string();
        let watch = self.watch || (out.live && !self.no_watch);
        let Self { remedy, anew, idempotency_key, dry_run, .. } = self;
        let asked = ApplyRemedy { remedy, anew, dry_run, idempotency_key };
        let path = ["v1", "jobs", &id, "remedies"];
        if dry_run {
            let plan: PlanView = client.post(&path, &asked).await?;
            return print_plan(&plan, out);
        }
        let submitted: SubmittedView = client.post(&path, &asked).await?;
        queued(client, submitted, watch, out).await
    }
}

/// What people advise.
#[derive(Debug, clap::Args)]
pub(super) struct Advice {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List what people advise (the default)
    List,
    /// Advise a remedy
    Add {
        /// A fingerprint such as v1:3f2a90b1c4d5e6f70819, or a kind of failure such as out_of_memory
        against: String,
        /// Such as 'learning_rate * 0.1', 'limits.memory_mib = 4096' or 'outside: get_access'
        #[arg(value_parser = remedy)]
        remedy: Remedy,
        /// Why it helps
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Take advice back
    Remove {
        /// As listed
        number: i64,
    },
}

impl Advice {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        match self.action.unwrap_or(Action::List) {
            Action::List => list(client, out).await?,
            Action::Add { against, remedy, note } => {
                let advise = Advise { against: parsed(against), remedy, note, by_whom: user() };
                let kept: AdviceView = client.post(&["v1", "remedies"], &advise).await?;
                match out.json {
                    true => out.document(&kept)?,
                    false => out.note(format!("advice {}: {}", kept.number, kept.remedy)),
                }
            }
            Action::Remove { number } => {
                client.delete(&["v1", "remedies", &number.to_string()]).await?;
                out.note(format!("advice {number} is taken back"));
            }
        }
        Ok(Exit::Ok)
    }
}

/// A kind by its name; anything else is a fingerprint, which the gateway knows or does not.
fn parsed(against: String) -> Against {
    match serde_json::from_value::<FailureKind>(against.clone().into()) {
        Ok(kind) => Against::Kind(kind),
        Err(_) => Against::Fingerprint(Fingerprint(against)),
    }
}

/// Who is at the terminal, for those who read the advice.
fn user() -> Option<String> {
    std::env::var("USER").ok().filter(|name| !name.is_empty())
}

async fn list(client: &Client, out: &mut Out) -> Result<(), CliError> {
    let list: AdviceList = client.get(&["v1", "remedies"], &[]).await?;
    if out.json {
        return out.document(&list);
    }
    let now = now_ms();
    let row = |one: &AdviceView| {
        let against = match &one.against {
            Against::Fingerprint(fingerprint) => fingerprint.0.clone(),
            Against::Kind(kind) => kind.label().to_owned(),
        };
        let by = one.origin.as_ref().unwrap_or(&one.by_whom);
        [
            one.number.to_string(),
            against,
            one.remedy.to_string(),
            shorten(&one_line(by), 24),
            ago(one.at_ms, now),
            shorten(&one_line(&one.note), 60),
        ]
    };
    out.table(["NUMBER", "AGAINST", "REMEDY", "BY", "SINCE", "WHY"], list.advice.iter().map(row).collect())?;
    if list.advice.is_empty() {
        out.note("nobody has advised anything yet");
    }
    Ok(())
}

/// Two fingerprints.
#[derive(Debug, clap::Args)]
pub(super) struct Join {
    /// As listed by `drydock failures`
    fingerprint: String,
    /// The one that stands for both from now on; without it the first stands for itself again
    into: Option<String>,
}

impl Join {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<(), CliError> {
        let asked = JoinFingerprints { into: self.into };
        let joined: JoinedFingerprint = client.post(&["v1", "failures", &self.fingerprint, "join"], &asked).await?;
        match out.json {
            true => out.document(&joined)?,
            false if joined.stands_for == joined.fingerprint => {
                out.note(format!("{} stands for itself", joined.fingerprint))
            }
            false => out.note(format!("{} stands for {}", joined.stands_for, joined.fingerprint)),
        }
        Ok(())
    }
}
