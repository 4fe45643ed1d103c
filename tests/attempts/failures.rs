//! Every failure is kept, with what it is known by and with the facts.

use drydock::diagnose::fingerprint::Fingerprint;
use drydock::store::KeptFailure;
use drydock_spec::{Attempt, Failure, FailureKind, Report, Stage};

use super::{Step, World, exit, limits, scripted, started};

/// A worker that says why it fails.
fn fails(kind: FailureKind, message: &str) -> Vec<Step> {
    vec![Step::Say(started()), Step::Say(Report::Failed(Failure::new(kind, message).at(Stage::Tokenize))), exit(1)]
}

/// How the first attempt of a job fails whose worker does this.
async fn failure_of(steps: Vec<Step>) -> KeptFailure {
    let world = World::with(scripted([steps])).await;
    let id = world.submit(limits()).await;
    world.until_done(id).await;
    let kept = world.house.desk.store.failure_of(id, Attempt::FIRST).await.unwrap();
    kept.expect("a failure is kept")
}

async fn fingerprint_of(steps: Vec<Step>) -> Fingerprint {
    failure_of(steps).await.fingerprint
}

#[tokio::test]
async fn a_failure_is_kept_with_the_facts() {
    let kept = failure_of(fails(FailureKind::BadDataset, "row 3 of rows.jsonl: no field `answer`")).await;
    assert_eq!((kept.failure.kind, kept.record.signature.stage), (FailureKind::BadDataset, Some(Stage::Tokenize)));
    let evidence = &kept.record.evidence;
    assert_eq!((evidence.exit_code, evidence.reported, evidence.oom_killed), (Some(1), true, false));
    assert!(evidence.free_disk_bytes.is_some() && evidence.elapsed_ms >= 0, "{evidence:?}");
    let environment = &evidence.environment;
    assert_eq!((environment.worker.as_deref(), environment.threads), (Some("scripted"), Some(1)));
    assert_eq!(environment.image.as_deref(), Some("sha256:scripted"));
    assert_eq!(kept.record.signature.root.slots, ["3", "rows.jsonl", "`answer`"]);
}

#[tokio::test]
async fn the_same_failure_has_the_same_fingerprint_and_another_one_has_not() {
    let one = fingerprint_of(fails(FailureKind::BadDataset, "row 3 of rows.jsonl: no field `answer`")).await;
    let same = fingerprint_of(fails(FailureKind::BadDataset, "row 81 of faq.jsonl: no field `output`")).await;
    let other = fingerprint_of(fails(FailureKind::BadDataset, "row 3 of rows.jsonl: not an object")).await;
    let crash = fingerprint_of(vec![Step::Say(started()), exit(139)]).await;
    assert_eq!(one, same);
    assert!(one != other && one != crash && other != crash);
}

#[tokio::test]
async fn failures_that_are_the_same_are_counted_together() {
    let world = World::with(scripted([])).await;
    for message in ["row 1: bad", "row 2: bad", "row 3: worse"] {
        world.engine.script(fails(FailureKind::BadDataset, message));
        let id = world.submit(limits()).await;
        world.until_done(id).await;
    }
    let groups = world.house.desk.store.failure_groups(10).await.unwrap();
    let counts: Vec<_> = groups.iter().map(|group| (group.newest.failure.message.as_str(), group.count)).collect();
    assert_eq!(counts, [("row 3: worse", 1), ("row 2: bad", 2)]);
}
