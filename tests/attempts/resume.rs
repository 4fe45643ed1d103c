//! An attempt that was lost is followed by one that goes on from its last whole checkpoint.

use std::path::Path;
use std::time::Duration;

use drydock::sandbox::{Access, Launch};
use drydock::store::Resumed;
use drydock_spec::AttemptSpec;
use drydock_spec::contract::{CHECKPOINT_PATH, SPEC_PATH};
use drydock_spec::report::Checkpoint;

use super::{Report, Stage, Step, World, exit, limits, scripted, started, success};

/// Writes a checkpoint of six bytes and announces it as one of so many.
fn checkpoint(step: u64, bytes: u64) -> Vec<Step> {
    let path = match step {
        5 => "checkpoints/step-5/state",
        _ => "checkpoints/step-8/state",
    };
    let announced = Checkpoint { step, path: format!("checkpoints/step-{step}"), bytes };
    vec![Step::Make { path, content: b"sixsix" }, Step::Say(Report::Checkpoint(announced))]
}

fn lost_after(checkpoints: Vec<Vec<Step>>) -> Vec<Step> {
    [vec![Step::Say(started())], checkpoints.concat(), vec![exit(137)]].concat()
}

/// A worker that waits until it has been looked at.
fn waits() -> Vec<Step> {
    let stage = Step::Say(Report::Stage { stage: Stage::Load });
    [vec![Step::Say(started()), stage, Step::Pause], success().split_off(1)].concat()
}

fn spec(launch: &Launch) -> AttemptSpec {
    let mount = launch.mounts.iter().find(|mount| mount.target == SPEC_PATH).unwrap();
    serde_json::from_slice(&std::fs::read(&mount.source).unwrap()).unwrap()
}

#[tokio::test]
async fn a_lost_attempt_is_gone_on_from_its_last_whole_checkpoint() {
    let world =
        World::with(scripted([lost_after(vec![checkpoint(5, 6), checkpoint(8, 6)]), lost_after(vec![]), waits()]))
            .await;
    let id = world.submit(limits()).await;
    let job = world.until(id, |job| job.attempt == 3 && job.progress.is_some()).await;
    // The second attempt came to nothing, so the third begins where the second did.
    assert_eq!(job.resumed_from, Some(Resumed { job: None, attempt: 1, step: 8 }), "{job:#?}");
    let launch = world.engine.launch().unwrap();
    let mount = launch.mounts.iter().find(|mount| mount.target == CHECKPOINT_PATH).unwrap();
    assert_eq!(mount.access, Access::ReadOnly);
    assert_eq!(std::fs::read(mount.source.join("state")).unwrap(), b"sixsix");
    assert_eq!(spec(&launch).inputs.checkpoint.as_deref(), Some(Path::new(CHECKPOINT_PATH)));
    world.engine.go_on();
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.resumed_from.map(|from| from.step)), ("succeeded", Some(8)));
    world.house.reaper.sweep_once().await.unwrap();
    assert!(!mount.source.exists(), "a job that is done needs no checkpoint");
}

#[tokio::test]
async fn a_checkpoint_that_is_not_as_it_was_announced_is_not_gone_on_from() {
    // Of the newer one a byte is missing.
    for (announced, from) in [(vec![checkpoint(5, 6), checkpoint(8, 7)], Some(5)), (vec![checkpoint(8, 7)], None)] {
        let world = World::with(scripted([lost_after(announced), success()])).await;
        let id = world.submit(limits()).await;
        let job = world.until_done(id).await;
        assert_eq!((job.state.as_str(), job.resumed_from.map(|from| from.step)), ("succeeded", from));
    }
}

#[tokio::test]
async fn a_checkpoint_that_was_changed_meanwhile_is_not_gone_on_from() {
    let world = World::with(scripted([lost_after(vec![checkpoint(8, 6)]), success()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.state == "queued" && job.attempt == 2).await;
    let folder = world.house.desk.config.state_dir.join("checkpoints").join(format!("{id}-1"));
    let file = folder.join("checkpoints/step-8/state");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, b"sevens").unwrap();
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.resumed_from), ("succeeded", None));
}

#[tokio::test]
async fn what_failed_for_good_keeps_its_checkpoint_for_as_long_as_the_configuration_says() {
    for (age, kept) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
        let engine = scripted([lost_after(vec![checkpoint(8, 6)])]);
        let world = World::with_config(engine, |config| config.retention.checkpoints_age = age).await;
        let id = world.submit(drydock_spec::Limits { max_attempts: 1, ..limits() }).await;
        assert_eq!(world.until_done(id).await.state, "failed");
        world.house.reaper.sweep_once().await.unwrap();
        let folder = world.house.desk.config.state_dir.join("checkpoints").join(format!("{id}-1"));
        assert_eq!(folder.exists(), kept, "{age:?}");
    }
}

#[tokio::test]
async fn where_the_checkpoint_itself_may_be_wrong_it_is_not_kept() {
    let diverged = Report::Failed(drydock_spec::Failure::new(drydock_spec::FailureKind::Diverged, "x"));
    let steps = [vec![Step::Say(started())], checkpoint(8, 6), vec![Step::Say(diverged), exit(1)]].concat();
    let world = World::with(scripted([steps])).await;
    let id = world.submit(limits()).await;
    assert_eq!(world.until_done(id).await.state, "failed");
    assert!(!world.house.desk.config.state_dir.join("checkpoints").join(format!("{id}-1")).exists());
}
