//! A training whose container is killed goes on, and ends as if nothing had been.

use serde_json::{Value, json};

use super::harness::process::Folders;
use super::{finetune, submit, wait};

/// The losses of a job by step, as they were reported last, to the last bit; and how often a step was reported twice.
fn losses(events: &[Value]) -> (std::collections::BTreeMap<u64, u64>, usize) {
    let mut losses = std::collections::BTreeMap::new();
    let mut twice = 0;
    for event in events.iter().filter(|event| event["report"]["type"] == "metrics") {
        let (step, loss) = (event["report"]["step"].as_u64().unwrap(), event["report"]["loss"].as_f64().unwrap());
        let before = losses.insert(step, loss.to_bits());
        twice += usize::from(before.is_some());
        assert!(before.is_none_or(|before| before == loss.to_bits()), "step {step} was not taken as before");
    }
    (losses, twice)
}

#[tokio::test]
async fn a_training_whose_container_is_killed_goes_on_bit_for_bit() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let mut arguments = finetune(300);
    arguments["save_steps"] = json!(20);
    arguments["lora_dropout"] = json!(0.1);
    let whole = submit(&gateway, arguments.clone()).await;
    let whole_view = wait(&gateway, &whole).await;
    assert_eq!(whole_view["state"], "succeeded", "{whole_view:#}");

    let cut = submit(&gateway, arguments).await;
    gateway.events(&cut, 0, |event| event["report"]["step"].as_u64().is_some_and(|step| step >= 110)).await;
    let killed = std::process::Command::new("docker")
        .args(["kill", &format!("drydock-{}-1", cut.to_lowercase())])
        .output()
        .unwrap();
    assert!(killed.status.success(), "{killed:?}");
    let view = wait(&gateway, &cut).await;
    assert_eq!((&view["state"], &view["attempt"]), (&json!("succeeded"), &json!(2)), "{view:#}");
    let from = view["resumed_from"]["step"].as_u64().unwrap();
    assert!(from >= 100 && from % 20 == 0, "{view:#}");
    assert_eq!(view["resumed_from"]["attempt"], 1);

    let (wanted, _) = losses(&gateway.events(&whole, 0, |_| false).await);
    let (got, twice) = losses(&gateway.events(&cut, 0, |_| false).await);
    assert_eq!(got, wanted, "every step has the loss that it has in a training that was left alone");
    assert!(twice < 200, "it did not begin at the beginning: {twice} steps were taken twice");
    assert_eq!(view["evaluations"], whole_view["evaluations"]);
    let digest = async |job: &str| {
        let made = gateway.ask("list_artifacts", json!({"id": job})).await;
        let files = made["artifacts"].as_array().unwrap().clone();
        files.into_iter().find(|file| file["path"] == "adapter/adapter_model.safetensors").unwrap()["sha256"].clone()
    };
    assert_eq!(digest(&cut).await, digest(&whole).await);
}
