//! How a command ends.

use std::io;
use std::process::ExitCode;

use crate::api::{ErrorBody, ErrorView, JobView};
use crate::config::ConfigError;

/// What the process tells its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Ok = 0,
    Error = 1,
    Usage = 2,
    JobFailed = 3,
    JobCancelled = 4,
    Unreachable = 5,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The exit code for a job that has ended.
    pub(super) fn of(job: &JobView) -> Self {
        match job.state.as_str() {
            "succeeded" => Self::Ok,
            "failed" => Self::JobFailed,
            "cancelled" => Self::JobCancelled,
            _ => Self::Error,
        }
    }
}

/// A command could not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("`{url}` is no address of a gateway: {reason}")]
    BadUrl { url: String, reason: String },
    #[error("no gateway answers at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>),
    #[error("{url} answered with something that is not drydock's: {reason}")]
    Foreign { url: String, reason: String },
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    /// Fact and value, and the next step.
    #[error("{message}")]
    Mistaken { message: String, hint: String },
    /// What was downloaded is not what the job made.
    #[error("{path}: downloaded {found}, expected {expected}")]
    Damaged { path: String, found: String, expected: String },
    /// Whoever read our output has had enough.
    #[error("the output was closed")]
    OutputClosed,
    #[error(transparent)]
    Gateway(#[from] anyhow::Error),
}

impl CliError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }

    pub(super) fn mistaken(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Mistaken { message: message.into(), hint: hint.into() }
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::OutputClosed => Exit::Ok,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::BadUrl { .. } => Exit::Usage,
            Self::Config(_)
            | Self::Refused(_)
            | Self::Foreign { .. }
            | Self::Io { .. }
            | Self::Mistaken { .. }
            | Self::Damaged { .. }
            | Self::Gateway(_) => Exit::Error,
        }
    }

    fn code(&self) -> &str {
        match self {
            Self::Config(_) => "bad_config",
            Self::BadUrl { .. } => "bad_url",
            Self::Unreachable { .. } => "unreachable",
            Self::Refused(body) => &body.code,
            Self::Foreign { .. } => "foreign_answer",
            Self::Io { .. } => "io",
            Self::Mistaken { .. } => "mistaken",
            Self::Damaged { .. } => "damaged",
            Self::OutputClosed => "output_closed",
            Self::Gateway(_) => "gateway",
        }
    }

    /// The next step, where it is not part of the message.
    fn hint(&self) -> Option<String> {
        match self {
            Self::BadUrl { .. } => Some("write one such as http://127.0.0.1:7717".into()),
            Self::Unreachable { .. } => {
                Some("start it with `drydock serve`, or name another one with --gateway or DRYDOCK_URL".into())
            }
            Self::Refused(body) => body.hint.clone(),
            Self::Foreign { .. } => Some("check --gateway, DRYDOCK_URL and gateway.listen".into()),
            Self::Mistaken { hint, .. } => Some(hint.clone()),
            Self::Damaged { .. } => Some("download it again".into()),
            Self::Config(_) | Self::Io { .. } | Self::OutputClosed | Self::Gateway(_) => None,
        }
    }

    /// The error as a gateway would say it.
    pub(super) fn view(&self) -> ErrorView {
        let message = match self {
            Self::Gateway(error) => format!("{error:#}"),
            other => other.to_string(),
        };
        let options = match self {
            Self::Refused(body) => body.options.clone(),
            _ => Vec::new(),
        };
        ErrorView { error: ErrorBody { code: self.code().to_owned(), message, hint: self.hint(), options } }
    }
}
