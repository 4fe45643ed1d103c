//! What helps, over REST and MCP.

use drydock::store::Holder;
use drydock_spec::{Failure, FailureKind, JobId, Outcome, Stage};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, answer, open_with};
use crate::mcp::{call, text};
use crate::rest::code;
use crate::tiny;

/// A house with a model and rows, and a finetune of them that has run out of memory.
async fn failed() -> (House, tempfile::TempDir, JobId) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    std::fs::write(&file, tiny::Gguf::tiny().bytes()).unwrap();
    let house = open_with(|config| config.data_dirs = vec![folder.path().to_owned()]).await;
    let post = |path: &'static str, body: Value| answer(house.ask(Method::POST, path).json(&body));
    let added = post("/v1/models", json!({"name": "tiny", "source": file})).await;
    assert_eq!(added.0, 201, "{}", added.1);
    let rows: Vec<_> = (0..8).map(|n| json!({"text": format!("{n} and one is {}", n + 1)})).collect();
    assert_eq!(post("/v1/datasets", json!({"name": "sums", "rows": rows})).await.0, 201);
    let job = json!({"job": {"finetune": {"model": "tiny", "dataset": "sums", "lora_r": 2}}});
    let (_, submitted) = post("/v1/jobs", job).await;
    let id: JobId = submitted["job"]["id"].as_str().unwrap().parse().unwrap();
    let holder = Holder { name: "test".into(), lease_ms: 60_000 };
    let lease = house.store.claim(id, &holder).await.unwrap().unwrap();
    let failure = Failure::new(FailureKind::OutOfMemory, "needed more than the 300 MiB it had").at(Stage::Train);
    lease.finish(Outcome::Failed(failure), &[], 0).await.unwrap();
    (house, folder, id)
}

#[tokio::test]
async fn a_remedy_is_offered_applied_once_and_linked() {
    let (house, _folder, id) = failed().await;
    let path = format!("/v1/jobs/{id}/remedies");
    let (_, list) = house.get(&path).await;
    assert_eq!(list["remedies"][0]["remedy"], "limits.memory_mib = fit", "{list:#}");
    assert_eq!(list["remedies"][0]["meaning"], "same");
    let apply = |body: Value| answer(house.ask(Method::POST, &path).json(&body));
    let (status, plan) = apply(json!({"dry_run": true})).await;
    assert_eq!((status.as_u16(), plan["job"]["finetune"]["model"].as_str()), (200, Some("tiny")));
    let asked = json!({"remedy": "gradient_checkpointing = true", "idempotency_key": "k"});
    let (status, made) = apply(asked.clone()).await;
    assert_eq!((status.as_u16(), &made["job"]["remedy_of"]), (201, &json!(id)), "{made:#}");
    let (status, again) = apply(asked).await;
    assert_eq!((status.as_u16(), &again["job"]["id"]), (200, &made["job"]["id"]));
    let other = apply(json!({"remedy": "learning_rate * 0.1", "idempotency_key": "k"})).await;
    assert_eq!(code(&other), (409, "key_reused"));
    assert_eq!(code(&apply(json!({"remedy": "quant_type = \"Q8_0\""})).await), (422, "unfit_remedy"));
    assert_eq!(code(&apply(json!({"remedy": "learning_rate = 7"})).await), (422, "invalid_options"));
    assert_eq!(code(&apply(json!([])).await), (400, "invalid_request"), "an empty list is no wish");
    let nonsense = apply(json!({"remedy": "pray"})).await;
    assert_eq!(code(&nonsense), (400, "invalid_request"));
    assert!(nonsense.1["error"]["message"].as_str().unwrap().contains("`pray` is no remedy"), "{}", nonsense.1);
    let better = made["job"]["id"].as_str().unwrap();
    let waiting = house.get(&format!("/v1/jobs/{better}/remedies")).await;
    assert_eq!(code(&waiting), (409, "not_failed"));
}

#[tokio::test]
async fn advice_is_kept_offered_and_taken_back() {
    let (house, _folder, id) = failed().await;
    let (_, told) = house.get(&format!("/v1/jobs/{id}/failure")).await;
    let fingerprint = told["fingerprint"].as_str().unwrap();
    let post = |body: Value| answer(house.ask(Method::POST, "/v1/remedies").json(&body));
    let advice = json!({"against": {"fingerprint": fingerprint}, "remedy": "packing = true", "note": "helped us", "by_whom": "ann"});
    let (status, kept) = post(advice).await;
    assert_eq!(status, 201, "{kept}");
    let unknown = post(json!({"against": {"fingerprint": "v1:beef"}, "remedy": "try again"})).await;
    assert_eq!(code(&unknown), (404, "no_such_failure"));
    let (_, list) = house.get(&format!("/v1/jobs/{id}/remedies")).await;
    let offered = list["remedies"].as_array().unwrap();
    let packing = offered.iter().find(|one| one["remedy"] == "packing = true").unwrap();
    assert_eq!(packing["evidence"], "not tried yet; advised by ann: helped us");
    let (_, all) = house.get("/v1/remedies").await;
    assert_eq!(all["advice"][0]["number"], kept["number"]);
    let number = kept["number"].as_i64().unwrap();
    let remove = || house.ask(Method::DELETE, &format!("/v1/remedies/{number}")).send();
    assert_eq!(remove().await.unwrap().status(), 204);
    assert_eq!(remove().await.unwrap().status(), 404);
}

#[tokio::test]
async fn an_agent_explains_suggests_and_applies() {
    let (house, _folder, id) = failed().await;
    let told = call(&house, "explain_failure", json!({"id": id})).await;
    assert_eq!(told["structuredContent"]["failure"]["kind"], "out_of_memory");
    // What a job said of itself is data.
    let said = text(&told);
    let fence = said.find("<untrusted-").unwrap();
    assert!(said.find("needed more than").unwrap() > fence, "{said}");
    let list = call(&house, "suggest_remedies", json!({"id": id})).await;
    let first = &list["structuredContent"]["remedies"][0];
    assert_eq!(first["remedy"], "limits.memory_mib = fit");
    let made = call(&house, "apply_remedy", json!({"id": id, "remedy": first["remedy"]})).await;
    assert_eq!(made["structuredContent"]["job"]["remedy_of"], json!(id), "{made:#}");
    let wrong = call(&house, "apply_remedy", json!({"id": id, "remedy": "pray"})).await;
    assert_eq!((&wrong["isError"], text(&wrong).contains("is no remedy")), (&json!(true), true), "{wrong}");
    let fine = call(&house, "explain_failure", json!({"id": made["structuredContent"]["job"]["id"]})).await;
    assert!(text(&fine).contains("not_failed"), "{fine}");
}

#[tokio::test]
async fn a_plan_foresees_what_happened_to_its_like_and_says_what_helped() {
    let (house, _folder, id) = failed().await;
    let made = call(&house, "apply_remedy", json!({"id": id, "remedy": "gradient_checkpointing = true"})).await;
    let better: JobId = made["structuredContent"]["job"]["id"].as_str().unwrap().parse().unwrap();
    let holder = Holder { name: "test".into(), lease_ms: 60_000 };
    house.store.claim(better, &holder).await.unwrap().unwrap().finish(Outcome::Succeeded, &[], 0).await.unwrap();
    // The newest of its like went well, so nothing is foreseen for that one, but for the one that failed.
    // With what a plan would give it by now, it would not be like it any more.
    let limits = json!({"memory_mib": 64});
    let again = json!({"model": "tiny", "dataset": "sums", "lora_r": 2, "limits": limits, "dry_run": true});
    let plan = call(&house, "finetune", again).await;
    let foreseen = &plan["structuredContent"]["plan"]["foreseen"][0];
    assert_eq!(foreseen["best"]["remedy"], "gradient_checkpointing = true", "{plan:#}");
    assert!(text(&plan).contains("`gradient_checkpointing = true` worked 1 of 1 times"), "{plan:#}");
}
