//! The states of a job, and the only way from one to the next.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::failure::Failure;
use crate::id::Attempt;
use crate::remedy::Remedy;

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// Waits for attempt `next` to be claimed.
    Queued { next: Attempt },
    /// An attempt is under way.
    Running { attempt: Attempt },
    /// An attempt is under way and has been asked to end.
    Stopping { attempt: Attempt },
    /// Nothing will happen any more.
    Done(Outcome),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", content = "failure", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed(Failure),
    Cancelled,
}

/// What drydock does when an attempt fails for a reason of the job's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The job ends, and its remedies wait for somebody to apply one.
    #[default]
    Ask,
    /// Another attempt is made with the best remedy that leaves the meaning of the job the same.
    Auto,
    /// The job ends, and no remedy is offered or applied.
    Never,
}

impl OnFailure {
    /// Whether it is what happens where nobody says otherwise.
    #[must_use]
    pub fn is_ask(&self) -> bool {
        *self == Self::Ask
    }
}

/// One line of a job's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// The job was accepted.
    Submitted,
    /// An attempt took the job out of the queue.
    Claimed { attempt: Attempt },
    /// A job whose result this one was to read has ended without one.
    InputFailed { failure: Failure },
    /// Somebody wants the job to end.
    CancelRequested,
    /// An attempt is over.
    Ended {
        attempt: Attempt,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// An attempt has failed, and the next one is made with a remedy.
    Remedied {
        attempt: Attempt,
        failure: Failure,
        remedy: Remedy,
        /// What the remedy comes to for this job.
        changes: Vec<Change>,
    },
}

/// The event does not fit the state; nothing changes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("event {event:?} does not apply to a job that is {state:?}")]
pub struct InvalidTransition {
    pub state: Box<JobState>,
    pub event: Box<JobEvent>,
}

impl JobState {
    /// The state of a job that was just submitted.
    pub const NEW: Self = Self::Queued { next: Attempt::FIRST };

    /// The state after `event`. `last` is the last attempt that the job may take.
    ///
    /// A job that succeeded before the kill arrived stays succeeded; any other end of a job that was asked to stop is
    /// a cancellation. A failure of the infrastructure queues the job again while attempts are left.
    pub fn apply(self, event: JobEvent, last: Attempt) -> Result<Self, InvalidTransition> {
        match (self, event) {
            (Self::Queued { next }, JobEvent::Claimed { attempt }) if attempt == next => Ok(Self::Running { attempt }),
            // Nothing was tried yet, so there is nothing to try again.
            (Self::Queued { next: Attempt::FIRST }, JobEvent::InputFailed { failure }) => {
                Ok(Self::Done(Outcome::Failed(failure)))
            }
            (Self::Queued { .. }, JobEvent::CancelRequested) => Ok(Self::Done(Outcome::Cancelled)),
            (Self::Running { attempt }, JobEvent::CancelRequested) => Ok(Self::Stopping { attempt }),
            (Self::Running { attempt }, JobEvent::Ended { attempt: ended, outcome }) if attempt == ended => {
                match outcome {
                    Outcome::Failed(failure) if failure.kind.retryable() && attempt < last => {
                        Ok(Self::Queued { next: attempt.next() })
                    }
                    // Nobody asked for it: an attempt cannot cancel its own job.
                    Outcome::Cancelled => Err(InvalidTransition {
                        state: Box::new(Self::Running { attempt }),
                        event: Box::new(JobEvent::Ended { attempt: ended, outcome: Outcome::Cancelled }),
                    }),
                    outcome => Ok(Self::Done(outcome)),
                }
            }
            (Self::Running { attempt }, JobEvent::Remedied { attempt: ended, .. })
                if attempt == ended && attempt < last =>
            {
                Ok(Self::Queued { next: attempt.next() })
            }
            (Self::Stopping { attempt }, JobEvent::Ended { attempt: ended, outcome }) if attempt == ended => {
                match outcome {
                    Outcome::Succeeded => Ok(Self::Done(Outcome::Succeeded)),
                    Outcome::Failed(_) | Outcome::Cancelled => Ok(Self::Done(Outcome::Cancelled)),
                }
            }
            (state, event) => Err(InvalidTransition { state: Box::new(state), event: Box::new(event) }),
        }
    }

    /// The state that a job's whole history, [`JobEvent::Submitted`] first, leads to.
    pub fn fold(events: impl IntoIterator<Item = JobEvent>, last: Attempt) -> Result<Self, InvalidTransition> {
        let mut events = events.into_iter();
        match events.next() {
            Some(JobEvent::Submitted) => events.try_fold(Self::NEW, |state, event| state.apply(event, last)),
            other => Err(InvalidTransition {
                state: Box::new(Self::NEW),
                event: Box::new(other.unwrap_or(JobEvent::Submitted)),
            }),
        }
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// The one word that tables and filters use: queued, running, stopping, succeeded, failed or cancelled.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Done(Outcome::Succeeded) => "succeeded",
            Self::Done(Outcome::Failed(_)) => "failed",
            Self::Done(Outcome::Cancelled) => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::failure::FailureKind;

    const LAST: Attempt = Attempt(3);

    fn failed(kind: FailureKind) -> Outcome {
        Outcome::Failed(Failure::new(kind, "x"))
    }

    fn ended(attempt: u32, outcome: Outcome) -> JobEvent {
        JobEvent::Ended { attempt: Attempt(attempt), outcome }
    }

    fn remedied(attempt: u32) -> JobEvent {
        let failure = Failure::new(FailureKind::OutOfMemory, "m");
        JobEvent::Remedied { attempt: Attempt(attempt), failure, remedy: Remedy::TryAgain, changes: Vec::new() }
    }

    #[test]
    fn a_remedy_gives_a_job_another_attempt_while_some_are_left_and_nobody_wants_it_to_end() {
        let running = |attempt| JobState::Running { attempt: Attempt(attempt) };
        assert_eq!(running(1).apply(remedied(1), LAST).unwrap(), JobState::Queued { next: Attempt(2) });
        assert!(running(3).apply(remedied(3), LAST).is_err(), "none is left");
        assert!(running(2).apply(remedied(1), LAST).is_err(), "it is of another attempt");
        assert!(JobState::Stopping { attempt: Attempt(1) }.apply(remedied(1), LAST).is_err());
    }

    #[test]
    fn a_stale_attempt_cannot_end_a_job() {
        let second = JobState::Running { attempt: Attempt(2) };
        assert!(second.apply(ended(1, Outcome::Succeeded), LAST).is_err());
    }

    #[test]
    fn success_before_the_kill_stays_success() {
        let stopping = JobState::Stopping { attempt: Attempt(1) };
        let done = stopping.apply(ended(1, Outcome::Succeeded), LAST).unwrap();
        assert_eq!(done, JobState::Done(Outcome::Succeeded));
    }

    #[test]
    fn an_infrastructure_failure_while_stopping_is_a_cancellation() {
        let stopping = JobState::Stopping { attempt: Attempt(1) };
        let done = stopping.apply(ended(1, failed(FailureKind::EngineLost)), LAST).unwrap();
        assert_eq!(done, JobState::Done(Outcome::Cancelled));
    }

    #[test]
    fn only_infrastructure_failures_are_tried_again_and_only_while_attempts_are_left() {
        for kind in FailureKind::ALL {
            let next = JobState::Running { attempt: Attempt(1) }.apply(ended(1, failed(kind)), LAST).unwrap();
            assert_eq!(next == JobState::Queued { next: Attempt(2) }, kind.retryable(), "{kind:?}");
            let last = JobState::Running { attempt: LAST }.apply(ended(3, failed(kind)), LAST).unwrap();
            assert!(last.is_done(), "{kind:?}");
        }
    }

    #[test]
    fn nobody_is_cancelled_unasked() {
        assert!(JobState::Running { attempt: LAST }.apply(ended(3, Outcome::Cancelled), LAST).is_err());
    }

    #[test]
    fn only_a_job_that_was_never_tried_can_lose_its_input() {
        let lost = || JobEvent::InputFailed { failure: Failure::new(FailureKind::InputFailed, "m") };
        assert!(JobState::NEW.apply(lost(), LAST).unwrap().is_done());
        assert!(JobState::Queued { next: LAST }.apply(lost(), LAST).is_err());
        assert!(JobState::Running { attempt: Attempt(1) }.apply(lost(), LAST).is_err());
    }

    fn any_event() -> impl Strategy<Value = JobEvent> {
        let outcome = prop_oneof![
            Just(Outcome::Succeeded),
            Just(Outcome::Cancelled),
            proptest::sample::select(FailureKind::ALL.to_vec()).prop_map(failed),
        ];
        prop_oneof![
            Just(JobEvent::Submitted),
            (1..5u32).prop_map(|attempt| JobEvent::Claimed { attempt: Attempt(attempt) }),
            Just(JobEvent::CancelRequested),
            Just(JobEvent::InputFailed { failure: Failure::new(FailureKind::InputFailed, "m") }),
            (1..5u32, outcome).prop_map(|(attempt, outcome)| ended(attempt, outcome)),
            (1..5u32).prop_map(remedied),
        ]
    }

    proptest! {
        #[test]
        fn what_is_done_stays_done(events in proptest::collection::vec(any_event(), 0..40)) {
            let mut state = JobState::NEW;
            let mut claims = Vec::new();
            for event in events {
                let claimed = matches!(event, JobEvent::Claimed { .. });
                match state.clone().apply(event, LAST) {
                    Ok(next) => {
                        prop_assert!(!state.is_done());
                        if let (true, JobState::Running { attempt }) = (claimed, &next) {
                            claims.push(attempt.0);
                        }
                        state = next;
                    }
                    Err(refused) => prop_assert_eq!(*refused.state, state.clone()),
                }
            }
            // Attempts are claimed in order, each once, and never more than allowed.
            prop_assert_eq!(claims.clone(), (1..=claims.len() as u32).collect::<Vec<_>>());
            prop_assert!(claims.len() as u32 <= LAST.0);
        }

        #[test]
        fn an_event_survives_json(event in any_event()) {
            let json = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(serde_json::from_str::<JobEvent>(&json).unwrap(), event);
        }
    }
}
