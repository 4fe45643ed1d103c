//! What was found, for people to look at, and what of it is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use drydock::api::JobView;
use drydock::diagnose::template::Template;
use drydock::store::KeptFailure;
use drydock_spec::FailureKind;

use crate::case::Case;

/// How one job of a case ended.
pub(crate) struct Finding {
    pub(crate) case: Case,
    /// What the gateway has kept of its failure.
    pub(crate) kept: Option<KeptFailure>,
    pub(crate) view: JobView,
}

#[derive(Default)]
pub(crate) struct Table(Vec<Finding>);

impl Table {
    pub(crate) fn extend(&mut self, findings: Vec<Finding>) {
        self.0.extend(findings);
    }

    /// A line for each finding.
    pub(crate) fn print(&self) {
        let mut text = String::new();
        for Finding { case, kept, view } in &self.0 {
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
            self.0.iter().filter_map(|finding| Some(&finding.kept.as_ref()?.fingerprint)).collect();
        text.push_str(&format!("{} jobs failed, in {} different ways\n", self.0.len(), prints.len()));
        // Past the harness's capture, so that it is there when something goes wrong as well.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    /// What is not as it should be, in words.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes: Vec<String> = self.0.iter().filter_map(mistake).collect();
        let mut known: BTreeMap<&str, &str> = BTreeMap::new();
        let mut prints: BTreeMap<&str, &str> = BTreeMap::new();
        for Finding { case, kept, .. } in &self.0 {
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

/// What is wrong with what was found of one job.
fn mistake(Finding { case, kept, view }: &Finding) -> Option<String> {
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
