//! The line as the rule sees it: read anew from the database, the engine, the disks and the GPUs whenever somebody asks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use drydock_gpu::assign::{
    Capacity, Ends, GpuNeed, Host, HostUnit, Need, Outlook, Plan, Policy, Running, Standing, Waiting, assign, outlook,
    share_of,
};
use drydock_spec::{JobId, Limits, Owner, Report, ReportLine};

use crate::config::{Config, QueueConfig};
use crate::disk::DiskWatch;
use crate::gpus::GpuWatch;
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
        Ok(Look {
            host: self.host(engine),
            running: under_way.into_iter().map(|job| running(job, now_ms)).collect(),
            waiting: front.jobs.into_iter().map(waiting).collect(),
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

    /// Takes in what workers have said last of how long they still need. Says whether any end can be told from it.
    pub fn expect(&mut self, newest: &HashMap<JobId, Vec<ReportLine>>) -> bool {
        for job in &mut self.running {
            let said = newest.get(&job.job).into_iter().flatten();
            let eta_ms = said.filter_map(|line| match &line.report {
                Report::Metrics(metrics) => Some(metrics.eta_ms),
                _ => None,
            });
            job.expected_end_ms = eta_ms.last().map(|eta| self.now_ms.saturating_add_unsigned(eta));
        }
        self.running.iter().any(|job| job.expected_end_ms.is_some())
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
        expected_end_ms: None,
    }
}

fn waiting(job: Queued) -> Waiting {
    Waiting {
        job: job.id,
        owner: job.owner,
        priority: job.priority,
        position: job.position,
        submitted_ms: job.submitted_ms,
        need: need(&job.limits),
        longest_ms: longest_ms(&job.limits),
        expected_ms: None,
    }
}

fn policy(config: &QueueConfig) -> Policy {
    let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Policy { half_life_ms: millis(config.half_life), patience_ms: millis(config.patience) }
}
