use std::collections::BTreeSet;

use drydock::artifacts::Artifact;
use drydock_spec::{JobId, Outcome};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::house::{answer, open, open_with, queue, steps};

pub(crate) fn code(answer: &(StatusCode, Value)) -> (u16, &str) {
    (answer.0.as_u16(), answer.1["error"]["code"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn every_route_of_the_document_answers_in_json_or_as_it_says() {
    let house = open().await;
    let (_, document) = house.get("/v1/openapi.json").await;
    let job = house.queue().await.id.to_string();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_ascii_uppercase().parse().unwrap();
            if path.ends_with("/events") {
                continue;
            }
            let place = path
                .replace("{id}", &job)
                .replace("{path}", "none")
                .replace("{name}", "none")
                .replace("{uuid}", "none");
            let place = place.replace("{sha256}", &"0".repeat(64));
            let (status, body) = answer(house.ask(method.clone(), &place)).await;
            let status = status.as_u16().to_string();
            assert!(operation["responses"].get(&status).is_some(), "{method} {place} answered {status}: {body}");
            if body.get("error").is_some() {
                assert!(body["error"]["message"].as_str().unwrap().len() > 5, "{body}");
                assert!(body["error"]["hint"].is_string(), "{method} {place}: {body}");
            }
        }
    }
}

#[tokio::test]
async fn the_paths_of_the_document_are_these() {
    let house = open().await;
    let (_, document) = house.get("/v1/openapi.json").await;
    let paths: BTreeSet<_> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, operations)| {
            operations.as_object().unwrap().iter().map(move |(method, operation)| {
                format!("{} {path} {}", method.to_ascii_uppercase(), operation["operationId"].as_str().unwrap())
            })
        })
        .collect();
    insta::assert_json_snapshot!("openapi_paths", paths);
}

#[tokio::test]
async fn a_page_says_of_each_job_what_is_said_of_it_alone() {
    let house = open().await;
    let failure = || drydock_spec::Failure::new(drydock_spec::FailureKind::EngineLost, "gone");
    let later = house.store.clock().now_ms() + 60_000;
    let retry = house.run().await;
    retry.finish(Outcome::Failed(failure()), &[], later).await.unwrap();
    let mut running = house.run().await;
    steps(&mut running, 1..=3).await;
    let mut done = house.run().await;
    steps(&mut done, 1..=10).await;
    done.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let input = house.queue().await.id;
    queue(&house.store, |new| {
        let model = new.inputs.model.as_mut().unwrap();
        model.source = drydock::plan::ModelSource::Awaited { job: input };
    })
    .await;
    house.queue().await;
    let (_, page) = house.get("/v1/jobs").await;
    let jobs = page["jobs"].as_array().unwrap();
    let reasons: Vec<_> = jobs.iter().map(|job| job["waits_for"]["reason"].as_str().unwrap_or("none")).collect();
    assert_eq!(reasons, ["dispatch", "job", "dispatch", "none", "none", "retry"]);
    assert!(jobs[5]["summary"].as_str().unwrap().contains("gone"), "{page:#}");
    for job in jobs {
        let (_, alone) = house.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).await;
        assert_eq!(*job, alone);
    }
}

#[tokio::test]
async fn a_wrong_submission_says_what_is_wrong_and_where() {
    let house = open().await;
    let post = |body: &'static str| {
        answer(house.ask(Method::POST, "/v1/jobs").header("content-type", "application/json").body(body))
    };
    let broken = post("{\"job\": ").await;
    assert_eq!(code(&broken), (400, "invalid_json"));
    assert!(broken.1["error"]["message"].as_str().unwrap().contains("line 1 column 8"), "{}", broken.1);
    let unknown = post(r#"{"job": {"finetune": {"model": "m", "dataset": "d", "lora_rank": 1}}}"#).await;
    assert_eq!(code(&unknown), (400, "invalid_request"));
    assert!(unknown.1["error"]["message"].as_str().unwrap().starts_with("job.finetune.lora_rank: "));
    assert_eq!(unknown.1["error"]["hint"], "did you mean `lora_r`?");
    let range =
        post(r#"{"job": {"finetune": {"model": "m", "dataset": "d", "lora_r": 1000, "learning_rate": 7}}}"#).await;
    assert_eq!(code(&range), (422, "invalid_options"));
    let options = range.1["error"]["options"].as_array().unwrap();
    assert_eq!((&options[0]["option"], &options[1]["option"]), (&json!("learning_rate"), &json!("lora_r")));
    let trailing = post(r#"{"job": {"finetune": {"model": "m", "dataset": "d"}}} x"#).await;
    assert_eq!(code(&trailing), (400, "invalid_json"));
    let untyped = answer(house.ask(Method::POST, "/v1/jobs").body("{}")).await;
    assert_eq!(code(&untyped), (415, "not_json"));
}

#[tokio::test]
async fn an_idempotency_key_may_stand_in_the_header_or_the_body_but_not_differ() {
    let house = open().await;
    let body = json!({"job": {"finetune": {"model": "m", "dataset": "d"}}, "idempotency_key": "a"});
    let differ = answer(house.ask(Method::POST, "/v1/jobs").header("idempotency-key", "b").json(&body)).await;
    assert_eq!(code(&differ), (400, "invalid_key"));
    // The job that took the key had another digest.
    let job = queue(&house.store, |new| new.idempotency_key = Some("a".into())).await;
    let reused = answer(house.ask(Method::POST, "/v1/jobs").json(&body)).await;
    assert_eq!(code(&reused), (409, "key_reused"));
    assert!(reused.1["error"]["message"].as_str().unwrap().contains(&job.id.to_string()));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_the_limit() {
    let house = open_with(|config| config.gateway.max_body = bytesize::ByteSize::kib(4)).await;
    let large = format!("{{\"x\": \"{}\"}}", "y".repeat(5000));
    for path in ["/v1/jobs", "/mcp"] {
        let announced = house.ask(Method::POST, path).header("content-type", "application/json").body(large.clone());
        let announced = answer(announced).await;
        assert_eq!(code(&announced), (413, "body_too_large"), "{path}");
        assert!(announced.1["error"]["message"].as_str().unwrap().contains("4.0 KiB"), "{}", announced.1);
        let pieces = futures::stream::iter(vec![Ok::<_, std::io::Error>(large.clone())]);
        let unannounced = house
            .ask(Method::POST, path)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(reqwest::Body::wrap_stream(pieces));
        assert_eq!(answer(unannounced).await.0, 413, "{path}");
    }
}

#[tokio::test]
async fn jobs_are_listed_in_pages_and_by_state() {
    let house = open().await;
    let mut ids: Vec<JobId> = Vec::new();
    for _ in 0..5 {
        ids.push(house.queue().await.id);
    }
    house.store.request_cancel(ids[0]).await.unwrap();
    let mut seen = Vec::new();
    let mut path = "/v1/jobs?limit=2".to_owned();
    loop {
        let (_, page) = house.get(&path).await;
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/jobs?limit=2&before={next}");
    }
    let expected: Vec<_> = ids.iter().rev().map(ToString::to_string).collect();
    assert_eq!(seen, expected);
    let (_, cancelled) = house.get("/v1/jobs?state=cancelled,failed").await;
    assert_eq!(cancelled["jobs"][0]["id"], ids[0].to_string());
    assert_eq!(cancelled["jobs"].as_array().unwrap().len(), 1);
    for wrong in ["state=lost", "limit=0", "limit=201", "limit=x", "before=x", "colour=red"] {
        assert_eq!(house.get(&format!("/v1/jobs?{wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_job_is_shown_followed_by_pages_and_cancelled_once() {
    let house = open().await;
    let mut lease = house.run().await;
    steps(&mut lease, 1..=3).await;
    let id = lease.job().id;
    let (_, job) = house.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((&job["state"], &job["progress"]["metrics"]["step"]), (&json!("running"), &json!(3)));
    let (_, logs) = house.get(&format!("/v1/jobs/{id}/logs?after=2&limit=2")).await;
    assert_eq!((logs["lines"].as_array().unwrap().len(), &logs["next_after"]), (2, &json!(4)));
    let (_, metrics) = house.get(&format!("/v1/jobs/{id}/metrics?after=3")).await;
    assert_eq!(metrics["metrics"].as_array().unwrap().len(), 2);
    for _ in 0..2 {
        let (status, job) = answer(house.ask(Method::POST, &format!("/v1/jobs/{id}/cancel"))).await;
        assert_eq!((status.as_u16(), &job["state"]), (200, &json!("stopping")));
    }
    assert_eq!(code(&house.get("/v1/jobs/nonsense").await), (400, "not_a_job_id"));
    let unknown = format!("/v1/jobs/{}", JobId::from_parts(0, 0));
    for path in ["", "/logs", "/metrics", "/artifacts", "/artifacts/x", "/events"] {
        assert_eq!(code(&house.get(&format!("{unknown}{path}")).await), (404, "no_such_job"), "{path}");
    }
}

#[tokio::test]
async fn failures_are_listed_with_those_that_are_the_same_together() {
    let house = open().await;
    assert_eq!(house.get("/v1/failures").await.1, json!({"failures": []}));
    for message in ["row 1: bad", "row 2: bad", "cut off"] {
        let failure = drydock_spec::Failure::new(drydock_spec::FailureKind::BadDataset, message);
        house.run().await.finish(Outcome::Failed(failure), &[], 0).await.unwrap();
    }
    let (_, list) = house.get("/v1/failures").await;
    let told: Vec<_> =
        list["failures"].as_array().unwrap().iter().map(|group| json!([group["template"], group["count"]])).collect();
    assert_eq!(told, [json!(["cut off", 1]), json!(["row <number>: bad", 2])]);
    assert!(list["failures"][1]["fingerprint"].as_str().unwrap().starts_with("v1:"));
    assert_eq!(list["failures"][1]["message"], "row 2: bad");
    let id = list["failures"][1]["job"].as_str().unwrap();
    let (_, told) = house.get(&format!("/v1/jobs/{id}/failure")).await;
    assert_eq!(
        (&told["seen"], &told["seen_by_jobs"], &told["failure"]["kind"]),
        (&json!(2), &json!(2), &json!("bad_dataset"))
    );
    assert_eq!(told["last_good"], Value::Null, "none has succeeded");
    house.run().await.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let (_, told) = house.get(&format!("/v1/jobs/{id}/failure")).await;
    assert_eq!((&told["last_good"]["same_model"], &told["last_good"]["changes"]), (&json!(true), &json!([])));
    let good = &told["last_good"]["job"].as_str().unwrap();
    assert_eq!(code(&house.get(&format!("/v1/jobs/{good}/failure")).await), (404, "not_failed"));
    assert_eq!(house.get("/v1/failures?limit=1").await.1["failures"].as_array().unwrap().len(), 1);
    assert_eq!(code(&house.get("/v1/failures?limit=0").await), (400, "invalid_query"));
}

#[tokio::test]
async fn an_artifact_is_downloaded_as_listed_and_nothing_else_is() {
    let house = open().await;
    let lease = house.run().await;
    let id = lease.job().id;
    let folder = house.config.state_dir.join("artifacts").join(id.to_string());
    std::fs::create_dir_all(folder.join("adapter")).unwrap();
    std::fs::write(folder.join("adapter/a b.bin"), "weights").unwrap();
    std::fs::write(folder.join("unlisted"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    let listed = |path: &str, bytes| Artifact { path: path.into(), role: None, bytes, sha256: "00".into() };
    let artifacts = [listed("adapter/a b.bin", 7), listed("link", 7), listed("gone", 1)];
    lease.finish(Outcome::Succeeded, &artifacts, 0).await.unwrap();

    let path = format!("/v1/jobs/{id}/artifacts/adapter/a%20b.bin");
    let response = house.ask(Method::GET, &path).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-length"), "7");
    assert_eq!(header("content-type"), "application/octet-stream");
    assert_eq!(header("content-disposition"), "attachment; filename=\"a b.bin\"");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(response.bytes().await.unwrap(), "weights");

    for path in ["unlisted", "adapter", "..%2f..%2fjobs.db", "adapter/../unlisted"] {
        let (status, _) = house.get(&format!("/v1/jobs/{id}/artifacts/{path}")).await;
        assert_eq!(status, 404, "{path}");
    }
    for path in ["link", "gone"] {
        let refused = house.get(&format!("/v1/jobs/{id}/artifacts/{path}")).await;
        assert_eq!(refused.0, 500, "{path}");
        assert!(!refused.1.to_string().contains(house.config.state_dir.to_str().unwrap()), "{}", refused.1);
    }

    let (status, planned) = answer(house.ask(Method::POST, "/v1/gc").json(&json!({"dry_run": true}))).await;
    assert_eq!((status.as_u16(), &planned["taken"]), (200, &json!([])), "by default artifacts are kept");
    house.store.remove_artifacts(id).await.unwrap();
    let gone = house.get(&path).await;
    assert_eq!(code(&gone), (410, "artifact_removed"));
    assert!(gone.1["error"]["message"].as_str().unwrap().contains("was removed on 20"), "{}", gone.1);
    let (_, list) = house.get(&format!("/v1/jobs/{id}/artifacts")).await;
    assert!(list["removed_ms"].is_i64() && list["artifacts"][0]["sha256"] == "00", "{list}");
}

#[tokio::test]
async fn every_route_is_behind_the_guard() {
    let house = open_with(|config| config.gateway.allowed_origins = vec!["https://example.org".into()]).await;
    for path in ["/healthz", "/v1/jobs", "/mcp", "/nowhere"] {
        let rebound = answer(house.ask(Method::GET, path).header("host", "evil.example")).await;
        assert_eq!(code(&rebound), (403, "host_refused"), "{path}");
        let foreign = answer(house.ask(Method::GET, path).header("origin", "https://evil.example")).await;
        assert_eq!(code(&foreign), (403, "origin_refused"), "{path}");
    }
    let ours = format!("http://localhost:{}", house.port);
    let response = house.ask(Method::GET, "/healthz").header("origin", ours).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("access-control-allow-origin").is_none());
    let allowed = || house.ask(Method::OPTIONS, "/v1/jobs").header("origin", "https://example.org");
    let response = allowed().header("access-control-request-method", "POST").send().await.unwrap();
    assert_eq!(response.status(), 204);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://example.org");
    assert!(response.headers()["access-control-allow-headers"].to_str().unwrap().contains("idempotency-key"));
}

#[tokio::test]
async fn whoever_asks_for_something_else_is_told_where_to_look() {
    let house = open().await;
    assert_eq!(code(&house.get("/v2").await), (404, "no_such_route"));
    assert_eq!(code(&answer(house.ask(Method::PATCH, "/v1/jobs")).await), (405, "no_such_method"));
    let (status, _) = house.get("/mcp").await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn health_is_told_in_words_and_numbers() {
    let house = open().await;
    house.queue().await;
    assert_eq!(house.get("/healthz").await, (StatusCode::OK, json!("ok\n")));
    let (status, ready) = house.get("/readyz").await;
    assert_eq!((status.as_u16(), &ready["ready"]), (200, &json!(true)), "{ready}");
    assert_eq!(ready["engine"], "idle 1 answers and has the worker image sha256:0");
    assert!(ready["disk"].as_str().unwrap().ends_with(" free"), "{ready}");
    let (_, page) = house.get("/metrics").await;
    let page = page.as_str().unwrap();
    for line in ["drydock_jobs{state=\"queued\"} 1", "drydock_cpu_millis{part=\"free\"} 4000", "drydock_watchers 0"] {
        assert!(page.lines().any(|there| there == line), "{line} is not in\n{page}");
    }
    house.store.close().await;
    let (status, ready) = house.get("/readyz").await;
    assert_eq!((status.as_u16(), &ready["ready"]), (503, &json!(false)), "{ready}");
    let broken = house.get("/v1/jobs").await;
    assert_eq!(code(&broken), (500, "internal"));
    assert!(!broken.1.to_string().contains("pool"), "{}", broken.1);
}

#[tokio::test]
async fn a_gateway_without_room_is_not_ready_and_says_why() {
    let house = open_with(|config| config.disk.min_free_state = bytesize::ByteSize(u64::MAX / 2)).await;
    let (status, ready) = house.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready["disk"].as_str().unwrap().contains("are kept free; free disk space"), "{ready}");
    let id = house.queue().await.id;
    let (_, job) = house.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((&job["state"], &job["waits_for"]["reason"]), (&json!("queued"), &json!("disk")), "{job}");
    assert!(job["summary"].as_str().unwrap().contains("disk.min_free_state"), "{job}");
}

#[tokio::test]
async fn a_blob_is_stored_once_and_only_whole() {
    let house = open_with(|config| config.gateway.max_body = bytesize::ByteSize::kib(1)).await;
    let bytes = vec![7_u8; 3 << 20];
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("/v1/blobs/{digest}");
    let has = || async { house.ask(Method::HEAD, &path).send().await.unwrap().status().as_u16() };
    assert_eq!(has().await, 404);
    let half = answer(house.ask(Method::PUT, &path).body(bytes[..1 << 20].to_vec())).await;
    assert_eq!(code(&half), (422, "digest_mismatch"));
    assert_eq!(has().await, 404);
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let streamed = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    assert_eq!(answer(house.ask(Method::PUT, &path).body(streamed)).await.0, 201);
    assert_eq!(answer(house.ask(Method::PUT, &path).body(bytes)).await.0, 200);
    assert_eq!(has().await, 200);
    let strange = answer(house.ask(Method::PUT, "/v1/blobs/..%2fx").body("")).await;
    assert_eq!(strange.0, 400, "{}", strange.1);
}

#[tokio::test]
async fn a_blob_that_is_too_large_is_refused_before_and_while_it_comes() {
    let house = open_with(|config| config.gateway.max_upload = bytesize::ByteSize::kib(64)).await;
    let path = format!("/v1/blobs/{}", "0".repeat(64));
    let announced = answer(house.ask(Method::PUT, &path).body(vec![0_u8; 70_000])).await;
    assert_eq!(code(&announced), (413, "body_too_large"));
    let pieces = futures::stream::iter((0..8).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 10_000])));
    let streamed = answer(house.ask(Method::PUT, &path).body(reqwest::Body::wrap_stream(pieces))).await;
    assert_eq!(code(&streamed), (413, "body_too_large"));
}
