//! Trouble is noticed, named, and its evidence kept.

use std::fs;

use drydock_spec::contract::EXIT_FINISHED;
use drydock_spec::report::Phase;
use drydock_spec::{FailureKind, Report, Stage};
use serde_json::{Value, json};

use crate::scene::{Scene, rows};

/// A learning rate that no training survives.
fn absurd() -> Value {
    json!({
        "learning_rate": 1.0, "lora_alpha": 65_536, "warmup_steps": 0, "max_grad_norm": 0, "max_steps": 5000,
        "lr_scheduler_type": "constant",
    })
}

#[test]
fn divergence_is_told_with_its_rows_and_leaves_evidence() {
    let scene = Scene::new(absurd());
    let failure = scene.failure();
    assert_eq!((failure.kind, failure.stage), (FailureKind::Diverged, Some(Stage::Train)));
    assert!(failure.message.contains("the last finite loss was"), "{}", failure.message);
    assert!(failure.message.contains("rows: train.jsonl, line "), "{}", failure.message);
    let evidence = scene.json("evidence.json");
    assert_eq!(evidence["rows"].as_array().unwrap().len(), 4);
    let row = &evidence["rows"][0];
    assert!(row["place"].as_str().unwrap().starts_with("train.jsonl, line "), "{row}");
    assert!(row["supervised_tokens"].as_u64() < row["tokens"].as_u64());
    assert_eq!(evidence["gradients"].as_array().unwrap().len(), 28, "A and B of seven projections in two layers");
    assert!(scene.reports().iter().any(|report| matches!(report, Report::Artifact { role, .. } if role == "evidence")));
}

#[test]
fn a_training_that_is_rolled_back_survives_at_a_lower_rate() {
    let mut options = absurd();
    options["on_divergence"] = json!("roll_back");
    options["lora_alpha"] = json!(16_384);
    options["max_steps"] = json!(60);
    let scene = Scene::new(options);
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let times = scene.warnings().iter().filter(|code| *code == "rolled_back").count();
    let rolled_back = &scene.json("training.json")["training"]["rolled_back"];
    assert!((1..=3).contains(&times) && rolled_back.as_array().unwrap().len() == times, "{rolled_back}");
    assert!(rolled_back[0]["passed_over"][0].as_str().unwrap().starts_with("train.jsonl, line "), "{rolled_back}");
    let last = reports.iter().rev().find_map(|report| match report {
        Report::Metrics(metrics) => Some((metrics.step, metrics.learning_rate)),
        _ => None,
    });
    assert_eq!(last, Some((60, 0.5f64.powi(times as i32))), "the rate is halved each time, and every step is taken");
    assert!(scene.checkpoints().is_empty(), "nobody asked to keep any");
}

#[test]
fn what_diverges_again_and_again_is_given_up_after_three_times() {
    let mut options = absurd();
    options["on_divergence"] = json!("roll_back");
    options["lora_r"] = json!(1);
    let scene = Scene::new(options);
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::Diverged);
    assert!(failure.message.ends_with("rolled back 3 times before"), "{}", failure.message);
    assert_eq!(scene.json("evidence.json")["rolled_back"].as_array().unwrap().len(), 3);
}

/// There is nothing to roll back to.
#[test]
fn a_model_with_a_value_that_is_no_number_fails_at_its_first_step() {
    let scene = Scene::new(json!({"on_divergence": "roll_back", "test_size": 0}));
    let path = scene.path("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = header + entries["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::Diverged);
    assert!(failure.message.starts_with("the loss is NaN at step 1 "), "{}", failure.message);
    assert!(failure.message.contains("it never was finite"), "{}", failure.message);
    let evidence = scene.json("evidence.json");
    assert_eq!((&evidence["loss"], &evidence["rows"][0]["loss"]), (&json!("NaN"), &json!("NaN")));
}

#[test]
fn rows_that_teach_no_end_are_told() {
    let scene = Scene::new(json!({"max_steps": 1}));
    let config = json!({"eos_token": "<|endoftext|>", "chat_template":
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"});
    fs::write(scene.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    assert_eq!(scene.warnings(), ["eos_not_learnt"]);
}

#[test]
fn a_beginning_that_stands_there_twice_and_answers_that_are_cut_are_told() {
    let scene = Scene::new(json!({"max_steps": 1, "max_seq_length": 28}));
    let config = json!({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template":
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}\
         {{ eos_token }}{% endif %}{% endfor %}"});
    fs::write(scene.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    let long = json!({"messages": [{"role": "user", "content": "Count"},
        {"role": "assistant", "content": "one two three four five six seven eight"}]});
    scene.write_dataset(&format!("{}\n{long}\n", rows(3)));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    assert_eq!(scene.warnings(), ["double_bos", "answers_cut"]);
}

#[test]
fn the_best_values_are_kept_and_waiting_ends() {
    // At this rate the held-out loss is lowest early on.
    let scene = Scene::new(json!({
        "learning_rate": 0.03, "num_train_epochs": 60, "eval_steps": 4, "load_best_model_at_end": true,
        "early_stopping_patience": 3, "early_stopping_threshold": 0.001, "lr_scheduler_type": "constant",
    }));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let measured: Vec<(u64, f64)> = reports
        .iter()
        .filter_map(|report| match report {
            Report::Evaluation(evaluation) if evaluation.phase == Phase::During => {
                Some((evaluation.step.unwrap(), evaluation.loss))
            }
            _ => None,
        })
        .collect();
    let after = reports.iter().find_map(|report| match report {
        Report::Evaluation(evaluation) if evaluation.phase == Phase::After => Some(evaluation.loss),
        _ => None,
    });
    let best = *measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(after, Some(best.1), "what is left is what was best: {measured:?}");
    let training = &scene.json("training.json")["training"];
    assert_eq!(training["stopped_early"], true, "{measured:?}");
    if best.0 != measured[measured.len() - 1].0 {
        assert_eq!(training["kept"]["step"], best.0);
        assert!(scene.warnings().contains(&"best_model_kept".to_owned()));
    }
    assert!(training["steps"].as_u64().unwrap() < 540);
}

#[test]
fn packed_rows_take_fewer_steps_and_teach_the_same() {
    let run = |packing: bool| {
        let scene = Scene::new(json!({"packing": packing, "max_seq_length": 128, "per_device_train_batch_size": 1}));
        let (code, reports) = scene.run("run");
        assert_eq!(code, EXIT_FINISHED, "{reports:?}");
        let training = scene.json("training.json");
        (training["training"]["steps"].as_u64().unwrap(), training["training"]["tokens"].as_u64().unwrap())
    };
    let ((single, tokens), (packed, packed_tokens)) = (run(false), run(true));
    assert_eq!(single, 36);
    assert!(packed <= 13, "three rows fit into a pack: {packed}");
    assert_eq!(tokens, packed_tokens, "and every token is trained on");
}
