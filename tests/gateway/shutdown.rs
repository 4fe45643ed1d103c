use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::house::{open, open_with};

#[tokio::test]
async fn open_streams_and_waits_do_not_hold_up_a_shutdown() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let mut stream = house.ask(Method::GET, &format!("/v1/jobs/{id}/events")).send().await.unwrap().bytes_stream();
    stream.next().await.unwrap().unwrap();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "wait_for_job", "arguments": {"id": id, "timeout_s": 45}, "_meta": {"progressToken": 1}}});
    let wait = house.ask(Method::POST, "/mcp").header("accept", "application/json, text/event-stream").json(&call);
    // The stream of the wait is open as soon as its first progress has arrived.
    let mut wait = wait.send().await.unwrap().bytes_stream();
    wait.next().await.unwrap().unwrap();

    let begun = Instant::now();
    house.shutdown.cancel();
    house.serving.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    let rest: Vec<_> = wait.filter_map(|piece| std::future::ready(piece.ok())).collect().await;
    let text = String::from_utf8(rest.concat()).unwrap();
    assert!(text.contains("\"state\":\"running\""), "a wait is answered with the job as it stands: {text}");
    assert!(lease.renew(1000).await.is_ok(), "the job has not noticed");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_does_not_hold_up_a_shutdown() {
    let house = open().await;
    let mut client = TcpStream::connect(("127.0.0.1", house.port)).await.unwrap();
    client.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n").await.unwrap();
    client.write_all(b"content-type: application/json\r\n\r\n{").await.unwrap();
    // Another request on another connection shows that the first one was accepted before.
    assert_eq!(house.get("/healthz").await.0, 200);
    let begun = Instant::now();
    house.shutdown.cancel();
    house.serving.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_download_that_goes_on_does_not_hold_up_a_shutdown() {
    let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let house = open_with(|config| config.hub.endpoint = Some(endpoint)).await;
    let body = json!({"source": "hf:somebody/something"});
    let adding = tokio::spawn(house.ask(Method::POST, "/v1/models").json(&body).send());
    // A hub that takes the request and says nothing.
    let asked = tokio::time::timeout(Duration::from_secs(10), hub.accept()).await.unwrap().unwrap();
    let begun = Instant::now();
    house.shutdown.cancel();
    house.serving.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    adding.abort();
    drop(asked);
}
