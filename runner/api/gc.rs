//! What has had its time, as whoever asks for its removal sees it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A wish to have removed what has had its time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GcRequest {
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// What has had its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcReport {
    /// Whether nothing was removed yet.
    pub dry_run: bool,
    pub taken: Vec<Taken>,
    /// Bytes of all of it.
    pub bytes: u64,
}

/// Something that has had its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Taken {
    pub what: TakenKind,
    /// The job's id, or the digest.
    pub name: String,
    pub why: String,
    /// Bytes that it takes; none where others hold the same files.
    pub bytes: u64,
}

/// What kind of thing has had its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TakenKind {
    /// The files that a job made.
    Artifacts,
    /// What a job said on its way.
    Reports,
    /// The folder of a model that no catalogue and no job names.
    Model,
    /// The folder of such a dataset.
    Dataset,
    /// A file of the store.
    File,
}
