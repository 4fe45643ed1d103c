//! Attempts on a scripted engine: whatever the engine, the worker or the gateway does, the account of a job stays true.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod failures;
#[path = "../fake_nvml/fake.rs"]
mod fake_nvml;
mod forecasts;
mod gpus;
#[path = "../harness/harness.rs"]
mod harness;
mod hostile;
mod injection;
mod kinds;
mod learning;
mod remedies;
mod resume;
mod retention;
mod room;
mod signs;
#[path = "../support/tiny.rs"]
mod tiny;
mod turns;

use drydock::api::WaitsFor;
use drydock::sandbox::{ContainerName, Labels, Launch};
use drydock_spec::{Attempt, Failure, FailureKind, JobId, Limits, Report, Stage, TraceId};
use harness::scripted::{Scripted, Step, finished, started, success};
use harness::world::{World, limits};

fn exit(code: i64) -> Step {
    Step::Exit { code, oom_killed: false }
}

/// A worker that has begun and then waits to be told to go on.
fn halfway() -> Vec<Step> {
    let mut steps = success();
    steps.insert(2, Step::Pause);
    steps
}

fn scripted(scripts: impl IntoIterator<Item = Vec<Step>>) -> Scripted {
    let engine = Scripted::new();
    for steps in scripts {
        engine.script(steps);
    }
    engine
}

fn kind(job: &drydock::api::JobView) -> FailureKind {
    job.failure.as_ref().unwrap_or_else(|| panic!("{job:#?}")).kind
}

#[tokio::test]
async fn a_job_goes_from_the_queue_to_its_artifacts() {
    let world = World::new().await;
    let id = world.submit(limits()).await;
    let job = world.until_done(id).await;
    assert_eq!(job.state, "succeeded", "{job:#?}");
    assert_eq!(world.reports(id).await, ["started", "stage", "artifact", "finished"]);
    let made = world.house.desk.artifacts(id).await.unwrap();
    let file = &made.artifacts[0];
    assert_eq!(
        (file.path.as_str(), file.role.as_deref(), file.bytes),
        ("adapter/adapter_model.safetensors", Some("adapter"), 7)
    );
    let folder = std::path::PathBuf::from(made.folder.unwrap());
    assert_eq!(std::fs::read(folder.join(&file.path)).unwrap(), b"weights");
    world.until_tidy().await;
    let logs = world.house.desk.logs(id, None, 10).await.unwrap();
    assert_eq!(logs.last_words.as_deref(), Some("last words"), "they are kept when the container is gone");
}

#[tokio::test]
async fn lost_replies_start_nothing_twice() {
    for lost in 1..4 {
        let engine = scripted([]);
        let world = World::with(engine.clone()).await;
        engine.lose_replies(lost);
        let id = world.submit(limits()).await;
        assert_eq!(world.until_done(id).await.state, "succeeded");
        assert_eq!(engine.starts(), [1], "after {lost} lost replies");
        world.until_tidy().await;
    }
}

#[tokio::test]
async fn an_engine_that_does_not_answer_fails_no_job() {
    let world = World::with(scripted([halfway()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.engine.set_down(true);
    world.engine.go_on();
    // The reports do not need the engine; the end does.
    let stream = world.until(id, |job| job.seq >= 6).await;
    assert_eq!(stream.state, "running");
    world.engine.set_down(false);
    assert_eq!(world.until_done(id).await.state, "succeeded");
}

#[tokio::test]
async fn an_attempt_that_died_with_the_engine_is_tried_again() {
    let world = World::with(scripted([halfway(), success()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.engine.crash();
    let waiting = world.until(id, |job| job.state == "queued").await;
    assert!(matches!(waiting.waits_for, Some(WaitsFor::Retry { .. })), "{waiting:#?}");
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2));
}

#[tokio::test]
async fn a_job_that_takes_the_engine_down_every_time_is_given_up() {
    let dies = || vec![Step::Say(started()), exit(137)];
    let world = World::with(scripted([dies(), dies(), dies()])).await;
    let id = world.submit(Limits { max_attempts: 2, ..limits() }).await;
    let job = world.until_done(id).await;
    assert_eq!((kind(&job), job.attempt), (FailureKind::EngineLost, 2));
    world.until_tidy().await;
    assert_eq!(world.engine.starts(), [1, 1], "no third attempt");
}

#[tokio::test]
async fn a_container_that_was_created_but_not_started_is_started_by_the_next_process() {
    let world = World::with(scripted([])).await;
    world.engine.refuse_starts(true);
    let id = world.submit(limits()).await;
    world.until_created().await;
    let world = world.restart().await;
    world.engine.refuse_starts(false);
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 1));
    assert_eq!(world.engine.starts(), [1]);
}

#[tokio::test]
async fn a_start_that_the_engine_died_over_is_the_engines_failure() {
    let world = World::with(scripted([])).await;
    world.engine.refuse_starts(true);
    let id = world.submit(limits()).await;
    world.until_created().await;
    world.engine.trip("task 0123: already exists");
    let waiting = world.until(id, |job| job.state == "queued").await;
    assert!(waiting.summary.contains("restarted while it started the container"), "{}", waiting.summary);
    world.engine.refuse_starts(false);
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2));

    // One that fails without having died has its reasons.
    let world = World::with(scripted([])).await;
    world.engine.refuse_starts(true);
    let id = world.submit(limits()).await;
    world.until_created().await;
    world.engine.fail_starts("no such program");
    let waiting = world.until(id, |job| job.state == "queued").await;
    assert!(
        !waiting.summary.contains("restarted") && waiting.summary.contains("no such program"),
        "{}",
        waiting.summary
    );
}

#[tokio::test]
async fn a_restart_loses_no_report_and_doubles_none() {
    let mut world = World::with(scripted([halfway()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.seq == 4).await;
    world = world.restart().await;
    assert_eq!(world.job(id).await.state, "running");
    // While nobody looks, the worker goes on and ends.
    world.engine.go_on();
    world = world.restart().await;
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 1));
    assert_eq!(world.reports(id).await, ["started", "stage", "artifact", "finished"]);
    assert_eq!(world.engine.starts(), [1]);
}

#[tokio::test]
async fn an_end_that_the_engine_overlooks_is_found_and_judged_by_the_workers_last_word() {
    let ends_unseen = |code| {
        let mut steps = success();
        steps.pop();
        steps.push(Step::ExitUnseen(Some(code)));
        steps
    };
    // The engine finds out how it ended, or only that it did.
    for code in [0, 255] {
        let world = World::with(scripted([ends_unseen(code)])).await;
        let id = world.submit(limits()).await;
        let job = world.until_done(id).await;
        assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 1), "{code}: {job:#?}");
    }
    let world = World::with(scripted([ends_unseen(139)])).await;
    let id = world.submit(limits()).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::Crashed);
    // Without a last word nobody knows, and the next attempt tells.
    let vanishes = vec![Step::Say(started()), Step::ExitUnseen(Some(255))];
    let world = World::with(scripted([vanishes, success()])).await;
    let id = world.submit(limits()).await;
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2), "{job:#?}");
}

#[tokio::test]
async fn a_cancelled_job_is_asked_first_and_then_killed() {
    let world = World::with(scripted([halfway()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.house.desk.cancel(id).await.unwrap();
    assert_eq!(world.until_done(id).await.state, "cancelled");
    assert_eq!(world.reports(id).await.last(), Some(&"stopped"), "it had the time to say so");

    let engine = scripted([halfway()]);
    engine.ignore_sigterm();
    let world = World::with(engine).await;
    let id = world.submit(Limits { grace_ms: 1200, ..limits() }).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.house.desk.cancel(id).await.unwrap();
    assert_eq!(world.job(id).await.state, "stopping");
    assert_eq!(world.until_done(id).await.state, "cancelled");
    world.until_tidy().await;
}

#[tokio::test]
async fn a_cancellation_while_the_engine_is_away_is_not_forgotten() {
    let world = World::with(scripted([halfway()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.engine.set_down(true);
    world.house.desk.cancel(id).await.unwrap();
    let world = world.restart().await;
    world.engine.set_down(false);
    assert_eq!(world.until_done(id).await.state, "cancelled");
}

#[tokio::test]
async fn a_silent_worker_is_stopped_and_so_is_one_that_takes_too_long() {
    for (limits, expected) in [
        (Limits { silence_ms: 1200, ..limits() }, FailureKind::Silent),
        (Limits { time_ms: 1200, ..limits() }, FailureKind::TimeLimit),
    ] {
        let world = World::with(scripted([halfway()])).await;
        let id = world.submit(limits).await;
        let job = world.until_done(id).await;
        assert_eq!(kind(&job), expected);
        assert_eq!(job.attempt, 1, "not tried again: it is the job's own doing");
    }
}

#[tokio::test]
async fn output_beyond_its_limit_ends_the_job() {
    let big: &'static [u8] = vec![1; 2 << 20].leak();
    let steps = vec![Step::Say(started()), Step::Make { path: "big", content: big }, Step::Pause];
    let world = World::with(scripted([steps])).await;
    let id = world.submit(limits()).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::DiskFull);
}

#[tokio::test]
async fn the_workers_own_words_are_the_failure() {
    let failure = Failure::new(FailureKind::NothingToLearn, "all 3 rows are empty").at(Stage::Tokenize);
    let world =
        World::with(scripted([vec![Step::Say(started()), Step::Say(Report::Failed(failure.clone())), exit(1)]])).await;
    let id = world.submit(limits()).await;
    assert_eq!(world.until_done(id).await.failure, Some(failure));
}

#[tokio::test]
async fn memory_that_ran_out_is_told_from_a_crash() {
    for (oom_killed, expected) in [(true, FailureKind::OutOfMemory), (false, FailureKind::Crashed)] {
        let code = if oom_killed { 137 } else { 139 };
        let steps = vec![Step::Say(started()), Step::Exit { code, oom_killed }];
        let world = World::with(scripted([steps])).await;
        let id = world.submit(limits()).await;
        assert_eq!(kind(&world.until_done(id).await), expected);
    }
}

#[tokio::test]
async fn memory_that_ran_out_is_not_tried_again_though_the_engine_tells_it_late() {
    let world = World::with(scripted([vec![Step::Say(started()), Step::OomToldLate]])).await;
    let id = world.submit(limits()).await;
    let job = world.until_done(id).await;
    assert_eq!((kind(&job), job.attempt), (FailureKind::OutOfMemory, 1));
}

#[tokio::test]
async fn what_breaks_the_contract_is_no_success() {
    let nonsense = vec![b'x'; 1 << 20];
    for steps in [
        vec![Step::Say(started()), Step::Write(nonsense), Step::Pause],
        vec![Step::Say(finished()), Step::Say(started()), Step::Pause],
        vec![Step::Say(started()), exit(0)],
        vec![Step::Write(br#"{"elapsed_ms":1,"type":"succeeded"}"#.to_vec()), exit(0)],
    ] {
        let world = World::with(scripted([steps.clone()])).await;
        let id = world.submit(limits()).await;
        assert_eq!(kind(&world.until_done(id).await), FailureKind::ContractBroken, "{steps:?}");
    }
}

#[tokio::test]
async fn a_container_that_vanished_is_not_taken_for_a_success() {
    let world = World::with(scripted([halfway(), success()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.engine.forget_all();
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2), "the first attempt counts as lost");
}

#[tokio::test]
async fn a_worker_that_has_spoken_is_not_started_again_though_the_engine_forgot_it() {
    let world = World::with(scripted([halfway(), success()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    world.engine.set_down(true);
    world.engine.forget_starts();
    let world = world.restart().await;
    world.engine.set_down(false);
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2));
    assert_eq!(world.engine.starts(), [1, 1]);
}

#[tokio::test]
async fn a_job_waits_for_memory_and_says_so_and_is_overtaken_only_by_what_leaves_it_as_much() {
    let world = World::with(scripted([halfway(), halfway(), halfway()])).await;
    let gib = |gib: u64| Limits { memory_bytes: gib << 30, ..limits() };
    let first = world.submit(gib(9)).await;
    world.until(first, |job| job.progress.is_some()).await;
    let second = world.submit(gib(11)).await;
    let waits = world.until(second, |job| matches!(job.waits_for, Some(WaitsFor::Memory { .. }))).await;
    assert!(waits.summary.starts_with("queued: needs 11.0 GiB of memory"), "{}", waits.summary);
    assert!(waits.summary.contains("; expected to start by "), "{}", waits.summary);
    assert!(waits.starts_by_ms.is_some());
    // There is room for both, but with the one the second could not start when the first has ended.
    let kept = world.submit(gib(2)).await;
    let small = world.submit(gib(1)).await;
    world.until(small, |job| job.progress.is_some()).await;
    let waits = world.job(kept).await;
    assert!(matches!(waits.waits_for, Some(WaitsFor::Kept { job, .. }) if job == second), "{waits:#?}");
    assert!(waits.summary.contains(&format!("kept for job {second}")), "{}", waits.summary);
    for id in [first, second, kept, small] {
        let done = async |id| world.until_done(id).await;
        let going = async {
            loop {
                world.engine.go_on();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let done = tokio::select! {
            done = done(id) => done,
            () = going => unreachable!(),
        };
        assert_eq!(done.state, "succeeded");
    }
}

#[tokio::test]
async fn containers_that_nobody_owns_are_removed() {
    let world = World::with(scripted([halfway()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    let owned = world.engine.launch().unwrap();
    let stray = Launch {
        name: ContainerName("drydock-stray-1".into()),
        labels: Labels {
            job: JobId::from_parts(1, 1),
            attempt: Attempt::FIRST,
            fence: "f".into(),
            trace_id: TraceId::from_bits(1),
            ..owned.labels.clone()
        },
        ..owned
    };
    world.engine.plant(stray, 0);
    assert_eq!(world.engine.container_count(), 2);
    world.house.reaper.sweep_once().await.unwrap();
    assert_eq!(world.engine.container_count(), 1);
    world.engine.go_on();
    assert_eq!(world.until_done(id).await.state, "succeeded", "the one that is owned was left alone");
}

#[tokio::test]
async fn two_houses_cannot_share_a_state_folder() {
    let world = World::new().await;
    let config = (*world.house.desk.config).clone();
    let second = drydock::house::House::open(config, None, drydock::clock::Clock::System).await;
    let message = second.err().unwrap().to_string();
    assert!(message.contains("another drydock uses"), "{message}");
}
