//! Learning which answers are better.

use drydock_spec::contract::{EXIT_FINISHED, EXIT_STOPPED};
use drydock_spec::{FailureKind, Report};
use serde_json::{Value, json};

use crate::scene::{Scene, rows};

/// Pairs with a rule: the right number is better than the wrong one.
fn pairs(count: usize) -> String {
    let row = |i: usize| {
        let words = ["zero", "one", "two", "three"];
        json!({"prompt": [{"role": "user", "content": format!("Say {}", i % 4)}],
               "chosen": [{"role": "assistant", "content": words[i % 4]}],
               "rejected": [{"role": "assistant", "content": words[(i + 1 + i / 4 % 3) % 4]}]})
        .to_string()
    };
    (0..count).map(row).collect::<Vec<_>>().join("\n")
}

/// The same as single answers with a verdict.
fn judged(count: usize) -> String {
    let row = |i: usize| {
        let words = ["zero", "one", "two", "three"];
        let good = i.is_multiple_of(2);
        let answer = words[(i / 2 + usize::from(!good)) % 4];
        json!({"prompt": format!("Say {}: ", i / 2 % 4), "completion": answer, "label": good}).to_string()
    };
    (0..count).map(row).collect::<Vec<_>>().join("\n")
}

fn trained(objective: &str, dataset: &str) -> (Scene, Value) {
    let scene = Scene::new(json!({
        "objective": objective, "learning_rate": 0.005, "num_train_epochs": 6, "beta": 0.5,
    }));
    scene.write_dataset(dataset);
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let summary = scene.json("training.json");
    (scene, summary)
}

#[test]
fn pairs_teach_what_is_better() {
    for objective in ["dpo", "orpo"] {
        let (scene, summary) = trained(objective, &pairs(40));
        let losses = &summary["evaluations"];
        let held_out = &losses[1]["preferences"];
        assert!(losses[1]["loss"].as_f64() < losses[0]["loss"].as_f64(), "{objective}: {losses}");
        assert_eq!(held_out["rewards/accuracies"], 1.0, "{objective}: {held_out}");
        assert!(held_out["rewards/margins"].as_f64().unwrap() > 0.1, "{objective}: {held_out}");
        assert!(scene.path("out/adapter/adapter_model.safetensors").exists());
        let margins: Vec<f64> = scene
            .reports()
            .iter()
            .filter_map(|report| match report {
                Report::Metrics(metrics) => Some(metrics.preferences.unwrap().margins),
                _ => None,
            })
            .collect();
        assert!(margins[margins.len() - 1] > margins[0] + 0.1, "{objective}: {margins:?}");
    }
}

#[test]
fn a_model_that_is_its_own_reference_starts_undecided() {
    let (_, summary) = trained("dpo", &pairs(12));
    let before = summary["evaluations"][0]["loss"].as_f64().unwrap();
    assert!((before - std::f64::consts::LN_2).abs() < 1e-6, "{before}");
}

#[test]
fn judged_answers_teach_what_is_better() {
    for dataset in [judged(40), pairs(20)] {
        let (_, summary) = trained("kto", &dataset);
        let training = &summary["training"]["preferences"];
        assert!(training["rewards/margins"].as_f64().unwrap() > 0.1, "{training}");
        assert!(training.get("rewards/accuracies").is_none());
    }
}

#[test]
fn rows_that_do_not_fit_the_objective_are_told() {
    let scene = Scene::new(json!({"objective": "dpo"}));
    scene.write_dataset(&rows(4));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::BadDataset);
    assert!(failure.message.contains("columns `chosen` and `rejected` are expected"), "{}", failure.message);
}

/// What a preference is compared with is what the model was at first, not what it is when an attempt goes on.
#[test]
fn a_preference_goes_on_with_its_first_reference() {
    let options = json!({"objective": "dpo", "learning_rate": 0.005, "num_train_epochs": 12, "beta": 0.5});
    let losses = |reports: &[Report]| -> Vec<(u64, u64)> {
        let metrics = reports.iter().filter_map(|report| match report {
            Report::Metrics(metrics) => Some((metrics.step, metrics.loss.to_bits())),
            _ => None,
        });
        metrics.collect()
    };
    let whole = Scene::new(options.clone());
    whole.write_dataset(&pairs(40));
    let wanted = losses(&whole.run("run").1);
    let cut = Scene::new(options.clone());
    cut.write_dataset(&pairs(40));
    let after = |report: &Report| matches!(report, Report::Metrics(metrics) if metrics.step >= 12);
    assert_eq!(cut.kill_after(cut.start("run"), after, libc::SIGTERM), Some(EXIT_STOPPED));
    let next = cut.next_attempt(options);
    let mut together = losses(&cut.reports());
    together.extend(losses(&next.run("run").1));
    assert_eq!(together, wanted);
}
