//! Submitting, listing, naming and cancelling jobs.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::fake::{Connection, End, Fake, Script, drydock, id, short_log, view};

/// The answer to an accepted submission.
fn accepted() -> Option<(u16, Value)> {
    Some((201, json!({"job": view(&id(1), "queued"), "created": true, "next": "call get_job"})))
}

#[tokio::test]
async fn flags_become_a_submission_and_the_id_is_all_that_stdout_gets() {
    let fake = Fake::start(Script { answer: accepted(), ..Script::default() }).await;
    let ran = fake
        .run(&[
            "finetune",
            "--model",
            "tiny",
            "--dataset",
            "rows",
            "--lora-r",
            "4",
            "--limit-memory-mib",
            "900",
            "--priority",
            "-3",
            "--idempotency-key",
            "k",
        ])
        .await;
    assert_eq!((ran.code, ran.stdout), (0, format!("{}\n", id(1))));
    assert_eq!(ran.stderr, format!("queued; follow it with `drydock watch {}`\n", id(1)));
    let expected = json!({
        "job": {"finetune": {"model": "tiny", "dataset": "rows", "lora_r": 4}},
        "priority": -3, "limits": {"memory_mib": 900}, "idempotency_key": "k", "dry_run": false
    });
    assert_eq!(fake.heard(|script| script.submissions.clone()), [expected]);
}

#[tokio::test]
async fn a_submission_that_is_watched_ends_like_its_job() {
    let script = Script {
        answer: accepted(),
        jobs: vec![view(&id(1), "failed")],
        log: short_log(),
        connections: vec![Connection { lines: 1..=2, end: End::Done }].into(),
        ..Script::default()
    };
    let fake = Fake::start(script).await;
    let ran = fake.run(&["finetune", "--model", "m", "--dataset", "d", "--watch", "--json"]).await;
    assert_eq!(ran.code, 3);
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["created"], true);
    assert_eq!(lines.last().unwrap()["job"]["state"], "failed");
}

#[tokio::test]
async fn a_refusal_names_every_wrong_option_and_the_next_step() {
    let option = |name: &str| json!({"option": name, "value": "0", "problem": "out of range", "next": "choose 1 to 9"});
    let error = json!({"error": {"code": "invalid_options", "message": "2 options cannot be accepted",
                                 "hint": "see drydock finetune --help", "options": [option("lora_r"), option("seed")]}});
    let fake = Fake::start(Script { answer: Some((400, error.clone())), ..Script::default() }).await;
    let submit = ["finetune", "--model", "m", "--dataset", "d"];
    let ran = fake.run(&submit).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert_eq!(
        ran.stderr,
        "error: 2 options cannot be accepted\n  lora_r = 0: out of range; choose 1 to 9\n  \
         seed = 0: out of range; choose 1 to 9\nhint: see drydock finetune --help\n"
    );
    let ran = fake.run(&[&submit[..], &["--json"]].concat()).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), error);
}

#[tokio::test]
async fn a_list_is_a_table_or_the_gateways_own_document() {
    let jobs = vec![view(&id(2), "running"), view(&id(1), "succeeded")];
    let fake = Fake::start(Script { jobs: jobs.clone(), ..Script::default() }).await;
    let table = fake.run(&["jobs"]).await.stdout;
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "STATE", "JOB", "SUBMITTED", "SUMMARY"]);
    assert_eq!(rows[1][..6], [&id(2), "running", "finetune", "tiny", "on", "rows"]);
    let document: Value = serde_json::from_str(&fake.run(&["jobs", "--json"]).await.stdout).unwrap();
    assert_eq!(document, json!({ "jobs": jobs }));
    let one = fake.run(&["jobs", "--limit", "1"]).await;
    assert_eq!(one.stderr, format!("there are more: drydock jobs --before {}\n", id(2)));
}

#[tokio::test]
async fn a_job_is_found_by_either_end_of_its_id() {
    let jobs: Vec<_> = (1..=150).rev().map(|n| view(&id(n), "running")).collect();
    let fake = Fake::start(Script { jobs, ..Script::default() }).await;
    let found = async |name: &str| {
        let ran = fake.run(&["show", name, "--json"]).await;
        let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
        shown["id"].as_str().map(str::to_owned)
    };
    assert_eq!(found("last").await, Some(id(150)));
    assert_eq!(found(&id(3).to_lowercase()).await, Some(id(3)));
    // The third job is on the second page.
    assert_eq!(found(&id(3)[20..]).await, Some(id(3)));

    let several = fake.run(&["show", &id(1)[..8]]).await;
    assert_eq!(several.code, 1);
    assert!(several.stderr.contains("is the beginning or end of 150 jobs"), "{}", several.stderr);
    let none = fake.run(&["show", "zz"]).await;
    assert_eq!(none.stderr, "error: no job `zz`\nhint: `drydock jobs` lists the jobs there are\n");
}

#[tokio::test]
async fn cancelling_says_how_the_job_stands_then() {
    let fake = Fake::start(Script { jobs: vec![view(&id(1), "running")], ..Script::default() }).await;
    let ran = fake.run(&["cancel", "last"]).await;
    assert_eq!((ran.code, ran.stdout), (0, format!("{} stopping: it is stopping\n", id(1))));
    assert_eq!(fake.heard(|script| script.cancelled.clone()), [id(1)]);
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_error() {
    let fake = Fake::start(Script { jobs: vec![view(&id(1), "running")], ..Script::default() }).await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = drydock(&["jobs"]).env("DRYDOCK_URL", &fake.url).stdout(Stdio::from(writer)).output().await.unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[tokio::test]
async fn what_is_no_gateway_is_said_to_be_none() {
    let router = axum::Router::new().fallback(async || "hello");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let output = drydock(&["jobs", "--gateway", &url]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("answered with something that is not drydock's"), "{said}");
}
