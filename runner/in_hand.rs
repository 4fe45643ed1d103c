//! What this process is at work on, as no clock can tell it: attempts, and what lives for a moment and is in no database,
//! such as previews.
//!
//! A lease runs out by the time of day, which may be set on while an attempt is in good hands. Two at work on the same
//! attempt would do no harm to the account of its job, but to its folder. And by its age a container cannot be told from
//! one that was left behind.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use drydock_spec::{Attempt, JobId};

/// What is in hand; a preview is the only attempt of a job of its own. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct InHand(Arc<Mutex<HashSet<(JobId, Attempt)>>>);

/// An attempt is in hand for as long as this lives.
#[derive(Debug)]
pub struct Held {
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
    #[must_use]
    pub fn take(&self, job: JobId, attempt: Attempt) -> Option<Held> {
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((job, attempt));
        new.then(|| Held { all: self.clone(), attempt: (job, attempt) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.attempt);
    }
}
