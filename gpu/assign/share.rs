//! What an owner has had of the host, and what that makes of its place in line.
//!
//! A job's share of a host is its share of what it takes the most of, as in dominant resource fairness (Ghodsi and
//! others, NSDI 2011). What an owner has had is the mean of its jobs' shares over time, in which the past counts the less
//! the longer ago it is, as in Slurm's multifactor priority. Both are shares of the host, so that they add up: who has
//! the least of the two together comes next.

use std::collections::HashMap;

use drydock_spec::Owner;

use super::{GpuNeed, Host, Need, Policy, Running, Waiting};

/// What is remembered of an owner.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Standing {
    /// Share of the host that its ended jobs have had, 0 to 1, as it stood at `as_of_ms`.
    pub mean: f64,
    pub as_of_ms: i64,
    /// When its oldest job in line last started: from then on the next one is the oldest.
    pub oldest_started_ms: i64,
}

impl Standing {
    /// How much it has had, as it counts now.
    #[must_use]
    pub fn mean_at(&self, now_ms: i64, half_life_ms: i64) -> f64 {
        self.mean * weight(now_ms - self.as_of_ms, half_life_ms)
    }

    /// With what a job had from one moment to another.
    #[must_use]
    pub fn with(self, share: f64, (from_ms, to_ms): (i64, i64), now_ms: i64, half_life_ms: i64) -> Self {
        let mean = self.mean_at(now_ms, half_life_ms) + had(share, (from_ms, to_ms), now_ms, half_life_ms);
        Self { mean: mean.min(1.0), as_of_ms: now_ms, ..self }
    }
}

/// What counts today of a share that was held from one moment to another: for ever is the whole of it.
fn had(share: f64, (from_ms, to_ms): (i64, i64), now_ms: i64, half_life_ms: i64) -> f64 {
    share * (weight(now_ms - to_ms, half_life_ms) - weight(now_ms - from_ms, half_life_ms)).max(0.0)
}

/// What something counts that is so long ago. The clock may have been set back: then it was just now.
fn weight(ago_ms: i64, half_life_ms: i64) -> f64 {
    (-(ago_ms.max(0) as f64) / half_life_ms.max(1) as f64).exp2()
}

/// Share of the host that a job takes, 0 to 1: of what it takes the most of.
#[must_use]
pub fn share_of(host: &Host, need: &Need) -> f64 {
    let part = |some: u64, all: u64| if all == 0 { 0.0 } else { some as f64 / all as f64 };
    let gpus = match need.gpus {
        GpuNeed::Nothing => 0.0,
        GpuNeed::Own { count, .. } => part(count.into(), host.units.len() as u64),
        GpuNeed::Share { bytes } => part(bytes, host.units.iter().map(|of| of.unit.memory_bytes).sum()),
    };
    let cpu = part(need.capacity.cpu_millis, host.capacity.cpu_millis);
    let memory = part(need.capacity.memory_bytes, host.capacity.memory_bytes);
    gpus.max(cpu).max(memory).min(1.0)
}

/// What each owner has had and has: who has the least is served first.
pub(super) struct Scores<'a> {
    host: &'a Host,
    /// Shares of the host.
    by_owner: HashMap<&'a Owner, f64>,
}

impl<'a> Scores<'a> {
    pub(super) fn new(
        host: &'a Host,
        running: &'a [Running],
        owners: &'a HashMap<Owner, Standing>,
        policy: &Policy,
        now_ms: i64,
    ) -> Self {
        let half_life_ms = policy.half_life_ms;
        let mean = |(owner, standing): (&'a Owner, &Standing)| (owner, standing.mean_at(now_ms, half_life_ms));
        let mut scores = Self { host, by_owner: owners.iter().map(mean).collect() };
        for job in running {
            let share = share_of(host, &job.need);
            *scores.by_owner.entry(&job.owner).or_default() +=
                share + had(share, (job.since_ms, now_ms), now_ms, half_life_ms);
        }
        scores
    }

    pub(super) fn of(&self, owner: &Owner) -> f64 {
        self.by_owner.get(owner).copied().unwrap_or(0.0)
    }

    /// The owner's score as if the job ran already.
    pub(super) fn charge(&mut self, waiting: &'a Waiting) -> f64 {
        let score = self.by_owner.entry(&waiting.owner).or_default();
        *score += share_of(self.host, &waiting.need);
        *score
    }
}
