//! The engine's errors, sorted into what is known after them and what is not.

use std::error::Error as _;
use std::time::Duration;

use bollard::errors::Error;

use crate::sandbox::{ContainerName, SandboxError};

/// What was asked of the engine, for messages.
pub(super) type Action = &'static str;

/// An answer that says nothing about containers is doubt; an answer that refuses is knowledge.
pub(super) fn translate(error: Error, action: Action, limit: Duration) -> SandboxError {
    match error {
        Error::DockerResponseServerError { status_code, message } => refusal(status_code, message, action),
        Error::RequestTimeoutError => SandboxError::TimedOut(limit, action),
        other => SandboxError::Unreachable(with_causes(&other)),
    }
}

/// A question that the engine failed to answer leaves everything as open as one that was never heard.
pub(super) fn unanswered(error: SandboxError) -> SandboxError {
    match error {
        SandboxError::Failed { .. } | SandboxError::NoRoom { .. } => SandboxError::Unreachable(error.to_string()),
        other => other,
    }
}

/// [`translate`] for a call about one container, whose absence has a meaning of its own.
pub(super) fn translate_for(name: &ContainerName, error: Error, action: Action, limit: Duration) -> SandboxError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } if speaks_of_no_container(&message) => {
            SandboxError::NoContainer(name.clone())
        }
        other => translate(other, action, limit),
    }
}

/// Whether the engine answered with this HTTP status.
pub(super) fn is_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// Whether the engine does not know the runtime that it was asked for: `Unknown runtime specified x`, and in newer
/// engines `unknown or invalid runtime name: x`.
pub(super) fn speaks_of_no_runtime(error: &Error) -> bool {
    let Error::DockerResponseServerError { status_code: 400 | 404, message } = error else { return false };
    let message = message.to_ascii_lowercase();
    message.contains("unknown") && message.contains("runtime")
}

fn refusal(status: u16, message: String, action: Action) -> SandboxError {
    if status == 503 || speaks_of_a_lost_runtime(&message) {
        SandboxError::Unreachable(message)
    } else if status >= 500 && speaks_of_a_full_disk(&message) {
        SandboxError::NoRoom { action, message }
    } else if status >= 500 {
        SandboxError::Failed { action, message }
    } else {
        SandboxError::Refused { action, message }
    }
}

fn speaks_of_no_container(message: &str) -> bool {
    message.to_ascii_lowercase().contains("no such container")
}

/// Docker hands containerd's absence on as a plain 500. The container may have been started all the same.
pub(super) fn speaks_of_a_lost_runtime(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["containerd.sock", "transport is closing", "transport: error while dialing", "ttrpc: closed"]
        .iter()
        .any(|sign| message.contains(sign))
}

/// The kernel's words for a full disk, handed on by whoever met it.
pub(super) fn speaks_of_a_full_disk(message: &str) -> bool {
    message.to_ascii_lowercase().contains("no space left on device")
}

/// The client's own message is only the outermost one, such as `client error (Connect)`.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    fn limit() -> Duration {
        Duration::from_secs(3)
    }

    #[test]
    fn a_refusal_leaves_no_doubt_and_silence_does() {
        assert!(!translate(answered(400, "invalid mount config"), "create", limit()).leaves_doubt());
        assert!(translate(Error::RequestTimeoutError, "start", limit()).leaves_doubt());
        assert!(translate(Error::SocketNotFoundError("/nowhere.sock".into()), "ping", limit()).leaves_doubt());
    }

    #[test]
    fn an_engine_that_failed_may_have_done_it_all_the_same() {
        let failed = translate(answered(500, "context canceled"), "start a container", limit());
        assert!(matches!(failed, SandboxError::Failed { .. }) && failed.leaves_doubt(), "{failed}");
        let unanswered = unanswered(translate(answered(500, "oops"), "list containers", limit()));
        assert!(matches!(unanswered, SandboxError::Unreachable(_)), "{unanswered}");
    }

    #[test]
    fn a_lost_runtime_below_the_engine_leaves_doubt() {
        let dialing =
            r#"connection error: desc = "transport: Error while dialing dial unix /run/containerd/containerd.sock""#;
        assert!(translate(answered(500, dialing), "start", limit()).leaves_doubt());
        assert!(translate(answered(503, "the engine is shutting down"), "start", limit()).leaves_doubt());
    }

    #[test]
    fn a_missing_container_is_told_from_another_thing_that_is_missing() {
        let name = ContainerName("drydock-a-1".into());
        let gone = answered(404, "No such container: drydock-a-1");
        assert_eq!(translate_for(&name, gone, "start", limit()), SandboxError::NoContainer(name.clone()));
        let other = answered(404, "network abc not found");
        assert!(matches!(translate_for(&name, other, "start", limit()), SandboxError::Refused { .. }));
    }
}
