//! What makes two failures the same one.
//!
//! A fingerprint is made of what was the matter and where: the kind, the stage, the message without what it is about
//! ([`Template`]), and, of a worker that died without a word, how it ended and what it printed last. It carries the
//! version of the rules that it was made by. What it was made of is kept beside it, so that other rules can make
//! another one of it later, and fingerprints that turn out to be the same can be joined.

use std::fmt;

use drydock_spec::{Failure, FailureKind, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::signs::Traces;
use super::template::Template;

/// Of the rules below. Another one whenever they change.
const VERSION: &str = "v1";
/// Bytes of the digest that are kept: two of a million failures meet by chance once in ten million installations.
const BYTES: usize = 10;

/// Such as `v1:3f2a90b1c4d5e6f70819`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a fingerprint is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub kind: FailureKind,
    pub stage: Option<Stage>,
    /// The exit code of a worker that did not say why it ended.
    pub exit: Option<i64>,
    pub root: Template,
    /// The place in the worker, where what it printed tells.
    pub frame: Option<String>,
}

/// Who says why an attempt failed.
#[derive(Debug, Clone, Copy)]
pub enum Witness<'a> {
    /// The worker in a report, or drydock itself: the message says it all.
    Message,
    /// Nobody: there is how the worker ended, and what it printed.
    Traces(&'a Traces),
}

impl Signature {
    #[must_use]
    pub fn of(failure: &Failure, witness: Witness<'_>) -> Self {
        let Failure { kind, stage, message, .. } = failure;
        let (exit, found) = match witness {
            Witness::Message => (None, None),
            Witness::Traces(Traces { exit, root, .. }) => (Some(*exit), root.as_ref()),
        };
        let frame = found.and_then(|root| root.frame.clone());
        let root = Template::of(found.map_or(message, |root| &root.message));
        Self { kind: *kind, stage: *stage, exit, root, frame }
    }

    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let Self { kind, stage, exit, root, frame } = self;
        // Where a line was wrapped nobody can tell whether there was a space.
        let gist = root.gist().replace(' ', "");
        let parts = serde_json::to_vec(&(kind, stage, exit, gist, frame)).expect("names, numbers and strings");
        let hex: String = Sha256::digest(parts).iter().take(BYTES).map(|byte| format!("{byte:02x}")).collect();
        Fingerprint(format!("{VERSION}:{hex}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::root;
    use super::*;

    fn of(message: &str) -> Fingerprint {
        let failure = Failure::new(FailureKind::BadDataset, message).at(Stage::Tokenize);
        Signature::of(&failure, Witness::Message).fingerprint()
    }

    #[test]
    fn the_same_failure_of_another_row_is_the_same() {
        assert_eq!(of("row 3 of rows.jsonl: no field `answer`"), of("row 81 of faq.jsonl: no field `output`"));
        assert_ne!(of("row 3 of rows.jsonl: no field `answer`"), of("row 3 of rows.jsonl: not an object"));
    }

    #[test]
    fn kind_stage_and_exit_tell_failures_apart() {
        let failure = |kind, stage| Failure::new(kind, "x").at(stage);
        let print = |failure: &Failure, exit| {
            let traces = Traces { exit, root: None, is_open: true };
            Signature::of(failure, Witness::Traces(&traces)).fingerprint()
        };
        let crash = failure(FailureKind::Crashed, Stage::Train);
        let all = [
            print(&crash, 139),
            print(&crash, 134),
            print(&failure(FailureKind::Crashed, Stage::Load), 139),
            print(&failure(FailureKind::Unexplained, Stage::Train), 139),
        ];
        assert!(all.iter().enumerate().all(|(at, one)| !all[..at].contains(one)), "{all:?}");
    }

    #[test]
    fn a_worker_that_left_without_a_word_is_known_by_what_it_printed() {
        let failure =
            Failure::new(FailureKind::Unexplained, "the worker ended with exit code 1 and without a final report");
        let traces = |output: &str| {
            let traces = Traces { exit: 1, root: root::of_output(output), is_open: true };
            Signature::of(&failure, Witness::Traces(&traces)).fingerprint()
        };
        let one =
            traces("step 1\nTraceback (most recent call last):\n  File \"/a/t.py\", line 3, in f\nKeyError: 'x'\n");
        let same = traces(
            "step 9\nTraceback (most recent call last):\n  File \"/b/t.py\", line 5, in f\nKeyError: 'y'\nbye\n",
        );
        let other = traces("Traceback (most recent call last):\n  File \"/a/t.py\", line 3, in f\nIndexError: 'x'\n");
        assert_eq!(one, same);
        assert_ne!(one, other);
    }

    #[test]
    fn a_fingerprint_names_its_rules_and_stays_what_it_is() {
        // Stored ones would be lost: whoever changes this changes the version as well.
        assert_eq!(of("row 3 of rows.jsonl: not an object").0, "v1:51182c79f979f55b7af2");
    }
}
