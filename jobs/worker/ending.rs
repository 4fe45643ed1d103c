//! How an attempt can end before its work is done.

use std::fmt::Display;

use drydock_spec::{Failure, FailureKind};

/// Why the work stops here.
#[derive(Debug)]
pub enum Ending {
    /// Something is wrong, and this is what.
    Failed(Failure),
    /// The worker was asked to stop.
    Stopped,
}

/// What the parts of an attempt return.
pub type Result<T, E = Ending> = std::result::Result<T, E>;

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Ending {
    /// Says in front of a failure what it is about.
    #[must_use]
    pub fn about(self, what: &str) -> Self {
        match self {
            Self::Failed(failure) => Failure { message: format!("{what}: {}", failure.message), ..failure }.into(),
            Self::Stopped => Self::Stopped,
        }
    }
}

/// candle complains about shapes and types only, all of which are checked before it sees them: a fault of the worker.
impl From<candle_core::Error> for Ending {
    fn from(error: candle_core::Error) -> Self {
        Failure::new(FailureKind::Crashed, format!("a tensor operation failed: {}", first_line(&error))).into()
    }
}

/// A failure of the given kind, as an error.
pub fn failed<T>(kind: FailureKind, message: impl Into<String>) -> Result<T> {
    Err(Failure::new(kind, message).into())
}

/// An input that this kind of job cannot do without.
pub fn input<'a, T>(input: &'a Option<T>, name: &str) -> Result<&'a T> {
    let missing = || Failure::new(FailureKind::ContractBroken, format!("the spec has no `inputs.{name}`"));
    input.as_ref().ok_or_else(|| missing().into())
}

/// Gives an error of another kind the place and kind of failure that it means here.
pub trait OrFail<T> {
    /// `what` says what was attempted; the error's own text follows it.
    fn or_fail(self, kind: FailureKind, what: impl Display) -> Result<T>;
}

impl<T, E: Display> OrFail<T> for std::result::Result<T, E> {
    fn or_fail(self, kind: FailureKind, what: impl Display) -> Result<T> {
        self.map_err(|error| Failure::new(kind, format!("{what}: {}", first_line(&error))).into())
    }
}

/// candle's errors carry a backtrace below their message where one is asked for; that belongs into a log.
fn first_line(error: &impl Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// What a failed write means: a full disk, or a fault that nobody foresaw.
pub fn write_failed(path: &std::path::Path, error: &std::io::Error) -> Ending {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FailureKind::DiskFull,
        _ => FailureKind::Crashed,
    };
    Failure::new(kind, format!("cannot write {}: {error}", path.display())).into()
}
