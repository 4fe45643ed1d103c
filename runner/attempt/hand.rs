//! Which attempts this process is at work on.
//!
//! A lease runs out by the time of day, which may be set on while an attempt is in good hands. Two at work on the same
//! attempt would do no harm to the account of its job, but to its folder.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use drydock_spec::{Attempt, JobId};

/// The attempts in hand. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct InHand(Arc<Mutex<HashSet<(JobId, Attempt)>>>);

/// An attempt is in hand for as long as this lives.
pub(super) struct Held {
    all: InHand,
    attempt: (JobId, Attempt),
}

impl InHand {
    /// Whether somebody in this process is at work on the attempt.
    #[must_use]
    pub fn has(&self, job: JobId, attempt: Attempt) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(job, attempt))
    }

    /// `None` if it is in hand already.
    pub(super) fn take(&self, job: JobId, attempt: Attempt) -> Option<Held> {
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((job, attempt));
        new.then(|| Held { all: self.clone(), attempt: (job, attempt) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.attempt);
    }
}
