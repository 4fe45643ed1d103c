//! What must hold, whatever has happened.

use std::collections::BTreeMap;

use drydock::sandbox::{ContainerName, Status};
use drydock::store::{AttemptRow, Entry, Job, LogLine};
use drydock_spec::{Attempt, FailureKind, JobEvent, JobId, JobState, Outcome, Report};

use crate::life::{GPU_BYTES, World};

/// CPU (thousandths) and memory (bytes) that the scripted engine's jobs may use.
const CAPACITY: (u64, u64) = (4_000, (16 << 30) / 5 * 4);

/// A job and its log.
struct Account<'a> {
    job: &'a Job,
    log: Vec<LogLine>,
}

/// What the database says at one moment.
struct Books {
    jobs: BTreeMap<JobId, Job>,
    /// Of jobs that are not as they were when they were looked at last.
    logs: BTreeMap<JobId, Vec<LogLine>>,
    under_way: Vec<AttemptRow>,
    /// Thousandths of CPUs, and bytes of memory.
    reserved: (u64, u64),
}

impl Books {
    /// The kernel tells of a file's growth when it gets to it, so that a report may come in while somebody reads here.
    fn of(world: &World) -> Self {
        loop {
            let jobs = world.jobs();
            let changed = jobs.iter().filter(|(id, job)| world.seen.get(id) != Some(job)).map(|(id, _)| *id);
            let log = |id| (id, world.with(async |house| house.desk.store.log(id, 0, 10_000).await.unwrap()));
            let books = Self {
                logs: changed.map(log).collect(),
                under_way: world.with(async |house| house.desk.store.attempts_under_way().await.unwrap()),
                reserved: world.with(async |house| house.desk.store.reserved().await.unwrap()),
                jobs,
            };
            if world.jobs() == books.jobs {
                return books;
            }
        }
    }
}

/// After everything that happens.
pub(crate) fn check(world: &mut World) {
    let Books { jobs, mut logs, under_way, reserved } = Books::of(world);
    assert_eq!(jobs.len(), world.ids.len(), "every job that was accepted is there");
    for (id, job) in &jobs {
        let before = world.seen.get(id);
        if before == Some(job) {
            continue;
        }
        assert!(before.is_none_or(|before| !before.state.is_done()), "job {id} came back: {before:?}, {job:?}");
        let account = Account { job, log: logs.remove(id).unwrap() };
        the_row_is_what_the_events_lead_to(&account);
        no_report_is_lost_or_doubled(&account);
        no_job_starts_before_its_input_is_there(world, &jobs, job);
        the_end_is_the_true_one(world, &jobs, &account);
    }
    an_attempt_is_under_way_exactly_while_its_job_runs(&under_way, &jobs);
    assert!(world.engine.starts().iter().all(|starts| *starts == 1), "a container was started a second time");
    assert!(reserved.0 <= CAPACITY.0 && reserved.1 <= CAPACITY.1, "{reserved:?} is more than {CAPACITY:?}");
    no_gpu_is_held_by_two(&under_way, &jobs);
    nothing_begins_on_a_gpu_that_is_cordoned(world, &under_way);
    world.seen = jobs;
}

/// When all faults have ceased and time has passed.
pub(crate) fn check_the_end(world: &mut World) {
    check(world);
    for job in world.seen.values() {
        assert!(job.state.is_done(), "job {} does not end: {:?}", job.id, job.state);
        artifacts_are_whole_or_not_there(world, job);
    }
    assert_eq!(world.engine.container_count(), 0, "containers are left: {:?}", world.engine.fences());
    for folder in ["attempts", "checkpoints"] {
        let left = std::fs::read_dir(world.state().join(folder)).into_iter().flatten();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?} left in {folder}; the jobs: {:?}", world.told());
    }
    let (all, free) = world.with(async |house| house.desk.capacity().await.unwrap());
    assert_eq!(all, free, "everything that was reserved is given back");
}

fn the_row_is_what_the_events_lead_to(Account { job, log }: &Account<'_>) {
    let numbers: Vec<_> = log.iter().map(|line| line.seq).collect();
    assert_eq!(numbers, (1..=job.last_seq).collect::<Vec<_>>(), "a gap or a double in the log of {}", job.id);
    let events: Vec<JobEvent> = log
        .iter()
        .filter_map(|line| match &line.entry {
            Entry::Event(event) => Some(event.clone()),
            Entry::Report { .. } => None,
        })
        .collect();
    let folded = JobState::fold(events.clone(), job.last_attempt());
    assert_eq!(folded.as_ref(), Ok(&job.state), "folding {events:?} gives the row");
    assert_eq!(job.ended_ms.is_some(), job.state.is_done());
}

/// The workers number what they say: what is stored of an attempt is the beginning of that, without gap or double.
fn no_report_is_lost_or_doubled(Account { job, log }: &Account<'_>) {
    let mut said: BTreeMap<Attempt, Vec<u64>> = BTreeMap::new();
    for line in log {
        if let Entry::Report { attempt, line } = &line.entry
            && let Report::Progress { done, .. } = &line.report
        {
            said.entry(*attempt).or_default().push(*done);
        }
    }
    for (attempt, numbers) in said {
        let all = (0..numbers.len() as u64).collect::<Vec<_>>();
        assert_eq!(numbers, all, "what attempt {attempt} of {} said", job.id);
    }
}

fn no_job_starts_before_its_input_is_there(world: &World, jobs: &BTreeMap<JobId, Job>, job: &Job) {
    let Some(input) = world.reads.get(&job.id) else { return };
    if job.started_ms.is_some() {
        let input = &jobs[input].state;
        assert_eq!(*input, JobState::Done(Outcome::Succeeded), "{} has begun without its input", job.id);
    }
}

/// What the account says of the end is what the engine saw, and where that saw nothing, what the worker said last.
fn the_end_is_the_true_one(world: &World, jobs: &BTreeMap<JobId, Job>, Account { job, log }: &Account<'_>) {
    let (id, JobState::Done(outcome)) = (job.id, &job.state) else { return };
    let seen = world.engine.last_seen(&ContainerName::of(id, job.attempt));
    let exit = match &seen {
        Some(Status::Exited(exit)) => Some((exit.code, exit.oom_killed)),
        _ => None,
    };
    let clean = exit == Some((0, false));
    match outcome {
        Outcome::Succeeded => {
            let unseen = seen == Some(Status::Lifeless) && has_finished(log);
            assert!(world.forgotten || clean || unseen, "{id} succeeded with {seen:?}");
        }
        Outcome::Cancelled => assert!(world.cancelled.contains(&id), "nobody cancelled {id}"),
        Outcome::Failed(failure) => match failure.kind {
            FailureKind::OutOfMemory => assert_eq!(exit, Some((137, true)), "{failure}"),
            FailureKind::Diverged => assert_eq!(exit, Some((1, false)), "{failure}"),
            FailureKind::Crashed => assert_eq!(exit, Some((139, false)), "{failure}"),
            FailureKind::Unexplained => assert_eq!(exit, Some((3, false)), "{failure}"),
            FailureKind::EngineLost => assert_eq!(job.attempt, job.last_attempt(), "{id} was given up: {failure}"),
            FailureKind::GpuLost => {
                let on_gpus = world.damaged && job.limits.gpus > 0;
                assert!(on_gpus && job.attempt == job.last_attempt(), "{id} was given up: {failure}");
            }
            FailureKind::InputFailed => {
                let input = &jobs[&world.reads[&id]].state;
                assert!(input.is_done() && *input != JobState::Done(Outcome::Succeeded), "{failure}");
            }
            FailureKind::Silent | FailureKind::TimeLimit => {
                assert!(world.waited_ms() >= 300_000, "{id} was ended too early: {failure}");
            }
            kind => panic!("{id} failed as {kind:?}: {failure}"),
        },
    }
    assert!(!clean || *outcome == Outcome::Succeeded, "the worker of {id} had done everything");
}

fn has_finished(log: &[LogLine]) -> bool {
    log.iter()
        .any(|line| matches!(&line.entry, Entry::Report { line, .. } if matches!(line.report, Report::Finished(_))))
}

/// But for those that all share it, and then no more of its memory than it has.
fn no_gpu_is_held_by_two(under_way: &[AttemptRow], jobs: &BTreeMap<JobId, Job>) {
    let mut holders: BTreeMap<&String, Vec<Option<u64>>> = BTreeMap::new();
    for row in under_way {
        let limits = jobs[&row.job].limits;
        assert_eq!(row.gpus.len(), limits.gpus as usize, "{} asks for as many", row.job);
        for gpu in &row.gpus {
            holders.entry(gpu).or_default().push(limits.gpu_memory_bytes);
        }
    }
    for (gpu, held) in holders {
        let shared: Option<Vec<u64>> = held.iter().copied().collect();
        let room = shared.is_some_and(|bytes| bytes.iter().sum::<u64>() <= GPU_BYTES && bytes.len() <= 4);
        assert!(held.len() == 1 || room, "{gpu} is held by {held:?}");
    }
}

/// In no life of the runner.
fn nothing_begins_on_a_gpu_that_is_cordoned(world: &mut World, under_way: &[AttemptRow]) {
    for row in under_way {
        if world.begun.insert((row.job, row.attempt)) {
            let out: Vec<_> = row.gpus.iter().filter(|gpu| world.cordoned.contains(*gpu)).collect();
            assert!(out.is_empty(), "attempt {} of {} begins on {out:?}", row.attempt, row.job);
        }
    }
}

fn an_attempt_is_under_way_exactly_while_its_job_runs(under_way: &[AttemptRow], jobs: &BTreeMap<JobId, Job>) {
    let mut attempts: Vec<_> = under_way.iter().map(|row| (row.job, row.attempt)).collect();
    attempts.sort_unstable();
    let running = jobs.values().filter_map(|job| match job.state {
        JobState::Running { attempt } | JobState::Stopping { attempt } => Some((job.id, attempt)),
        JobState::Queued { .. } | JobState::Done(_) => None,
    });
    assert_eq!(attempts, running.collect::<Vec<_>>());
}

fn artifacts_are_whole_or_not_there(world: &World, job: &Job) {
    let id = job.id;
    let succeeded = job.state == JobState::Done(Outcome::Succeeded);
    let listed = world.with(async |house| house.desk.store.artifacts(id).await.unwrap());
    assert_eq!(listed.len(), 2 * usize::from(succeeded), "{id}");
    for artifact in listed {
        let content = std::fs::read(world.state().join("artifacts").join(id.to_string()).join(artifact.path)).unwrap();
        assert_eq!(content, b"weights");
    }
}
