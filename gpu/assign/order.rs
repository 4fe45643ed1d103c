//! Who comes before whom.
//!
//! 1. Whoever has waited too long: of each owner the oldest job, once it has been the oldest for the policy's patience.
//!    Those that have waited the longest come first. Only the oldest grows impatient, as with Slurm's limit on jobs that
//!    accrue age: or else a thousand jobs that one owner queues at once would all go before everybody else's.
//! 2. By priority.
//! 3. Within a priority by owner: each time the next job of whoever has had and has the least; see [`Standing`].
//! 4. Within an owner in order of submission.
//!
//! So nobody starves, whoever comes: with `m` owners in line and jobs that run for `t` at most, the oldest job of an owner
//! starts within patience + `m` `t` after the one before it, as it is overtaken by at most one job of each other owner
//! once it has lost patience, and each of these waits as the head of the line for no longer than what runs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};

use drydock_spec::Owner;

use super::share::Scores;
use super::{Host, Policy, Running, Standing, Waiting};

/// A job at its place in line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranked<'a> {
    pub(super) waiting: &'a Waiting,
    /// Whether some stand before it that came later, but whose owners have had less.
    pub(super) by_share: bool,
}

/// The line in order.
pub(super) fn ranked<'a>(
    host: &'a Host,
    running: &'a [Running],
    line: &[&'a Waiting],
    owners: &'a HashMap<Owner, Standing>,
    policy: &Policy,
    now_ms: i64,
) -> Vec<Ranked<'a>> {
    let mut scores = Scores::new(host, running, owners, policy, now_ms);
    let mut ranked = Vec::with_capacity(line.len());
    let impatient = impatient(line, owners, policy, now_ms);
    for &waiting in &impatient {
        scores.charge(waiting);
        ranked.push(Ranked { waiting, by_share: false });
    }
    let is_patient = |waiting: &&Waiting| impatient.iter().all(|other| other.job != waiting.job);
    let patient: Vec<_> = line.iter().copied().filter(is_patient).collect();
    for queues in by_priority(&patient).into_values() {
        let mut queues: Vec<Queue<'_>> =
            queues.into_iter().map(|(owner, jobs)| Queue { score: scores.of(owner), jobs }).collect();
        let mut latest = i64::MIN;
        while let Some(at) = next_owner(&queues) {
            let Some(waiting) = queues[at].jobs.pop_front() else {
                queues.swap_remove(at);
                continue;
            };
            queues[at].score = scores.charge(waiting);
            ranked.push(Ranked { waiting, by_share: latest > waiting.position });
            latest = latest.max(waiting.position);
        }
    }
    ranked
}

/// Jobs of an owner and of one priority, in order of submission, with the owner's score.
struct Queue<'a> {
    score: f64,
    jobs: VecDeque<&'a Waiting>,
}

/// The oldest job of each owner, if it has been that for too long.
fn impatient<'a>(
    line: &[&'a Waiting],
    owners: &HashMap<Owner, Standing>,
    policy: &Policy,
    now_ms: i64,
) -> Vec<&'a Waiting> {
    let mut oldest: HashMap<&Owner, &Waiting> = HashMap::new();
    for &waiting in line {
        let known = oldest.entry(&waiting.owner).or_insert(waiting);
        if waiting.position < known.position {
            *known = waiting;
        }
    }
    let since = |waiting: &Waiting| {
        let before = owners.get(&waiting.owner).map_or(0, |standing| standing.oldest_started_ms);
        waiting.submitted_ms.max(before)
    };
    let mut impatient: Vec<_> =
        oldest.into_values().filter(|waiting| now_ms - since(waiting) >= policy.patience_ms).collect();
    impatient.sort_by_key(|waiting| (since(waiting), waiting.position));
    impatient
}

/// The line by priority, the highest first, and in each by owner, in order of submission.
fn by_priority<'a>(line: &[&'a Waiting]) -> BTreeMap<Reverse<i8>, HashMap<&'a Owner, VecDeque<&'a Waiting>>> {
    let mut line = line.to_vec();
    line.sort_by_key(|waiting| waiting.position);
    let mut levels: BTreeMap<_, HashMap<_, VecDeque<_>>> = BTreeMap::new();
    for waiting in line {
        let owners = levels.entry(Reverse(waiting.priority.get())).or_default();
        owners.entry(&waiting.owner).or_default().push_back(waiting);
    }
    levels
}

/// Whose job comes next: of those with the least, the one that came first.
fn next_owner(queues: &[Queue<'_>]) -> Option<usize> {
    let first = |queue: &Queue<'_>| queue.jobs.front().map_or(i64::MAX, |waiting| waiting.position);
    (0..queues.len()).min_by(|&a, &b| {
        let (one, other) = (&queues[a], &queues[b]);
        one.score.total_cmp(&other.score).then_with(|| first(one).cmp(&first(other)))
    })
}
