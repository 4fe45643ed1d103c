//! What can be learnt from jobs that followed a failed one with other options.
//!
//! Somebody changes five things at once and the job passes: which of them was it? Jobs that were made anyway take the
//! place of experiments, as in delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
//! Input", 2002). A part of the changes is refuted if a job had all of it and failed the same. The smallest parts that
//! nobody has refuted are left, one change before two; of those what most passed jobs have in common is the candidate;
//! and where several are left, all of them together: any of them may have been it, and together they passed. What has
//! passed often enough in one piece is tried by halves: somebody has to make the experiment that nobody made by chance.

use std::collections::BTreeMap;

use drydock_spec::remedy::{Edit, Remedy, To};
use drydock_spec::{Change, JobId};
use serde_json::Value;

use super::rank::{Count, Record};

/// A job that followed a failed one, on the same things.
#[derive(Debug, Clone, PartialEq)]
pub struct Follower {
    pub job: JobId,
    /// What the failed one ran on; empty if nobody came to say so.
    pub device: String,
    /// What was different from the failed one.
    pub changes: Vec<Change>,
    /// Whether the failure was gone.
    pub worked: bool,
    /// The remedy that it was made by last, where it was.
    pub applied: Option<Remedy>,
}

/// A job that failed so.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedJob {
    pub device: String,
    /// Its options, and its limits under `limits`.
    pub options: Value,
}

/// A remedy that was learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    pub remedy: Remedy,
    /// The jobs that passed with it: without those whose remedy was just this, which have a record of their own.
    pub passed: Vec<JobId>,
    /// How many of those there are, and how many failed though they had it, on the kind of device that was asked for and
    /// on all others.
    pub seen: Record,
    /// A half of it that may do as well, once all of it is well known to do.
    pub half: Option<Half>,
}

/// A part of what passed, which nobody has refuted.
#[derive(Debug, Clone, PartialEq)]
pub struct Half {
    pub remedy: Remedy,
    /// The jobs that passed with all of it.
    pub passed: Vec<JobId>,
}

/// Options that cannot be why a job passes: they bear on what is told of it only.
const IDLE: [&str; 6] = ["sample_prompts", "logging_steps", "log_samples", "max_new_tokens", "seed", "limits.cpus"];
/// More differences than these at once make another job, of which nothing can be learnt.
const MOST_CHANGES: usize = 8;
/// Jobs that must have passed with all of it before half of it is tried: by then a failure costs less than changes that
/// do nothing.
const WELL_KNOWN: usize = 3;
const LIMITS: &str = "limits.";

/// What an option was changed to, as far as jobs can have it in common: a direction for numbers, otherwise the value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Less,
    More,
    Value(String),
}

type Step = (String, Way);

fn way(change: &Change) -> Way {
    match (change.before.as_f64(), change.now.as_f64()) {
        (Some(before), Some(now)) if now < before => Way::Less,
        (Some(_), Some(_)) => Way::More,
        _ => Way::Value(change.now.to_string()),
    }
}

fn step(change: &Change) -> Step {
    (change.name.clone(), way(change))
}

/// A job that passed, with what of its changes may be why.
struct Passed<'a> {
    follower: &'a Follower,
    changes: Vec<&'a Change>,
}

/// Everything that failed.
struct Failures<'a> {
    followers: Vec<&'a Follower>,
    jobs: &'a [FailedJob],
}

/// The remedies that the followers of one failure teach, beside the jobs that failed so: the one with the most successes
/// first. Their records are told apart by the `device`.
#[must_use]
pub fn learn<'a>(followers: impl IntoIterator<Item = &'a Follower>, jobs: &[FailedJob], device: &str) -> Vec<Learned> {
    let (worked, failed): (Vec<_>, Vec<_>) = followers.into_iter().partition(|one| one.worked);
    let failures = Failures { followers: failed, jobs };
    let telling = |follower: &'a Follower| {
        let changes = follower.changes.iter().filter(|change| !IDLE.contains(&change.name.as_str()));
        Passed { follower, changes: changes.collect() }
    };
    let mut passed: Vec<_> = worked.into_iter().map(telling).collect();
    passed.retain(|one| !one.changes.is_empty() && one.changes.len() <= MOST_CHANGES);

    let mut found: BTreeMap<Vec<Step>, Vec<&Passed<'_>>> = BTreeMap::new();
    for one in &passed {
        let part = smallest(&one.changes, &failures, &passed);
        found.entry(part.into_iter().map(step).collect()).or_default().push(one);
    }
    let mut learned: Vec<_> =
        found.into_iter().map(|(steps, those)| taught(&steps, &those, &failures, device)).collect();
    learned.sort_by_key(|one| std::cmp::Reverse(one.passed.len()));
    learned
}

fn taught(steps: &[Step], passed: &[&Passed<'_>], failures: &Failures<'_>, device: &str) -> Learned {
    let remedy = named(steps, passed, failures).unwrap_or_else(|| generalised(steps, passed, failures));
    let other = |follower: &&Follower| follower.applied.as_ref() != Some(&remedy);
    let first = passed.first().map_or(&[][..], |one| one.changes.as_slice());
    let part: Vec<_> = first.iter().filter(|change| steps.contains(&step(change))).collect();
    let had_it = |one: &&Follower| part.iter().all(|change| went_as_far(one, change));
    let worked: Vec<_> = passed.iter().map(|one| one.follower).filter(other).collect();
    let failed: Vec<_> = failures.followers.iter().copied().filter(other).filter(had_it).collect();
    let count = |on: &dyn Fn(&Follower) -> bool| {
        let worked = worked.iter().filter(|one| on(one)).count() as u64;
        Count { worked, tried: worked + failed.iter().filter(|one| on(one)).count() as u64 }
    };
    let seen = Record {
        here: count(&|one| one.device == device),
        elsewhere: count(&|one| one.device != device),
        ..Record::default()
    };
    let passed_with = worked.iter().map(|one| one.job).collect();
    Learned { remedy, passed: passed_with, seen, half: half(steps, passed, failures) }
}

/// The remedy that these steps were, where one was applied that never failed: it may know better, by a failure's numbers,
/// what an option must be.
fn named(steps: &[Step], passed: &[&Passed<'_>], failures: &Failures<'_>) -> Option<Remedy> {
    let is_these = |remedy: &&Remedy| match remedy {
        Remedy::Change(edits) => {
            edits.len() == steps.len() && steps.iter().all(|(name, _)| names(edits).any(|one| one == name))
        }
        Remedy::TryAgain | Remedy::Outside(_) => false,
    };
    let has_failed = |remedy: &&Remedy| failures.followers.iter().any(|one| one.applied.as_ref() == Some(remedy));
    let applied = passed.iter().filter_map(|one| one.follower.applied.as_ref());
    let applied: Vec<_> = applied.filter(is_these).filter(|remedy| !has_failed(remedy)).collect();
    let times = |remedy: &&&Remedy| applied.iter().filter(|one| *one == *remedy).count();
    // Of those that were applied as often the newest counts.
    applied.iter().rev().max_by_key(times).map(|remedy| (*remedy).clone())
}

fn names(edits: &[Edit]) -> impl Iterator<Item = &String> {
    edits.iter().map(|edit| &edit.option)
}

/// The first of the two halves that is not refuted yet.
fn half(steps: &[Step], passed: &[&Passed<'_>], failures: &Failures<'_>) -> Option<Half> {
    let first = passed.first().filter(|_| passed.len() >= WELL_KNOWN && steps.len() > 1)?;
    let (one, other) = steps.split_at(steps.len() / 2);
    let refuted = |half: &[Step]| {
        let part: Vec<_> = first.changes.iter().filter(|change| half.contains(&step(change))).copied().collect();
        failures.refute(&part)
    };
    let half = [one, other].into_iter().find(|half| !refuted(half))?;
    let remedy = generalised(half, passed, failures);
    Some(Half { remedy, passed: passed.iter().map(|one| one.follower.job).collect() })
}

impl Failures<'_> {
    /// What the option was changed to by jobs that failed though they had all the other steps.
    fn with_all_but(&self, option: &str, steps: &[Step], passed: &[&Passed<'_>]) -> Vec<&Change> {
        let first = passed.first().map_or(&[][..], |one| one.changes.as_slice());
        let others = first.iter().filter(|change| change.name != option && steps.contains(&step(change)));
        let others: Vec<_> = others.collect();
        let those = self.followers.iter().filter(|one| others.iter().all(|change| went_as_far(one, change)));
        those.flat_map(|one| &one.changes).filter(|change| change.name == option).collect()
    }

    /// Whether a job had all of these changes, or what they come to, and failed the same.
    fn refute(&self, part: &[&Change]) -> bool {
        self.followers.iter().any(|one| part.iter().all(|change| went_as_far(one, change)))
            || self.jobs.iter().any(|job| part.iter().all(|change| had(job, change)))
    }
}

/// Whether a job was changed in the same way, at least as far.
fn went_as_far(follower: &Follower, change: &Change) -> bool {
    let same = follower.changes.iter().find(|one| one.name == change.name && way(one) == way(change));
    // How much of a limit is enough is different from job to job: what counts is how many times what it was.
    let size = |one: &Change| match change.name.starts_with(LIMITS) {
        true => Some(one.now.as_f64()? / one.before.as_f64()?),
        false => one.now.as_f64(),
    };
    same.is_some_and(|one| as_far(&way(change), size(one), size(change)))
}

/// Whether a job had from the beginning what the change comes to. Of limits that says nothing.
fn had(job: &FailedJob, change: &Change) -> bool {
    let at = change.name.split('.').try_fold(&job.options, |value, name| value.get(name)).unwrap_or(&Value::Null);
    match way(change) {
        _ if change.name.starts_with(LIMITS) => false,
        Way::Value(_) => *at == change.now,
        way => as_far(&way, at.as_f64(), change.now.as_f64()) && at.is_number(),
    }
}

fn as_far(way: &Way, one: Option<f64>, than: Option<f64>) -> bool {
    match way {
        Way::Less => one <= than,
        Way::More => one >= than,
        Way::Value(_) => true,
    }
}

/// The smallest part of the changes that no failed job had as well, and that most passed jobs have in common.
fn smallest<'a>(changes: &[&'a Change], failures: &Failures<'_>, passed: &[Passed<'_>]) -> Vec<&'a Change> {
    let common = |part: &[&Change]| {
        let steps: Vec<_> = part.iter().map(|change| step(change)).collect();
        let has =
            |one: &Passed<'_>| steps.iter().all(|wanted| one.changes.iter().any(|change| step(change) == *wanted));
        passed.iter().filter(|one| has(one)).count()
    };
    for size in 1..=changes.len() {
        let parts = parts_of(changes, size).filter(|part| !failures.refute(part));
        let parts: Vec<_> = parts.map(|part| (common(&part), part)).collect();
        if let Some(most) = parts.iter().map(|(common, _)| *common).max() {
            let best: Vec<_> = parts.iter().filter(|(common, _)| *common == most).collect();
            let in_one =
                |change: &&&Change| best.iter().any(|(_, part)| part.iter().any(|one| std::ptr::eq(*one, **change)));
            return changes.iter().filter(in_one).copied().collect();
        }
    }
    changes.to_vec()
}

/// Every part of that size.
fn parts_of<'a, 'b>(changes: &'b [&'a Change], size: usize) -> impl Iterator<Item = Vec<&'a Change>> + 'b {
    let sets = (0_u32..1 << changes.len()).filter(move |set| set.count_ones() as usize == size);
    sets.map(|set| (0..changes.len()).filter(|at| set >> at & 1 == 1).map(|at| changes[at]).collect())
}

/// The change for any job: the same value where all have chosen the same, otherwise the same proportion.
fn generalised(steps: &[Step], passed: &[&Passed<'_>], failures: &Failures<'_>) -> Remedy {
    let edits = steps.iter().map(|(option, way)| {
        let changes = passed.iter().flat_map(|one| &one.changes).filter(|change| change.name == *option);
        let changes: Vec<_> = changes.copied().collect();
        let to = match way {
            Way::Value(_) => set(changes.first().map_or(&Value::Null, |change| &change.now)),
            Way::Less | Way::More => number(way, &changes, &failures.with_all_but(option, steps, passed)),
        };
        Edit { option: option.clone(), to }
    });
    Remedy::Change(edits.collect())
}

fn set(value: &Value) -> To {
    if value.is_null() { To::Default } else { To::Set(value.clone()) }
}

/// What a number becomes: the smallest change that is known to do. It is the proportion, unless a job that was changed by
/// as much has failed; then the value counts, or, of limits, which every job needs its own of, a greater proportion.
fn number(way: &Way, changes: &[&Change], failed: &[&Change]) -> To {
    let Some(first) = changes.first() else { return To::Default };
    let froms = changes.iter().filter(|change| change.before != first.before);
    if froms.count() > 0 && changes.iter().all(|change| change.now == first.now) {
        return set(&first.now);
    }
    let times = |change: &Change| Some(change.now.as_f64()? / change.before.as_f64()?).filter(|one| one.is_normal());
    // So that more is more whichever way it goes.
    let extent = |change: &Change| times(change).map(|times| times.ln().abs());
    let failed = failed.iter().filter(|change| self::way(change) == *way).filter_map(|change| extent(change));
    // What rounding to two digits has made of it is no difference.
    let refuted = failed.fold(f64::NEG_INFINITY, f64::max) + 0.05;
    let by_extent =
        |a: &&&Change, b: &&&Change| extent(a).unwrap_or(f64::MAX).total_cmp(&extent(b).unwrap_or(f64::MAX));
    let least = changes.iter().min_by(by_extent).copied();
    let enough = match first.name.starts_with(LIMITS) {
        true => changes.iter().filter(|change| extent(change) > Some(refuted)).min_by(by_extent).copied().or(least),
        false => least.filter(|change| extent(change) > Some(refuted)),
    };
    if let Some(times) = enough.and_then(times) {
        return To::Scale(round(times));
    }
    let by_size = |a: &&Value, b: &&Value| a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal);
    let values = changes.iter().map(|change| &change.now);
    let value = if *way == Way::Less { values.max_by(by_size) } else { values.min_by(by_size) };
    set(value.unwrap_or(&first.now))
}

/// Two digits are as many as such a proportion has: so that jobs that did much the same share a record.
fn round(factor: f64) -> f64 {
    format!("{factor:.1e}").parse().unwrap_or(factor)
}

#[cfg(test)]
mod tests;
