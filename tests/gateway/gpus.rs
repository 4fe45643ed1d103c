use reqwest::Method;
use serde_json::json;

use crate::fake_nvml::FakeNvml;
use crate::house::{House, answer, open, open_with, queue};
use crate::mcp::{call, text};
use crate::rest::code;

const FIRST: &str = "GPU-00000000-0000-0000-0000-000000000000";

/// A house with two GPUs that say this.
async fn with_gpus(state: &str) -> (House, FakeNvml) {
    let fake = FakeNvml::saying(state);
    let house = open_with(|config| config.sandbox.nvml = Some(fake.library())).await;
    (house, fake)
}

#[tokio::test]
async fn the_gpus_are_listed_with_how_they_are_and_who_has_them() {
    // The process is this one.
    let (house, _fake) = with_gpus(&format!("count 2\nbusy0 97\nprocess0 {}\n", std::process::id())).await;
    let job = queue(&house.store, |new| new.limits.gpus = 1).await;
    let holder = drydock::store::Holder { name: "test".into(), lease_ms: 60_000 };
    let _lease = house.store.claim_on(job.id, &holder, &[FIRST.to_owned()]).await.unwrap().unwrap();
    let (status, list) = house.get("/v1/gpus").await;
    assert_eq!((status.as_u16(), &list["driver"], &list["cuda"]), (200, &json!("580.159.04"), &json!("13.0")));
    let [first, second] = &list["gpus"].as_array().unwrap()[..] else { panic!("{list:#}") };
    assert_eq!((&first["uuid"], &first["name"]), (&json!(FIRST), &json!("NVIDIA Fake 9000")));
    assert_eq!(first["utilization"], json!({"gpu_percent": 97, "memory_percent": 48}));
    assert_eq!(first["held_by"], json!([{"job": job.id, "attempt": 1, "units": [FIRST]}]));
    assert_eq!(first["strangers"], json!({"processes": 1, "memory_bytes": 512 << 20}));
    let process = &first["processes"][0];
    assert_eq!((&process["pid"], process["job"].is_null()), (&json!(std::process::id()), true));
    assert!(process["name"].as_str().is_some_and(|name| name.starts_with("gateway")), "{process}");
    assert!(second["held_by"].is_null() && second["strangers"].is_null());

    let result = call(&house, "list_gpus", json!({})).await;
    let told = text(&result);
    assert!(told.contains("97 % busy") && told.contains(&format!("held by job {}", job.id)), "{told}");
    assert!(told.contains("1 processes that are not drydock's hold 512.0 MiB"), "{told}");
    let seen = &result["structuredContent"]["gpus"][0];
    assert_eq!((&seen["uuid"], &seen["busy_percent"], &seen["held_by"]), (&json!(FIRST), &json!(97), &json!([job.id])));
    assert_eq!(seen["foreign_bytes"], 512 << 20);
    let name = process["name"].as_str().unwrap();
    assert!(!result.to_string().contains(name), "agents learn no names: {result}");
}

#[tokio::test]
async fn a_gpu_is_cordoned_and_uncordoned_by_its_name() {
    let (house, _fake) = with_gpus("count 2\nslices1 1\n").await;
    let post = |path: String, body: serde_json::Value| answer(house.ask(Method::POST, &path).json(&body));
    let cordon = |uuid: &str| format!("/v1/gpus/{uuid}/cordon");
    let reason = json!({"reason": "the fan rattles"});
    let (status, list) = post(cordon(FIRST), reason.clone()).await;
    assert_eq!((status.as_u16(), &list["gpus"][0]["cordoned"]), (200, &json!("the fan rattles")));
    let cordoned = &list["gpus"][0]["cordon"];
    assert_eq!((&cordoned["by"], &cordoned["fatal"]), (&json!("local"), &json!(false)), "{cordoned}");
    let (_, metrics) = house.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for (family, value) in [("cordoned", "1"), ("temperature_celsius", "41"), ("memory_used_bytes", "3221225472")] {
        assert!(metrics.contains(&format!("drydock_gpu_{family}{{uuid=\"{FIRST}\"}} {value}\n")), "{metrics}");
    }
    let told = call(&house, "list_gpus", json!({})).await;
    assert!(text(&told).contains("no job gets it: the fan rattles"), "{}", text(&told));
    for _ in 0..2 {
        let (status, list) = answer(house.ask(Method::POST, &format!("/v1/gpus/{FIRST}/uncordon"))).await;
        assert_eq!((status.as_u16(), list["gpus"][0]["cordoned"].is_null()), (200, true));
    }
    let slice = "MIG-00000000-0000-0000-0001-000000000001";
    assert_eq!(code(&post(cordon(slice), reason.clone()).await), (422, "is_slice"));
    assert_eq!(code(&post(cordon("GPU-9"), reason).await), (404, "no_such_gpu"));
    assert_eq!(code(&post(cordon(FIRST), json!({"reason": " "})).await), (400, "bad_reason"));
    assert_eq!(code(&answer(house.ask(Method::POST, "/v1/gpus/GPU-9/uncordon")).await), (404, "no_such_gpu"));
}

#[tokio::test]
async fn a_cordon_can_be_lifted_when_its_gpu_is_gone() {
    let (house, fake) = with_gpus("count 2\n").await;
    let path = format!("/v1/gpus/{FIRST}");
    let body = json!({"reason": "is to be taken out"});
    answer(house.ask(Method::POST, &format!("{path}/cordon")).json(&body)).await;
    fake.says("count 0\n");
    house.whole.gpus.look_once().await.unwrap();
    let (_, list) = house.get("/v1/gpus").await;
    let gone: Vec<_> = list["gone"].as_array().unwrap().iter().map(|cordon| cordon["uuid"].as_str().unwrap()).collect();
    assert!(list["gpus"] == json!([]) && gone.contains(&FIRST) && gone.len() == 2, "the other one was lost: {list:#}");
    let (status, list) = answer(house.ask(Method::POST, &format!("{path}/uncordon"))).await;
    assert_eq!((status.as_u16(), list["gone"].as_array().unwrap().len()), (200, 1), "{list:#}");
}

/// What the command prints, on stdout and on stderr.
async fn drydock(house: &House, arguments: &[&str]) -> (String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_drydock"));
    let output = command
        .args(arguments)
        .arg("--gateway")
        .arg(&house.url)
        .env_clear()
        .env("DRYDOCK_CONFIG", "/dev/null")
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn the_command_line_lists_gpus_names_strangers_and_cordons() {
    let (house, _fake) = with_gpus(&format!("count 2\nbusy0 97\nprocess0 {}\n", std::process::id())).await;
    let (table, note) = drydock(&house, &["gpus"]).await;
    let line = |table: &str, uuid: &str| table.lines().find(|line| line.contains(uuid)).unwrap().to_owned();
    let first = line(&table, FIRST);
    for told in ["NVIDIA Fake 9000", "3.0 GiB of 24.0 GiB", "97 %", "41 °C", "72 of 450 W", "foreign: gateway"] {
        assert!(first.contains(told), "{told}: {first}");
    }
    assert_eq!(note, "driver 580.159.04, CUDA 13.0\n");
    let (table, _) = drydock(&house, &["gpus", "cordon", FIRST, "--reason", "the fan rattles"]).await;
    assert!(line(&table, FIRST).contains("by local: the fan rattles"), "{table}");
    let (text, _) = drydock(&house, &["gpus", "--json"]).await;
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&list["gpus"][0]["cordoned"], &list["gpus"][1]["index"]), (&json!("the fan rattles"), &json!(1)));
    let (table, _) = drydock(&house, &["gpus", "uncordon", FIRST]).await;
    assert!(!table.contains("cordoned"), "{table}");
    let bare = open().await;
    let (table, note) = drydock(&bare, &["gpus"]).await;
    assert!(table.is_empty() && note.starts_with("no GPU: ") && note.contains("jobs run on the CPU"), "{note}");
}

#[tokio::test]
async fn why_a_host_has_no_gpu_is_said_in_words() {
    let house = open().await;
    let (_, list) = house.get("/v1/gpus").await;
    assert_eq!(list["gpus"], json!([]));
    let result = call(&house, "list_gpus", json!({})).await;
    assert!(
        text(&result).starts_with("no GPU: ") && text(&result).ends_with("jobs run on the CPU"),
        "{}",
        text(&result)
    );
    let (house, _fake) = with_gpus("init 18\n").await;
    let (_, list) = house.get("/v1/gpus").await;
    assert!(list["problem"].as_str().unwrap().contains("reboot the host"), "{list:#}");
}
