//! GPUs that do not get into a container are the host's trouble: no job fails for it, and no attempt is spent on it.

use drydock::api::WaitsFor;
use drydock_spec::Limits;

use crate::harness::world::{World, limits};
use crate::scripted;

#[tokio::test]
async fn a_container_whose_gpus_do_not_get_in_is_made_anew_within_the_same_attempt() {
    let world = World::with(scripted([])).await;
    // More often than a job has attempts.
    world.engine.lose_gpus(limits().max_attempts + 2);
    let id = world.submit(limits()).await;
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 1));
    assert_eq!(world.engine.starts(), [1]);
    world.until_tidy().await;
}

#[tokio::test]
async fn an_attempt_waits_while_no_injector_works_and_can_be_cancelled() {
    let world = World::with(scripted([])).await;
    world.engine.no_injector(true);
    let waiting = world.submit(limits()).await;
    world.until(waiting, |job| job.state == "running" && world.engine.refused() > 0).await;
    world.house.desk.cancel(waiting).await.unwrap();
    assert_eq!(world.until_done(waiting).await.state, "cancelled");

    let later = world.submit(limits()).await;
    world.until(later, |job| job.state == "running").await;
    world.engine.no_injector(false);
    let job = world.until_done(later).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 1));
}

#[tokio::test]
async fn a_job_on_gpus_is_not_begun_where_containers_get_none_and_says_why() {
    let engine = scripted([]);
    engine.no_injector(true);
    let world = World::with(engine).await;
    let id = world.submit(Limits { gpus: 1, ..limits() }).await;
    let job = world.until(id, |job| matches!(job.waits_for, Some(WaitsFor::Engine { .. }))).await;
    assert_eq!(job.summary, "queued: no container can have a GPU: no injector works here; see `drydock doctor`");
    // Those behind it that need no GPU pass.
    world.engine.no_injector(false);
    let other = world.submit(limits()).await;
    assert_eq!(world.until_done(other).await.state, "succeeded");
}
