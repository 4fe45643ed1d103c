//! Trouble is noticed, named, and its evidence kept.

use std::fs;

use candle_core::{DType, Device, Tensor};
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

/// Rows of which one has a token that the model cannot bear: its embedding is no number.
fn poisoned(options: Value) -> Scene {
    let scene = Scene::new(options);
    let path = scene.path("model/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let embedding = tensors["model.embed_tokens.weight"].to_dtype(DType::F32).unwrap();
    let (vocabulary, hidden) = embedding.dims2().unwrap();
    tensors.insert("lm_head.weight".into(), embedding.clone());
    let mut values = embedding.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    // Byte by byte, after three special tokens.
    values[(3 + usize::from(b'~')) * hidden] = f32::NAN;
    tensors.insert(
        "model.embed_tokens.weight".into(),
        Tensor::from_vec(values, (vocabulary, hidden), &Device::Cpu).unwrap(),
    );
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let config = fs::read_to_string(scene.path("model/config.json")).unwrap();
    let untied = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(config, untied);
    fs::write(scene.path("model/config.json"), untied).unwrap();
    let all = rows(40);
    let poison = |(i, row): (usize, &str)| if i == 16 { row.replace("Say 0", "Say ~") } else { row.to_owned() };
    scene.write_dataset(&all.lines().enumerate().map(poison).collect::<Vec<_>>().join("\n"));
    scene
}

fn rolling_back(epochs: u32) -> Value {
    json!({"on_divergence": "roll_back", "test_size": 0, "num_train_epochs": epochs, "save_steps": 2,
           "lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 0.001})
}

#[test]
fn a_training_that_is_rolled_back_passes_over_what_it_cannot_bear() {
    let scene = poisoned(rolling_back(2));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    assert_eq!(scene.warnings(), ["rolled_back", "rolled_back"], "once in each epoch");
    let rolled_back = &scene.json("training.json")["training"]["rolled_back"];
    for time in rolled_back.as_array().unwrap() {
        assert!(time["to_step"].as_u64() < time["diverged_at"].as_u64(), "{time}");
        assert!(time["passed_over"].as_array().unwrap().contains(&json!("train.jsonl, line 17")), "{time}");
    }
    let last = reports.iter().rev().find_map(|report| match report {
        Report::Metrics(metrics) => Some((metrics.step, metrics.learning_rate)),
        _ => None,
    });
    assert_eq!(last, Some((20, 0.001 / 4.0)), "the rate is halved each time, and every step is taken");
}

#[test]
fn what_diverges_again_and_again_is_given_up_after_three_times() {
    let scene = poisoned(rolling_back(4));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::Diverged);
    assert!(failure.message.contains("train.jsonl, line 17"), "{}", failure.message);
    assert!(failure.message.ends_with("rolled back 3 times before"), "{}", failure.message);
    let evidence = scene.json("evidence.json");
    assert_eq!(evidence["rolled_back"].as_array().unwrap().len(), 3);
    let rows = evidence["rows"].as_array().unwrap();
    let worst: Vec<&Value> = rows.iter().filter(|row| row["loss"] == "NaN").map(|row| &row["place"]).collect();
    assert_eq!(worst, ["train.jsonl, line 17"], "the row is found by its loss");
}

/// The loss that shows that values are ruined is that of the step after: they must not be saved before it is known.
#[test]
fn what_is_in_doubt_is_never_gone_back_to() {
    let scene = Scene::new(json!({
        "on_divergence": "roll_back", "save_steps": 1, "test_size": 0, "method": "full", "max_steps": 350,
        // Long after everything is learnt, the rate is too high.
        "learning_rate": 1.0, "warmup_steps": 2000, "max_grad_norm": 0, "weight_decay": 1.0,
    }));
    let (code, _) = scene.run("run");
    let rolled_back = match code {
        EXIT_FINISHED => scene.json("training.json")["training"]["rolled_back"].clone(),
        _ => scene.json("evidence.json")["rolled_back"].clone(),
    };
    let [diverged_at, to_step] = ["diverged_at", "to_step"].map(|field| rolled_back[0][field].as_u64().unwrap());
    // Ten losses in a row were too high, and what the first of them was measured with is no place to return to.
    assert!(to_step + 10 < diverged_at, "{rolled_back}");
}

/// There is nothing to roll back to.
#[test]
fn a_model_with_a_value_that_is_no_number_fails_at_once() {
    let scene = Scene::new(json!({"on_divergence": "roll_back", "test_size": 0}));
    scene.break_a_weight();
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::Diverged);
    assert!(failure.message.starts_with("the loss is NaN at step 1 "), "{}", failure.message);
    assert!(failure.message.contains("it never was finite"), "{}", failure.message);
    let evidence = scene.json("evidence.json");
    assert_eq!((&evidence["loss"], &evidence["rows"][0]["loss"]), (&json!("NaN"), &json!("NaN")));

    let mut measured = Scene::new(json!({}));
    measured.spec["inputs"]["model"]["path"] = json!(scene.path("model"));
    let failure = measured.failure();
    assert_eq!((failure.kind, failure.stage), (FailureKind::BadModel, Some(Stage::Evaluate)));
    assert_eq!(failure.message, "the held-out loss before anything is trained is NaN");
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
