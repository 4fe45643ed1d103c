//! What jobs made.

/// A file that a job made, taken over into the artifact store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Relative to the job's output folder, with `/` between its parts.
    pub path: String,
    /// What the worker says it is, such as `adapter`.
    pub role: Option<String>,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}
