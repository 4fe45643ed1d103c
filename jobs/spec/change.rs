//! An option or a limit that has another value than it had.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A value that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Such as `learning_rate` or `limits.memory_mib`.
    pub name: String,
    /// What it was; nothing if it was not there.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub before: Value,
    /// What it is.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub now: Value,
}
