//! A job's log from its first line to its last, over as many connections as it takes.

use std::time::Duration;

use drydock_spec::JobId;
use futures::StreamExt;
use tokio::time::Instant;

use super::client::{Client, Events};
use super::error::CliError;
use crate::api::LogLineView;

/// How long a gateway that was there before may be away: long enough for a restart.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Follows a job. Each line comes once and in order, whatever happens to the connection.
pub(super) struct Follow<'a> {
    client: &'a Client,
    job: JobId,
    /// Number of the last line that was handed out.
    after: i64,
    connection: Option<Events>,
    /// When the connection was lost; `None` until there was one.
    lost_at: Option<Instant>,
    pause: Duration,
    ended: bool,
}

/// What following a job brings.
pub(super) enum News {
    Line(Box<LogLineView>),
    /// The connection is gone; it is being made again.
    Lost(String),
    /// The connection is there again.
    Back,
}

impl<'a> Follow<'a> {
    /// Follows the job from after line `after` on.
    pub(super) fn new(client: &'a Client, job: JobId, after: i64) -> Self {
        Self { client, job, after, connection: None, lost_at: None, pause: SHORTEST_PAUSE, ended: false }
    }

    /// The next news, or `None` when the job has ended and every line was handed out. Dropping the future loses
    /// nothing.
    pub(super) async fn next(&mut self) -> Result<Option<News>, CliError> {
        while !self.ended {
            let news = match self.connection.as_mut() {
                None => self.connect().await?,
                Some(events) => match events.next().await {
                    Some(Ok(event)) => self.take(event),
                    Some(Err(reason)) => Some(self.lose(reason)),
                    None => Some(self.lose("the gateway closed the connection".into())),
                },
            };
            if news.is_some() {
                return Ok(news);
            }
        }
        Ok(None)
    }

    async fn connect(&mut self) -> Result<Option<News>, CliError> {
        if self.lost_at.is_some() {
            tokio::time::sleep(self.pause).await;
        }
        match self.client.events(self.job, self.after).await {
            Ok(Some(events)) => {
                self.connection = Some(events);
                Ok(self.lost_at.take().map(|_| News::Back))
            }
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(CliError::Unreachable { .. }) if self.lost_at.is_some_and(|lost| lost.elapsed() < PATIENCE) => {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn lose(&mut self, reason: String) -> News {
        self.connection = None;
        self.lost_at = Some(Instant::now());
        News::Lost(reason)
    }

    fn take(&mut self, event: sse_stream::Sse) -> Option<News> {
        if let Some(retry) = event.retry {
            self.pause = Duration::from_millis(retry).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
        if event.event.as_deref() == Some("done") {
            self.ended = true;
            return None;
        }
        let line = event.data.as_deref().and_then(|data| serde_json::from_str::<LogLineView>(data).ok());
        // A line that a newer gateway says in words of its own is passed over; its number still counts.
        let seq = line.as_ref().map(|line| line.seq).or_else(|| event.id?.parse().ok())?;
        if seq <= self.after {
            return None;
        }
        self.after = seq;
        line.map(|line| News::Line(Box::new(line)))
    }
}
