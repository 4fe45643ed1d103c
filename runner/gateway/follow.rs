//! A job's log as server-sent events.
//!
//! The database is the log. What is new in it is read and written out once, by a [`feed`], for everybody who follows the
//! job; a client that comes late, or has fallen far behind, reads older pages for itself. A stream holds nothing while its
//! client takes nothing, so that a slow client costs little and misses nothing.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use drydock_spec::{JobId, TraceId};
use futures::Stream;
use serde::Deserialize;
use tokio::sync::watch;

use super::Gateway;
use super::body::{Asked, Named};
use super::error::Refusal;
use super::health::Watcher;
use crate::store::StoreError;

mod feed;

pub(super) use feed::Feeds;
use feed::{Feed, Found, Recent, Stretch};

/// Lines, and about how many bytes of them, that are read for one client at a time.
const PAGE: u32 = 64;
const PAGE_BYTES: usize = 16 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowAsked {
    after: Option<i64>,
}

pub(super) async fn events(
    State(gateway): State<Arc<Gateway>>,
    Named(id): Named,
    headers: HeaderMap,
    Asked(asked): Asked<FollowAsked>,
) -> Result<Response, Refusal> {
    let known = last_event_id(&headers)?.or(asked.after).unwrap_or(0);
    if known < 0 {
        return Err(Refusal::bad_request("invalid_query", format!("after = {known}: negative"))
            .hint("give the number of a line, or 0 for all"));
    }
    // Whoever asks for a job that does not exist must leave nothing behind.
    let job = gateway.desk.store.job(id).await?;
    if job.state.is_done() && known >= job.last_seq {
        // The one answer that keeps an EventSource from connecting again for ever.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let feed = gateway.feeds.of(&gateway, &job);
    let follow = Follow {
        id,
        trace_id: job.trace_id,
        // A number from the future would wait for a line that it has never seen.
        after: known.min(job.last_seq),
        beats: 0,
        stage: Stage::Opening,
        news: feed.news(),
        _feed: feed,
        _watcher: gateway.traffic.watcher(),
        gateway,
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx holds streams back otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(follow.stream())).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, Refusal> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        Refusal::bad_request("invalid_event_id", "the Last-Event-ID header is not the number of a line")
            .hint("give the id of the last event that arrived, or leave the header out")
    })
}

/// Where a stream stands.
#[derive(PartialEq)]
enum Stage {
    /// Nothing was said yet.
    Opening,
    Lines,
    /// Everything was said.
    Over,
}

/// One client that follows one job. There may be ten thousand of them, so this is kept small.
struct Follow {
    gateway: Arc<Gateway>,
    id: JobId,
    trace_id: TraceId,
    /// Number of the last line that was handed out.
    after: i64,
    /// Signs of life that were handed out.
    beats: u64,
    stage: Stage,
    news: watch::Receiver<Recent>,
    /// The feed goes on for as long as somebody has it.
    _feed: Arc<Feed>,
    _watcher: Watcher,
}

impl Follow {
    fn stream(self) -> impl Stream<Item = Result<Bytes, StoreError>> {
        futures::stream::unfold(self, |mut follow| async move {
            match follow.next().await {
                Ok(part) => part.map(|part| (Ok(part), follow)),
                Err(error) => {
                    // The client comes back with Last-Event-ID, to better times.
                    tracing::warn!(job = %follow.id, %error, "a stream of events broke off");
                    None
                }
            }
        })
    }

    /// What goes out next: whole events, as many as there are at once.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.stage == Stage::Opening {
            self.stage = Stage::Lines;
            // Spread, so that the clients of a gateway that was restarted do not all come back at once.
            let again: u32 = rand::random_range(1000..3000);
            return Ok(Some(format!(": the job's log\nretry: {again}\n\n").into()));
        }
        while self.stage == Stage::Lines && !self.gateway.shutdown.is_cancelled() {
            let found = self.news.borrow_and_update().after(self.after, self.beats);
            match found {
                Found::Lines { bytes, last } => {
                    self.after = last;
                    return Ok(Some(bytes));
                }
                Found::Beat { beats } => {
                    self.beats = beats;
                    return Ok(Some(Bytes::from_static(b": still there\n\n")));
                }
                Found::End(bytes) => {
                    self.stage = Stage::Over;
                    return Ok(Some(bytes));
                }
                Found::Older { until } => {
                    // Boxed, as the room for it would be taken for as long as the stream lasts.
                    let page = Box::pin(self.page()).await?;
                    let (bytes, last) = page.since(self.after);
                    if !bytes.is_empty() {
                        self.after = last;
                        return Ok(Some(bytes));
                    }
                    // Reports are removed in time, and these were.
                    self.after = until;
                }
                Found::Nothing => {
                    if self.news.changed().await.is_err() {
                        // The feed has ended: the gateway is shutting down, or the database does not answer.
                        self.stage = Stage::Over;
                    }
                }
            }
        }
        Ok(None)
    }

    /// A page of what the feed no longer holds.
    async fn page(&self) -> Result<Stretch, StoreError> {
        let lines = self.gateway.desk.store.log_within(self.id, self.after, PAGE, PAGE_BYTES).await?;
        Stretch::of(lines, &self.trace_id)
    }
}

/// One event. `data` is JSON, which has no line breaks.
fn write_event(text: &mut String, id: Option<i64>, name: &str, data: &str) {
    if let Some(id) = id {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "id: {id}");
    }
    let _ = write!(text, "event: {name}\ndata: {data}\n\n");
}
