//! How a wrong option is reported: its name, its value, what is wrong, and what would be accepted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One option that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{option} = {value}: {problem}; {next}")]
pub struct InvalidOption {
    /// The option's name, as the caller wrote it.
    pub option: String,
    /// The value that was given, as JSON text.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do instead.
    pub next: String,
}

impl InvalidOption {
    pub fn new(
        option: &str,
        value: impl std::fmt::Display,
        problem: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { option: option.to_owned(), value: value.to_string(), problem: problem.into(), next: next.into() }
    }
}

/// Every option that cannot be accepted, so that a caller can mend them all in one go. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct InvalidOptions(pub Vec<InvalidOption>);

/// Collects what is wrong while options are parsed.
#[derive(Debug, Default)]
pub struct Complaints(Vec<InvalidOption>);

impl Complaints {
    /// Records a complaint unless `ok`.
    pub fn require(&mut self, ok: bool, complaint: impl FnOnce() -> InvalidOption) {
        if !ok {
            self.0.push(complaint());
        }
    }

    /// A number must lie in `min..=max`; NaN never does.
    pub fn within<T: PartialOrd + std::fmt::Display>(&mut self, option: &str, value: T, min: T, max: T) {
        if !(value >= min && value <= max) {
            let next = format!("choose a value from {min} to {max}");
            self.0.push(InvalidOption::new(option, value, "out of range", next));
        }
    }

    /// A name must not be empty.
    pub fn named(&mut self, option: &str, value: &str, next: &str) {
        self.require(!value.trim().is_empty(), || InvalidOption::new(option, "\"\"", "missing", next));
    }

    /// The end of parsing: `value`, unless something was complained about.
    pub fn into_result<T>(self, value: T) -> Result<T, InvalidOptions> {
        if self.0.is_empty() { Ok(value) } else { Err(InvalidOptions(self.0)) }
    }
}
