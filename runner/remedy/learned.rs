//! What can be learnt from jobs that followed a failed one with other options.
//!
//! Somebody changes five things at once and the job passes: which of them was it? A change that also stands in a job
//! that failed again was not enough; what is left of the difference after those is the candidate, and where several
//! jobs passed, what they have in common. This is delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating
//! Failure-Inducing Input", 2002) with jobs that were made anyway in place of experiments.

use std::collections::BTreeMap;

use drydock_spec::remedy::{Edit, Remedy, To};
use drydock_spec::{Change, JobId};
use serde_json::Value;

/// A job that followed a failed one, on the same things.
#[derive(Debug, Clone, PartialEq)]
pub struct Follower {
    pub job: JobId,
    /// What was different from the failed one.
    pub changes: Vec<Change>,
    /// Whether the failure was gone.
    pub worked: bool,
}

/// A remedy that was learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    pub remedy: Remedy,
    /// The jobs that passed with it, and how many failed though they had it.
    pub passed: Vec<JobId>,
    pub failed: usize,
}

/// Options that cannot be why a job passes: they bear on what is told of it only.
const IDLE: [&str; 6] = ["sample_prompts", "logging_steps", "log_samples", "max_new_tokens", "seed", "limits.cpus"];
/// More differences than these at once make another job, of which nothing can be learnt.
const MOST_CHANGES: usize = 8;

/// What an option was changed to, as far as jobs can have it in common: a direction for numbers, otherwise the value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Less,
    More,
    Value(String),
}

type Step = (String, Way);

fn step(change: &Change) -> Step {
    let way = match (change.before.as_f64(), change.now.as_f64()) {
        (Some(before), Some(now)) if now < before => Way::Less,
        (Some(_), Some(_)) => Way::More,
        _ => Way::Value(change.now.to_string()),
    };
    (change.name.clone(), way)
}

/// The remedies that the followers of one failure teach, the one with the most successes first.
#[must_use]
pub fn learn(followers: &[Follower]) -> Vec<Learned> {
    let steps = |follower: &Follower| -> Vec<Step> {
        let telling = follower.changes.iter().filter(|change| !IDLE.contains(&change.name.as_str()));
        telling.map(step).collect()
    };
    let failed: Vec<Vec<Step>> = followers.iter().filter(|one| !one.worked).map(steps).collect();
    let mut passed: Vec<(&Follower, Vec<Step>)> =
        followers.iter().filter(|one| one.worked).map(|one| (one, steps(one))).collect();
    passed.retain(|(_, steps)| !steps.is_empty() && steps.len() <= MOST_CHANGES);

    let mut found: BTreeMap<Vec<Step>, Vec<&Follower>> = BTreeMap::new();
    for (follower, steps) in &passed {
        found.entry(minimal(steps, &failed, &passed)).or_default().push(follower);
    }
    let mut learned: Vec<_> = found
        .into_iter()
        .map(|(steps, followers)| Learned {
            remedy: generalised(&steps, &followers),
            passed: followers.iter().map(|follower| follower.job).collect(),
            failed: failed.iter().filter(|other| steps.iter().all(|step| other.contains(step))).count(),
        })
        .collect();
    learned.sort_by_key(|one| std::cmp::Reverse(one.passed.len()));
    learned
}

/// The smallest part of what was changed that no failed job had as well: a single step where one will do, the one that
/// most passed jobs have in common.
fn minimal(steps: &[Step], failed: &[Vec<Step>], passed: &[(&Follower, Vec<Step>)]) -> Vec<Step> {
    let refuted = |part: &[Step]| failed.iter().any(|other| part.iter().all(|step| other.contains(step)));
    let common = |step: &Step| passed.iter().filter(|(_, other)| other.contains(step)).count();
    // Without another job to compare with, any part may have been it.
    let of_all = failed.len() + passed.len() > 1 || steps.len() == 1;
    let mut alone: Vec<_> = steps.iter().filter(|step| !refuted(std::slice::from_ref(*step))).collect();
    alone.sort_by_key(|step| std::cmp::Reverse(common(step)));
    if let (true, [best, rest @ ..]) = (of_all, alone.as_slice())
        && rest.first().is_none_or(|next| common(next) < common(best))
    {
        return vec![(*best).clone()];
    }
    // No step stands out: what every failed job has done as well is left out, where something is left then.
    let idle = |step: &Step| !failed.is_empty() && failed.iter().all(|other| other.contains(step));
    let rest: Vec<_> = steps.iter().filter(|step| !idle(step)).cloned().collect();
    if rest.is_empty() || refuted(&rest) { steps.to_vec() } else { rest }
}

/// The change for any job: the same value where all have chosen the same, otherwise the same proportion.
fn generalised(steps: &[Step], followers: &[&Follower]) -> Remedy {
    let edits = steps.iter().map(|(option, way)| {
        let changes: Vec<_> =
            followers.iter().flat_map(|one| &one.changes).filter(|change| change.name == *option).collect();
        let to = match way {
            Way::Value(_) => set(changes.first().map_or(&Value::Null, |change| &change.now)),
            Way::Less | Way::More => proportion(&changes),
        };
        Edit { option: option.clone(), to }
    });
    Remedy::Change(edits.collect())
}

fn set(value: &Value) -> To {
    if value.is_null() { To::Default } else { To::Set(value.clone()) }
}

fn proportion(changes: &[&Change]) -> To {
    let first = changes.first().map_or(&Value::Null, |change| &change.now);
    let froms = changes.iter().filter(|change| Some(&change.before) != changes.first().map(|first| &first.before));
    if froms.count() > 0 && changes.iter().all(|change| change.now == *first) {
        return set(first);
    }
    let logs: Vec<f64> = changes
        .iter()
        .filter_map(|change| Some((change.now.as_f64()? / change.before.as_f64()?).ln()))
        .filter(|log| log.is_finite())
        .collect();
    if logs.is_empty() {
        return set(first);
    }
    let factor = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
    To::Scale(round(factor))
}

/// Two digits are as many as such a proportion has: so that jobs that did much the same share a record.
fn round(factor: f64) -> f64 {
    format!("{factor:.1e}").parse().unwrap_or(factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn follower(n: u128, worked: bool, changes: &[(&str, Value, Value)]) -> Follower {
        let change = |(name, before, now): &(&str, Value, Value)| Change {
            name: (*name).into(),
            before: before.clone(),
            now: now.clone(),
        };
        Follower { job: JobId::from_parts(1, n), changes: changes.iter().map(change).collect(), worked }
    }

    fn remedies(followers: &[Follower]) -> Vec<String> {
        learn(followers).into_iter().map(|learned| learned.remedy.to_string()).collect()
    }

    #[test]
    fn a_single_change_that_passed_is_a_remedy() {
        let lower = follower(1, true, &[("learning_rate", json!(0.01), json!(0.001)), ("seed", json!(1), json!(2))]);
        assert_eq!(remedies(&[lower]), ["learning_rate * 0.1"]);
    }

    #[test]
    fn what_a_failed_job_had_as_well_was_not_enough() {
        let passed = follower(
            1,
            true,
            &[("learning_rate", json!(0.01), json!(0.001)), ("warmup_steps", Value::Null, json!(10))],
        );
        let failed = follower(2, false, &[("warmup_steps", Value::Null, json!(10))]);
        assert_eq!(remedies(&[passed.clone(), failed]), ["learning_rate * 0.1"]);
        let alone = remedies(&[passed]);
        assert_eq!(alone, ["learning_rate * 0.1, warmup_steps = 10"], "nobody knows which of them it was");
    }

    #[test]
    fn what_passed_jobs_have_in_common_is_the_remedy() {
        let jobs = [
            follower(1, true, &[("dtype", json!("bf16"), json!("f32")), ("lora_r", json!(8), json!(16))]),
            follower(2, true, &[("dtype", json!("bf16"), json!("f32")), ("packing", json!(true), json!(false))]),
        ];
        let learned = learn(&jobs);
        assert_eq!(learned.len(), 1);
        assert_eq!(learned[0].remedy.to_string(), "dtype = \"f32\"");
        assert_eq!((learned[0].passed.len(), learned[0].failed), (2, 0));
    }

    #[test]
    fn where_two_steps_are_needed_both_are_kept() {
        let (a, b) = (("lora_r", json!(8), json!(4)), ("dtype", json!("bf16"), json!("f32")));
        let jobs = [
            follower(1, true, &[a.clone(), b.clone()]),
            follower(2, false, std::slice::from_ref(&a)),
            follower(3, false, std::slice::from_ref(&b)),
        ];
        assert_eq!(remedies(&jobs), ["lora_r * 0.5, dtype = \"f32\""]);
    }

    #[test]
    fn a_value_that_all_have_chosen_is_that_value_and_otherwise_the_proportion_counts() {
        let memory = |n, from: u64, to: u64| follower(n, true, &[("limits.memory_mib", json!(from), json!(to))]);
        assert_eq!(remedies(&[memory(1, 512, 1024), memory(2, 300, 600)]), ["limits.memory_mib * 2"]);
        let rate = |n, from: f64| follower(n, true, &[("learning_rate", json!(from), json!(1e-4))]);
        assert_eq!(remedies(&[rate(1, 1e-2), rate(2, 5e-2)]), ["learning_rate = 0.0001"]);
    }

    #[test]
    fn another_job_altogether_teaches_nothing() {
        let many: Vec<_> = (0..9).map(|n| (format!("o{n}"), json!(1), json!(2))).collect();
        let many: Vec<_> = many.iter().map(|(name, a, b)| (name.as_str(), a.clone(), b.clone())).collect();
        assert_eq!(learn(&[follower(1, true, &many), follower(2, true, &[])]), []);
    }
}
