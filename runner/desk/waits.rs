//! Why a queued job does not run yet, and when it is expected to start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use drydock_gpu::Shortage;
use drydock_gpu::assign::{Ends, Hold, Host, Outlook};
use drydock_spec::{JobId, JobState};
use humantime::format_rfc3339_seconds;

use super::{Desk, DeskError};
use crate::api::WaitsFor;
use crate::blobs::size;
use crate::line::Look;
use crate::sandbox::EngineInfo;
use crate::store::{Job, MOST_AHEAD};

/// How long what was foreseen may be told again: until then what runs has hardly come any further.
const FRESH: Duration = Duration::from_secs(1);

/// What is known of a job's turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    pub(super) waits_for: WaitsFor,
    pub(super) start: Start,
}

/// When a job starts, as far as that can be foreseen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Start {
    /// If everything runs for as long as it may.
    pub(super) by_ms: Option<i64>,
    /// If everything runs for as long as is expected of it.
    pub(super) expected_ms: Option<i64>,
}

impl From<WaitsFor> for Turn {
    fn from(waits_for: WaitsFor) -> Self {
        Self { waits_for, start: Start::default() }
    }
}

impl Desk {
    /// Why each of the queued jobs does not run yet: the first reason that holds, in the order in which they would be
    /// lifted. An attempt on GPUs that is under way may wait for its container to get them.
    pub(super) async fn turns(&self, jobs: &[Job]) -> Result<HashMap<JobId, Turn>, DeskError> {
        let now = self.store.clock().now_ms();
        let is_queued = |job: &&Job| matches!(job.state, JobState::Queued { .. });
        let is_retry = |job: &&Job| is_queued(job) && job.waits_ms(now) > 0;
        let mut awaited = self.store.awaited(&ids(jobs, is_queued)).await?;
        let mut failures = self.store.last_failures(&ids(jobs, is_retry)).await?;
        let mut turns = HashMap::new();
        for job in jobs.iter().filter(is_queued) {
            if let Some(input) = awaited.remove(&job.id) {
                turns.insert(job.id, WaitsFor::Job { id: input.id, state: input.state }.into());
            } else if is_retry(&job) {
                let failure = failures.remove(&job.id).map(|failure| failure.to_string()).unwrap_or_default();
                turns.insert(job.id, WaitsFor::Retry { at_ms: job.not_before_ms, failure }.into());
            }
        }
        if let (Ok(_), Some(problem)) = (self.engine.ready(), self.engine.no_gpu_access()) {
            let waits = |job: &&Job| job.limits.gpus > 0 && !job.state.is_done() && !turns.contains_key(&job.id);
            let waiting: Vec<_> = jobs.iter().filter(waits).map(|job| job.id).collect();
            turns.extend(waiting.into_iter().map(|job| (job, WaitsFor::Engine { problem: problem.clone() }.into())));
        }
        let in_line = ids(jobs, |job| is_queued(job) && !turns.contains_key(&job.id));
        turns.extend(self.turns_in_line(&in_line).await?);
        Ok(turns)
    }

    /// The same of jobs that stand in line and wait for no other job and no time.
    async fn turns_in_line(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Turn)>, DeskError> {
        let all = |reason: WaitsFor| jobs.iter().map(|job| (*job, reason.clone().into())).collect();
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let engine = match self.engine.ready() {
            Ok((engine, _)) => engine,
            Err(error) => return Ok(all(WaitsFor::Engine { problem: error.to_string() })),
        };
        if let Some(shortage) = self.disk.now().shortage {
            let (needs, free) = (shortage.least_bytes, shortage.free_bytes);
            return Ok(all(WaitsFor::Disk { needs, free, problem: shortage.to_string() }));
        }
        let seen = self.foreseen(&engine).await?;
        let unseen: Vec<_> = jobs.iter().copied().filter(|job| !seen.contains_key(job)).collect();
        let ahead = self.store.ahead_of(&unseen).await?;
        let far_behind = |job: &JobId| match ahead.get(job) {
            None | Some(0) => WaitsFor::Dispatch.into(),
            Some(&jobs) => WaitsFor::JobsAhead { jobs }.into(),
        };
        Ok(jobs.iter().map(|job| (*job, seen.get(job).cloned().unwrap_or_else(|| far_behind(job)))).collect())
    }

    /// What is foreseen of those in front: what was foreseen last, as long as nobody has come or gone since.
    async fn foreseen(&self, engine: &EngineInfo) -> Result<Arc<HashMap<JobId, Turn>>, DeskError> {
        let moves = *self.store.changes().queue().borrow();
        let host = self.line.host(engine);
        if let Some(turns) = self.foresight.newest(moves, &host) {
            return Ok(turns);
        }
        let mut look = self.line.look(engine).await?;
        let running: Vec<_> = look.running.iter().map(|job| job.job).collect();
        let tells = look.expect(&self.store.newest_reports(&running).await?);
        let turns = Arc::new(foresee(&look, tells));
        self.foresight.keep(Foreseen { at: Instant::now(), moves, host, turns: Arc::clone(&turns) });
        Ok(turns)
    }
}

/// What was foreseen last, so that a crowd that asks is answered once. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Foresight(Arc<Mutex<Option<Foreseen>>>);

#[derive(Debug)]
struct Foreseen {
    at: Instant,
    /// How often the line had moved by then.
    moves: u64,
    host: Host,
    turns: Arc<HashMap<JobId, Turn>>,
}

impl Foresight {
    fn newest(&self, moves: u64, host: &Host) -> Option<Arc<HashMap<JobId, Turn>>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&Foreseen| {
            let alike = known.host.units == host.units && known.host.capacity == host.capacity;
            known.moves == moves && alike && known.at.elapsed() < FRESH
        };
        known.as_ref().filter(same).map(|known| Arc::clone(&known.turns))
    }

    fn keep(&self, foreseen: Foreseen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(foreseen);
    }
}

/// What is to be said of all who are seen in line. `tells`: whether anybody can tell when what runs is expected to end.
fn foresee(look: &Look, tells: bool) -> HashMap<JobId, Turn> {
    let plan = look.plan();
    let latest = look.outlook(&plan, Ends::Latest);
    let expected = if tells { look.outlook(&plan, Ends::Expected) } else { Outlook::new() };
    let starts = plan.starts.into_iter().map(|start| (start.job, WaitsFor::Dispatch));
    let holds = plan.holds.into_iter().map(|(job, hold)| (job, waits_for(hold)));
    let turn = |(job, waits_for): (JobId, WaitsFor)| {
        let of = |outlook: &Outlook| outlook.get(&job).copied().filter(|_| waits_for != WaitsFor::Dispatch);
        let start = Start { by_ms: of(&latest), expected_ms: of(&expected) };
        (job, Turn { waits_for, start })
    };
    starts.chain(holds).map(turn).collect()
}

fn waits_for(hold: Hold) -> WaitsFor {
    match hold {
        Hold::Lacks { shortage, .. } => lacking(shortage),
        Hold::Behind { jobs, by_share: false } => WaitsFor::JobsAhead { jobs },
        Hold::Behind { jobs, by_share: true } => WaitsFor::Share { jobs },
        Hold::Kept { head, from_ms } => WaitsFor::Kept { job: head, from_ms },
        Hold::TooLarge { shortage } => WaitsFor::Host { problem: too_large(shortage) },
    }
}

fn lacking(shortage: Shortage) -> WaitsFor {
    match shortage {
        Shortage::Cpu { needs, free } => WaitsFor::Cpu { needs, free },
        Shortage::Memory { needs, free } => WaitsFor::Memory { needs, free },
        Shortage::Gpus { needs, free, foreign } => WaitsFor::Gpus { needs, free, foreign },
        Shortage::GpuMemory { needs, free } => WaitsFor::GpuMemory { needs, free },
        Shortage::Disk { needs, free } => WaitsFor::Disk {
            needs,
            free,
            problem: format!(
                "its output may take {}, {} are free; free disk space, or lower limits.disk_mib",
                size(needs),
                size(free)
            ),
        },
    }
}

/// What a job lacks on a host that has nothing else to do.
fn too_large(shortage: Shortage) -> String {
    let lacks = match shortage {
        Shortage::Cpu { needs, free } => format!("needs {}, jobs may use {} here", cpus(needs), cpus(free)),
        Shortage::Memory { needs, free } => {
            format!("needs {} of memory, jobs may use {} here", size(needs), size(free))
        }
        Shortage::Disk { needs, free } => format!("needs {} of disk, {} are free", size(needs), size(free)),
        Shortage::Gpus { needs, free, foreign: 0 } => format!("needs {}, jobs may use {free} here", gpus(needs)),
        Shortage::Gpus { needs, free, foreign } => {
            format!("needs {}, jobs may use {free} here; other programs hold memory of {foreign} more", gpus(needs))
        }
        Shortage::GpuMemory { needs, free } => {
            format!("needs {} of a GPU, none has more than {}", size(needs), size(free))
        }
    };
    format!("{lacks}; it starts when the host has more, or cancel it and ask for less")
}

/// Why a job waits and until when, in words.
pub(super) fn in_words(waits_for: Option<&WaitsFor>, start: Start, now_ms: i64) -> String {
    let reason = match waits_for {
        None | Some(WaitsFor::Dispatch) => "queued, about to start".into(),
        Some(WaitsFor::Job { id, state }) => format!("queued: waits for job {id}, which is {state}"),
        Some(WaitsFor::JobsAhead { jobs }) if *jobs >= MOST_AHEAD => format!("queued behind {jobs} or more other jobs"),
        Some(WaitsFor::JobsAhead { jobs }) => format!("queued behind {jobs} other job(s)"),
        Some(WaitsFor::Share { jobs }) => {
            format!("queued behind {jobs} other job(s), some of owners who have had less of the host")
        }
        Some(WaitsFor::Kept { job, from_ms: Some(at) }) => {
            format!("queued: what it needs is kept for job {job} from {} on", clock_time(*at, now_ms))
        }
        Some(WaitsFor::Kept { job, from_ms: None }) => format!("queued behind job {job}"),
        Some(WaitsFor::Cpu { needs, free }) => {
            format!("queued: needs {}, {:.1} are free", cpus(*needs), *free as f64 / 1e3)
        }
        Some(WaitsFor::Memory { needs, free }) => {
            format!("queued: needs {} of memory, {} are free", size(*needs), size(*free))
        }
        Some(WaitsFor::Gpus { needs, free, foreign }) => {
            let are = if *free == 1 { "is" } else { "are" };
            let foreign = match foreign {
                0 => String::new(),
                foreign => format!(", and other programs hold memory of {foreign} more"),
            };
            format!("queued: needs {}, {free} {are} free{foreign}", gpus(*needs))
        }
        Some(WaitsFor::GpuMemory { needs, free }) => {
            format!("queued: needs {} of a GPU that is shared, {} of one are free", size(*needs), size(*free))
        }
        Some(WaitsFor::Retry { failure, .. }) => format!("queued to be tried again after: {failure}"),
        Some(WaitsFor::Engine { problem } | WaitsFor::Disk { problem, .. } | WaitsFor::Host { problem }) => {
            format!("queued: {problem}")
        }
    };
    let clock = |at| clock_time(at, now_ms);
    match (start.expected_ms, start.by_ms) {
        (Some(at), Some(by)) => {
            format!("{reason}; expected to start at {}, and by {} if all run to their limits", clock(at), clock(by))
        }
        (Some(at), None) => format!("{reason}; expected to start at {}", clock(at)),
        (None, Some(by)) => format!("{reason}; expected to start by {}", clock(by)),
        (None, None) => reason,
    }
}

fn cpus(millis: u64) -> String {
    format!("{:.1} CPUs", millis as f64 / 1e3)
}

fn gpus(count: u32) -> String {
    if count == 1 { "1 GPU".into() } else { format!("{count} GPUs") }
}

/// Such as `14:05 UTC`; with the date where it is not today's.
fn clock_time(at_ms: i64, now_ms: i64) -> String {
    let of = |ms: i64| {
        let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
    };
    let (at, now) = (of(at_ms), of(now_ms));
    let (day, time) = (at.get(..10).unwrap_or(&at), at.get(11..16).unwrap_or(&at));
    if now.starts_with(day) { format!("{time} UTC") } else { format!("{day} {time} UTC") }
}

fn ids(jobs: &[Job], which: impl Fn(&&Job) -> bool) -> Vec<JobId> {
    jobs.iter().filter(which).map(|job| job.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_waits_says_what_for_and_until_when() {
        let now = 1_700_000_000_000;
        let said = |waits_for: WaitsFor, by_ms| in_words(Some(&waits_for), Start { by_ms, expected_ms: None }, now);
        let two_hours = Some(now + 2 * 3_600_000);
        assert_eq!(
            said(WaitsFor::Gpus { needs: 2, free: 1, foreign: 0 }, Some(now + 60_000)),
            "queued: needs 2 GPUs, 1 is free; expected to start by 22:14 UTC"
        );
        assert_eq!(
            said(WaitsFor::Gpus { needs: 1, free: 0, foreign: 1 }, two_hours),
            "queued: needs 1 GPU, 0 are free, and other programs hold memory of 1 more; expected to start by \
             2023-11-15 00:13 UTC"
        );
        let start = Start { by_ms: two_hours, expected_ms: Some(now + 60_000) };
        assert_eq!(
            in_words(Some(&WaitsFor::JobsAhead { jobs: 2 }), start, now),
            "queued behind 2 other job(s); expected to start at 22:14 UTC, and by 2023-11-15 00:13 UTC if all run to \
             their limits"
        );
        let job = JobId::from_parts(0, 1);
        assert_eq!(
            said(WaitsFor::Kept { job, from_ms: Some(now) }, None),
            format!("queued: what it needs is kept for job {job} from 22:13 UTC on")
        );
        assert_eq!(
            said(waits_for(Hold::TooLarge { shortage: Shortage::Gpus { needs: 4, free: 2, foreign: 0 } }), None),
            "queued: needs 4 GPUs, jobs may use 2 here; it starts when the host has more, or cancel it and ask for less"
        );
    }
}
