//! The line as the rule sees it: read anew from the database, the engine, the disks and the GPUs whenever somebody asks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use drydock_gpu::assign::{
    Capacity, Ends, GpuNeed, Host, HostUnit, Need, Outlook, Plan, Policy, Running, Standing, Waiting, assign, outlook,
    share_of,
};
use drydock_spec::{JobId, Limits, Owner, Report, ReportLine};

use crate::api::Estimate;
use crate::config::{Config, QueueConfig};
use crate::disk::DiskWatch;
use crate::gpus::GpuWatch;
use crate::plan::forecast::Quantity;
use crate::sandbox::EngineInfo;
use crate::store::{Queued, Store, StoreError, UnderWay};

/// Jobs of an owner that are looked at, the first ones.
const EACH: u32 = 64;
/// Jobs whose start is foreseen, the first ones of all.
const FORESEEN: usize = 64;

/// Where everything is known from that a turn depends on. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Line {
    pub store: Store,
    pub disk: DiskWatch,
    pub gpus: GpuWatch,
    pub config: Arc<Config>,
}

/// The front of the line, and the host, at one moment.
#[derive(Debug, Clone)]
pub struct Look {
    pub host: Host,
    pub running: Vec<Running>,
    pub waiting: Vec<Waiting>,
    pub owners: HashMap<Owner, Standing>,
    pub policy: Policy,
    pub now_ms: i64,
    /// Whether others wait behind those that are seen.
    pub more: bool,
}

impl Line {
    /// What jobs may use of the engine's host.
    #[must_use]
    pub fn host(&self, engine: &EngineInfo) -> Host {
        Host {
            capacity: self.config.capacity.of(engine),
            disk_bytes: self.disk.now().free_bytes,
            units: match engine.gpus.barrier() {
                None => HostUnit::all(&self.gpus.inventory()),
                Some(_) => Vec::new(),
            },
            sharers: self.config.queue.gpu_sharers,
        }
    }

    /// Looks at the line.
    pub async fn look(&self, engine: &EngineInfo) -> Result<Look, StoreError> {
        let now_ms = self.store.clock().now_ms();
        let front = self.store.front(EACH).await?;
        let under_way = self.store.under_way().await?;
        let host = self.host(engine);
        Ok(Look {
            running: under_way.into_iter().map(|job| running(job, now_ms)).collect(),
            waiting: front.jobs.into_iter().map(|job| waiting(job, &host)).collect(),
            host,
            owners: self.store.owners().await?,
            policy: policy(&self.config.queue),
            now_ms,
            more: front.more,
        })
    }

    /// Has what attempts have had that have ended counted against their owners.
    pub async fn count_ended_once(&self, engine: &EngineInfo) -> Result<(), StoreError> {
        let host = self.host(engine);
        let half_life_ms = policy(&self.config.queue).half_life_ms;
        let count = |standing: Standing, limits: &Limits, time: (i64, i64), now_ms: i64| {
            standing.with(share_of(&host, &need(limits)), time, now_ms, half_life_ms)
        };
        self.store.count_ended_once(count).await
    }
}

impl Look {
    /// Who starts now, and why the others do not.
    #[must_use]
    pub fn plan(&self) -> Plan {
        assign(&self.host, &self.running, &self.waiting, &self.owners, &self.policy, self.now_ms)
    }

    /// When the first of those in line will start, as the plan ranks them.
    #[must_use]
    pub fn outlook(&self, plan: &Plan, ends: Ends) -> Outlook {
        let starts = plan.starts.iter().map(|start| start.job);
        let ranked = starts.chain(plan.holds.iter().map(|(job, _)| *job));
        let first: HashSet<_> = ranked.take(FORESEEN).collect();
        let line: Vec<_> = self.waiting.iter().filter(|waiting| first.contains(&waiting.job)).cloned().collect();
        outlook(&self.host, &self.running, &line, &self.owners, &self.policy, self.now_ms, ends)
    }

    /// Takes in what workers have said last of how long they still need, who know better than the plan did. Says whether
    /// anybody can tell when something is expected to end.
    pub fn expect(&mut self, newest: &HashMap<JobId, Vec<ReportLine>>) -> bool {
        for job in &mut self.running {
            let said = newest.get(&job.job).into_iter().flatten();
            let mut eta_ms = said.filter_map(|line| match &line.report {
                Report::Metrics(metrics) => Some(metrics.eta_ms),
                _ => None,
            });
            let told = eta_ms.next_back().map(|eta| self.now_ms.saturating_add_unsigned(eta));
            job.expected_end_ms = told.or(job.expected_end_ms);
        }
        let told = self.running.iter().any(|job| job.expected_end_ms.is_some());
        told || self.waiting.iter().any(|job| job.expected_ms.is_some())
    }
}

/// What a job takes of the host while it runs.
#[must_use]
pub fn need(limits: &Limits) -> Need {
    let gpus = match (limits.gpus, limits.gpu_memory_bytes) {
        (0, _) => GpuNeed::Nothing,
        (_, Some(bytes)) => GpuNeed::Share { bytes },
        (count, None) => GpuNeed::Own { count, least_bytes: 0 },
    };
    let capacity = Capacity { cpu_millis: u64::from(limits.cpu_millis), memory_bytes: limits.memory_bytes };
    Need { capacity, disk_bytes: limits.disk_bytes, gpus }
}

/// The same of a job in line, which does not get a GPU that is smaller than what it is expected to need, if the host has
/// any other. Where all are too small the estimate was known at the plan, and somebody wants it tried.
fn need_in_line(limits: &Limits, estimate: Option<&Estimate>, host: &Host) -> Need {
    let need = need(limits);
    let GpuNeed::Own { count, .. } = need.gpus else { return need };
    let least_bytes = expected(estimate, Quantity::GpuMemory).unwrap_or(0);
    let gpus = GpuNeed::Own { count, least_bytes };
    match host.takes(&Need { gpus, ..Need::default() }) {
        Ok(()) => Need { gpus, ..need },
        Err(_) => need,
    }
}

fn expected(estimate: Option<&Estimate>, quantity: Quantity) -> Option<u64> {
    estimate.and_then(|estimate| estimate.needs.get(&quantity)).map(|need| need.expected)
}

fn expected_ms(estimate: Option<&Estimate>) -> Option<i64> {
    expected(estimate, Quantity::Time).map(|ms| i64::try_from(ms).unwrap_or(i64::MAX))
}

/// The longest that an attempt runs from its start: it is stopped after its time, and killed after its grace.
fn longest_ms(limits: &Limits) -> i64 {
    limits.time_ms.saturating_add(limits.grace_ms)
}

fn running(job: UnderWay, now_ms: i64) -> Running {
    // Its time counts from when it is launched, which it may only be about to be.
    let launched_ms = job.launched_ms.unwrap_or(now_ms);
    Running {
        job: job.id,
        owner: job.owner,
        need: need(&job.limits),
        units: job.gpus,
        since_ms: job.claimed_ms,
        ends_by_ms: launched_ms.saturating_add(longest_ms(&job.limits)),
        expected_end_ms: expected_ms(job.estimate.as_ref()).map(|ms| launched_ms.saturating_add(ms)),
    }
}

fn waiting(job: Queued, host: &Host) -> Waiting {
    Waiting {
        job: job.id,
        owner: job.owner,
        priority: job.priority,
        position: job.position,
        submitted_ms: job.submitted_ms,
        need: need_in_line(&job.limits, job.estimate.as_ref(), host),
        longest_ms: longest_ms(&job.limits),
        expected_ms: expected_ms(job.estimate.as_ref()),
    }
}

fn policy(config: &QueueConfig) -> Policy {
    let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Policy { half_life_ms: millis(config.half_life), patience_ms: millis(config.patience) }
}

#[cfg(test)]
mod tests {
    use drydock_gpu::inventory::Unit;

    use super::*;
    use crate::api;

    const GIB: u64 = 1 << 30;

    fn limits(gpus: u32) -> Limits {
        Limits {
            memory_bytes: GIB,
            cpu_millis: 1000,
            pids: 64,
            disk_bytes: GIB,
            time_ms: 60_000,
            silence_ms: 60_000,
            grace_ms: 1000,
            max_attempts: 1,
            gpus,
            gpu_memory_bytes: None,
        }
    }

    #[test]
    fn a_job_in_line_is_expected_to_take_what_its_plan_says_and_nothing_is_said_where_nothing_was_measured() {
        let host = Host { capacity: Capacity { cpu_millis: 1000, memory_bytes: 10 }, ..Host::default() };
        let job = |host: &Host, n: i64| {
            let estimate = Estimate {
                needs: [(Quantity::Time, api::Need { expected: 60_000, ..api::Need::default() })].into(),
                ..Estimate::default()
            };
            let queued = Queued {
                id: JobId::from_parts(n, 0),
                owner: Owner("ann".into()),
                priority: drydock_spec::Priority::default(),
                position: n,
                submitted_ms: 0,
                limits: Limits { memory_bytes: 10, disk_bytes: 0, time_ms: 3_600_000, grace_ms: 0, ..limits(0) },
                estimate: Some(estimate),
            };
            waiting(queued, host)
        };
        let mut look = Look {
            running: Vec::new(),
            waiting: vec![job(&host, 1), job(&host, 2)],
            host,
            owners: HashMap::new(),
            policy: policy(&QueueConfig::default()),
            now_ms: 5,
            more: false,
        };
        assert!(look.expect(&HashMap::new()));
        let second = JobId::from_parts(2, 0);
        assert_eq!(look.outlook(&look.plan(), Ends::Expected)[&second], 5 + 60_000);
        assert_eq!(look.outlook(&look.plan(), Ends::Latest)[&second], 5 + 3_600_000);
        look.waiting.iter_mut().for_each(|job| job.expected_ms = None);
        assert!(!look.expect(&HashMap::new()));
    }

    #[test]
    fn a_job_gets_no_gpu_that_is_too_small_for_its_estimate_unless_all_are() {
        let unit = |at: usize, gib: u64| {
            let uuid = format!("GPU-{at}");
            let unit = Unit { uuid: uuid.clone(), gpu: uuid, memory_bytes: gib * GIB };
            HostUnit { unit, name: format!("{gib} GiB"), foreign_bytes: 0 }
        };
        let host = Host { units: vec![unit(0, 24), unit(1, 80)], sharers: 1, ..Host::default() };
        let least = |count, gib: u64| {
            let expected = api::Need { expected: gib * GIB, ..api::Need::default() };
            let estimate = Estimate { needs: [(Quantity::GpuMemory, expected)].into(), ..Estimate::default() };
            need_in_line(&limits(count), Some(&estimate), &host).gpus
        };
        assert_eq!(least(1, 40), GpuNeed::Own { count: 1, least_bytes: 40 * GIB });
        assert_eq!(least(1, 90), GpuNeed::Own { count: 1, least_bytes: 0 });
        assert_eq!(least(2, 40), GpuNeed::Own { count: 2, least_bytes: 0 }, "there are no two of them");
        assert_eq!(need_in_line(&limits(0), None, &host).gpus, GpuNeed::Nothing);
    }
}
