//! A job's log as server-sent events.
//!
//! The database is the log; a signal only says that there is more of it to read. A stream holds one page at most and
//! reads the next one when its client has taken the last line, so that a slow client costs little and misses nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use drydock_spec::{JobEvent, JobId, TraceId};
use futures::Stream;
use serde::Deserialize;

use super::Gateway;
use super::body::{Asked, Named};
use super::error::Refusal;
use super::health::Watcher;
use crate::desk::{DeskError, log_line};
use crate::store::{Entry, LogLine, StoreError, Subscription};

/// Lines that are held for a client at most.
const PAGE: u32 = 64;

/// Proxies and clients take a silent connection for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
    // Whoever asks for a job that does not exist must leave nothing behind in the table of subscriptions.
    gateway.desk.store.job(id).await?;
    // Subscribe first, read afterwards: a line that comes in between is announced, and found.
    let news = gateway.desk.store.changes().subscribe(id);
    let job = gateway.desk.store.job(id).await?;
    if job.state.is_done() && known >= job.last_seq {
        // The one answer that keeps an EventSource from connecting again for ever.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let follow = Follow {
        id,
        trace_id: job.trace_id,
        // A number from the future would wait for a line that it has never seen.
        after: known.min(job.last_seq),
        page: VecDeque::new(),
        news,
        stage: Stage::Opening,
        may_be_over: true,
        _watcher: gateway.traffic.watcher(),
        gateway,
    };
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx holds streams back otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let stream = Sse::new(follow.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok((headers, stream).into_response())
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

/// One client that follows one job.
struct Follow {
    gateway: Arc<Gateway>,
    id: JobId,
    trace_id: TraceId,
    /// Number of the last line that was handed out.
    after: i64,
    page: VecDeque<LogLine>,
    news: Subscription,
    stage: Stage,
    /// Whether the last line that was handed out may have been the job's last.
    may_be_over: bool,
    _watcher: Watcher,
}

impl Follow {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures::stream::unfold(self, |mut follow| async move {
            match follow.next().await {
                Ok(event) => event.map(|event| (Ok(event), follow)),
                Err(error) => {
                    // The client comes back with Last-Event-ID, to better times.
                    tracing::warn!(job = %follow.id, %error, "a stream of events broke off");
                    None
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Event>, DeskError> {
        if self.stage == Stage::Opening {
            self.stage = Stage::Lines;
            // Spread, so that the clients of a gateway that was restarted do not all come back at once.
            let again = rand::random_range(1000..3000);
            return Ok(Some(Event::default().comment("the job's log").retry(Duration::from_millis(again))));
        }
        while self.stage == Stage::Lines {
            if let Some(line) = self.page.pop_front() {
                return Ok(Some(self.hand_out(line)?));
            }
            self.page = self.gateway.desk.store.log(self.id, self.after, PAGE).await?.into();
            if !self.page.is_empty() {
                continue;
            }
            if self.may_be_over && self.is_over().await? {
                self.stage = Stage::Over;
                let job = self.gateway.desk.job(self.id).await?;
                return Ok(Some(Event::default().event("done").json_data(&job).map_err(unwritable)?));
            }
            self.may_be_over = false;
            tokio::select! {
                () = self.news.changed() => {}
                () = self.gateway.shutdown.cancelled() => self.stage = Stage::Over,
            }
        }
        Ok(None)
    }

    fn hand_out(&mut self, line: LogLine) -> Result<Event, DeskError> {
        self.after = line.seq;
        let name = match &line.entry {
            Entry::Event(event) => {
                self.may_be_over = matches!(event, JobEvent::Ended { .. } | JobEvent::CancelRequested);
                "event"
            }
            Entry::Report { .. } => {
                self.may_be_over = false;
                "report"
            }
        };
        let event = Event::default().id(line.seq.to_string()).event(name);
        event.json_data(log_line(line, &self.trace_id)).map_err(unwritable)
    }

    async fn is_over(&self) -> Result<bool, DeskError> {
        let job = self.gateway.desk.store.job(self.id).await?;
        Ok(job.state.is_done() && job.last_seq <= self.after)
    }
}

fn unwritable(error: axum::Error) -> DeskError {
    StoreError::Corrupt(error.to_string()).into()
}
