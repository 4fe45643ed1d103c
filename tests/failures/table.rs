//! What was found, for people to look at, and what of it is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use drydock::api::{JobView, RemedyView};
use drydock::diagnose::template::Template;
use drydock::remedy::Source;
use drydock::remedy::verdict::Verdict;
use drydock::store::KeptFailure;
use drydock_spec::FailureKind;

use crate::case::{Case, Deed};
use crate::mend::Mended;

/// How one job of a case ended.
pub(crate) struct Finding {
    pub(crate) case: Case,
    /// Of its guise.
    pub(crate) number: u32,
    /// What the gateway has kept of its failure.
    pub(crate) kept: Option<KeptFailure>,
    pub(crate) view: JobView,
}

/// What was provoked, and what was mended of it.
#[derive(Default)]
pub(crate) struct Played {
    pub(crate) findings: Vec<Finding>,
    pub(crate) mended: Vec<Mended>,
}

#[derive(Default)]
pub(crate) struct Table(Played);

impl Table {
    pub(crate) fn extend(&mut self, played: Played) {
        self.0.findings.extend(played.findings);
        self.0.mended.extend(played.mended);
    }

    /// A line for each finding, and one for each that was mended.
    pub(crate) fn print(&self) {
        let mut text = String::new();
        for Finding { case, kept, view, .. } in &self.0.findings {
            let line = match kept {
                Some(KeptFailure { failure, fingerprint, record, .. }) => {
                    let stage = failure.stage.map_or_else(|| "-".to_owned(), |stage| stage.to_string());
                    let kind = format!("{:?}", failure.kind);
                    // What the worker printed, where that is what it is known by.
                    let root = &record.signature.root;
                    let printed = if *root == Template::of(&failure.message) { "" } else { &root.text };
                    format!("{:30} {kind:17} {stage:9} {fingerprint} {} {printed}", case.name, failure.message)
                }
                None => format!("{:30} no failure is kept: {}", case.name, view.summary),
            };
            text.push_str(&line);
            text.push('\n');
        }
        let prints: BTreeSet<_> =
            self.0.findings.iter().filter_map(|finding| Some(&finding.kept.as_ref()?.fingerprint)).collect();
        text.push_str(&format!("{} jobs failed, in {} different ways\n\n", self.0.findings.len(), prints.len()));
        text.push_str(&self.mended());
        // Past the harness's capture, so that it is there when something goes wrong as well.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    fn mended(&self) -> String {
        let mut text: String = self.0.mended.iter().map(|mended| line(mended) + "\n").collect();
        let names: BTreeSet<_> = self.0.findings.iter().map(|finding| finding.case.name).collect();
        let by = |place| self.0.mended.iter().filter(|mended| mended.place() == Some(place)).count();
        let all = names.len();
        text.push_str(&format!(
            "{} of {all} failures are mended by the first remedy offered, {} by the second; {} by other options or limits\n",
            by(0),
            by(1),
            self.by_options(),
        ));
        text
    }

    /// How many failures were mended.
    pub(crate) fn count_mended(&self) -> usize {
        self.0.mended.iter().filter(|mended| mended.place().is_some()).count()
    }

    /// How many of them by other options or limits, with nothing done outside the job.
    pub(crate) fn by_options(&self) -> usize {
        let alone = |case: Case| case.mend.is_some_and(|mend| mend.deed == Deed::Nothing);
        let changed = |mended: &&Mended| {
            alone(mended.case) && mended.place().is_some_and(|at| !mended.offered[at].changes.is_empty())
        };
        self.0.mended.iter().filter(changed).count()
    }

    /// What is not as it should be, in words.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes: Vec<String> = self.0.findings.iter().filter_map(mistake).collect();
        mistakes.extend(self.0.mended.iter().filter_map(unmended));
        let mut known: BTreeMap<&str, &str> = BTreeMap::new();
        let mut prints: BTreeMap<&str, &str> = BTreeMap::new();
        for Finding { case, kept, .. } in &self.0.findings {
            let Some(kept) = kept else { continue };
            let print = kept.fingerprint.0.as_str();
            let message = &kept.failure.message;
            if *prints.entry(case.name).or_insert(print) != print {
                mistakes.push(format!("{} is not known again: {print}, {message}", case.name));
            }
            let first = *known.entry(print).or_insert(case.name);
            if first != case.name {
                mistakes.push(format!("{} is taken for {first}: {print}, {message}", case.name));
            }
        }
        mistakes
    }
}

/// A line about what was mended, or was not.
fn line(mended: &Mended) -> String {
    let Mended { case, offered, applied } = mended;
    let Some((at, job, verdict)) = applied else { return format!("{:30} is offered nothing that helps", case.name) };
    let RemedyView { remedy, source, meaning, does, .. } = &offered[*at];
    let source = match source {
        Source::Rule { source } => format!("rule: {source}"),
        Source::Numbers { said } => format!("numbers: {said}"),
        other => format!("{other:?}"),
    };
    let (place, verdict) = (at + 1, verdict.map_or("open".to_owned(), |verdict| format!("{verdict:?}").to_lowercase()));
    format!("{:30} {place} {remedy} | {source} | {meaning:?} | {does} | {verdict}, {}", case.name, job.state)
}

/// What is wrong with what was mended.
fn unmended(mended: &Mended) -> Option<String> {
    let Mended { case, offered, applied } = mended;
    let Some((at, job, verdict)) = applied else {
        let offered: Vec<_> = offered.iter().map(|one| one.remedy.to_string()).collect();
        return Some(format!("{} is to be mended by {:?}, and is offered {offered:?}", case.name, case.mend));
    };
    let remedy = &offered[*at].remedy;
    let worked = job.state == "succeeded" && *verdict == Some(Verdict::Worked);
    (!worked).then(|| format!("{} is not mended by {remedy}: {verdict:?}, {}", case.name, job.summary))
}

/// What is wrong with what was found of one job.
fn mistake(Finding { case, kept, view, .. }: &Finding) -> Option<String> {
    let name = case.name;
    let Some(kept) = kept else { return Some(format!("{name} leaves no failure: {}", view.summary)) };
    let (failure, signature) = (&kept.failure, &kept.record.signature);
    let expected = (case.kind, case.stage);
    if (failure.kind, failure.stage) != expected {
        let found = (failure.kind, failure.stage);
        return Some(format!("{name} is {found:?}, and not {expected:?}: {}", failure.message));
    }
    if view.failure.as_ref() != Some(failure) {
        return Some(format!("{name}: the job says {:?}, and kept is {failure:?}", view.failure));
    }
    // Of what never came to an attempt there are no facts.
    let facts = kept.record.evidence.free_disk_bytes.is_some() || failure.kind == FailureKind::InputFailed;
    if signature.root.text.is_empty() || !facts {
        return Some(format!("{name} has no evidence: {:?}", kept.record));
    }
    None
}
