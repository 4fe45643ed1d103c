//! The order of the line, whatever is tried again and whatever is done to the clock.

use std::collections::HashMap;

use drydock::store::{LONGEST_WAIT_MS, MOST_AHEAD};
use drydock_spec::{FailureKind, JobId, Outcome, Priority};
use proptest::prelude::*;

use crate::{House, failed, holder};

#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_job_wait_for_longer_than_the_longest_wait() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let retry = house.clock.now_ms() + 4_000;
    house.claim(id).await.finish(failed(FailureKind::EngineLost), &[], retry).await.unwrap();
    assert!(house.store.front(1).await.unwrap().jobs.is_empty());
    house.clock.step(-86_400_000);
    assert_eq!(house.store.front(1).await.unwrap().jobs[0].id, id);
    assert_eq!(house.store.job(id).await.unwrap().waits_ms(house.clock.now_ms()), 0);
    // One that was submitted before the clock was set waits for nothing, either.
    let second = house.submit(2, 0).await;
    house.clock.step(-60_000);
    assert_eq!(house.store.front(2).await.unwrap().jobs[1].id, second);
}

#[tokio::test]
async fn jobs_ahead_are_counted_up_to_a_bound() {
    let house = House::new().await;
    let mut ids = Vec::new();
    for n in 0..MOST_AHEAD + 2 {
        ids.push(house.submit(n.into(), 0).await);
    }
    let [first, near, last] = [ids[0], ids[7], ids[ids.len() - 1]];
    let ahead = house.store.ahead_of(&[last, first, near]).await.unwrap();
    assert_eq!(ahead, HashMap::from([(first, 0), (near, 7), (last, MOST_AHEAD)]));
}

#[tokio::test]
async fn what_waits_for_two_results_is_in_line_when_both_are_there_and_lost_with_either() {
    let house = House::new().await;
    let [one, other] = [house.submit(1, 0).await, house.submit(2, 0).await];
    let mut inputs = crate::awaiting(one);
    inputs.dataset = None;
    inputs.compared = crate::awaiting(other).model.into_iter().collect();
    let mut new = crate::new_job(3);
    new.inputs = inputs.clone();
    let both = house.store.submit(new).await.unwrap().job.id;
    let mut new = crate::new_job(4);
    new.inputs = inputs;
    new.priority = Priority::new(-1).unwrap();
    let unlucky = house.store.submit(new).await.unwrap().job.id;
    let line = async || house.store.front(9).await.unwrap().jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
    house.claim(one).await.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert_eq!(line().await, [other]);
    house.claim(other).await.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert_eq!(line().await, [both, unlucky]);
    // What was lost before somebody asked for it is found lost at once.
    let gone = house.submit(5, 0).await;
    house.store.request_cancel(gone).await.unwrap();
    let mut new = crate::new_job(6);
    new.inputs = crate::awaiting(gone);
    let late = house.store.submit(new).await.unwrap().job.id;
    assert_eq!(line().await, [both, unlucky]);
    assert_eq!(house.store.fail_orphans_once().await.unwrap(), 1);
    assert!(house.store.job(late).await.unwrap().state.is_done());
}

/// What happens to a line in which `victim` is the first.
#[derive(Debug, Clone)]
enum Turn {
    /// Newer jobs come.
    Submit(u8),
    /// The first in line is taken, and its attempt is lost; it is to wait for so long.
    Lose(i64),
    Advance(i64),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        (1..4u8).prop_map(Turn::Submit),
        (0..=LONGEST_WAIT_MS).prop_map(Turn::Lose),
        (1..100_000i64).prop_map(Turn::Advance),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// However many newer jobs come and however often it is tried again: once its wait is over, and after the longest
    /// wait in any case, the oldest job is the first in line.
    #[test]
    fn a_job_that_is_tried_again_is_overtaken_for_no_longer_than_it_waits(turns in proptest::collection::vec(turn(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new().await;
            let victim = submit(&house, 1).await;
            let (mut jobs, mut free_at, mut attempts) = (1, 0, 0);
            for turn in turns {
                match turn {
                    Turn::Submit(count) => {
                        for _ in 0..count {
                            jobs += 1;
                            submit(&house, jobs).await;
                        }
                    }
                    Turn::Advance(ms) => house.clock.advance(ms),
                    Turn::Lose(wait) => {
                        let Some(first) = house.store.front(1).await.unwrap().jobs.into_iter().next() else { continue };
                        let lease = house.store.claim(first.id, &holder("a")).await.unwrap().unwrap();
                        let retry = house.clock.now_ms() + wait;
                        lease.finish(failed(FailureKind::EngineLost), &[], retry).await.unwrap();
                        if first.id == victim {
                            (free_at, attempts) = (retry, attempts + 1);
                        }
                    }
                }
                let due = house.clock.now_ms() >= free_at && attempts < 10;
                let first = house.store.front(1).await.unwrap().jobs.first().map(|job| job.id);
                prop_assert_eq!(first == Some(victim), due);
            }
            house.clock.advance(LONGEST_WAIT_MS);
            let first = house.store.front(1).await.unwrap().jobs.first().map(|job| job.id);
            prop_assert_eq!(first == Some(victim), attempts < 10);
            Ok(())
        })?;
    }
}

/// A job of ten attempts.
async fn submit(house: &House, n: u128) -> JobId {
    let mut new = crate::new_job(n);
    new.limits.max_attempts = 10;
    house.store.submit(new).await.unwrap().job.id
}
