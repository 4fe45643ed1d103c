use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::house::{House, answer, open_with};

#[allow(unreachable_pub, reason = "other tests use it from another depth")]
#[path = "../harness/model.rs"]
mod model;

/// A house with a model and a dataset, put there over HTTP, and an engine that starts nothing.
async fn stocked() -> (House, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    model::write(&data.path().join("tiny"));
    let house = open_with(|config| config.data_dirs = vec![data.path().to_owned()]).await;
    let (status, model) = post(&house, "/v1/models", &json!({"source": "tiny"})).await;
    assert_eq!((status.as_u16(), &model["name"]), (201, &json!("tiny")), "{model}");
    let rows: Vec<_> =
        (0..20).map(|n| json!({"prompt": format!("{n} + 1 ="), "completion": (n + 1).to_string()})).collect();
    let (status, loaded) = post(&house, "/v1/datasets", &json!({"name": "sums", "rows": rows})).await;
    assert_eq!((status.as_u16(), &loaded["dataset"]["rows"]), (201, &json!(20)), "{loaded}");
    assert!(loaded["preview"]["rendered"][0]["text"].as_str().unwrap().contains("0 + 1 ="), "{loaded}");
    (house, data)
}

async fn post(house: &House, path: &str, body: &Value) -> (StatusCode, Value) {
    answer(house.ask(Method::POST, path).json(body)).await
}

fn submission() -> Value {
    json!({"job": {"finetune": {"model": "tiny", "dataset": "sums", "max_steps": 2}}})
}

#[tokio::test]
async fn a_submission_is_created_once_under_its_key() {
    let (house, _data) = stocked().await;
    let request = || house.ask(Method::POST, "/v1/jobs").header("idempotency-key", "k").json(&submission());
    let response = request().send().await.unwrap();
    assert_eq!(response.status(), 201);
    let place = response.headers()["location"].to_str().unwrap().to_owned();
    let first: Value = response.json().await.unwrap();
    assert_eq!((&first["created"], &first["job"]["state"]), (&json!(true), &json!("queued")));
    assert_eq!(house.get(&place).await.1["id"], first["job"]["id"]);
    let (status, again) = answer(request()).await;
    assert_eq!((status.as_u16(), &again["created"], &again["job"]["id"]), (200, &json!(false), &first["job"]["id"]));
    let mut other = submission();
    other["job"]["finetune"]["max_steps"] = json!(3);
    other["idempotency_key"] = json!("k");
    assert_eq!(post(&house, "/v1/jobs", &other).await.0, 409);
}

#[tokio::test]
async fn a_dry_run_is_planned_and_not_queued() {
    let (house, _data) = stocked().await;
    let mut body = submission();
    body["dry_run"] = json!(true);
    let (status, plan) = post(&house, "/v1/jobs", &body).await;
    assert_eq!(status, 200, "{plan}");
    assert!(plan["estimate"]["memory_bytes"].as_u64().unwrap() > 0, "{plan}");
    assert_eq!(plan["job"]["finetune"]["lora_r"], 8);
    assert_eq!(house.get("/v1/jobs").await.1["jobs"], json!([]));
}

/// One submission of every kind but `finetune`, with what is said about it.
fn other_kinds() -> [(&'static str, Value, &'static str); 3] {
    [
        ("train", json!({"dataset": "sums", "size": "nano"}), "train on sums"),
        ("quantize", json!({"model": "tiny", "quant_type": "Q4_K_M"}), "quantize tiny to Q4_K_M"),
        (
            "evaluate",
            json!({"model": "tiny", "dataset": "sums", "compare_with": [{"model": "tiny"}]}),
            "evaluate tiny and another on sums",
        ),
    ]
}

#[tokio::test]
async fn every_kind_of_job_is_taken_over_rest_and_over_mcp() {
    let (house, _data) = stocked().await;
    for (kind, options, about) in other_kinds() {
        let (status, planned) = post(&house, "/v1/jobs", &json!({"job": {kind: options}, "dry_run": true})).await;
        assert_eq!(status, 200, "{planned}");
        assert!(planned["estimate"]["memory_bytes"].as_u64().unwrap() > 0, "{planned}");
        assert!(planned["job"][kind].is_object(), "{planned}");

        let (status, made) = post(&house, "/v1/jobs", &json!({"job": {kind: options}})).await;
        assert_eq!((status.as_u16(), &made["job"]["about"]), (201, &json!(about)), "{made}");

        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                          "params": {"name": kind, "arguments": options}});
        let accepts = "application/json, text/event-stream";
        let (_, said) = answer(house.ask(Method::POST, "/mcp").header("accept", accepts).json(&call)).await;
        let content = &said["result"]["structuredContent"];
        assert_eq!((&content["job"]["kind"], &content["job"]["about"]), (&json!(kind), &json!(about)), "{said}");
    }
    let (_, list) = house.get("/v1/jobs").await;
    assert_eq!(list["jobs"].as_array().unwrap().len(), 6, "{list}");
}

#[tokio::test]
async fn a_chain_is_taken_at_once_and_its_jobs_say_what_they_wait_for() {
    let (house, _data) = stocked().await;
    let (_, first) = post(&house, "/v1/jobs", &submission()).await;
    let name = format!("job:{}", first["job"]["id"].as_str().unwrap());
    let chained = json!({"job": {"quantize": {"model": name, "quant_type": "Q8_0"}}});
    let (status, second) = post(&house, "/v1/jobs", &chained).await;
    assert_eq!(status, 201, "{second}");
    assert_eq!(second["job"]["waits_for"], json!({"reason": "job", "id": first["job"]["id"], "state": "queued"}));
    answer(
        house.ask(Method::POST, &format!("/v1/jobs/{}/cancel", first["job"]["id"].as_str().unwrap())).json(&json!({})),
    )
    .await;
    let (status, refused) = post(&house, "/v1/jobs", &chained).await;
    assert_eq!((status.as_u16(), &refused["error"]["code"]), (422, &json!("unusable_job")), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("was cancelled, so it left nothing"), "{refused}");
}

#[tokio::test]
async fn what_does_not_exist_is_refused_with_what_does() {
    let (house, _data) = stocked().await;
    for (field, code) in [("model", "unknown_model"), ("dataset", "unknown_dataset")] {
        let mut body = submission();
        body["job"]["finetune"][field] = json!("nothing");
        let (status, refused) = post(&house, "/v1/jobs", &body).await;
        assert_eq!((status.as_u16(), &refused["error"]["code"]), (422, &json!(code)), "{refused}");
        assert!(refused["error"]["hint"].is_string(), "{refused}");
    }
    let (status, refused) = post(&house, "/v1/datasets", &json!({"name": "x"})).await;
    assert_eq!(status, 400, "{refused}");
    assert_eq!(refused["error"]["hint"], "give exactly one of `source`, `rows` and `files`");
    for (path, rest) in [("/v1/models/tiny", "/v1/models"), ("/v1/datasets/sums", "/v1/datasets")] {
        assert_eq!(answer(house.ask(Method::DELETE, path)).await.0, 204, "{path}");
        assert_eq!(answer(house.ask(Method::DELETE, path)).await.0, 404, "{path}");
        let (_, list) = house.get(rest).await;
        assert!(list.as_object().unwrap().values().all(|list| list.as_array().is_some_and(Vec::is_empty)), "{list}");
    }
}

#[tokio::test]
async fn a_submission_whose_client_has_gone_is_queued_all_the_same() {
    let (house, _data) = stocked().await;
    let mut queue = house.store.changes().queue();
    for (path, body) in [
        ("/v1/jobs", submission()),
        (
            "/mcp",
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                   "params": {"name": "finetune", "arguments": submission()["job"]["finetune"]}}),
        ),
    ] {
        let body = body.to_string();
        let mut client = TcpStream::connect(("127.0.0.1", house.port)).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        drop(client);
        tokio::time::timeout(Duration::from_secs(10), queue.changed()).await.unwrap().unwrap();
    }
    assert_eq!(house.get("/v1/jobs").await.1["jobs"].as_array().unwrap().len(), 2);
}
