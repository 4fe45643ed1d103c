//! The whole way with nothing made up but the model's weights: the real program, real Docker, the real worker.
//!
//! Needs a container engine and the worker's image (`make image`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "harness/harness.rs"]
mod harness;

#[path = "voyage/chain.rs"]
mod chain;
#[path = "voyage/resume.rs"]
mod resume;
#[path = "voyage/together.rs"]
mod together;
#[path = "voyage/users.rs"]
mod users;

use harness::process::{Folders, Gateway};
use serde_json::{Value, json};

/// A finetune of the small model that takes some seconds: `steps` optimizer steps.
fn finetune(steps: u32) -> Value {
    json!({
        "model": "tiny", "dataset": "rows", "max_steps": steps, "lora_r": 4, "learning_rate": 5e-3,
        "num_train_epochs": 10_000, "sample_prompts": ["What is 2 and 2?"], "max_new_tokens": 8,
        "limits": {"cpus": 1}
    })
}

async fn submit(gateway: &Gateway, arguments: Value) -> String {
    let submitted = gateway.ask("finetune", arguments).await;
    submitted["job"]["id"].as_str().unwrap_or_else(|| panic!("{submitted:#}")).to_owned()
}

/// The job when it has ended, by repeated bounded waits as an agent does it.
async fn wait(gateway: &Gateway, job: &str) -> Value {
    for _ in 0..10 {
        let view = gateway.ask("wait_for_job", json!({"id": job, "timeout_s": 30})).await;
        if ["succeeded", "failed", "cancelled"].contains(&view["state"].as_str().unwrap()) {
            return view;
        }
    }
    panic!("job {job} does not end: {:#}", gateway.ask("get_job", json!({"id": job})).await);
}

fn steps(events: &[Value]) -> Vec<u64> {
    events.iter().filter_map(|event| event["report"]["step"].as_u64()).collect()
}

fn numbers(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["seq"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn a_finetune_through_mcp_learns_and_leaves_an_adapter() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let job = submit(&gateway, finetune(30)).await;
    let view = wait(&gateway, &job).await;
    assert_eq!(view["state"], "succeeded", "{view:#}");
    let loss = |index: usize| view["evaluations"][index]["loss"].as_f64().unwrap();
    assert!(loss(1) < loss(0), "held-out loss {} before, {} after", loss(0), loss(1));
    assert_eq!(view["samples"].as_array().unwrap().len(), 2);
    let made = gateway.ask("list_artifacts", json!({"id": job})).await;
    let paths: Vec<_> =
        made["artifacts"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    for path in ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/tokenizer.json"] {
        assert!(paths.contains(&path), "{paths:?}");
    }
    let config = gateway.get(&format!("/v1/jobs/{job}/artifacts/adapter/adapter_config.json")).await;
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(4)));
    assert!(gateway.stop().await.as_secs() < 3);
}

#[tokio::test]
async fn a_gateway_killed_in_the_middle_loses_no_report_and_doubles_none() {
    let folders = Folders::new(60);
    let mut gateway = folders.stocked().await;
    let count = 400;
    let job = submit(&gateway, finetune(count)).await;
    // Twice, at different points of the training.
    for step in [20, 120] {
        gateway.events(&job, 0, |event| event["report"]["step"].as_u64().is_some_and(|at| at >= step)).await;
        gateway.kill().await;
        gateway = folders.gateway().await;
    }
    let view = wait(&gateway, &job).await;
    assert_eq!((&view["state"], &view["attempt"]), (&json!("succeeded"), &json!(1)), "{view:#}");
    let events = gateway.events(&job, 0, |_| false).await;
    assert_eq!(numbers(&events), (1..=view["seq"].as_i64().unwrap()).collect::<Vec<_>>());
    assert_eq!(steps(&events), (1..=u64::from(count)).collect::<Vec<_>>(), "each step was reported once");
    let ends = events.iter().filter(|event| event["event"]["event"] == "ended").count();
    assert_eq!(ends, 1);
}

#[tokio::test]
async fn a_stream_that_is_cut_again_and_again_misses_and_repeats_nothing() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let job = submit(&gateway, finetune(200)).await;
    let mut seen: Vec<Value> = Vec::new();
    for length in [1, 2, 3, 5, 8, 13, 21, 34, 55] {
        let mut left = length;
        let after = seen.last().map_or(0, |event| event["seq"].as_i64().unwrap());
        seen.extend(
            gateway
                .events(&job, after, |_| {
                    left -= 1;
                    left == 0
                })
                .await,
        );
    }
    let after = seen.last().map_or(0, |event| event["seq"].as_i64().unwrap());
    seen.extend(gateway.events(&job, after, |_| false).await);
    let view = wait(&gateway, &job).await;
    assert_eq!(view["state"], "succeeded", "{view:#}");
    assert_eq!(numbers(&seen), (1..=view["seq"].as_i64().unwrap()).collect::<Vec<_>>());
    let path = format!("{}/v1/jobs/{job}/events", gateway.url);
    let last = gateway.client.get(path).header("last-event-id", view["seq"].to_string()).send().await.unwrap();
    assert_eq!(last.status(), 204, "an EventSource must not come back for more");
}

#[tokio::test]
async fn a_running_job_is_cancelled_within_its_grace() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let job = submit(&gateway, finetune(100_000)).await;
    gateway.events(&job, 0, |event| event["report"]["step"].as_u64().is_some()).await;
    gateway.ask("cancel_job", json!({"id": job})).await;
    let view = wait(&gateway, &job).await;
    assert_eq!(view["state"], "cancelled", "{view:#}");
    let events = gateway.events(&job, 0, |_| false).await;
    assert!(events.iter().any(|event| event["report"]["type"] == "stopped"), "it left by itself");
}

#[tokio::test]
async fn a_dry_run_shows_the_rows_as_they_would_be_trained_on() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let mut arguments = finetune(30);
    arguments["dry_run"] = true.into();
    let plan = gateway.ask("finetune", arguments).await;
    let row = &plan["plan"]["rows"]["rendered"][0];
    assert!(row["text"].as_str().unwrap().starts_with("<|im_start|>user\nWhat is "), "{plan:#}");
    assert!(row["supervised"].as_str().unwrap().starts_with("It is "), "{plan:#}");
    assert_eq!(plan["plan"]["total_steps"], 30);
    assert_eq!(gateway.ask("list_jobs", json!({})).await["jobs"], json!([]), "nothing was queued");
}

#[tokio::test]
async fn what_the_worker_finds_wrong_is_said_with_the_next_step() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let mut arguments = finetune(30);
    arguments["max_seq_length"] = 8.into();
    arguments["dry_run"] = true.into();
    let refused = gateway.call("finetune", arguments.clone()).await;
    assert_eq!(refused["isError"], json!(true), "{refused:#}");
    assert!(refused.to_string().contains("max_seq_length"), "{refused:#}");
    arguments["dry_run"] = false.into();
    let job = submit(&gateway, arguments).await;
    let view = wait(&gateway, &job).await;
    assert_eq!(view["failure"]["kind"], "nothing_to_learn", "{view:#}");
}
