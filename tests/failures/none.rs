//! What looks like a failure and is none.

use drydock_spec::Attempt;

use crate::case::Guise;
use crate::order::Order;
use crate::place::{Place, has_spoken};

fn probe(told: &str) -> Order {
    Order::probe(Guise::of(told, 0), told, "", "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_cancelled_has_not_failed() {
    let place = Place::of_the_probe().await;
    let job = place.accept("cancelled", probe("linger 9000 50 train")).await;
    place.house.start().await.unwrap();
    place.until(job, has_spoken).await;
    place.house.desk.cancel(job).await.unwrap();
    let view = place.until(job, drydock::api::JobView::is_done).await;
    assert_eq!((view.state.as_str(), view.failure), ("cancelled", None));
    assert_eq!(place.house.desk.store.failure_groups(10).await.unwrap(), []);
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_gateway_was_shut_down_has_not_failed() {
    let place = Place::of_the_probe().await;
    let job = place.accept("resumed", probe("linger 60 50 train")).await;
    place.house.start().await.unwrap();
    place.until(job, has_spoken).await;
    let place = place.reopen().await;
    place.house.start().await.unwrap();
    let view = place.until(job, drydock::api::JobView::is_done).await;
    assert_eq!((view.state.as_str(), view.attempt), ("succeeded", Attempt::FIRST.0));
    assert_eq!(place.house.desk.store.failure_groups(10).await.unwrap(), []);
    place.close().await;
}
