//! Questions that are asked again.

use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, open, steps};

/// Asks for a job in a request of this number; what differs between two answers is all that is left out.
async fn get_job(house: &House, job: &str, id: Value) -> (Vec<(String, String)>, String) {
    let params = json!({
        "name": "get_job", "arguments": {"id": job},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {}
        }
    });
    let request = house.ask(Method::POST, "/mcp").header("accept", "application/json, text/event-stream");
    let request = request.header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/call");
    let message = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
    let response = request.header("mcp-name", "get_job").json(&message).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers().iter().filter(|(name, _)| *name != "date");
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    headers.sort();
    (headers, response.text().await.unwrap())
}

/// Waits until the last commit's connection is back, from when on answers are kept.
async fn settled(house: &House) {
    while house.store.mark().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

fn state(answer: &str) -> Value {
    serde_json::from_str::<Value>(answer).unwrap()["result"]["structuredContent"].clone()
}

#[tokio::test]
async fn a_question_that_is_asked_again_gets_the_same_answer_under_its_own_number() {
    let house = open().await;
    let lease = house.run().await;
    let job = lease.job().id.to_string();
    settled(&house).await;
    let (headers, first) = get_job(&house, &job, json!(1)).await;
    for id in [json!(2), json!("a-b_c"), json!(9_007_199_254_740_993_i64), json!("ä"), json!(-3)] {
        let (again_headers, again) = get_job(&house, &job, id.clone()).await;
        let expected = first.replacen(r#""id":1,"#, &format!(r#""id":{id},"#), 1);
        assert_eq!(again, expected);
        let without_length = |headers: &[(String, String)]| -> Vec<_> {
            headers.iter().filter(|(name, _)| name != "content-length").cloned().collect()
        };
        assert_eq!(without_length(&again_headers), without_length(&headers));
    }
}

#[tokio::test]
async fn nothing_is_answered_from_before_a_change() {
    let house = open().await;
    let mut lease = house.run().await;
    let job = lease.job().id.to_string();
    for step in 1..=10 {
        steps(&mut lease, step..=step).await;
        // At once, while the report's connection may still be on its way back, and again when answers are kept.
        for _ in 0..2 {
            let (_, answer) = get_job(&house, &job, json!(step)).await;
            assert_eq!(state(&answer)["progress"]["metrics"]["step"], json!(step));
            settled(&house).await;
        }
    }
    house.store.request_cancel(lease.job().id).await.unwrap();
    assert_eq!(state(&get_job(&house, &job, json!(0)).await.1)["state"], "stopping");
}

#[tokio::test]
async fn what_a_queued_job_waits_for_is_looked_up_every_time() {
    let house = open().await;
    let job = house.queue().await.id.to_string();
    settled(&house).await;
    for number in 0..2 {
        assert_eq!(state(&get_job(&house, &job, json!(number)).await.1)["state"], "queued");
    }
}
