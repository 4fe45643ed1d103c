//! What a day came to under a rule.

use std::collections::HashMap;

use drydock_gpu::assign::{GpuNeed, Host, share_of};
use drydock_spec::{JobId, Owner};

use crate::day::{HOUR, OWNERS};
use crate::yard::{Coming, Course};

/// Jobs shorter than this count as this long when their slowdown is judged, in milliseconds (Feitelson and Rudolph's
/// bounded slowdown).
const SHORT_MS: i64 = 10_000;
/// The hours in which there is not enough for everybody.
const BUSY: (i64, i64) = (8 * HOUR, 14 * HOUR);

/// How a day went.
pub(crate) struct Tally {
    /// Share of the GPUs, by their memory, that jobs had from the first hour to the last.
    utilisation: f64,
    waits_ms: Vec<i64>,
    slowdown: f64,
    greedy_wait_ms: f64,
    others_wait_ms: f64,
    /// Jain's index of what owners had of what was due to them, in the busy hours: 1 is fair, and 1 of the owners' number
    /// is the least.
    fairness: f64,
    /// When the last job ended.
    all_done_ms: i64,
}

impl Tally {
    pub(crate) fn of(host: &Host, coming: &[Coming], courses: &[Course]) -> Self {
        let by_job: HashMap<JobId, &Coming> = coming.iter().map(|coming| (coming.waiting.job, coming)).collect();
        let mut waits_ms: Vec<i64> = courses.iter().map(Course::waited_ms).collect();
        waits_ms.sort_unstable();
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
            sum / f64::from(count.max(1))
        };
        let greedy = Owner("owner 0".into());
        let waits_of = |is_greedy: bool| {
            let of = courses.iter().filter(|course| (course.owner == greedy) == is_greedy);
            mean(&mut of.map(|course| course.waited_ms() as f64))
        };
        let day = (HOUR, 23 * HOUR);
        let memory = |uuid: &String| host.units.iter().find(|of| of.unit.uuid == *uuid).unwrap().unit.memory_bytes;
        let used = courses.iter().map(|course| {
            let bytes = match by_job[&course.job].waiting.need.gpus {
                GpuNeed::Share { bytes } => bytes,
                GpuNeed::Own { .. } | GpuNeed::Nothing => course.units.iter().map(memory).sum(),
            };
            bytes as f64 * within(course, day) as f64
        });
        let all: u64 = host.units.iter().map(|of| of.unit.memory_bytes).sum();
        Self {
            utilisation: used.sum::<f64>() / (all as f64 * (day.1 - day.0) as f64),
            slowdown: mean(&mut courses.iter().map(Course::slowdown)),
            waits_ms,
            greedy_wait_ms: waits_of(true),
            others_wait_ms: waits_of(false),
            fairness: fairness(host, &by_job, courses),
            all_done_ms: courses.iter().map(|course| course.ended_ms).max().unwrap_or(0),
        }
    }

    /// A row of the table.
    pub(crate) fn row(&self, rule: &str, took_s: f64) -> String {
        let minutes = |ms: f64| format!("{:.1}", ms / 60_000.0);
        let wait = |share: f64| {
            let at = ((self.waits_ms.len() - 1) as f64 * share).round() as usize;
            minutes(self.waits_ms[at] as f64)
        };
        let mean = self.waits_ms.iter().sum::<i64>() as f64 / self.waits_ms.len() as f64;
        format!(
            "| {rule} | {:.1} % | {} | {} | {} | {} | {:.1} | {} | {} | {:.2} | {:.1} h | {took_s:.1} s |",
            self.utilisation * 100.0,
            minutes(mean),
            wait(0.5),
            wait(0.95),
            wait(1.0),
            self.slowdown,
            minutes(self.greedy_wait_ms),
            minutes(self.others_wait_ms),
            self.fairness,
            self.all_done_ms as f64 / HOUR as f64,
        )
    }
}

pub(crate) const HEAD: &str = "\
| rule | GPUs in use | wait, mean | p50 | p95 | longest | bounded slowdown | wait of the greedy owner | of the others | fairness | all done after | took |
|---|---|---|---|---|---|---|---|---|---|---|---|";

impl Course {
    fn waited_ms(&self) -> i64 {
        self.started_ms - self.submitted_ms
    }

    fn slowdown(&self) -> f64 {
        let ran = self.ended_ms - self.started_ms;
        (self.waited_ms() + ran).max(SHORT_MS) as f64 / ran.max(SHORT_MS) as f64
    }
}

fn within(course: &Course, (from, to): (i64, i64)) -> i64 {
    (course.ended_ms.min(to) - course.started_ms.max(from)).max(0)
}

/// What is due to an owner is what it asks for in the busy hours, or an equal part of what is left by those who ask for
/// less (max-min fairness).
fn fairness(host: &Host, by_job: &HashMap<JobId, &Coming>, courses: &[Course]) -> f64 {
    let (mut had, mut wants) = (HashMap::<&Owner, f64>::new(), HashMap::<&Owner, f64>::new());
    for course in courses {
        let share = share_of(host, &by_job[&course.job].waiting.need);
        let lasts = course.ended_ms - course.started_ms;
        let asked = course.submitted_ms.max(BUSY.0);
        *had.entry(&course.owner).or_default() += share * within(course, BUSY) as f64;
        // Of a job that was begun before, what is left of it.
        let left = lasts - (BUSY.0 - course.started_ms).clamp(0, lasts);
        if asked < BUSY.1 {
            *wants.entry(&course.owner).or_default() += share * left.min(BUSY.1 - asked) as f64;
        }
    }
    let mut open: Vec<(&Owner, f64)> = wants.into_iter().collect();
    open.sort_by(|one, other| one.1.total_cmp(&other.1));
    let mut room: f64 = had.values().sum();
    let count = open.len();
    let mut ratios = Vec::with_capacity(OWNERS);
    for (at, (owner, wants)) in open.into_iter().enumerate() {
        let due = wants.min(room / (count - at) as f64);
        room -= due;
        if due > 0.0 {
            ratios.push(had.get(owner).copied().unwrap_or(0.0) / due);
        }
    }
    let sum: f64 = ratios.iter().sum();
    let squares: f64 = ratios.iter().map(|ratio| ratio * ratio).sum();
    sum * sum / (ratios.len() as f64 * squares)
}
