//! Gateways that come and go while others are there: another one, clients, and jobs under way.

use std::time::Duration;

use serde_json::json;
use tokio::process::Command;

use super::harness::process::Folders;
use super::{finetune, steps, submit, wait};

#[tokio::test]
async fn a_second_gateway_on_the_same_state_folder_refuses_in_words() {
    let folders = Folders::new(3);
    let gateway = folders.gateway().await;
    let second = Command::new(env!("CARGO_BIN_EXE_drydock"))
        .env("DRYDOCK_CONFIG", "/dev/null")
        .arg("--state-dir")
        .arg(folders.state())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .kill_on_drop(true)
        .output();
    let second = tokio::time::timeout(Duration::from_secs(20), second).await.expect("it does not leave").unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another drydock uses") && said.contains("choose another state folder"), "{said}");
    assert_eq!(gateway.client.get(format!("{}/healthz", gateway.url)).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_gateway_that_is_stopped_under_load_leaves_in_time_and_the_next_one_takes_up_its_jobs() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let mut arguments = finetune(250);
    arguments["limits"] = json!({"cpus": 0.5});
    let jobs = [submit(&gateway, arguments.clone()).await, submit(&gateway, arguments).await];
    for job in &jobs {
        gateway.events(job, 0, |event| event["report"]["step"].as_u64().is_some_and(|step| step >= 5)).await;
    }
    let mut streams = Vec::new();
    for job in jobs.iter().cycle().take(20) {
        let mut response = gateway.client.get(format!("{}/v1/jobs/{job}/events", gateway.url)).send().await.unwrap();
        streams.push(tokio::spawn(async move {
            let mut bytes = 0;
            loop {
                match response.chunk().await {
                    Ok(Some(chunk)) => bytes += chunk.len(),
                    Ok(None) => return Ok(bytes),
                    Err(error) => return Err(error.to_string()),
                }
            }
        }));
    }
    let took = gateway.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    for stream in streams {
        let read = tokio::time::timeout(Duration::from_secs(5), stream).await.expect("a stream stays open").unwrap();
        assert!(read.as_ref().is_ok_and(|bytes| *bytes > 0), "a stream was torn: {read:?}");
    }
    let gateway = folders.gateway().await;
    for job in &jobs {
        let view = wait(&gateway, job).await;
        assert_eq!((&view["state"], &view["attempt"]), (&json!("succeeded"), &json!(1)), "{view:#}");
        let events = gateway.events(job, 0, |_| false).await;
        assert_eq!(steps(&events), (1..=250).collect::<Vec<_>>(), "each step was reported once");
    }
}
