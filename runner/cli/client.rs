//! The gateway as the command line sees it.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sse_stream::{Sse, SseStream};

use drydock_spec::JobId;

use super::error::CliError;
use crate::api::{ErrorBody, ErrorView, JobView};
use crate::knowledge::MEDIA_TYPE;

/// Longest time that a question may take.
const QUESTION: Duration = Duration::from_secs(30);
/// Longest time that the gateway may take to read a model or dataset, from the hub if need be.
const IMPORT: Duration = Duration::from_secs(3600);
/// A stream without even a keep-alive, which comes every 15 s, is dead after this time.
const DEAD_STREAM: Duration = Duration::from_secs(45);

/// A client of one gateway.
pub(super) struct Client {
    base: Url,
    http: reqwest::Client,
    /// For streams, whose end nobody knows.
    streams: reqwest::Client,
}

/// Server-sent events of one connection.
pub(super) type Events = BoxStream<'static, Result<Sse, String>>;

impl Client {
    pub(super) fn new(url: &str) -> Result<Self, CliError> {
        let bad = |reason: String| CliError::BadUrl { url: url.to_owned(), reason };
        let base = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(bad("it has to begin with http:// or https:// and name a host".into()));
        }
        let build = |builder: reqwest::ClientBuilder| {
            let mut builder = builder.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true);
            if base.scheme() == "http" {
                // Certificates are not needed, and a bare machine has none: loading them would fail.
                builder = builder.tls_certs_only([]);
            }
            if is_loopback(&base) {
                // A proxy would look for the gateway on its own machine.
                builder = builder.no_proxy();
            }
            builder.build().map_err(|error| bad(reason(&error)))
        };
        let http = build(reqwest::Client::builder())?;
        let streams = build(reqwest::Client::builder().read_timeout(DEAD_STREAM))?;
        Ok(Self { base, http, streams })
    }

    /// The gateway's address, as it was given.
    pub(super) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, CliError> {
        self.get_within(QUESTION, path, query).await
    }

    /// The same, where the answer may take that long.
    pub(super) async fn get_within<T: DeserializeOwned>(
        &self,
        time: Duration,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, CliError> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.answer(self.http.get(url).timeout(time)).await
    }

    /// The answer as it is.
    pub(super) async fn text(&self, path: &[&str], query: &[(&str, String)]) -> Result<String, CliError> {
        let mut url = self.url(path);
        url.query_pairs_mut().extend_pairs(query);
        let response = self.send(self.http.get(url).timeout(QUESTION)).await?;
        response.text().await.map_err(|error| self.unreachable(&error))
    }

    /// Hands over the experience of another installation.
    pub(super) async fn knowledge<T: DeserializeOwned>(&self, path: &[&str], file: Vec<u8>) -> Result<T, CliError> {
        let request = self.http.post(self.url(path)).header(reqwest::header::CONTENT_TYPE, MEDIA_TYPE);
        self.answer(request.timeout(QUESTION).body(file)).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, CliError> {
        self.answer(self.http.post(self.url(path)).timeout(QUESTION).json(body)).await
    }

    /// Hands something over that may take the gateway long to read.
    pub(super) async fn import<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.answer(self.http.post(self.url(path)).timeout(IMPORT).json(body)).await
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<(), CliError> {
        self.send(self.http.delete(self.url(path)).timeout(QUESTION)).await.map(drop)
    }

    pub(super) async fn job(&self, id: JobId) -> Result<JobView, CliError> {
        self.get(&["v1", "jobs", &id.to_string()], &[]).await
    }

    /// Whether a gateway answers here at all.
    pub(super) async fn is_alive(&self) -> bool {
        let request = self.http.get(self.url(&["healthz"])).timeout(Duration::from_secs(3));
        request.send().await.is_ok_and(|response| response.status().is_success())
    }

    /// Whether the gateway has a blob.
    pub(super) async fn has_blob(&self, sha256: &str) -> Result<bool, CliError> {
        let request = self.http.request(Method::HEAD, self.url(&["v1", "blobs", sha256])).timeout(QUESTION);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => self.accepted(response).await.map(|_| true),
        }
    }

    /// Uploads a blob of `bytes` bytes.
    pub(super) async fn put_blob(&self, sha256: &str, bytes: u64, body: reqwest::Body) -> Result<(), CliError> {
        let request = self.streams.put(self.url(&["v1", "blobs", sha256]));
        self.send(request.header(reqwest::header::CONTENT_LENGTH, bytes).body(body)).await.map(drop)
    }

    /// The bytes behind an `href` that the gateway gave.
    pub(super) async fn download(&self, href: &str) -> Result<BoxStream<'static, Result<Bytes, String>>, CliError> {
        let segments: Vec<_> = href.split('/').filter(|part| !part.is_empty()).collect();
        let response = self.send(self.streams.get(self.url(&segments))).await?;
        Ok(response.bytes_stream().map(|chunk| chunk.map_err(|error| reason(&error))).boxed())
    }

    /// The job's log after line `after`, as it grows; `None` if the job has ended and there is nothing after it.
    pub(super) async fn events(&self, id: JobId, after: i64) -> Result<Option<Events>, CliError> {
        let mut request = self.streams.get(self.url(&["v1", "jobs", &id.to_string(), "events"]));
        if after > 0 {
            request = request.header("last-event-id", after);
        }
        let response = self.send(request.header(reqwest::header::ACCEPT, "text/event-stream")).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let events = SseStream::from_bytes_stream(response.bytes_stream());
        Ok(Some(events.map(|event| event.map_err(|error| error.to_string())).boxed()))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let response = self.send(request).await?;
        let url = response.url().to_string();
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| CliError::Foreign { url, reason: error.to_string() })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        self.accepted(response).await
    }

    /// The response if it is a good one, otherwise the gateway's reason.
    async fn accepted(&self, response: Response) -> Result<Response, CliError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let url = response.url().to_string();
        let body = response.bytes().await.unwrap_or_default();
        Err(match serde_json::from_slice::<ErrorView>(&body) {
            Ok(view) => CliError::Refused(Box::new(view.error)),
            // Such as a HEAD, or a proxy in between.
            Err(_) if status.is_server_error() => CliError::Refused(Box::new(ErrorBody {
                code: "server_error".into(),
                message: format!("{url} answered {status}"),
                hint: Some("look at the gateway's log".into()),
                options: Vec::new(),
            })),
            Err(_) => CliError::Foreign { url, reason: status.to_string() },
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        CliError::Unreachable { url: self.address().to_owned(), reason: reason(error) }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The innermost cause, which says what happened; the outer ones only say where.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
