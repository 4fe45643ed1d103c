//! Which remedy is offered first: the one that is most surely known to work.
//!
//! A remedy's record is the trials that it passed among those that showed anything. How sure a record makes it is the
//! lower bound of its share by Wilson's score interval (E. B. Wilson, "Probable Inference, the Law of Succession, and
//! Statistical Inference", 1927): one success of one says little, forty of fifty much. The record is the one against
//! this very failure on this kind of device; where that is thin, those of wider groups help out, each as no more than a
//! few trials; and before anything was tried, what speaks for the source of the remedy does.
//!
//! Some failures pass by themselves. The same again is a remedy with a record as any other, and the control for those: a
//! change that passes no more often has cured nothing.

use drydock_spec::remedy::Meaning;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Standard errors that the lower bound lies below the share: one-sided 84 %. More would put what was tried least last
/// for good.
const Z: f64 = 1.0;
/// The same where a remedy is held against chance: one-sided 95 %.
const CLEARLY: f64 = 1.645;
/// Trials that a wider group counts as at most.
const SAME_FAILURE: f64 = 6.0;
const SAME_KIND: f64 = 2.0;
/// How much less the successes of a wider group count for each failure in the narrow one: what does not work on this
/// device works here no better for having worked on all others.
const CONTRADICTED: f64 = 2.0;
/// What is left of a remedy's sureness, beside that of the same again, if it has not shown that it does more.
const NO_MORE_THAN_CHANCE: f64 = 0.99;

/// Trials that have shown something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Count {
    pub worked: u64,
    pub tried: u64,
}

/// What is known of a remedy, from the narrowest group to the widest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Against this failure on this kind of device.
    pub here: Count,
    /// Against this failure on any other device.
    pub elsewhere: Count,
    /// Against other failures of the kind at the stage.
    pub kind: Count,
}

/// What speaks for a remedy before it was tried, as trials: some may be parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    pub worked: f64,
    pub tried: f64,
}

/// The lower bound of the share of successes, by Wilson's score interval; 0 of no trials.
#[must_use]
pub fn lower_bound(worked: f64, tried: f64) -> f64 {
    bound(worked, tried, Z)
}

fn bound(worked: f64, tried: f64, z: f64) -> f64 {
    if tried <= 0.0 {
        return 0.0;
    }
    let (share, z2) = ((worked / tried).clamp(0.0, 1.0), z * z);
    let centre = share + z2 / (2.0 * tried);
    let spread = z * (share * (1.0 - share) / tried + z2 / (4.0 * tried * tried)).sqrt();
    ((centre - spread) / (1.0 + z2 / tried)).max(0.0)
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { worked: self.worked + other.worked, tried: self.tried + other.tried }
    }
}

impl Count {
    /// The same share as no more than `most` trials.
    fn at_most(self, most: f64) -> (f64, f64) {
        let (worked, tried) = (self.worked as f64, self.tried as f64);
        let weight = if tried > most { most / tried } else { 1.0 };
        (worked * weight, tried * weight)
    }
}

impl Record {
    /// How sure it is that the remedy works, from 0 to 1.
    #[must_use]
    pub fn sure(&self, prior: Prior) -> f64 {
        let here = (self.here.worked as f64, self.here.tried as f64);
        let trust = 1.0 / (1.0 + CONTRADICTED * (here.1 - here.0));
        let trusted = |(worked, tried): (f64, f64)| (worked * trust, worked * trust + (tried - worked));
        let wider = [self.elsewhere.at_most(SAME_FAILURE), self.kind.at_most(SAME_KIND)];
        let groups = [here, trusted(wider[0]), trusted(wider[1])];
        let sum = |of: fn((f64, f64)) -> f64| groups.into_iter().map(of).sum::<f64>();
        lower_bound(sum(|(worked, _)| worked) + prior.worked, sum(|(_, tried)| tried) + prior.tried)
    }

    /// How sure it is that a remedy helps, beside the `control`: the record of the same again and how sure that is. Where
    /// the same again has passed, a change has to do so clearly more often before its successes are put to its credit;
    /// until then it counts as no more than the control.
    #[must_use]
    pub fn sure_beside(&self, prior: Prior, control: Option<(&Self, f64)>) -> f64 {
        let sure = self.sure(prior);
        match control {
            Some((control, of_control)) if !self.beats(control) => sure.min(of_control * NO_MORE_THAN_CHANCE),
            _ => sure,
        }
    }

    fn beats(&self, control: &Self) -> bool {
        let (own, chance) = (self.here + self.elsewhere, control.here + control.elsewhere);
        if chance.worked == 0 {
            return true;
        }
        // By Laplace's rule of succession: a single pass is no certainty.
        let by_chance = (chance.worked as f64 + 1.0) / (chance.tried as f64 + 2.0);
        bound(own.worked as f64, own.tried as f64, CLEARLY) > by_chance
    }
}

/// What a remedy counts as beside others: one that does something else must be a good deal surer.
#[must_use]
pub fn weight(meaning: Meaning) -> f64 {
    match meaning {
        Meaning::Same => 1.0,
        Meaning::Close => 0.97,
        Meaning::Different => 0.9,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Prior = Prior { worked: 0.0, tried: 0.0 };

    fn here(worked: u64, tried: u64) -> Record {
        Record { here: Count { worked, tried }, ..Record::default() }
    }

    #[test]
    fn the_bound_is_wilsons() {
        // By hand: p = 0.8, n = 10, z = 1: (0.8 + 0.05 - sqrt(0.016 + 0.0025)) / 1.1
        assert!((lower_bound(8.0, 10.0) - 0.649_080).abs() < 1e-5);
        assert!((lower_bound(1.0, 1.0) - 0.5).abs() < 1e-12);
        assert_eq!(lower_bound(0.0, 0.0), 0.0);
    }

    #[test]
    fn many_successes_of_more_trials_are_surer_than_a_single_one() {
        assert!(here(14, 15).sure(NONE) > here(1, 1).sure(NONE));
        assert!(here(1, 1).sure(NONE) > here(1, 4).sure(NONE));
        assert!(here(0, 3).sure(NONE) < here(0, 0).sure(Prior { worked: 0.5, tried: 1.0 }));
    }

    #[test]
    fn a_record_of_its_own_outweighs_that_of_a_wider_group() {
        let fails_here = Record { elsewhere: Count { worked: 100, tried: 100 }, ..here(0, 8) };
        assert!(fails_here.sure(NONE) < here(3, 4).sure(NONE));
        let unknown_here = Record { elsewhere: Count { worked: 100, tried: 100 }, ..here(0, 0) };
        assert!(unknown_here.sure(NONE) > here(1, 2).sure(NONE));
    }

    #[test]
    fn what_fails_on_this_device_is_not_saved_by_its_record_on_others() {
        let elsewhere = Count { worked: 20, tried: 20 };
        let on_others = |failed| Record { elsewhere, ..here(0, failed) }.sure(NONE);
        let fresh = lower_bound(1.5, 1.5);
        assert!(on_others(0) > fresh && on_others(1) < fresh && on_others(2) < on_others(1));
    }

    #[test]
    fn what_passes_as_often_unchanged_is_no_credit_to_a_change() {
        let (again, patch) = (here(6, 10), here(3, 4));
        let of_again = again.sure(NONE);
        assert!(patch.sure(NONE) > of_again);
        assert!(patch.sure_beside(NONE, Some((&again, of_again))) < of_again);
        // One that hardly ever fails is another matter, and so is one where the same again never passed.
        assert!(here(14, 15).sure_beside(NONE, Some((&again, of_again))) > of_again);
        let never = here(0, 2);
        assert_eq!(patch.sure_beside(NONE, Some((&never, never.sure(NONE)))), patch.sure(NONE));
    }

    proptest! {
        #[test]
        fn another_success_never_makes_a_remedy_less_sure(
            worked in 0..50u64, failed in 0..50u64, others in 0..50u64, of_others in 0..50u64,
        ) {
            let elsewhere = Count { worked: others, tried: others + of_others };
            let of = |worked, tried| Record { elsewhere, ..here(worked, tried) }.sure(NONE);
            let tried = worked + failed;
            let sure = of(worked, tried);
            prop_assert!((0.0..=1.0).contains(&sure));
            prop_assert!(of(worked + 1, tried + 1) >= sure - 1e-12);
            prop_assert!(of(worked, tried + 1) <= sure + 1e-12);
        }
    }
}
