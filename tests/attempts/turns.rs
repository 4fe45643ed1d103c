//! Jobs get the GPUs that the driver tells of, and those that wait say for what.

use drydock::api::WaitsFor;
use drydock_spec::Limits;

use super::fake_nvml::FakeNvml;
use super::{World, halfway, limits, scripted};

/// A house on a host with so many GPUs, whose jobs stop halfway.
async fn with_gpus(count: usize) -> (World, FakeNvml) {
    let fake = FakeNvml::saying(&format!("count {count}\n"));
    let engine = scripted([halfway(), halfway(), halfway()]);
    let world = World::with_config(engine, |config| config.sandbox.nvml = Some(fake.library())).await;
    (world, fake)
}

fn on(gpus: u32) -> Limits {
    Limits { gpus, cpu_millis: 500, ..limits() }
}

fn sharing(bytes: u64) -> Limits {
    Limits { gpu_memory_bytes: Some(bytes), ..on(1) }
}

#[tokio::test]
async fn an_attempt_has_gpus_of_its_own_and_the_next_job_says_how_many_it_lacks() {
    let (world, _fake) = with_gpus(2).await;
    let first = world.submit(on(1)).await;
    world.until(first, |job| job.progress.is_some()).await;
    let launched = world.engine.launch().unwrap().gpus;
    let held = world.house.desk.store.attempts_under_way().await.unwrap();
    assert_eq!((launched.len(), &held[0].gpus), (1, &launched));
    let second = world.submit(on(2)).await;
    let waits = world.until(second, |job| matches!(job.waits_for, Some(WaitsFor::Gpus { .. }))).await;
    assert_eq!(waits.waits_for, Some(WaitsFor::Gpus { needs: 2, free: 1, foreign: 0 }));
    assert!(waits.summary.starts_with("queued: needs 2 GPUs, 1 is free; expected to start by "), "{}", waits.summary);
    // Who needs no GPU is not in its way.
    let beside = world.submit(on(0)).await;
    world.until(beside, |job| job.progress.is_some()).await;
    let third = world.submit(on(3)).await;
    let waits = world.until(third, |job| matches!(job.waits_for, Some(WaitsFor::Host { .. }))).await;
    assert!(waits.summary.starts_with("queued: needs 3 GPUs, jobs may use 2 here"), "{}", waits.summary);
    // A restart loses nothing.
    let world = world.restart().await;
    assert!(matches!(world.job(second).await.waits_for, Some(WaitsFor::Gpus { free: 1, .. })));
    world.engine.go_on();
    world.until(second, |job| job.progress.is_some()).await;
    let mut launched = world.engine.launch().unwrap().gpus;
    launched.sort();
    launched.dedup();
    assert_eq!(launched.len(), 2);
    world.engine.go_on();
    assert_eq!(world.until_done(second).await.state, "succeeded");
}

#[tokio::test]
async fn jobs_that_ask_for_memory_of_a_gpu_share_it_and_leave_the_other_one_whole() {
    let (world, _fake) = with_gpus(2).await;
    let mut held = Vec::new();
    for limits in [sharing(1 << 30), sharing(1 << 30), on(1)] {
        let id = world.submit(limits).await;
        world.until(id, |job| job.progress.is_some()).await;
        let under_way = world.house.desk.store.attempts_under_way().await.unwrap();
        held.extend(under_way.into_iter().filter(|row| row.job == id).map(|row| row.gpus));
    }
    assert_eq!(held[0], held[1]);
    assert_ne!(held[0], held[2]);
    let next = world.submit(on(1)).await;
    let waits = world.until(next, |job| matches!(job.waits_for, Some(WaitsFor::Gpus { .. }))).await;
    assert!(waits.summary.starts_with("queued: needs 1 GPU, 0 are free"), "{}", waits.summary);
}

#[tokio::test]
async fn nobody_starts_on_a_gpu_that_is_cordoned_until_it_is_mended() {
    let (world, _fake) = with_gpus(1).await;
    let uuid = world.house.gpus.now().each().next().unwrap().uuid.clone();
    world.house.gpus.cordon(&uuid, "the fan rattles", "a person").await.unwrap();
    let id = world.submit(on(1)).await;
    let waits = world.until(id, |job| matches!(job.waits_for, Some(WaitsFor::Host { .. }))).await;
    assert!(waits.summary.contains("needs 1 GPU, jobs may use 0 here"), "{}", waits.summary);
    world.house.gpus.uncordon(&uuid).await.unwrap();
    world.until(id, |job| job.progress.is_some()).await;
}
