//! A gateway that says what a test wants it to say, and remembers what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use drydock_spec::JobId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

/// A connection to a job's events.
pub(crate) struct Connection {
    /// Numbers of the lines that are sent.
    pub(crate) lines: std::ops::RangeInclusive<usize>,
    pub(crate) end: End,
}

/// How a connection ends.
pub(crate) enum End {
    /// In the middle, as when a cable is pulled.
    Cut,
    Done,
    /// Never; the signal tells the test that everything was sent.
    Open(oneshot::Sender<()>),
}

/// What the gateway says and what it has heard.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) jobs: Vec<Value>,
    /// The log of every job, from line 1 on.
    pub(crate) log: Vec<Value>,
    pub(crate) connections: VecDeque<Connection>,
    /// The Last-Event-ID of each connection.
    pub(crate) resumed_after: Vec<Option<String>>,
    pub(crate) submissions: Vec<Value>,
    /// The answer to a submission.
    pub(crate) answer: Option<(u16, Value)>,
    pub(crate) cancelled: Vec<String>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) uploads: Vec<String>,
    pub(crate) imports: Vec<Value>,
    /// Artifacts by path.
    pub(crate) artifacts: BTreeMap<String, Vec<u8>>,
    /// Sent instead of the artifacts' own bytes.
    pub(crate) damage: Option<Vec<u8>>,
    /// The experience that is exported.
    pub(crate) knowledge: String,
    /// Why jobs failed.
    pub(crate) told: Value,
    /// Queries for experience and explanations.
    pub(crate) asked: Vec<String>,
}

pub(crate) type Shared = Arc<Mutex<Script>>;

/// A running fake.
pub(crate) struct Fake {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    pub(crate) script: Shared,
}

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fake {
    pub(crate) async fn start(script: Script) -> Self {
        let script = Arc::new(Mutex::new(script));
        let router = Router::new()
            .route("/healthz", get(async || "ok"))
            .route("/v1/jobs", get(jobs).post(submit))
            .route("/v1/jobs/{id}", get(job))
            .route("/v1/jobs/{id}/cancel", post(cancel))
            .route("/v1/jobs/{id}/events", get(events))
            .route("/v1/jobs/{id}/logs", get(logs))
            .route("/v1/jobs/{id}/artifacts", get(artifacts))
            .route("/v1/jobs/{id}/artifacts/{*path}", get(artifact))
            .route("/v1/jobs/{id}/failure", get(failure))
            .route("/v1/knowledge", get(export).post(import))
            .route("/v1/models", post(add_model))
            .route("/v1/blobs/{sha256}", axum::routing::put(put_blob).head(head_blob))
            .with_state(Arc::clone(&script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url: format!("http://{address}"), address, script }
    }

    /// Runs `drydock` against this gateway.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let output = drydock(arguments).env("DRYDOCK_URL", &self.url).output().await.unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn heard<T>(&self, look: impl FnOnce(&Script) -> T) -> T {
        look(&self.script.lock().unwrap())
    }
}

/// The command, with an environment of its own.
pub(crate) fn drydock(arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_drydock"));
    command.args(arguments).env_clear().env("DRYDOCK_CONFIG", "/dev/null").env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The `n`th of a row of ids.
pub(crate) fn id(n: u128) -> String {
    JobId::from_parts(1_764_000_000_000, n << 40 | n).to_string()
}

/// A job in a state.
pub(crate) fn view(id: &str, state: &str) -> Value {
    json!({
        "id": id, "kind": "finetune", "about": "finetune tiny on rows", "state": state, "summary": format!("it is {state}"), "model": "tiny",
        "dataset": "rows", "owner": "local", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "priority": 0,
        "attempt": 1, "max_attempts": 3, "seq": 9, "submitted_ms": 1_764_000_000_000_i64
    })
}

/// A line of a log.
pub(crate) fn line(seq: usize, entry: Value) -> Value {
    let mut line = json!({"seq": seq, "at_ms": 1_764_000_000_000_i64 + 667 * seq as i64, "trace_id": "ab"});
    line.as_object_mut().unwrap().extend(entry.as_object().unwrap().clone());
    line
}

/// What a worker says.
pub(crate) fn report(seq: usize, report: Value) -> Value {
    let mut said = json!({"attempt": 1, "elapsed_ms": 5});
    said.as_object_mut().unwrap().extend(report.as_object().unwrap().clone());
    line(seq, json!({"report": said}))
}

/// The log of a short finetune.
pub(crate) fn short_log() -> Vec<Value> {
    let metrics = |seq, step: u64| {
        report(
            seq,
            json!({"type": "metrics", "step": step, "total_steps": 2, "epoch": 0.5, "loss": 2.5, "learning_rate": 2e-4,
                   "grad_norm": 1.0, "tokens_per_second": 812.3, "eta_ms": 61_000, "rss_bytes": 1000}),
        )
    };
    vec![
        line(1, json!({"event": {"event": "submitted"}})),
        line(2, json!({"event": {"event": "claimed", "attempt": 1}})),
        report(3, json!({"type": "stage", "stage": "train"})),
        metrics(4, 1),
        metrics(5, 2),
        line(6, json!({"event": {"event": "ended", "attempt": 1, "outcome": "succeeded"}})),
    ]
}

async fn jobs(State(script): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let limit = query.get("limit").map_or(50, |limit| limit.parse::<usize>().unwrap());
    let jobs = script.lock().unwrap().jobs.clone();
    let rest: Vec<_> = jobs
        .iter()
        .skip_while(|job| query.get("before").is_some_and(|before| job["id"] != **before))
        .skip(usize::from(query.contains_key("before")))
        .cloned()
        .collect();
    let page: Vec<_> = rest.iter().take(limit).cloned().collect();
    let mut answer = json!({ "jobs": page });
    if rest.len() > limit {
        answer["next"] = page.last().unwrap()["id"].clone();
    }
    axum::Json(answer).into_response()
}

async fn job(State(script): State<Shared>, Path(id): Path<String>) -> Response {
    match script.lock().unwrap().jobs.iter().find(|job| job["id"] == *id) {
        Some(job) => axum::Json(job.clone()).into_response(),
        None => refusal(StatusCode::NOT_FOUND, json!({"code": "no_such_job", "message": format!("no job `{id}`")})),
    }
}

fn refusal(status: StatusCode, error: Value) -> Response {
    (status, axum::Json(json!({ "error": error }))).into_response()
}

async fn submit(State(script): State<Shared>, body: Bytes) -> Response {
    let mut script = script.lock().unwrap();
    script.submissions.push(serde_json::from_slice(&body).unwrap());
    let (status, answer) = script.answer.clone().unwrap();
    (StatusCode::from_u16(status).unwrap(), axum::Json(answer)).into_response()
}

async fn cancel(State(script): State<Shared>, Path(id): Path<String>) -> Response {
    script.lock().unwrap().cancelled.push(id.clone());
    axum::Json(view(&id, "stopping")).into_response()
}

async fn events(State(script): State<Shared>, headers: HeaderMap) -> Response {
    let mut script = script.lock().unwrap();
    let resumed = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
    script.resumed_after.push(resumed);
    let Some(connection) = script.connections.pop_front() else { return StatusCode::NO_CONTENT.into_response() };
    let mut text = String::from("retry: 1\n\n: keep-alive\n\n");
    for seq in connection.lines {
        let line = &script.log[seq - 1];
        let kind = if line.get("event").is_some() { "event" } else { "report" };
        text.push_str(&format!("id: {seq}\nevent: {kind}\ndata: {line}\n\n"));
    }
    let (rest, open) = match connection.end {
        End::Done => ("event: done\ndata: {}\n\n".to_owned(), None),
        End::Cut => (String::new(), None),
        End::Open(sent) => (String::new(), Some(sent)),
    };
    let cut = rest.is_empty() && open.is_none();
    let first = Bytes::from(text + &rest);
    let stream = futures::stream::unfold((Some(first), open), move |(text, open)| async move {
        match (text, open) {
            (Some(text), open) => Some((Ok(text), (None, open))),
            (None, Some(sent)) => {
                sent.send(()).unwrap();
                std::future::pending().await
            }
            (None, None) if cut => {
                // Lets the server send what it has before it hears of the cut.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("cut")), (None, None)))
            }
            (None, None) => None,
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}

async fn logs(State(script): State<Shared>) -> Response {
    let log = script.lock().unwrap().log.clone();
    axum::Json(json!({"next_after": log.len(), "lines": log, "last_words": "bye\u{1b}[2J"})).into_response()
}

async fn artifacts(State(script): State<Shared>, Path(id): Path<String>) -> Response {
    let script = script.lock().unwrap();
    let list: Vec<_> = script
        .artifacts
        .iter()
        .map(|(path, bytes)| {
            json!({"path": path, "role": "adapter", "bytes": bytes.len(), "sha256": sha256(bytes),
                   "href": format!("/v1/jobs/{id}/artifacts/{path}")})
        })
        .collect();
    axum::Json(json!({"artifacts": list, "folder": "/srv/artifacts"})).into_response()
}

async fn artifact(State(script): State<Shared>, Path((_, path)): Path<(String, String)>) -> Response {
    let script = script.lock().unwrap();
    script.damage.clone().unwrap_or_else(|| script.artifacts[&path].clone()).into_response()
}

async fn head_blob(State(script): State<Shared>, Path(sha256): Path<String>) -> StatusCode {
    if script.lock().unwrap().blobs.contains_key(&sha256) { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

async fn put_blob(State(script): State<Shared>, Path(name): Path<String>, request: Request) -> StatusCode {
    assert!(request.headers().contains_key("content-length"), "the gateway looks at free space first");
    let bytes = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    assert_eq!(sha256(&bytes), name);
    let mut script = script.lock().unwrap();
    script.uploads.push(name.clone());
    script.blobs.insert(name, bytes.to_vec());
    StatusCode::CREATED
}

async fn add_model(State(script): State<Shared>, axum::Json(request): axum::Json<Value>) -> Response {
    let answer = json!({
        "name": request["name"], "digest": "d", "architecture": "llama", "parameters": 134_515_008, "max_positions": 8192,
        "format": "gguf", "dtype": "Q4_1", "bytes": 3, "origin": "x.gguf", "has_chat_template": true, "added_ms": 0
    });
    script.lock().unwrap().imports.push(request);
    axum::Json(answer).into_response()
}

async fn failure(State(script): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let mut script = script.lock().unwrap();
    script.asked.extend(query);
    axum::Json(script.told.clone()).into_response()
}

async fn export(State(script): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let mut script = script.lock().unwrap();
    script.asked.extend(query);
    ([("content-type", "application/x-ndjson")], script.knowledge.clone()).into_response()
}

async fn import(State(script): State<Shared>, headers: HeaderMap, body: String) -> Response {
    assert_eq!(headers["content-type"], "application/x-ndjson");
    script.lock().unwrap().imports.push(body.into());
    let answer = json!({"origin": "team-a (0123abcd)", "added": 3, "changed": 1, "unchanged": 2, "failures": 7});
    axum::Json(answer).into_response()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
