//! A day of 10,000 jobs on 64 GPUs, under the rule of the line and under others, and what one decision takes. See
//! `make bench-assign`. Time is only counted; the same seed gives the same day.
//!
//!     assign [--seed N]

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on says where, and prints")]

mod day;
mod tally;
mod yard;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use day::HOUR;
use drydock_gpu::assign::{Plan, Policy, Waiting, assign};
use drydock_spec::{Owner, Priority};
use tally::Tally;
use yard::{Moment, live};

/// As the gateway is set by default, and the jobs of an owner that it looks at.
const POLICY: Policy = Policy { half_life_ms: 24 * HOUR, patience_ms: 4 * HOUR };
const EACH: usize = 64;

fn main() {
    let seed = seed();
    println!("{} jobs of {} owners in a day on 64 GPUs, seed {seed}; times are in minutes\n", day::JOBS, day::OWNERS);
    println!("{}", tally::HEAD);
    simulate("first come, first served", seed, first_come);
    simulate("backfill", seed, backfill_alone);
    simulate("backfill, fair and patient", seed, |moment| {
        let front = front(moment.line);
        assign(moment.host, moment.running, &front, moment.owners, &POLICY, moment.now_ms)
    });
    println!("\none decision with 10,000 jobs in line and every GPU in use:");
    decide(seed);
}

fn seed() -> u64 {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => 1,
        ["--seed", number] if number.parse::<u64>().is_ok() => number.parse().unwrap(),
        _ => panic!("assign: {words:?} is no option; there is --seed N"),
    }
}

fn simulate(rule_name: &str, seed: u64, rule: impl FnMut(&Moment<'_>) -> Plan) {
    let (host, coming, began) = (day::host(), day::jobs(seed), Instant::now());
    let courses = live(&host, &POLICY, coming.clone(), rule);
    assert_eq!(courses.len(), coming.len(), "a job has never started");
    println!("{}", Tally::of(&host, &coming, &courses).row(rule_name, began.elapsed().as_secs_f64()));
}

/// By priority and then in order of submission, and nobody passes whoever is next.
fn first_come(moment: &Moment<'_>) -> Plan {
    let mut line: Vec<&Waiting> = moment.line.iter().collect();
    line.sort_by_key(|waiting| (Reverse(waiting.priority.get()), waiting.position));
    let (mut running, mut all) = (moment.running.to_vec(), Plan::default());
    for waiting in line {
        let next = [waiting.clone()];
        let plan = assign(moment.host, &running, &next, &HashMap::new(), &POLICY, moment.now_ms);
        let Some(start) = plan.starts.into_iter().next() else { return all };
        running.push(waiting.clone().started(start.units.clone(), moment.now_ms));
        all.starts.push(start);
    }
    all
}

/// The rule of the line as if everything were one owner's, and nobody ever lost patience.
fn backfill_alone(moment: &Moment<'_>) -> Plan {
    let policy = Policy { patience_ms: i64::MAX, ..POLICY };
    let mut line = moment.line.to_vec();
    line.sort_by_key(|waiting| (Reverse(waiting.priority.get()), waiting.position));
    line.truncate(4 * EACH);
    line.iter_mut().for_each(|waiting| waiting.owner = Owner::local());
    assign(moment.host, moment.running, &line, &HashMap::new(), &policy, moment.now_ms)
}

/// What the gateway looks at: the first jobs of each owner, and its oldest.
fn front(line: &[Waiting]) -> Vec<Waiting> {
    let mut sorted: Vec<&Waiting> = line.iter().collect();
    sorted.sort_by_key(|waiting| (Reverse(waiting.priority.get()), waiting.position));
    let mut oldest = HashMap::<&Owner, i64>::new();
    for waiting in &sorted {
        let known = oldest.entry(&waiting.owner).or_insert(i64::MAX);
        *known = waiting.position.min(*known);
    }
    let mut seen = HashMap::<&Owner, usize>::new();
    let first = sorted.into_iter().filter(|waiting| {
        let count = seen.entry(&waiting.owner).or_default();
        *count += 1;
        *count <= EACH || oldest[&waiting.owner] == waiting.position
    });
    first.cloned().collect()
}

/// What the rule takes where most has to be looked at: all GPUs are in use, and everybody waits.
fn decide(seed: u64) {
    let host = day::host();
    let mut line: Vec<Waiting> = day::jobs(seed).into_iter().map(|coming| coming.waiting).collect();
    let plan = assign(&host, &[], &line, &HashMap::new(), &POLICY, 0);
    let mut running = Vec::new();
    for start in plan.starts {
        let at = line.iter().position(|waiting| waiting.job == start.job).unwrap();
        running.push(line.remove(at).started(start.units, 0));
    }
    // Others are there that just came, so that as many wait.
    let newcomers = line.iter().take(running.len()).cloned().map(|waiting| Waiting {
        priority: Priority::default(),
        position: waiting.position + day::JOBS as i64,
        job: drydock_spec::JobId::from_parts(1, waiting.job.random()),
        ..waiting
    });
    line.extend(newcomers.collect::<Vec<_>>());
    let front = front(&line);
    for (what, line) in [("all of them", &line), ("the front, as the gateway looks at it", &front)] {
        let mut took: Vec<_> = (0..50)
            .map(|n| {
                let began = Instant::now();
                let plan = assign(&host, &running, line, &HashMap::new(), &POLICY, 1 + n);
                assert!(plan.starts.len() < line.len());
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!(
            "- {what} ({} jobs): median {} µs, worst of 50 {} µs",
            line.len(),
            took[25].as_micros(),
            took[49].as_micros()
        );
    }
}
