//! The order of the line, whatever is tried again and whatever is done to the clock.

use drydock::store::LONGEST_WAIT_MS;
use drydock_spec::{FailureKind, JobId};
use proptest::prelude::*;

use crate::{House, failed, holder};

#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_job_wait_for_longer_than_the_longest_wait() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let retry = house.clock.now_ms() + 4_000;
    house.claim(id).await.finish(failed(FailureKind::EngineLost), &[], retry).await.unwrap();
    assert!(house.store.queue(1).await.unwrap().is_empty());
    house.clock.step(-86_400_000);
    let line = house.store.queue(1).await.unwrap();
    assert_eq!(line[0].id, id);
    assert_eq!(line[0].waits_ms(house.clock.now_ms()), 0);
    // One that was submitted before the clock was set waits for nothing, either.
    let second = house.submit(2, 0).await;
    house.clock.step(-60_000);
    assert_eq!(house.store.queue(2).await.unwrap()[1].id, second);
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
                        let Some(first) = house.store.queue(1).await.unwrap().into_iter().next() else { continue };
                        let lease = house.store.claim(first.id, &holder("a")).await.unwrap().unwrap();
                        let retry = house.clock.now_ms() + wait;
                        lease.finish(failed(FailureKind::EngineLost), &[], retry).await.unwrap();
                        if first.id == victim {
                            (free_at, attempts) = (retry, attempts + 1);
                        }
                    }
                }
                let due = house.clock.now_ms() >= free_at && attempts < 10;
                let first = house.store.queue(1).await.unwrap().first().map(|job| job.id);
                prop_assert_eq!(first == Some(victim), due);
            }
            house.clock.advance(LONGEST_WAIT_MS);
            let first = house.store.queue(1).await.unwrap().first().map(|job| job.id);
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
