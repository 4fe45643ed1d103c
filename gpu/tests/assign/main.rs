//! What the rule of the line promises, whatever jobs come: nothing is given twice, nobody starves, nobody delays the head
//! of the line, and owners get equal shares.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod draw;
#[path = "../../../tests/bench/assign/yard.rs"]
mod yard;

use std::collections::HashMap;

use draw::{Drawn, OWNERS, host, jobs, policy};
use drydock_gpu::assign::{Ends, GpuNeed, Hold, Need, Plan, Policy, Waiting, assign, outlook, share_of};
use drydock_spec::{JobId, Owner, Priority};
use proptest::prelude::*;
use yard::{Coming, Course, Moment, live};

const HOUR: i64 = 3_600_000;

fn rule(policy: &Policy) -> impl FnMut(&Moment<'_>) -> Plan {
    |moment| assign(moment.host, moment.running, moment.line, moment.owners, policy, moment.now_ms)
}

/// The same rule without backfill: nobody starts from behind the first who does not fit.
fn without_backfill(policy: &Policy) -> impl FnMut(&Moment<'_>) -> Plan {
    |moment| {
        let mut seen = moment.line.to_vec();
        loop {
            let plan = assign(moment.host, moment.running, &seen, moment.owners, policy, moment.now_ms);
            let head = plan.holds.iter().find(|(_, hold)| matches!(hold, Hold::Lacks { .. })).map(|(job, _)| *job);
            let passed: Vec<_> = plan.starts.iter().map(|start| start.job).collect();
            // Who was behind the head is sent away, until only those in front of it are left.
            let behind = |waiting: &Waiting| {
                let of_head = |head| moment.line.iter().find(|other| other.job == head).unwrap().position;
                head.is_some_and(|head| passed.contains(&waiting.job) && waiting.position > of_head(head))
            };
            if !seen.iter().any(behind) {
                return plan;
            }
            seen.retain(|waiting| !behind(waiting));
        }
    }
}

/// What is taken of the host must be there, by a count of its own.
fn require_room(moment: &Moment<'_>, plan: &Plan) {
    let started = plan.starts.iter().map(|start| {
        let waiting = moment.line.iter().find(|waiting| waiting.job == start.job).unwrap();
        waiting.clone().started(start.units.clone(), moment.now_ms)
    });
    let all: Vec<_> = moment.running.iter().cloned().chain(started).collect();
    let (mut cpu, mut memory) = (0, 0);
    let mut owned = HashMap::<&str, JobId>::new();
    let mut shared = HashMap::<&str, (u64, u32)>::new();
    for job in &all {
        cpu += job.need.capacity.cpu_millis;
        memory += job.need.capacity.memory_bytes;
        let units = || job.units.iter().map(|uuid| moment.host.units.iter().find(|of| of.unit.uuid == *uuid).unwrap());
        match job.need.gpus {
            GpuNeed::Nothing => assert!(job.units.is_empty()),
            GpuNeed::Own { count, least_bytes } => {
                assert_eq!(job.units.len(), count as usize);
                for of in units() {
                    assert_eq!(owned.insert(&of.unit.uuid, job.job), None, "{} was given twice", of.unit.uuid);
                    assert!(of.unit.memory_bytes >= least_bytes);
                    let whole_and_alike = of.unit.uuid == of.unit.gpu && of.name == units().next().unwrap().name;
                    assert!(count == 1 || whole_and_alike, "{all:?}");
                }
            }
            GpuNeed::Share { bytes } => {
                assert_eq!(job.units.len(), 1);
                let (taken, sharers) = shared.entry(&job.units[0]).or_default();
                *taken += bytes;
                *sharers += 1;
            }
        }
    }
    for (uuid, (bytes, sharers)) in shared {
        assert!(!owned.contains_key(uuid), "{uuid} is shared, and somebody's own");
        let of = moment.host.units.iter().find(|of| of.unit.uuid == uuid).unwrap();
        assert!(bytes + of.foreign_bytes <= of.unit.memory_bytes && sharers <= moment.host.sharers);
    }
    assert!(cpu <= moment.host.capacity.cpu_millis && memory <= moment.host.capacity.memory_bytes);
}

/// A stream of one owner's jobs in which nobody's rank changes.
fn one_owner(jobs: Vec<Drawn>) -> Vec<Coming> {
    draw::coming(jobs.into_iter().map(Drawn::of_nobody_special).collect())
}

fn start_of(courses: &[Course], job: JobId) -> i64 {
    courses.iter().find(|course| course.job == job).unwrap().started_ms
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_twice_and_never_more_than_there_is(host in host(), jobs in jobs(1..60)) {
        let policy = policy();
        let coming = draw::coming(jobs);
        let mut decide = rule(&policy);
        live(&host, &policy, coming, |moment| {
            let plan = decide(moment);
            require_room(moment, &plan);
            plan
        });
    }

    #[test]
    fn everybody_who_fits_on_the_host_starts_and_the_others_are_told_that_they_never_will(
        host in host(),
        jobs in jobs(1..60),
    ) {
        let policy = policy();
        let coming = draw::coming(jobs);
        let all = coming.len();
        let mut too_large = std::collections::HashSet::new();
        let mut decide = rule(&policy);
        let courses = live(&host, &policy, coming, |moment| {
            let plan = decide(moment);
            let told = plan.holds.iter().filter(|(_, hold)| matches!(hold, Hold::TooLarge { .. }));
            too_large.extend(told.map(|(job, _)| *job));
            assert_eq!(plan.starts.len() + plan.holds.len(), moment.line.len(), "everybody starts or is told why not");
            plan
        });
        prop_assert_eq!(courses.len() + too_large.len(), all);
    }

    /// With limits that are the truth, each head starts when it would without backfill or earlier.
    #[test]
    fn backfill_does_not_delay_the_head(host in host(), jobs in jobs(2..40)) {
        let policy = Policy { patience_ms: i64::MAX, ..policy() };
        let at_once = |mut coming: Coming| {
            (coming.waiting.submitted_ms, coming.lasts_ms) = (0, coming.waiting.longest_ms);
            coming
        };
        let coming: Vec<_> = one_owner(jobs).into_iter().map(at_once).collect();
        // The first job that does not fit at once is the head from the beginning.
        let line: Vec<_> = coming.iter().map(|coming| coming.waiting.clone()).collect();
        let plan = assign(&host, &[], &line, &HashMap::new(), &policy, 0);
        let head = plan.holds.iter().find(|(_, hold)| matches!(hold, Hold::Lacks { .. })).map(|(job, _)| *job);
        prop_assume!(head.is_some());
        let with = live(&host, &policy, coming.clone(), rule(&policy));
        let without = live(&host, &policy, coming, without_backfill(&policy));
        let head = head.unwrap();
        prop_assert!(start_of(&with, head) <= start_of(&without, head));
    }

    /// With jobs that end earlier than they must, no head starts later than was ever promised to it.
    #[test]
    fn no_promise_to_the_head_is_broken(host in host(), jobs in jobs(2..60)) {
        let policy = Policy { patience_ms: i64::MAX, ..policy() };
        let mut promised = HashMap::<JobId, i64>::new();
        let mut decide = rule(&policy);
        let courses = live(&host, &policy, one_owner(jobs), |moment| {
            let plan = decide(moment);
            for (job, hold) in &plan.holds {
                if let Hold::Lacks { promised_ms: Some(at), .. } = hold {
                    let before = promised.insert(*job, *at).unwrap_or(*at);
                    assert!(*at <= before, "{job} was promised {before} and is to start at {at}");
                }
            }
            plan
        });
        for (job, at) in promised {
            prop_assert!(start_of(&courses, job) <= at);
        }
    }

    /// See [`drydock_gpu::assign::order`]: an owner's oldest job starts within patience and as many longest jobs as there
    /// are owners after the one before it, whoever comes meanwhile.
    #[test]
    fn nobody_starves_whoever_comes(host in host(), jobs in jobs(20..80)) {
        let policy = Policy { patience_ms: HOUR, ..policy() };
        let coming = draw::coming(jobs);
        let longest = coming.iter().map(|coming| coming.waiting.longest_ms).max().unwrap();
        let courses = live(&host, &policy, coming, rule(&policy));
        let by_job: HashMap<_, _> = courses.iter().map(|course| (course.job, course)).collect();
        for course in &courses {
            // Ids are numbered in order of submission; those of its owner that came before it have started or wait.
            let before = by_job.values().filter(|other| {
                other.owner == course.owner && other.job.random() < course.job.random()
                    && other.started_ms > course.submitted_ms
            });
            let rounds = before.count() as i64 + 1;
            let bound = course.submitted_ms + rounds * (policy.patience_ms + OWNERS as i64 * longest);
            prop_assert!(course.started_ms <= bound, "{course:?} was to start by {bound}");
        }
    }

    #[test]
    fn the_same_line_leads_to_the_same_plan_in_whatever_order_it_is_told(
        host in host(),
        jobs in jobs(1..60),
        turn in 0..60usize,
    ) {
        let policy = policy();
        let mut line: Vec<_> = draw::coming(jobs).into_iter().map(|coming| coming.waiting).collect();
        let now = HOUR;
        let plan = assign(&host, &[], &line, &HashMap::new(), &policy, now);
        let count = line.len();
        line.rotate_left(turn % count);
        let again = assign(&host, &[], &line, &HashMap::new(), &policy, now);
        prop_assert_eq!(&plan.starts, &again.starts);
        let sorted = |plan: &Plan| {
            let mut holds = plan.holds.clone();
            holds.sort_by_key(|(job, _)| *job);
            holds
        };
        prop_assert_eq!(sorted(&plan), sorted(&again));
    }

    /// If nobody comes and everything runs for as long as it may, the outlook is what happens.
    #[test]
    fn the_outlook_comes_true(host in host(), jobs in jobs(1..40)) {
        let policy = policy();
        let as_told = |mut coming: Coming| {
            (coming.waiting.submitted_ms, coming.lasts_ms) = (0, coming.waiting.longest_ms);
            coming
        };
        let coming: Vec<_> = draw::coming(jobs).into_iter().map(as_told).collect();
        let line: Vec<_> = coming.iter().map(|coming| coming.waiting.clone()).collect();
        let foreseen = outlook(&host, &[], &line, &HashMap::new(), &policy, 0, Ends::Latest);
        let courses = live(&host, &policy, coming, rule(&policy));
        let happened: HashMap<_, _> = courses.iter().map(|course| (course.job, course.started_ms)).collect();
        prop_assert_eq!(foreseen, happened);
    }
}

/// Shares of the host that each owner has had until a moment.
fn had(host: &drydock_gpu::assign::Host, needs: &HashMap<JobId, Need>, courses: &[Course], until_ms: i64) -> Vec<f64> {
    let mut had = vec![0.0; OWNERS];
    for course in courses {
        let owner: usize = course.owner.0.parse().unwrap();
        let ms = (course.ended_ms.min(until_ms) - course.started_ms).max(0);
        had[owner] += share_of(host, &needs[&course.job]) * ms as f64;
    }
    had
}

#[test]
fn owners_who_want_as_much_get_as_much_however_they_ask() {
    let host = draw::gpus(8);
    // The first queues everything at once, in many small jobs; the second comes later with fewer large ones.
    let job = |n: u128, owner: usize, at_ms, count, minutes: i64| Coming {
        waiting: Waiting {
            job: JobId::from_parts(0, n),
            owner: Owner(owner.to_string()),
            priority: Priority::default(),
            position: n as i64,
            submitted_ms: at_ms,
            need: Need { gpus: GpuNeed::Own { count, least_bytes: 0 }, ..Need::default() },
            longest_ms: minutes * 60_000,
            expected_ms: None,
        },
        lasts_ms: minutes * 60_000,
    };
    let many = (0..2000).map(|n| job(n, 0, 0, 1, 30));
    let few = (2000..2500).map(|n| job(n, 1, 10 * 60_000, 2, 60));
    let coming: Vec<_> = many.chain(few).collect();
    let needs: HashMap<_, _> = coming.iter().map(|coming| (coming.waiting.job, coming.waiting.need)).collect();
    let policy = Policy { patience_ms: 1000 * HOUR, ..policy() };
    let courses = live(&host, &policy, coming, rule(&policy));
    let had = had(&host, &needs, &courses, 48 * HOUR);
    let ratio = had[0] / had[1];
    assert!((0.95..1.05).contains(&ratio), "the first had {ratio} times as much as the second");
}
