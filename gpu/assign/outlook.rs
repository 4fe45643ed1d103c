//! When those in line will start: the same rule run forward over the ends of what runs.

use std::collections::HashMap;

use drydock_spec::{JobId, Owner};

use super::{Host, Policy, Running, Standing, Waiting, assign, share_of};

/// Which ends are gone by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Everything runs for as long as it may.
    Latest,
    /// Everything runs for as long as it is expected to, where somebody can tell.
    Expected,
}

/// When each job in line starts, as far as that can be foreseen: if nobody comes or goes meanwhile.
pub type Outlook = HashMap<JobId, i64>;

/// Runs the rule forward. Times are milliseconds since 1970, as `now_ms` is; who has none waits for something that no job
/// gives back.
#[must_use]
pub fn outlook(
    host: &Host,
    running: &[Running],
    line: &[Waiting],
    owners: &HashMap<Owner, Standing>,
    policy: &Policy,
    now_ms: i64,
    ends: Ends,
) -> Outlook {
    let mut starts = Outlook::new();
    let (mut running, mut line, mut owners) = (running.to_vec(), line.to_vec(), owners.clone());
    let mut now = now_ms;
    loop {
        for start in assign(host, &running, &line, &owners, policy, now).starts {
            let Some(at) = line.iter().position(|waiting| waiting.job == start.job) else { continue };
            let waiting = line.remove(at);
            if line.iter().all(|other| other.owner != waiting.owner || other.position > waiting.position) {
                owners.entry(waiting.owner.clone()).or_default().oldest_started_ms = now;
            }
            starts.insert(waiting.job, now);
            running.push(waiting.started(start.units, now));
        }
        // Who is past what was expected of it ends at any moment.
        let end = |job: &Running| ends.of(job).max(now + 1);
        let Some(next) = running.iter().map(end).min().filter(|_| !line.is_empty()) else { return starts };
        let (ended, left): (Vec<_>, Vec<_>) = running.into_iter().partition(|job| ends.of(job).max(now + 1) <= next);
        for job in ended {
            let standing = owners.entry(job.owner).or_default();
            *standing = standing.with(share_of(host, &job.need), (job.since_ms, next), next, policy.half_life_ms);
        }
        (running, now) = (left, next);
    }
}

impl Ends {
    fn of(self, job: &Running) -> i64 {
        match self {
            Self::Latest => job.ends_by_ms,
            Self::Expected => job.expected_end_ms.map_or(job.ends_by_ms, |end| end.min(job.ends_by_ms)),
        }
    }
}

impl Waiting {
    /// The job as it runs from now on.
    #[must_use]
    pub fn started(self, units: Vec<String>, now_ms: i64) -> Running {
        Running {
            job: self.job,
            owner: self.owner,
            need: self.need,
            units,
            since_ms: now_ms,
            ends_by_ms: now_ms.saturating_add(self.longest_ms),
            expected_end_ms: self.expected_ms.map(|expected| now_ms.saturating_add(expected)),
        }
    }
}
