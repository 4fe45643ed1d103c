//! MCP over stdin and stdout, for hosts that start a program for each server: every message goes on to a running
//! gateway, and every message of the answer comes back. So one gateway with one queue serves all hosts of a machine,
//! and a job does not end with the host that submitted it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use reqwest::{RequestBuilder, Response, Url, header};
use serde_json::{Value, json};
use sse_stream::SseStream;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::ErrorView;

/// The longest message that is read, in bytes.
const LONGEST_LINE: u64 = 64 << 20;
/// How long answers may still come after the host has closed stdin.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest silence of the gateway: it sends keep-alive comments far more often.
const SILENCE: Duration = Duration::from_secs(90);
/// Key of `_meta` under which a message of the newer era names its revision.
const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";

/// The bridge broke down.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    #[error("`{0}` is not the address of a gateway; give one like http://127.0.0.1:7717")]
    Address(String),
    #[error("no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error("stdin or stdout: {0}")]
    Pipe(#[from] io::Error),
    #[error("a message on stdin is longer than {LONGEST_LINE} bytes; put large files with PUT /v1/blobs/{{sha256}}")]
    TooLong,
}

/// Carries messages between a host on `input` and `output` and the gateway at `address` (`http://host:port` or
/// `host:port`) until `input` ends or `shutdown` is cancelled. Nothing but JSON-RPC is ever written to `output`.
pub async fn bridge(
    address: &str,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
    shutdown: CancellationToken,
) -> Result<(), StdioError> {
    let (say, heard) = mpsc::channel(64);
    let endpoint = endpoint(address)?;
    // The gateway is near; a proxy from the environment is not meant for it.
    let mut client = reqwest::Client::builder().no_proxy().read_timeout(SILENCE);
    if endpoint.scheme() == "http" {
        // Certificates are not needed, and a bare machine has none: loading them would fail.
        client = client.tls_certs_only([]);
    }
    let bridge =
        Arc::new(Bridge { endpoint, client: client.build()?, version: Mutex::default(), open: Mutex::default(), say });
    let under_way = TaskTracker::new();
    let stop = shutdown.child_token();
    let reading = async {
        let read = read(&bridge, input, &under_way, &stop).await;
        under_way.close();
        // Whoever pipes a few lines in and closes the pipe still wants the answers.
        tokio::select! {
            _ = tokio::time::timeout(DRAIN, under_way.wait()) => {}
            () = shutdown.cancelled() => {}
        }
        stop.cancel();
        drop(bridge);
        read
    };
    let writing = write(heard, output);
    tokio::pin!(reading, writing);
    tokio::select! {
        read = &mut reading => {
            // What was said before is still written, unless the host no longer takes it.
            if let Ok(written) = tokio::time::timeout(DRAIN, writing).await {
                written?;
            }
            read
        }
        // The channel closes only after the reading has ended; so this is a host that no longer listens.
        written = &mut writing => written,
    }
}

fn endpoint(address: &str) -> Result<Url, StdioError> {
    let text = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let mut url = Url::parse(&text).map_err(|_| StdioError::Address(address.to_owned()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(StdioError::Address(address.to_owned()));
    }
    if matches!(url.path(), "" | "/") {
        url.set_path("/mcp");
    }
    Ok(url)
}

/// Hands every line on to a task of its own: a long wait must not hold up the other calls.
async fn read(
    bridge: &Arc<Bridge>,
    input: impl AsyncRead + Unpin,
    under_way: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), StdioError> {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut input).take(LONGEST_LINE);
        let bytes = tokio::select! {
            bytes = limited.read_until(b'\n', &mut line) => bytes?,
            () = stop.cancelled() => 0,
        };
        if bytes == 0 {
            return Ok(());
        }
        if bytes as u64 == LONGEST_LINE {
            return Err(StdioError::TooLong);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else {
            bridge
                .say(&failure(&Value::Null, -32700, "this line is not JSON; send one JSON-RPC message per line"))
                .await;
            continue;
        };
        if message["method"] == "notifications/cancelled" {
            bridge.close(&message["params"]["requestId"]);
            continue;
        }
        let dropped = bridge.open(&message["id"], stop);
        let bridge = bridge.clone();
        under_way.spawn(async move {
            tokio::select! {
                () = bridge.carry(&message) => {}
                // Dropping the answer's stream is how the gateway hears of it.
                () = dropped.cancelled() => {}
            }
            bridge.close(&message["id"]);
        });
    }
}

async fn write(mut heard: mpsc::Receiver<String>, mut output: impl AsyncWrite + Unpin) -> Result<(), StdioError> {
    while let Some(line) = heard.recv().await {
        output.write_all(line.as_bytes()).await?;
        output.write_all(b"\n").await?;
        output.flush().await?;
    }
    Ok(())
}

struct Bridge {
    endpoint: Url,
    client: reqwest::Client,
    /// The revision that `initialize` settled on; every later message of the older era names it.
    version: Mutex<Option<String>>,
    /// The requests without an answer yet, by id.
    open: Mutex<HashMap<String, CancellationToken>>,
    say: mpsc::Sender<String>,
}

impl Bridge {
    fn open(&self, id: &Value, stop: &CancellationToken) -> CancellationToken {
        let token = stop.child_token();
        if !id.is_null() {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.insert(id.to_string(), token.clone());
        }
        token
    }

    fn close(&self, id: &Value) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = open.remove(&id.to_string()) {
            token.cancel();
        }
    }

    async fn say(&self, message: &Value) {
        // Only a host that no longer listens closes the channel, and then there is nobody to tell.
        let _ = self.say.send(message.to_string()).await;
    }

    /// Forwards a message and brings back what is said to it. A request always gets an answer, if need be our own.
    async fn carry(&self, message: &Value) {
        let answered = match self.request(message).json(message).send().await {
            Ok(response) => self.bring(message, response).await,
            Err(error) => {
                tracing::warn!(%error, "the gateway does not answer");
                let told = format!(
                    "the drydock gateway at {} does not answer; start it with `drydock serve` and try again",
                    self.endpoint
                );
                Err((-32000, told))
            }
        };
        if let Err((code, told)) = answered
            && message.get("method").is_some()
            && let Some(id) = message.get("id")
        {
            self.say(&failure(id, code, &told)).await;
        }
    }

    /// A POST with the headers that the era of the message wants.
    fn request(&self, message: &Value) -> RequestBuilder {
        let request = self
            .client
            .post(self.endpoint.clone())
            .header(header::ACCEPT, "application/json, text/event-stream")
            .header(header::CONTENT_TYPE, "application/json");
        let (method, params) = (message["method"].as_str().unwrap_or_default(), &message["params"]);
        if let Some(version) = params["_meta"][VERSION_KEY].as_str() {
            let request = request.header("mcp-protocol-version", version).header("mcp-method", method);
            let name = match method {
                "tools/call" | "prompts/get" => &params["name"],
                "resources/read" => &params["uri"],
                "tasks/get" | "tasks/update" | "tasks/cancel" => &params["taskId"],
                _ => &Value::Null,
            };
            return match name.as_str() {
                Some(name) => request.header("mcp-name", name),
                None => request,
            };
        }
        let settled = self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match settled {
            Some(version) if method != "initialize" => request.header("mcp-protocol-version", version),
            _ => request,
        }
    }

    /// Says every message of the answer. The error is one for a request that is still without its answer.
    async fn bring(&self, message: &Value, response: Response) -> Result<(), (i64, String)> {
        let status = response.status();
        let media = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if media.is_some_and(|media| media.starts_with("text/event-stream")) {
            return self.bring_stream(message, response).await;
        }
        let body = response.bytes().await.map_err(|error| (-32603, cut_short(&error)))?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(answer) if answer.get("jsonrpc").is_some() => {
                self.note_version(message, &answer);
                self.say(&answer).await;
                Ok(())
            }
            _ if status.is_success() && message.get("id").is_none() => Ok(()),
            _ => Err((-32603, refusal(status, &body))),
        }
    }

    async fn bring_stream(&self, message: &Value, response: Response) -> Result<(), (i64, String)> {
        let mut events = SseStream::from_bytes_stream(response.bytes_stream());
        while let Some(event) = events.next().await {
            let data = event.map_err(|error| (-32603, cut_short(&error)))?.data.unwrap_or_default();
            // Priming events carry an id and nothing else.
            let Ok(said) = serde_json::from_str::<Value>(&data) else { continue };
            self.note_version(message, &said);
            let answers = said.get("id") == message.get("id") && said.get("method").is_none();
            self.say(&said).await;
            if answers {
                return Ok(());
            }
        }
        Err((-32603, "the gateway ended its answer early; jobs go on, ask again".into()))
    }

    fn note_version(&self, message: &Value, answer: &Value) {
        if message["method"] == "initialize"
            && let Some(version) = answer["result"]["protocolVersion"].as_str()
        {
            *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version.to_owned());
        }
    }
}

fn failure(id: &Value, code: i64, told: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": told}})
}

fn cut_short(error: &dyn std::error::Error) -> String {
    format!("the connection to the gateway broke ({error}); jobs go on, ask again")
}

/// What the gateway said instead of JSON-RPC.
fn refusal(status: reqwest::StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<ErrorView>(body) {
        Ok(ErrorView { error }) => match error.hint {
            Some(hint) => format!("{}; {hint}", error.message),
            None => error.message,
        },
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            format!("the gateway answered {status}: {text}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_short() {
        for (text, url) in [
            ("127.0.0.1:7717", "http://127.0.0.1:7717/mcp"),
            ("http://[::1]:7717/", "http://[::1]:7717/mcp"),
            ("https://gpu-box.lan/drydock/mcp", "https://gpu-box.lan/drydock/mcp"),
        ] {
            assert_eq!(endpoint(text).unwrap().as_str(), url);
        }
        for text in ["", "ftp://x", "http://"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
