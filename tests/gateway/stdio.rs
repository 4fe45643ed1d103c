use std::time::{Duration, Instant};

use drydock::gateway::stdio;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::house::{open, steps};

/// A host on the other end of a bridge's pipes.
struct Host {
    input: Option<DuplexStream>,
    output: Lines<BufReader<DuplexStream>>,
    bridge: JoinHandle<Result<(), stdio::StdioError>>,
    shutdown: CancellationToken,
}

fn host(url: &str) -> Host {
    let (input, stdin) = tokio::io::duplex(1 << 20);
    let (stdout, output) = tokio::io::duplex(1 << 20);
    let (url, shutdown) = (url.to_owned(), CancellationToken::new());
    let stop = shutdown.clone();
    let bridge = tokio::spawn(async move { stdio::bridge(&url, stdin, stdout, stop).await });
    Host { input: Some(input), output: BufReader::new(output).lines(), bridge, shutdown }
}

impl Host {
    async fn say(&mut self, message: Value) {
        self.say_raw(&message.to_string()).await;
    }

    async fn say_raw(&mut self, line: &str) {
        self.input.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(20), self.output.next_line()).await.unwrap();
        serde_json::from_str(&line.unwrap().expect("an answer")).unwrap()
    }
}

fn call(id: i64, name: &str, arguments: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": name, "arguments": arguments}})
}

#[tokio::test]
async fn a_host_of_the_older_era_is_carried_through() {
    let house = open().await;
    let mut host = host(&house.url);
    let hello =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    host.say(json!({"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": hello})).await;
    let answer = host.hear().await;
    assert_eq!((&answer["id"], &answer["result"]["protocolVersion"]), (&json!("a"), &json!("2025-06-18")));
    host.say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    host.say(call(1, "list_jobs", json!({}))).await;
    let answer = host.hear().await;
    assert_eq!((&answer["id"], &answer["result"]["structuredContent"]["jobs"]), (&json!(1), &json!([])), "{answer}");
    host.say_raw("{nonsense").await;
    assert_eq!(host.hear().await["error"]["code"], -32700);
    host.input = None;
    host.bridge.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_host_of_the_newer_era_is_carried_through() {
    let house = open().await;
    let id = house.queue().await.id;
    let mut host = host(&house.url);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
    });
    for (method, params) in [
        ("server/discover", json!({})),
        ("tools/call", json!({"name": "get_job", "arguments": {"id": id}})),
        ("tasks/get", json!({"taskId": id})),
    ] {
        let mut params = params;
        params["_meta"] = meta.clone();
        host.say(json!({"jsonrpc": "2.0", "id": method, "method": method, "params": params})).await;
        let answer = host.hear().await;
        assert_eq!((&answer["id"], answer.get("error")), (&json!(method), None), "{answer}");
    }
}

#[tokio::test]
async fn a_long_wait_holds_up_nobody_and_can_be_cancelled() {
    let house = open().await;
    let mut lease = house.run().await;
    let id = lease.job().id;
    let mut host = host(&house.url);
    let mut wait = call(1, "wait_for_job", json!({"id": id, "timeout_s": 45}));
    wait["params"]["_meta"] = json!({"progressToken": "p"});
    host.say(wait).await;
    assert_eq!(host.hear().await["method"], "notifications/progress");
    host.say(call(2, "get_job", json!({"id": id}))).await;
    assert_eq!(host.hear().await["id"], 2);
    host.say(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})).await;
    host.say(call(3, "get_job", json!({"id": id}))).await;
    // Nothing more of the first request, even though its job moves on.
    steps(&mut lease, 1..=1).await;
    assert_eq!(host.hear().await["id"], 3);
    host.input = None;
    let begun = Instant::now();
    host.bridge.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn answers_still_come_when_stdin_has_ended() {
    let house = open().await;
    let mut host = host(&house.url);
    for id in 0..20 {
        host.say(call(id, "list_jobs", json!({}))).await;
    }
    host.input = None;
    let mut heard = Vec::new();
    for _ in 0..20 {
        heard.push(host.hear().await["id"].as_i64().unwrap());
    }
    heard.sort_unstable();
    assert_eq!(heard, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_gateway_that_is_away_is_answered_for() {
    let house = open().await;
    house.shutdown.cancel();
    house.serving.await.unwrap().unwrap();
    let mut host = host(&house.url);
    host.say(call(7, "list_jobs", json!({}))).await;
    let answer = host.hear().await;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(-32000)));
    assert!(answer["error"]["message"].as_str().unwrap().contains("drydock serve"), "{answer}");
    // A notification gets no answer, whatever happens to it.
    host.say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    host.say(call(8, "list_jobs", json!({}))).await;
    assert_eq!(host.hear().await["id"], 8);
    host.shutdown.cancel();
    host.bridge.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_of_the_gateway_is_said_in_its_words() {
    let house = open().await;
    let mut host = host(&house.url.replace("127.0.0.1", "127.0.0.1.nip.invalid"));
    host.say(call(1, "list_jobs", json!({}))).await;
    assert_eq!(host.hear().await["error"]["code"], -32000);
    let small = crate::house::open_with(|config| config.gateway.max_body = bytesize::ByteSize::kib(1)).await;
    let mut host = self::host(&small.url);
    host.say(call(2, "list_jobs", json!({"state": ["x".repeat(2000)]}))).await;
    let answer = host.hear().await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("larger than 1.0 KiB"), "{answer}");
}
