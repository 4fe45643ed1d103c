use std::time::Duration;

use drydock_spec::{JobId, Outcome, Report, Stage};
use futures::{Stream, StreamExt};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sse_stream::{Sse, SseStream};

use crate::house::{House, open, report, steps};
use drydock::store::ReportBatch;

/// Follows a job and hands out its events.
async fn follow(house: &House, id: JobId, after: Option<i64>) -> impl Stream<Item = Sse> + Unpin + use<> {
    let mut request = house.ask(Method::GET, &format!("/v1/jobs/{id}/events"));
    if let Some(after) = after {
        request = request.header("last-event-id", after.to_string());
    }
    told(request.send().await.unwrap())
}

/// The events of a stream that was just opened.
fn told(response: Response) -> impl Stream<Item = Sse> + Unpin {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let events = SseStream::from_bytes_stream(response.bytes_stream());
    Box::pin(events.map(|event| event.unwrap()).filter(|event| std::future::ready(event.data.is_some())))
}

fn number(event: &Sse) -> Option<i64> {
    event.id.as_ref().map(|id| id.parse().unwrap())
}

fn data(event: &Sse) -> Value {
    serde_json::from_str(event.data.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn a_stream_tells_everything_in_order_and_ends_with_the_job() {
    let house = open().await;
    let mut lease = house.run().await;
    let id = lease.job().id;
    let mut events = follow(&house, id, None).await;
    let first = events.next().await.unwrap();
    assert_eq!((number(&first), first.event.as_deref()), (Some(1), Some("event")));
    assert_eq!(data(&first)["event"], json!({"event": "submitted"}));
    assert_eq!(data(&events.next().await.unwrap())["event"]["event"], "claimed");
    steps(&mut lease, 1..=1).await;
    let second = events.next().await.unwrap();
    assert_eq!((number(&second), second.event.as_deref()), (Some(3), Some("report")));
    assert_eq!(data(&second)["report"]["step"], 1);
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert_eq!(data(&events.next().await.unwrap())["event"]["outcome"], "succeeded");
    let last = events.next().await.unwrap();
    assert_eq!((number(&last), last.event.as_deref()), (None, Some("done")));
    assert_eq!(data(&last)["state"], "succeeded");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_retry_is_not_the_end() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let mut events = follow(&house, id, Some(2)).await;
    let failure = drydock_spec::Failure::new(drydock_spec::FailureKind::EngineLost, "gone");
    lease.finish(Outcome::Failed(failure), &[], 0).await.unwrap();
    assert_eq!(data(&events.next().await.unwrap())["event"]["outcome"], "failed");
    house.store.request_cancel(id).await.unwrap();
    assert_eq!(data(&events.next().await.unwrap())["event"]["event"], "cancel_requested");
    assert_eq!(data(&events.next().await.unwrap())["state"], "cancelled");
}

#[tokio::test]
async fn a_stream_that_is_cut_anywhere_and_resumed_misses_and_repeats_nothing() {
    let house = open().await;
    let mut lease = house.run().await;
    let id = lease.job().id;
    let writing = async {
        for step in 0..60 {
            steps(&mut lease, step * 5 + 1..=step * 5 + 5).await;
            tokio::task::yield_now().await;
        }
        lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    };
    let reading = async {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().copied().unwrap_or(0_i64).to_string();
            let path = format!("/v1/jobs/{id}/events");
            let response = house.ask(Method::GET, &path).header("last-event-id", after).send().await.unwrap();
            if response.status() == 204 {
                // Cut between the last line and the word that it was the last.
                return seen;
            }
            let mut events = told(response);
            // A cut after a random number of events, also in the middle of what is under way.
            for _ in 0..rand::random_range(1..40) {
                let Some(event) = events.next().await else { break };
                match number(&event) {
                    Some(seq) => seen.push(seq),
                    None => return seen,
                }
            }
        }
    };
    let ((), seen) = tokio::join!(writing, reading);
    // Two events before the reports, three hundred reports, and the end.
    assert_eq!(seen, (1..=303).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_finished_job_with_nothing_new_ends_the_reconnects() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let path = format!("/v1/jobs/{id}/events");
    let nothing = house.ask(Method::GET, &path).header("last-event-id", "3").send().await.unwrap();
    assert_eq!(nothing.status(), 204);
    let rest: Vec<_> = follow(&house, id, Some(2)).await.map(|event| number(&event)).collect().await;
    assert_eq!(rest, [Some(3), None]);
    for wrong in ["x", "-1"] {
        let refused = house.ask(Method::GET, &path).header("last-event-id", wrong).send().await.unwrap();
        assert_eq!(refused.status(), 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_number_from_the_future_waits_for_what_really_comes() {
    let house = open().await;
    let mut lease = house.run().await;
    let mut events = follow(&house, lease.job().id, Some(1000)).await;
    steps(&mut lease, 1..=1).await;
    assert_eq!(number(&events.next().await.unwrap()), Some(3));
}

#[tokio::test]
async fn a_job_that_fails_with_its_input_ends_its_stream() {
    let house = open().await;
    let input = house.queue().await.id;
    let reader = crate::house::queue(&house.store, |new| {
        new.inputs.model.as_mut().unwrap().source = drydock::plan::ModelSource::Awaited { job: input };
    });
    let mut events = follow(&house, reader.await.id, None).await;
    assert_eq!(number(&events.next().await.unwrap()), Some(1));
    house.store.request_cancel(input).await.unwrap();
    assert_eq!(house.store.fail_orphans_once().await.unwrap(), 1);
    assert_eq!(data(&events.next().await.unwrap())["event"]["event"], "input_failed");
    assert_eq!(data(&events.next().await.unwrap())["state"], "failed");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn who_comes_late_or_falls_behind_misses_nothing() {
    let house = open().await;
    let mut lease = house.run().await;
    let id = lease.job().id;
    let early = follow(&house, id, None).await;
    // Far more than is kept for everybody.
    for batch in 0..20 {
        steps(&mut lease, batch * 100 + 1..=batch * 100 + 100).await;
    }
    let late = follow(&house, id, None).await;
    let later = follow(&house, id, Some(700)).await;
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let seen = async |events| -> Vec<i64> {
        let events: std::pin::Pin<Box<dyn Stream<Item = Sse>>> = events;
        events.filter_map(|event| std::future::ready(number(&event))).collect().await
    };
    for events in [early, late] {
        assert_eq!(seen(Box::pin(events)).await, (1..=2003).collect::<Vec<_>>());
    }
    assert_eq!(seen(Box::pin(later)).await, (701..=2003).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_watchers_see_the_same() {
    let house = open().await;
    let mut lease = house.run().await;
    let id = lease.job().id;
    let mut watchers = Vec::new();
    for _ in 0..500 {
        watchers.push(follow(&house, id, None).await);
    }
    let line = report(Report::Stage { stage: Stage::Train });
    lease.record(&ReportBatch { lines: vec![line; 20], end_offset: 1 }).await.unwrap();
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let seen = futures::future::join_all(
        watchers
            .into_iter()
            .map(|events| events.filter_map(|event| std::future::ready(number(&event))).collect::<Vec<_>>()),
    );
    let seen = tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap();
    for one in seen {
        assert_eq!(one, (1..=23).collect::<Vec<_>>());
    }
    let page = house.ask(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("drydock_watchers 0"), "{page}");
}
