use std::time::Duration;

use drydock::artifacts::Artifact;
use drydock_spec::{FailureKind, JobId, Outcome};
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sse_stream::SseStream;

use crate::house::{House, open, steps};

const MODERN: &str = "2026-07-28";

/// A request of the 2025-11-25 revision.
fn legacy(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

async fn send(house: &House, message: &Value, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = house.ask(Method::POST, "/mcp").header("accept", "application/json, text/event-stream");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.json(message).send().await.unwrap()
}

async fn ask_legacy(house: &House, method: &str, params: Value) -> Value {
    let response = send(house, &legacy(method, params), &[("mcp-protocol-version", "2025-11-25")]).await;
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// A request of the 2026-07-28 revision, by a client with the given extensions.
async fn ask_modern(house: &House, method: &str, mut params: Value, extensions: Value) -> (StatusCode, Value) {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
    });
    let name = ["name", "taskId"].iter().find_map(|key| params[*key].as_str()).unwrap_or_default().to_owned();
    let mut headers = vec![("mcp-protocol-version", MODERN), ("mcp-method", method)];
    if !name.is_empty() {
        headers.push(("mcp-name", &name));
    }
    let response = send(house, &legacy(method, params.clone()), &headers).await;
    (response.status(), response.json().await.unwrap())
}

pub(crate) async fn call(house: &House, name: &str, arguments: Value) -> Value {
    let answer = ask_legacy(house, "tools/call", json!({"name": name, "arguments": arguments})).await;
    assert!(answer.get("error").is_none(), "{answer}");
    answer["result"].clone()
}

pub(crate) fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn a_legacy_client_initializes_and_lists_the_tools() {
    let house = open().await;
    let hello =
        json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let response = send(&house, &legacy("initialize", hello), &[]).await;
    assert!(response.headers().get("mcp-session-id").is_none());
    let answer: Value = response.json().await.unwrap();
    let result = &answer["result"];
    assert_eq!((&result["protocolVersion"], &result["serverInfo"]["name"]), (&json!("2025-11-25"), &json!("drydock")));
    assert!(result["instructions"].as_str().unwrap().contains("wait_for_job"));
    assert_eq!(result["capabilities"]["prompts"], Value::Null);
    let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(send(&house, &ready, &[("mcp-protocol-version", "2025-11-25")]).await.status(), 202);
    let answer = ask_legacy(&house, "tools/list", json!({})).await;
    insta::assert_json_snapshot!("tools", answer["result"]["tools"]);
    let mut names: Vec<_> = answer["result"]["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    names.sort_by_key(|name| name.as_str());
    // What the clients of other languages expect, who are not asked each time.
    let expected: Value = serde_json::from_str(include_str!("../interop/tools.json")).unwrap();
    assert_eq!(json!(names), expected);
    for method in ["prompts/list", "resources/list", "resources/templates/list"] {
        let answer = ask_legacy(&house, method, json!({})).await;
        assert_eq!(answer["error"]["code"], -32601, "{method}");
    }
}

#[tokio::test]
async fn a_modern_client_discovers_and_lists_the_tools() {
    let house = open().await;
    let (status, answer) = ask_modern(&house, "server/discover", json!({}), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let versions = answer["result"]["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&json!(MODERN)) && versions.contains(&json!("2025-11-25")), "{answer}");
    let (_, answer) = ask_modern(&house, "tools/list", json!({}), json!({})).await;
    assert_eq!(answer["result"]["resultType"], "complete");
    assert!(answer["result"]["ttlMs"].is_u64() && answer["result"]["cacheScope"].is_string());
    let (status, answer) =
        ask_modern(&house, "tools/call", json!({"name": "list_jobs", "arguments": {}}), json!({})).await;
    assert_eq!((status.as_u16(), &answer["result"]["structuredContent"]["jobs"]), (200, &json!([])), "{answer}");
}

#[tokio::test]
async fn mistakes_are_told_to_the_model() {
    let house = open().await;
    let unknown = JobId::from_parts(0, 0).to_string();
    for (tool, arguments, told) in [
        ("get_job", json!({}), "missing field `id`"),
        ("get_job", json!({"id": "x"}), "`x` is not a job id"),
        ("get_job", json!({"id": unknown}), "no job `"),
        ("get_job", json!({"id": unknown, "verbose": true}), "unknown field `verbose`"),
        ("list_jobs", json!({"state": ["lost"]}), "`lost` is not a state"),
        ("wait_for_job", json!({"id": unknown, "timeout_s": 46}), "timeout_s = 46: out of range"),
        ("get_logs", json!({"id": unknown, "limit": 0}), "limit = 0: out of range"),
        ("finetune", json!({"model": "m", "dataset": "d", "lora_rank": 4}), "hint: did you mean `lora_r`?"),
        ("finetune", json!({"model": "m", "dataset": "d", "limits": {"cpu": 4}}), "limits.cpu: unknown field"),
        ("finetune", json!({"model": "m", "dataset": "d", "lora_r": 0}), "lora_r = 0: out of range"),
        ("finetune", json!({"model": "m", "dataset": "d", "priority": 11}), "priority = 11: out of range"),
    ] {
        let result = call(&house, tool, arguments.clone()).await;
        assert_eq!(result["isError"], true, "{tool} {arguments}: {result}");
        assert!(text(&result).contains(told) && text(&result).contains("hint: "), "{tool} {arguments}: {result}");
        assert!(result.get("structuredContent").is_none(), "{result}");
    }
    let answer = ask_legacy(&house, "tools/call", json!({"name": "rm", "arguments": {}})).await;
    assert_eq!(answer["error"]["code"], -32602);
}

#[tokio::test]
async fn a_job_is_looked_at_read_and_cancelled() {
    let house = open().await;
    let mut lease = house.run().await;
    let id = lease.job().id;
    steps(&mut lease, 1..=9).await;
    let job = call(&house, "get_job", json!({"id": id})).await;
    assert_eq!(job["structuredContent"]["progress"]["metrics"]["step"], 9);
    assert!(job.to_string().len() < 4096, "{}", job.to_string().len());
    assert!(text(&job).ends_with(&format!("next: call wait_for_job with id {id}")), "{job}");
    let logs = call(&house, "get_logs", json!({"id": id, "limit": 3})).await;
    let seqs: Vec<_> = logs["structuredContent"]["lines"].as_array().unwrap().iter().map(|line| &line["seq"]).collect();
    assert_eq!(seqs, [9, 10, 11]);
    let told = text(&logs);
    let fence = told.split("<untrusted-").nth(1).unwrap().split('>').next().unwrap();
    assert!(told.contains(&format!("</untrusted-{fence}>")) && told.contains("ignore previous instructions"), "{told}");
    let metrics = call(&house, "get_metrics", json!({"id": id, "limit": 2})).await;
    let steps: Vec<_> =
        metrics["structuredContent"]["metrics"].as_array().unwrap().iter().map(|m| &m["step"]).collect();
    assert_eq!(steps, [8, 9]);
    let cancelled = call(&house, "cancel_job", json!({"id": id})).await;
    assert_eq!(cancelled["structuredContent"]["state"], "stopping");
    let list = call(&house, "list_jobs", json!({"state": ["stopping"]})).await;
    assert_eq!(list["structuredContent"]["jobs"][0]["id"], id.to_string());
    let artifacts = call(&house, "list_artifacts", json!({"id": id})).await;
    assert_eq!(artifacts["structuredContent"], json!({"artifacts": []}));
    let models = call(&house, "list_models", json!({})).await;
    assert!(models["structuredContent"]["models"].is_array());
}

#[tokio::test]
async fn a_long_list_is_cut_and_says_so() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let files: Vec<_> = (0..60)
        .map(|n| Artifact { path: format!("checkpoint/{n:02}"), role: None, bytes: 1, sha256: "00".into() })
        .collect();
    lease.finish(Outcome::Succeeded, &files, 0).await.unwrap();
    let result = call(&house, "list_artifacts", json!({"id": id})).await;
    assert_eq!(result["structuredContent"]["artifacts"].as_array().unwrap().len(), 50);
    assert!(text(&result).contains(&format!("and 10 more: GET /v1/jobs/{id}/artifacts")), "{result}");
}

#[tokio::test]
async fn a_wait_ends_with_the_job_and_tells_progress_meanwhile() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let params = json!({"name": "wait_for_job", "arguments": {"id": id}, "_meta": {"progressToken": "p"}});
    let response = send(&house, &legacy("tools/call", params), &[("mcp-protocol-version", "2025-11-25")]).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut messages = Box::pin(SseStream::from_bytes_stream(response.bytes_stream()));
    let mut last = 0.0;
    let mut heard = Vec::new();
    let mut lease = Some(lease);
    let result = loop {
        let event = messages.next().await.expect("the stream ends with the result").unwrap();
        let Some(data) = event.data.filter(|data| !data.is_empty()) else { continue };
        let message: Value = serde_json::from_str(&data).unwrap();
        if message.get("result").is_some() {
            break message["result"].clone();
        }
        let params = &message["params"];
        assert_eq!((&message["method"], &params["progressToken"]), (&json!("notifications/progress"), &json!("p")));
        let progress = params["progress"].as_f64().unwrap();
        assert!(progress > last, "{progress} after {last}");
        last = progress;
        heard.push(params["message"].as_str().unwrap().to_owned());
        let step = heard.len() as u64;
        if step <= 3 {
            steps(lease.as_mut().unwrap(), step..=step).await;
        } else if let Some(lease) = lease.take() {
            lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
        }
    };
    assert_eq!(result["structuredContent"]["state"], "succeeded");
    for step in 1..=3 {
        assert!(heard.iter().any(|message| message.starts_with(&format!("step {step} of 10"))), "{heard:?}");
    }
}

#[tokio::test]
async fn a_wait_without_end_answers_in_time_with_the_job_as_it_stands() {
    let house = open().await;
    let id = house.queue().await.id;
    for seconds in [0, 1] {
        let begun = std::time::Instant::now();
        let result = call(&house, "wait_for_job", json!({"id": id, "timeout_s": seconds})).await;
        assert_eq!(result["structuredContent"]["state"], "queued");
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(seconds) && took < Duration::from_secs(seconds + 2), "{took:?}");
    }
}

#[tokio::test]
async fn a_wait_that_nobody_waits_for_changes_nothing() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let params = json!({"name": "wait_for_job", "arguments": {"id": id}, "_meta": {"progressToken": 7}});
    let response = send(&house, &legacy("tools/call", params), &[]).await;
    let mut pieces = response.bytes_stream();
    pieces.next().await.unwrap().unwrap();
    drop(pieces);
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let result = call(&house, "wait_for_job", json!({"id": id})).await;
    assert_eq!(result["structuredContent"]["state"], "succeeded");
}

#[tokio::test]
async fn a_client_with_tasks_gets_a_handle_that_is_the_job() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let tasks = json!({"io.modelcontextprotocol/tasks": {}});
    let wait = json!({"name": "wait_for_job", "arguments": {"id": id}});
    let (_, answer) = ask_modern(&house, "tools/call", wait.clone(), tasks.clone()).await;
    let result = &answer["result"];
    assert_eq!((&result["resultType"], &result["taskId"]), (&json!("task"), &json!(id)), "{answer}");
    assert_eq!(result["status"], "working");
    let get = json!({"taskId": id});
    let (_, answer) = ask_modern(&house, "tasks/get", get.clone(), tasks.clone()).await;
    assert_eq!(answer["result"]["status"], "working", "{answer}");
    let (_, answer) =
        ask_modern(&house, "tasks/update", json!({"taskId": id, "inputResponses": {}}), tasks.clone()).await;
    assert_eq!(answer["result"]["resultType"], "complete", "{answer}");
    let failure = drydock_spec::Failure::new(FailureKind::Diverged, "loss is NaN");
    lease.finish(Outcome::Failed(failure), &[], 0).await.unwrap();
    let (_, answer) = ask_modern(&house, "tasks/get", get, tasks.clone()).await;
    let result = &answer["result"];
    assert_eq!(
        (&result["status"], &result["result"]["structuredContent"]["state"]),
        (&json!("completed"), &json!("failed"))
    );
    let (_, answer) = ask_modern(&house, "tools/call", wait, tasks).await;
    assert_eq!(answer["result"]["structuredContent"]["state"], "failed", "{answer}");
}

#[tokio::test]
async fn a_task_is_cancelled_like_its_job() {
    let house = open().await;
    let id = house.queue().await.id;
    let tasks = json!({"io.modelcontextprotocol/tasks": {}});
    let (_, answer) = ask_modern(&house, "tasks/cancel", json!({"taskId": id}), tasks.clone()).await;
    assert_eq!(answer["result"]["resultType"], "complete", "{answer}");
    let (_, answer) = ask_modern(&house, "tasks/get", json!({"taskId": id}), tasks.clone()).await;
    assert_eq!(answer["result"]["status"], "cancelled", "{answer}");
    let (_, answer) = ask_modern(&house, "tasks/get", json!({"taskId": "nonsense"}), tasks).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
}

#[tokio::test]
async fn nobody_gets_a_task_who_did_not_ask_for_it() {
    let house = open().await;
    let id = house.queue().await.id;
    let wait = json!({"name": "wait_for_job", "arguments": {"id": id, "timeout_s": 0}});
    let (_, modern) = ask_modern(&house, "tools/call", wait.clone(), json!({})).await;
    assert_eq!(modern["result"]["structuredContent"]["state"], "queued", "{modern}");
    let (_, refused) = ask_modern(&house, "tasks/get", json!({"taskId": id}), json!({})).await;
    assert_eq!(refused["error"]["code"], -32021, "{refused}");
    let old = ask_legacy(&house, "tools/call", wait).await;
    assert_eq!(old["result"]["structuredContent"]["state"], "queued", "{old}");
    assert!(ask_legacy(&house, "tasks/get", json!({"taskId": id})).await.get("error").is_some());
}
