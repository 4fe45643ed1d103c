//! What the GPUs' driver counts while an attempt is under way is a fact of its end.

use std::time::Duration;

use drydock::api::JobView;
use drydock::clock::Clock;
use drydock::sandbox::{ContainerName, Exit, Status};
use drydock::store::{KeptFailure, Resumed, Termination};
use drydock_spec::report::{Checkpoint, GpuReading, Started};
use drydock_spec::{Attempt, FailureKind, Limits, Report};

use super::fake_nvml::FakeNvml;
use super::harness::world::PATIENCE;
use super::{Step, World, exit, kind, limits, scripted, success};

fn on(device: &str) -> Report {
    Report::Started(Started { worker: "scripted".into(), device: device.into(), threads: 1, features: vec![] })
}

/// How an attempt on this device fails that prints this and leaves, while the GPUs come to be like this.
async fn meanwhile(device: &str, gpus: &str, printed: &str) -> KeptFailure {
    let fake = FakeNvml::saying("count 2\nuncorrected0 4\n");
    let steps = vec![Step::Say(on(device)), Step::Pause, Step::Print(printed.into()), exit(1)];
    let world = World::with_config(scripted([steps]), |config| config.sandbox.nvml = Some(fake.library())).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.seq >= 3).await;
    fake.says(gpus);
    world.engine.go_on();
    let job = world.until_done(id).await;
    assert_eq!(job.attempt, 1, "it is not tried again on the same GPU");
    let kept = world.house.desk.store.failure_of(id, Attempt::FIRST).await.unwrap();
    kept.expect("a failure is kept")
}

#[tokio::test]
async fn a_gpu_that_is_damaged_meanwhile_is_why_the_attempt_failed_whatever_was_printed() {
    let printed = "RuntimeError: CUDA error: an illegal memory access was encountered\n";
    for (gpus, words) in [
        ("count 2\nuncorrected0 4\nlost1 1\n", "is lost to the driver"),
        ("count 2\nuncorrected0 6\n", "has counted 2 new errors of its memory"),
        ("count 1\nuncorrected0 4\n", "is lost to the driver"),
        ("count 2\nuncorrected0 4\nevent0 79\n", "has told of Xid 79"),
    ] {
        let kept = meanwhile("cuda:0", gpus, printed).await;
        let failure = &kept.failure;
        assert_eq!(failure.kind, FailureKind::GpuHardware, "{gpus}: {failure:?}");
        assert!(failure.message.starts_with("NVIDIA Fake 9000 (GPU-") && failure.message.contains(words), "{failure}");
        let evidence = &kept.record.evidence;
        assert_eq!(evidence.gpus.len(), 2, "{evidence:?}");
        assert_eq!(evidence.environment.driver.as_deref(), Some("580.159.04"));
        assert_eq!(evidence.environment.gpus, ["NVIDIA Fake 9000"; 2]);
    }
}

#[tokio::test]
async fn a_program_that_failed_on_a_good_gpu_is_not_the_gpus_fault() {
    let kept = meanwhile("cuda:0", "count 2\nuncorrected0 4\nevent1 31\n", "").await;
    assert_eq!(kept.failure.kind, FailureKind::GpuFault, "{:?}", kept.failure);
    let kept = meanwhile("cuda:0", "count 2\nuncorrected0 4\n", "").await;
    assert_eq!(kept.failure.kind, FailureKind::Unexplained, "old errors are no news: {:?}", kept.failure);
}

#[tokio::test]
async fn what_befalls_a_gpu_is_nothing_to_a_worker_on_the_cpu() {
    let kept = meanwhile("cpu", "count 2\nuncorrected0 9\nlost1 1\n", "").await;
    assert_eq!(kept.failure.kind, FailureKind::Unexplained, "{:?}", kept.failure);
    assert!(kept.record.evidence.gpus.is_empty() && kept.record.evidence.environment.driver.is_none());
}

const FIRST: &str = "GPU-00000000-0000-0000-0000-000000000000";
const SECOND: &str = "GPU-00000000-0000-0000-0000-000000000001";

/// A worker on a GPU that has kept a checkpoint after step 5 and goes on until it is told to.
fn computes() -> Vec<Step> {
    let checkpoint = Checkpoint { step: 5, path: "checkpoints/step-5".into(), bytes: 6 };
    vec![
        Step::Say(on("cuda:0")),
        Step::Make { path: "checkpoints/step-5/state", content: b"sixsix" },
        Step::Say(Report::Checkpoint(checkpoint)),
        Step::Pause,
    ]
}

/// A house at rest with two GPUs that say this.
async fn with_gpus(scripts: Vec<Vec<Step>>, state: &str) -> (World, FakeNvml) {
    by_clock(Clock::System, scripts, state).await
}

async fn by_clock(clock: Clock, scripts: Vec<Vec<Step>>, state: &str) -> (World, FakeNvml) {
    let fake = FakeNvml::saying(state);
    let world = World::at_rest(scripted(scripts), clock, |config| config.sandbox.nvml = Some(fake.library())).await;
    (world, fake)
}

/// Whether the newest that was said of an attempt's only GPU is this much memory, in bytes.
fn holds(job: &JobView, bytes: u64) -> bool {
    let said = job.progress.as_ref().and_then(|progress| progress.gpus.first());
    said.is_some_and(|gpu| gpu.memory_used_bytes == bytes)
}

/// What jobs can be given.
fn units(world: &World) -> Vec<String> {
    let known = world.house.gpus.now();
    known.gpus.as_ref().unwrap().units().into_iter().map(|unit| unit.uuid).collect()
}

async fn kept(world: &World, id: drydock_spec::JobId) -> KeptFailure {
    world.house.desk.store.failure_of(id, Attempt::FIRST).await.unwrap().expect("a failure is kept")
}

#[tokio::test]
async fn a_gpu_that_fails_ends_its_attempt_at_once_and_another_goes_on_from_the_checkpoint_on_another_gpu() {
    for (end, words) in [
        ("count 2\nevent0 79\n", "has told of Xid 79"),
        ("count 2\nuncorrected0 1\n", "has counted 1 new errors of its memory"),
        ("count 2\nlost0 1\nevent0 79\n", "Xid 79"),
    ] {
        let (world, fake) = with_gpus(vec![computes(), success()], "count 2\n").await;
        let id = world.submit(Limits { gpus: 1, ..limits() }).await;
        world.begin_on(id, &[FIRST]).await;
        world.until(id, |job| job.progress.as_ref().is_some_and(|progress| progress.checkpoint.is_some())).await;
        fake.says(end);
        world.until(id, |job| job.state == "queued").await;
        let container = ContainerName::of(id, Attempt::FIRST);
        let killed = Status::Exited(Exit { code: 137, oom_killed: false });
        assert_eq!(world.engine.last_seen(&container), Some(killed), "it had no time to keep what it computed");
        let kept = kept(&world, id).await;
        assert_eq!(kept.failure.kind, FailureKind::GpuLost, "{:?}", kept.failure);
        assert!(kept.failure.message.contains(FIRST) && kept.failure.message.contains(words), "{}", kept.failure);
        let evidence = &kept.record.evidence;
        assert_eq!(evidence.ended_by_drydock, Some(Termination::GpuLost));
        assert_eq!(evidence.gpus.iter().map(|gpu| gpu.uuid.as_deref()).collect::<Vec<_>>(), [Some(FIRST)]);
        assert_eq!(units(&world), [SECOND], "no job gets the damaged one");
        world.begin_on(id, &[SECOND]).await;
        let job = world.until_done(id).await;
        assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2), "{job:#?}");
        assert_eq!(job.resumed_from, Some(Resumed { job: None, attempt: 1, step: 5 }));
    }
}

#[tokio::test]
async fn a_job_whose_gpu_fails_is_carried_on_by_the_line_on_the_gpu_that_is_left() {
    let fake = FakeNvml::saying("count 2\n");
    let config = |config: &mut drydock::config::Config| config.sandbox.nvml = Some(fake.library());
    let world = World::with_config(scripted([computes(), success()]), config).await;
    let id = world.submit(Limits { gpus: 1, ..limits() }).await;
    world.until(id, |job| job.progress.as_ref().is_some_and(|progress| progress.checkpoint.is_some())).await;
    let had = async || world.house.desk.store.attempts_under_way().await.unwrap()[0].gpus.clone();
    let first = had().await;
    let (place, other) = if first == [FIRST] { (0, SECOND) } else { (1, FIRST) };
    fake.says(&format!("count 2\nevent{place} 79\n"));
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt, job.resumed_from.map(|from| from.step)), ("succeeded", 2, Some(5)));
    assert_eq!(kept(&world, id).await.failure.kind, FailureKind::GpuLost);
    assert_eq!(units(&world), [other]);
    let list = world.house.desk.gpus().await.unwrap();
    let cordoned: Vec<_> = list.gpus.iter().filter_map(|view| view.cordon.as_ref()).collect();
    assert!(cordoned.len() == 1 && cordoned[0].uuid == first[0] && cordoned[0].reason.contains("Xid 79"), "{list:#?}");
}

#[tokio::test]
async fn a_program_that_dies_of_its_gpu_is_tried_again_on_another_one_and_one_that_dies_of_itself_is_not() {
    for (end, expected) in [
        ("count 2\nevent0 79\n", FailureKind::GpuLost),
        ("count 2\nevent0 31\n", FailureKind::GpuFault),
        ("count 2\nevent1 79\n", FailureKind::Unexplained),
    ] {
        let (world, fake) = with_gpus(vec![[computes(), vec![exit(1)]].concat()], "count 2\n").await;
        let id = world.submit(Limits { max_attempts: 1, gpus: 1, ..limits() }).await;
        world.begin_on(id, &[FIRST]).await;
        world.until(id, |job| job.seq >= 4).await;
        fake.says(end);
        world.engine.go_on();
        let job = world.until_done(id).await;
        assert_eq!(kind(&job), expected, "{end}: {:?}", job.failure);
    }
}

#[tokio::test]
async fn a_cordon_outlives_the_gateway_and_what_was_repaired_and_ends_when_a_person_says_so() {
    let (world, fake) = with_gpus(vec![], "count 2\n").await;
    fake.says("count 2\nevent1 79\n");
    let cordoned = async {
        while units(&world).len() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), cordoned).await.expect("an event is acted on at once");
    fake.says("count 2\n");
    let world = world.restart().await;
    assert_eq!(units(&world), [FIRST]);
    let [cordon] = &world.house.gpus.now().cordons[..] else { panic!("one cordon") };
    assert_eq!((cordon.uuid.as_str(), cordon.by.as_str(), cordon.fatal), (SECOND, "drydock", true));
    world.house.desk.uncordon(SECOND).await.unwrap();
    world.house.gpus.look_once().await.unwrap();
    assert_eq!(units(&world), [FIRST, SECOND]);
}

#[tokio::test]
async fn a_gateway_that_died_over_a_cordon_is_followed_by_one_that_ends_the_attempt() {
    let (world, _fake) = with_gpus(vec![computes(), success()], "count 2\n").await;
    let id = world.submit(Limits { gpus: 1, ..limits() }).await;
    world.begin_on(id, &[FIRST]).await;
    world.until(id, |job| job.seq >= 4).await;
    // Nobody here has heard of it yet.
    world.house.desk.store.cordon(FIRST, "has told of Xid 79", "drydock", true).await.unwrap();
    let world = world.restart().await;
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 2), "{job:#?}");
    let failure = kept(&world, id).await.failure;
    assert_eq!(failure.kind, FailureKind::GpuLost);
    assert!(failure.message.starts_with("has told of Xid 79; drydock has ended the attempt"), "{failure}");
}

#[tokio::test]
async fn a_row_that_waits_for_a_reset_keeps_new_jobs_away_and_lets_what_runs_go_on() {
    let scripts = vec![[computes(), success().split_off(1)].concat()];
    let (world, fake) = by_clock(Clock::manual(0), scripts, "count 1\nused0 1024\n").await;
    let id = world.submit(Limits { gpus: 1, ..limits() }).await;
    world.begin_on(id, &[FIRST]).await;
    world.until_in_time(id, |job| holds(job, 1 << 30)).await;
    fake.says("count 1\npending0 1\nused0 2048\n");
    world.house.gpus.look_once().await.unwrap();
    assert!(units(&world).is_empty());
    // Whoever follows the attempt has seen that look, twice.
    world.until_in_time(id, |job| holds(job, 2 << 30)).await;
    fake.says("count 1\npending0 1\nused0 3072\n");
    world.house.gpus.look_once().await.unwrap();
    let job = world.until_in_time(id, |job| holds(job, 3 << 30)).await;
    assert_eq!(job.state, "running");
    world.engine.go_on();
    assert_eq!(world.until_done(id).await.state, "succeeded");
}

#[tokio::test]
async fn what_an_attempt_holds_of_its_gpu_is_said_on_its_stream_and_the_most_of_it_is_kept() {
    let scripts = vec![[computes(), vec![exit(1)]].concat()];
    let (world, fake) = by_clock(Clock::manual(0), scripts, "count 2\nused0 2048\nbusy0 90\n").await;
    let id = world.submit(Limits { max_attempts: 1, gpus: 1, ..limits() }).await;
    world.begin_on(id, &[FIRST]).await;
    let job = world.until_in_time(id, |job| holds(job, 2 << 30)).await;
    let reading = |used: u64, peak: u64| GpuReading {
        uuid: FIRST.into(),
        memory_used_bytes: used << 30,
        memory_peak_bytes: peak << 30,
        utilization_percent: Some(90),
        power_watts: Some(71.5),
    };
    assert_eq!(job.progress.unwrap().gpus, [reading(2, 2)]);
    for used in [9, 4] {
        fake.says(&format!("count 2\nused0 {}\nbusy0 90\n", used * 1024));
        world.house.gpus.look_once().await.unwrap();
        world.until_in_time(id, |job| holds(job, used << 30)).await;
    }
    world.engine.go_on();
    let job = world.until_done(id).await;
    assert_eq!(job.progress.unwrap().gpus, [reading(4, 9)]);
    assert_eq!(kept(&world, id).await.record.evidence.gpu_peak_bytes, Some(9 << 30));
}

#[tokio::test]
async fn a_driver_that_hangs_keeps_gpus_from_jobs_and_holds_nobody_up() {
    let (world, fake) = with_gpus(vec![], "count 1\n").await;
    assert_eq!(units(&world), [FIRST]);
    fake.says("count 1\nhangs 1\n");
    let begun = std::time::Instant::now();
    world.house.gpus.look_once().await.unwrap();
    world.house.gpus.look_once().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "nobody waits behind a look that hangs");
    let why = world.house.gpus.now().gpus.clone().unwrap_err();
    assert!(why.to_string().contains("does not answer"), "{why}");
    fake.says("count 1\n");
    let comes_back = async {
        while world.house.gpus.now().gpus.is_err() {
            world.house.gpus.look_once().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, comes_back).await.expect("the driver answers again");
    assert_eq!(units(&world), [FIRST], "it is no news that a driver was slow");
}
