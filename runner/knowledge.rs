//! What an installation has learnt about failures, as a file for another one.
//!
//! The file is JSON lines: first who speaks, then a line for every failure that was seen, and for every remedy that was
//! tried against one, was learnt, or is advised. Nothing in it names a person, a host, a model or a dataset
//! ([`crate::redact`]). Whoever reads it takes it as advice: it is weighed beside the reader's own experience, and
//! decides nothing.

use std::fmt;

use drydock_spec::{FailureKind, Remedy, Stage};
use serde::{Deserialize, Serialize};

use crate::diagnose::fingerprint::Fingerprint;
use crate::store::Against;

mod read;
mod write;

pub use read::{BadLine, read};
pub use write::{Known, Tried, write};

/// What the first line says that the file is.
const FORMAT: &str = "drydock-knowledge";
const VERSION: u32 = 1;
/// Bytes of a file at most, and of a line.
pub const MOST_BYTES: usize = 8 << 20;
const LONGEST_LINE: usize = 8 << 10;
/// Its media type.
pub const MEDIA_TYPE: &str = "application/x-ndjson";

/// An installation, as others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Eight hex digits, the same in every export.
    pub installation: String,
    /// What its people call it, where they have said.
    pub name: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.installation),
            None => f.write_str(&self.installation),
        }
    }
}

/// Whether an installation may be called so: up to 40 letters, digits, spaces, dots, dashes and underscores.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " ._-".contains(c);
    (1..=40).contains(&name.len()) && name.trim() == name && name.chars().all(allowed)
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    installation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// Any other line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    /// A failure that was seen.
    Failure(SeenFailure),
    /// A remedy, and what is known of it.
    Remedy(KnownRemedy),
}

/// A failure that was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenFailure {
    pub fingerprint: Fingerprint,
    pub kind: FailureKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The message with slots, as far as it may leave.
    pub template: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Attempts that failed so.
    pub count: u64,
}

/// A remedy, and what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownRemedy {
    pub against: Against,
    pub remedy: Remedy,
    /// Where it came from: the word of a [`crate::remedy::Source`].
    pub source: String,
    /// The kind of device that it was tried on, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    pub worked: u64,
    pub tried: u64,
    /// Why it helps, in somebody's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
