//! From what is known here to the lines of a file.

use std::collections::BTreeMap;

use drydock_spec::Remedy;
use serde::Serialize;

use super::{FORMAT, Header, KnownRemedy, LONGEST_LINE, Line, MOST_BYTES, Origin, SeenFailure, VERSION};
use crate::diagnose::fingerprint::Fingerprint;
use crate::redact::{Redactor, device_class, is_impersonal};
use crate::remedy::Source;
use crate::remedy::learned::Learned;
use crate::remedy::rank::Count;
use crate::store::{Advice, Against, FailureGroup};

/// Everything that an installation knows about failures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    pub failures: Vec<FailureGroup>,
    pub tried: Vec<Tried>,
    /// What jobs that followed failed ones have taught, by the failure.
    pub learned: Vec<(Fingerprint, Learned)>,
    pub advice: Vec<Advice>,
}

/// How a remedy did against a failure on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    pub fingerprint: Fingerprint,
    pub device: String,
    pub remedy: Remedy,
    /// Where it came from, at least once.
    pub source: Source,
    pub count: Count,
}

/// The file. Without `notes`, people's reasons for their advice are left out: they are free text, in which no rule finds
/// every name.
#[must_use]
pub fn write(origin: &Origin, known: &Known, redactor: &Redactor, notes: bool) -> String {
    let Origin { installation, name } = origin.clone();
    let header = Header { format: FORMAT.to_owned(), version: VERSION, installation, name };
    let mut file = String::new();
    push(&mut file, &header);
    known.failures.iter().for_each(|group| push(&mut file, &Line::Failure(seen(group, redactor))));
    for remedy in remedies(known, redactor, notes) {
        push(&mut file, &Line::Remedy(remedy));
    }
    file
}

/// Adds a line, unless it or the file would be larger than a reader takes.
fn push(file: &mut String, line: &impl Serialize) {
    // Plain data always serializes.
    let Ok(text) = serde_json::to_string(line) else { return };
    if text.len() <= LONGEST_LINE && file.len() + text.len() < MOST_BYTES {
        file.push_str(&text);
        file.push('\n');
    }
}

fn seen(group: &FailureGroup, redactor: &Redactor) -> SeenFailure {
    let signature = &group.newest.record.signature;
    // What stood in a slot may stand elsewhere in the same message without the marks that made it one.
    let redactor = redactor.knowing(signature.root.slots.iter().map(String::as_str));
    SeenFailure {
        fingerprint: group.newest.fingerprint.clone(),
        kind: group.newest.failure.kind,
        stage: group.newest.failure.stage,
        template: redactor.text(&signature.root.text),
        frame: signature.frame.as_deref().and_then(|frame| redactor.frame(frame)),
        count: group.count,
    }
}

fn remedies(known: &Known, redactor: &Redactor, notes: bool) -> Vec<KnownRemedy> {
    // What was only ever done by remedies has its record among the trials.
    let learned = known.learned.iter().filter(|(_, learned)| !learned.passed.is_empty());
    let learned = learned.map(|(fingerprint, learned)| {
        let Count { worked, tried } = learned.seen.here + learned.seen.elsewhere;
        KnownRemedy {
            against: Against::Fingerprint(fingerprint.clone()),
            remedy: learned.remedy.clone(),
            source: word(&Source::History { jobs: Vec::new() }),
            device: None,
            worked,
            tried,
            note: None,
        }
    });
    // What another installation advises is for that one to hand on.
    let own = known.advice.iter().map(|advice| &advice.advice).filter(|advice| advice.origin.is_none());
    let advised = own.map(|advice| KnownRemedy {
        against: advice.against.clone(),
        remedy: advice.remedy.clone(),
        source: word(&Source::Person { name: String::new(), note: String::new() }),
        device: None,
        worked: 0,
        tried: 0,
        note: (notes && !advice.note.is_empty()).then(|| redactor.text(&advice.note)),
    });
    tried(&known.tried).chain(learned).chain(advised).filter(|one| is_impersonal(&one.remedy)).collect()
}

/// What was tried, devices of a kind together.
fn tried(all: &[Tried]) -> impl Iterator<Item = KnownRemedy> {
    let mut kinds: BTreeMap<(&str, String, &str), KnownRemedy> = BTreeMap::new();
    for Tried { fingerprint, device, remedy, source, count } in all {
        let device = device_class(device);
        let one = kinds.entry((&fingerprint.0, remedy.to_string(), device)).or_insert_with(|| KnownRemedy {
            against: Against::Fingerprint(fingerprint.clone()),
            remedy: remedy.clone(),
            source: word(source),
            device: Some(device.to_owned()),
            worked: 0,
            tried: 0,
            note: None,
        });
        one.worked += count.worked;
        one.tried += count.tried;
    }
    kinds.into_values()
}

/// The word for where a remedy came from, without what comes with it.
fn word(source: &Source) -> String {
    match source {
        Source::Rule { .. } => "rule",
        Source::Numbers { .. } => "numbers",
        Source::History { .. } => "history",
        Source::Person { .. } => "person",
        Source::Installation { .. } => "installation",
        Source::Similar { .. } => "similar",
        Source::Asked => "asked",
    }
    .to_owned()
}
