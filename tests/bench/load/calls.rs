//! Processor time that a server spends on one `tools/call`, 32 of them at once: ours on `get_job`, which reads a job from
//! the database, those of the TypeScript SDK and of FastMCP on a tool that repeats what it is told.
//!
//! The same requests but for the tool go to all of them: revision 2026-07-28, without sessions, over connections that
//! stay open. They take turns, each after a warm-up. Ours is asked twice over: the same question again and again, as
//! agents do who wait for a job, which is answered from memory; and questions of which none is like any before. Calls a second are those that the generator and the server reach
//! together on one machine.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::harness::process::{Folders, Gateway};
use crate::process::Process;
use crate::row::{Finding, Length};

const AT_ONCE: usize = 32;
const ROUNDS: usize = 5;
const VERSION: &str = "2026-07-28";
const PATIENCE: Duration = Duration::from_secs(60);
/// Stands where the client's version is to come.
const MARK: &str = "0.0.0";
/// Where run.sh has put the peers: the programs and what they run.
const PEERS: &str = "DRYDOCK_BENCH_PEERS";

/// A server that is asked.
struct Server {
    process: Process,
    url: String,
    tool: &'static str,
    /// What is sent before and after the client's version, which is a number.
    body: (String, String),
    /// Whether every call has another version, so that no two questions are the same.
    differs: bool,
    /// Calls in a round.
    calls: usize,
    client: reqwest::Client,
}

/// What a round came to.
struct Round {
    cpu_us: f64,
    per_second: f64,
}

pub(crate) async fn measure(length: Length) -> Vec<Finding> {
    let Some(peers) = std::env::var_os(PEERS).map(PathBuf::from) else {
        panic!("the peers are not here; run tests/bench/load/run.sh, which gets them, or set {PEERS} to their folder");
    };
    let folders = Folders::new(8);
    let gateway = folders.stocked().await;
    let job = finished(&gateway).await;
    let ours = Server::new(Process(gateway.pid()), &gateway.url, "get_job", json!({"id": job}), length.of(20_000));
    let looked_up = Server {
        differs: true,
        ..Server::new(ours.process, &gateway.url, "get_job", json!({"id": job}), length.of(5_000))
    };
    let text = json!({"text": "The ship lies in the dock, and the dock is dry."});
    let (_node, url, process) = start(&peers, "node", "echo.mjs").await;
    let node = Server::new(process, &url, "echo", text.clone(), length.of(5_000));
    let (_python, url, process) = start(&peers, "venv/bin/python", "echo.py").await;
    let python = Server::new(process, &url, "echo", text, length.of(1_500));

    let servers = [&ours, &looked_up, &node, &python];
    let mut rounds: [Vec<Round>; 4] = Default::default();
    for server in servers {
        server.round(server.calls).await;
    }
    for _ in 0..ROUNDS {
        for (server, rounds) in servers.into_iter().zip(&mut rounds) {
            rounds.push(server.round(server.calls).await);
        }
    }
    gateway.stop().await;
    let [ours, looked_up, node, python] = &rounds;
    let mut findings = Vec::new();
    for (what, ours) in [("asked again", ours), ("looked up", looked_up)] {
        findings.push(compare(what, "the TypeScript SDK's echo", ours, node, 15.0));
        findings.push(compare(what, "FastMCP's echo", ours, python, 40.0));
    }
    findings
}

/// A job that has ended, as most of those that are asked about.
async fn finished(gateway: &Gateway) -> String {
    let options = json!({"model": "tiny", "dataset": "rows"});
    let submitted = gateway.call("finetune", options).await;
    let job = submitted["structuredContent"]["job"]["id"].as_str().unwrap_or_else(|| panic!("{submitted:#}"));
    gateway.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    while gateway.get(&format!("/v1/jobs/{job}")).await["ended_ms"].is_null() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    job.to_owned()
}

/// A peer's process on a free port, once it answers.
async fn start(peers: &std::path::Path, program: &str, script: &str) -> (Child, String, Process) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(peers.join(program));
    let command = command.arg(peers.join(script)).arg(port.to_string()).env("NODE_ENV", "production");
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "{script} does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let process = Process(child.id().unwrap());
    (child, format!("http://127.0.0.1:{port}"), process)
}

impl Server {
    fn new(process: Process, url: &str, tool: &'static str, arguments: Value, calls: usize) -> Self {
        let params = json!({
            "name": tool, "arguments": arguments,
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": VERSION,
                "io.modelcontextprotocol/clientInfo": {"name": "load", "version": MARK},
                "io.modelcontextprotocol/clientCapabilities": {}
            }
        });
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let (before, after) = body.to_string().split_once(MARK).map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { process, url: format!("{url}/mcp"), tool, body: (before, after), differs: false, calls, client }
    }

    /// So many calls, [`AT_ONCE`] at a time.
    async fn round(&self, calls: usize) -> Round {
        let left = Arc::new(AtomicUsize::new(calls));
        let (before, begun) = (self.process.cpu(), Instant::now());
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            let request = self.request();
            let (left, client, (before, after)) = (left.clone(), self.client.clone(), self.body.clone());
            let differs = self.differs;
            callers.spawn(async move {
                while let Ok(left) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                {
                    let mut request = request.try_clone().unwrap();
                    let version = if differs { left } else { 1 };
                    *request.body_mut() = Some(format!("{before}{version}{after}").into());
                    let answer = client.execute(request).await.unwrap();
                    let answer = answer.bytes().await.unwrap();
                    let text = std::str::from_utf8(&answer).unwrap();
                    assert!(text.contains(r#""content":[{"#) && !text.contains(r#""isError":true"#), "{text}");
                }
            });
        }
        callers.join_all().await;
        let (cpu, took) = (self.process.cpu() - before, begun.elapsed());
        Round { cpu_us: cpu.as_secs_f64() * 1e6 / calls as f64, per_second: calls as f64 / took.as_secs_f64() }
    }

    fn request(&self) -> reqwest::Request {
        let request = self.client.post(&self.url).header("content-type", "application/json");
        let request = request.header("accept", "application/json, text/event-stream");
        let request = request.header("mcp-protocol-version", VERSION).header("mcp-method", "tools/call");
        request.header("mcp-name", self.tool).build().unwrap()
    }
}

fn compare(what: &str, peer: &str, ours: &[Round], theirs: &[Round], goal: f64) -> Finding {
    let mut ratios: Vec<_> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs.cpu_us / ours.cpu_us).collect();
    let ratio = median(&mut ratios);
    let figures = |rounds: &[Round]| {
        let cpu_us = median(&mut rounds.iter().map(|round| round.cpu_us).collect::<Vec<_>>());
        let per_second = median(&mut rounds.iter().map(|round| round.per_second).collect::<Vec<_>>());
        format!("{cpu_us:.0} us of CPU a call, {per_second:.0} calls/s")
    };
    Finding {
        what: format!("`tools/call`, {AT_ONCE} at once, {what}"),
        drydock: figures(ours),
        peer: format!("{}, {peer}", figures(theirs)),
        came_to: format!("1/{ratio:.1} (1/{:.1}-1/{:.1})", ratios[ratios.len() - 1], ratios[0]),
        goal: format!("at most 1/{goal}"),
        met: ratio >= goal,
    }
}

/// The middle one; sorts them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
