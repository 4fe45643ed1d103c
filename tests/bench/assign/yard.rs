//! A host on which jobs come, start by a rule, run and end, in a time that is only counted.

use std::collections::{BTreeMap, HashMap};

use drydock_gpu::assign::{Host, Plan, Policy, Running, Standing, Waiting, share_of};
use drydock_spec::{JobId, Owner};

/// A job that comes, and how long it will run whatever it may.
#[derive(Debug, Clone)]
pub(crate) struct Coming {
    pub(crate) waiting: Waiting,
    pub(crate) lasts_ms: i64,
}

/// How a job fared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Course {
    pub(crate) job: JobId,
    pub(crate) owner: Owner,
    pub(crate) submitted_ms: i64,
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: i64,
    pub(crate) units: Vec<String>,
}

/// How everything stands when the rule is asked.
pub(crate) struct Moment<'a> {
    pub(crate) host: &'a Host,
    pub(crate) running: &'a [Running],
    pub(crate) line: &'a [Waiting],
    pub(crate) owners: &'a HashMap<Owner, Standing>,
    pub(crate) now_ms: i64,
}

/// Lets all jobs come, in order of their submission, and go; `rule` says at each moment who starts. Says how they fared,
/// in order of their starts; who is missing there never starts.
pub(crate) fn live(
    host: &Host,
    policy: &Policy,
    coming: Vec<Coming>,
    mut rule: impl FnMut(&Moment<'_>) -> Plan,
) -> Vec<Course> {
    let mut lasts = HashMap::new();
    let mut arrivals = BTreeMap::<i64, Vec<Waiting>>::new();
    for Coming { waiting, lasts_ms } in coming {
        lasts.insert(waiting.job, lasts_ms);
        arrivals.entry(waiting.submitted_ms).or_default().push(waiting);
    }
    let (mut running, mut line, mut owners) = (Vec::<Running>::new(), Vec::<Waiting>::new(), HashMap::new());
    let mut courses = Vec::<Course>::new();
    loop {
        let end = |job: &Running| job.since_ms + lasts[&job.job];
        let next_end = running.iter().map(end).min();
        let next_arrival = arrivals.keys().next().copied();
        let Some(now) = next_end.into_iter().chain(next_arrival).min() else { return courses };
        let (ended, left) = running.into_iter().partition::<Vec<_>, _>(|job| end(job) <= now);
        running = left;
        for job in ended {
            let standing: &mut Standing = owners.entry(job.owner.clone()).or_default();
            *standing = standing.with(share_of(host, &job.need), (job.since_ms, now), now, policy.half_life_ms);
        }
        line.extend(arrivals.remove(&now).unwrap_or_default());
        let plan = rule(&Moment { host, running: &running, line: &line, owners: &owners, now_ms: now });
        for start in plan.starts {
            let Some(at) = line.iter().position(|waiting| waiting.job == start.job) else { continue };
            let waiting = line.remove(at);
            if line.iter().all(|other| other.owner != waiting.owner || other.position > waiting.position) {
                owners.entry(waiting.owner.clone()).or_default().oldest_started_ms = now;
            }
            courses.push(Course {
                job: waiting.job,
                owner: waiting.owner.clone(),
                submitted_ms: waiting.submitted_ms,
                started_ms: now,
                ended_ms: now + lasts[&waiting.job],
                units: start.units.clone(),
            });
            running.push(waiting.started(start.units, now));
        }
    }
}
