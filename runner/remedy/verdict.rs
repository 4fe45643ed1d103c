//! Whether a remedy has worked.
//!
//! It has when the attempt passed the step that failed and the failure did not come back in that attempt. An attempt
//! that ended otherwise before it came so far tells nothing.

use drydock_spec::{Outcome, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Worked,
    Failed,
    /// It ended before it could show.
    Unknown,
}

/// How far an attempt came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    pub stage: Option<Stage>,
    /// Optimizer steps taken.
    pub step: Option<u64>,
}

/// What an attempt says of the remedy that it was made with: `failed_at` is where the failure was that it is against,
/// `came_to` how far this attempt came, `came_back` whether it ended with the same failure.
#[must_use]
pub fn verdict(outcome: &Outcome, failed_at: Place, came_to: Place, came_back: bool) -> Verdict {
    match outcome {
        Outcome::Succeeded => Verdict::Worked,
        Outcome::Failed(_) if came_back => Verdict::Failed,
        Outcome::Failed(_) | Outcome::Cancelled if passed(failed_at, came_to) => Verdict::Worked,
        Outcome::Failed(_) | Outcome::Cancelled => Verdict::Unknown,
    }
}

/// Whether an attempt that came to one place was beyond another.
fn passed(failed_at: Place, came_to: Place) -> bool {
    // The step decides where both have one: evaluations come before, between and after steps.
    if let (Some(failed), Some(came)) = (failed_at.step, came_to.step)
        && failed != came
    {
        return came > failed;
    }
    let order = |stage: Option<Stage>| stage.and_then(order);
    order(came_to.stage).zip(order(failed_at.stage)).is_some_and(|(came, failed)| came > failed)
}

/// The order in which an attempt comes to its stages. Evaluations have no place in it.
fn order(stage: Stage) -> Option<u8> {
    Some(match stage {
        Stage::Prepare => 0,
        Stage::Start => 1,
        Stage::Load => 2,
        Stage::Tokenize => 3,
        Stage::Train | Stage::Quantize => 4,
        Stage::Save => 5,
        Stage::Collect => 6,
        Stage::Evaluate => return None,
    })
}

#[cfg(test)]
mod tests {
    use drydock_spec::{Failure, FailureKind};

    use super::*;

    fn at(stage: Stage, step: Option<u64>) -> Place {
        Place { stage: Some(stage), step }
    }

    fn failed() -> Outcome {
        Outcome::Failed(Failure::new(FailureKind::Diverged, "x"))
    }

    #[test]
    fn success_is_proof_and_the_same_failure_is_disproof() {
        let nowhere = Place::default();
        assert_eq!(verdict(&Outcome::Succeeded, nowhere, nowhere, false), Verdict::Worked);
        assert_eq!(verdict(&failed(), at(Stage::Train, Some(3)), at(Stage::Train, Some(30)), true), Verdict::Failed);
    }

    #[test]
    fn another_failure_counts_for_the_remedy_only_beyond_the_step_that_failed() {
        let of = |failed_at, came_to| verdict(&failed(), failed_at, came_to, false);
        assert_eq!(of(at(Stage::Load, None), at(Stage::Train, Some(2))), Verdict::Worked);
        assert_eq!(of(at(Stage::Train, Some(3)), at(Stage::Train, Some(4))), Verdict::Worked);
        assert_eq!(of(at(Stage::Train, Some(3)), at(Stage::Train, Some(2))), Verdict::Unknown);
        assert_eq!(of(at(Stage::Train, Some(3)), at(Stage::Load, None)), Verdict::Unknown);
        assert_eq!(of(at(Stage::Train, None), at(Stage::Train, None)), Verdict::Unknown);
        assert_eq!(of(at(Stage::Train, Some(3)), at(Stage::Save, Some(3))), Verdict::Worked);
        assert_eq!(of(at(Stage::Load, None), at(Stage::Evaluate, None)), Verdict::Unknown, "before or after training?");
        assert_eq!(of(Place::default(), at(Stage::Save, None)), Verdict::Unknown);
    }

    #[test]
    fn a_cancelled_attempt_that_came_far_enough_counts() {
        let cancelled = |came_to| verdict(&Outcome::Cancelled, at(Stage::Load, None), came_to, false);
        assert_eq!(cancelled(at(Stage::Train, None)), Verdict::Worked);
        assert_eq!(cancelled(at(Stage::Load, None)), Verdict::Unknown);
    }
}
