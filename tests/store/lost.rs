//! What is known of attempts that were lost: who died over them, and where the next one goes on.

use drydock::checkpoints::Kept;
use drydock::store::{ReportBatch, Resumed, StoreError};
use drydock_spec::report::{Checkpoint, Evaluation, Phase};
use drydock_spec::{Attempt, FailureKind, Outcome, Report, ReportLine};

use crate::{House, failed, holder, stage_line};

fn line(report: Report) -> ReportLine {
    ReportLine { elapsed_ms: 1, report }
}

fn evaluation(phase: Phase, step: Option<u64>, loss: f64) -> ReportLine {
    line(Report::Evaluation(Evaluation { phase, step, loss, perplexity: loss.exp(), tokens: 1, preferences: None }))
}

fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint { step, path: format!("checkpoints/step-{step}"), bytes: 3 }
}

fn kept(attempt: u32, step: u64) -> Kept {
    let Checkpoint { path, bytes, .. } = checkpoint(step);
    Kept { attempt: Attempt(attempt), step, path, bytes, digest: "dd".into() }
}

#[tokio::test]
async fn only_processes_that_died_count_against_an_attempt_and_only_until_its_worker_speaks() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let claimed = house.claim(id).await;
    drop(claimed);
    assert_eq!(house.take_over("b").await.unwrap().row().orphaned, 1);
    let third = house.take_over("c").await.unwrap();
    assert_eq!(third.row().orphaned, 2);
    third.leave().await.unwrap();
    let mut fourth = house.take_over("d").await.unwrap();
    assert_eq!(fourth.row().orphaned, 2, "who leaves in good order has not died");
    fourth.record(&ReportBatch { lines: vec![stage_line(1)], end_offset: 10 }).await.unwrap();
    assert_eq!(house.take_over("e").await.unwrap().row().orphaned, 1);
    house.clock.advance(31_000);
    assert_eq!(house.take_over("e").await.unwrap().row().orphaned, 1, "nor has who let it run out");
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nobody_from_taking_over() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let _lease = house.claim(id).await;
    assert!(house.store.abandoned(&holder("a")).await.unwrap().is_empty());
    house.clock.step(-3_600_000);
    assert_eq!(house.store.abandoned(&holder("a")).await.unwrap(), [(id, Attempt::FIRST)]);
}

#[tokio::test]
async fn an_attempt_that_went_on_has_what_was_found_before() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let mut first = house.claim(id).await;
    let lines = vec![
        evaluation(Phase::Before, None, 4.0),
        evaluation(Phase::During, Some(5), 3.0),
        line(Report::Checkpoint(checkpoint(5))),
        line(Report::Warning { code: "w".into(), message: "said again by the next".into() }),
        line(Report::Checkpoint(checkpoint(10))),
        evaluation(Phase::During, Some(15), 2.0),
    ];
    first.record(&ReportBatch { lines, end_offset: 60 }).await.unwrap();
    assert_eq!(first.announced_checkpoints(9).await.unwrap(), [checkpoint(10), checkpoint(5)]);
    first.keep_checkpoint(&kept(1, 10)).await.unwrap();
    first.finish(failed(FailureKind::EngineLost), &[], 0).await.unwrap();
    assert_eq!(house.store.checkpoint(id).await.unwrap(), Some(kept(1, 10)));
    assert!(house.store.checkpoint_wanted(id, Attempt(1), 60_000).await.unwrap());

    let mut second = house.claim(id).await;
    second.resuming(Some((id, &kept(1, 10)))).await.unwrap();
    let lines = vec![evaluation(Phase::During, Some(15), 2.0), evaluation(Phase::After, None, 1.0)];
    second.record(&ReportBatch { lines, end_offset: 20 }).await.unwrap();
    assert_eq!(house.store.glance(&[id]).await.unwrap().resumed[&id], Resumed { job: None, attempt: 1, step: 10 });
    let losses: Vec<_> =
        house.store.glance(&[id]).await.unwrap().findings[&id].clone().into_iter().map(|line| line.report).collect();
    let wanted = [
        evaluation(Phase::Before, None, 4.0),
        evaluation(Phase::During, Some(5), 3.0),
        evaluation(Phase::During, Some(15), 2.0),
        evaluation(Phase::After, None, 1.0),
    ];
    assert_eq!(losses, wanted.map(|line| line.report));
    second.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert!(!house.store.checkpoint_wanted(id, Attempt(1), 60_000).await.unwrap(), "a job that is done needs none");
}

#[tokio::test]
async fn a_stale_attempt_cannot_say_where_the_next_goes_on() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let stale = house.claim(id).await;
    house.take_over("b").await.unwrap();
    let refused = stale.keep_checkpoint(&kept(1, 5)).await.unwrap_err();
    assert!(matches!(refused, StoreError::LeaseLost { .. }), "{refused}");
    assert_eq!(house.store.checkpoint(id).await.unwrap(), None);
}
