//! The worker as its runner sees it: a process, a spec, an events file, an output folder and an exit code.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod damage;
mod evaluate;
mod preferences;
mod resume;
mod scene;
mod template;
#[path = "../fixture/tiny.rs"]
mod tiny;
mod trouble;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use drydock_spec::contract::{EXIT_FINISHED, EXIT_MISUSED};
use drydock_spec::report::Phase;
use drydock_spec::{FailureKind, Preview, Report, Stage};
use serde_json::{Value, json};

use scene::{Scene, WORKER, rows};

#[test]
fn a_finetune_reports_in_order_and_leaves_what_peft_needs() {
    let scene = Scene::new(json!({
        "learning_rate": 0.01, "num_train_epochs": 3, "sample_prompts": ["Say 1"], "max_new_tokens": 8,
        "lora_dropout": 0.05,
    }));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let names: Vec<&str> = reports.iter().map(Report::name).collect();
    assert_eq!(names.iter().filter(|name| **name == "metrics").count(), 27);
    let without_repeats: Vec<&str> =
        names.iter().filter(|name| !matches!(**name, "metrics" | "progress")).copied().collect();
    assert_eq!(
        without_repeats,
        [
            "started",
            "stage",
            "stage",
            "dataset",
            "stage",
            "model",
            "stage",
            "evaluation",
            "sample",
            "stage",
            "stage",
            "artifact",
            "artifact",
            "artifact",
            "artifact",
            "stage",
            "evaluation",
            "sample",
            "stage",
            "artifact",
            "finished"
        ]
    );
    let losses: Vec<(Phase, f64)> = reports
        .iter()
        .filter_map(|report| match report {
            Report::Evaluation(evaluation) => Some((evaluation.phase, evaluation.loss)),
            _ => None,
        })
        .collect();
    assert!(losses[1].1 < losses[0].1 / 2.0, "the held-out loss falls: {losses:?}");
    let announced: BTreeSet<String> = reports
        .iter()
        .filter_map(|report| match report {
            Report::Artifact { path, .. } => Some(path.clone()),
            _ => None,
        })
        .collect();
    let expected = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let expected = expected.map(|name| format!("adapter/{name}")).into_iter().chain(["training.json".into()]);
    assert_eq!(announced, expected.collect());
    for path in &announced {
        assert!(scene.path("out").join(path).metadata().unwrap().len() > 0, "{path}");
    }
    assert_eq!(fs::read_dir(scene.path("out/adapter")).unwrap().count(), 4, "nothing else is left behind");
    let summary: Value = serde_json::from_slice(&fs::read(scene.path("out/training.json")).unwrap()).unwrap();
    assert_eq!(summary["dataset"]["train_rows"], 36);
    assert_eq!(summary["options"]["learning_rate"], 0.01);
}

#[test]
fn given_held_out_rows_are_measured_and_all_others_trained_on() {
    let mut scene = Scene::new(json!({"eval_dataset": "other", "max_steps": 10, "logging_steps": 4}));
    fs::create_dir(scene.path("eval")).unwrap();
    fs::write(scene.path("eval/rows.jsonl"), rows(6)).unwrap();
    scene.spec["inputs"]["eval_dataset"] = json!(scene.path("eval"));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let dataset = reports.iter().find_map(|report| match report {
        Report::Dataset(dataset) => Some((dataset.train_rows, dataset.eval_rows)),
        _ => None,
    });
    assert_eq!(dataset, Some((40, 6)));
    let steps: Vec<u64> = reports
        .iter()
        .filter_map(|report| match report {
            Report::Metrics(metrics) => Some(metrics.step),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [4, 8, 10], "every fourth step, and the last");
}

#[test]
fn a_preview_shows_rows_as_they_are_trained_on() {
    let scene = Scene::new(json!({}));
    let (code, reports) = scene.run("preview");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    assert!(matches!(reports.last(), Some(Report::Finished(_))));
    let text = fs::read(scene.path("out").join(drydock_spec::preview::FILE)).unwrap();
    let preview: Preview = serde_json::from_slice(&text).unwrap();
    assert_eq!((preview.rows, preview.tokenized_rows, preview.model_limit), (40, 40, 128));
    assert_eq!((preview.dataset.train_rows, preview.dataset.eval_rows), (36, 4));
    let first = &preview.rendered[0];
    assert!(first.text.starts_with("<|im_start|>user\nSay "), "{first:?}");
    assert!(first.text.ends_with(&format!("<|im_start|>assistant\n{}\n", first.supervised)), "{first:?}");
    assert!(first.supervised.ends_with("<|im_end|>"));
}

#[test]
fn a_bad_row_is_told_with_its_place() {
    let scene = Scene::new(json!({}));
    scene.write_dataset(&format!("{}\n{{\"messages\": []}}\n", rows(3)));
    let failure = scene.failure();
    assert_eq!((failure.kind, failure.stage), (FailureKind::BadDataset, Some(Stage::Tokenize)));
    assert!(failure.message.starts_with("train.jsonl, line 4 (byte "), "{}", failure.message);
}

#[test]
fn rows_without_room_for_an_answer_are_nothing_to_learn_from() {
    let scene = Scene::new(json!({"max_seq_length": 16}));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::NothingToLearn);
    assert_eq!(
        failure.message,
        "all 40 rows are longer than max_seq_length = 16 before the answer starts; the shortest prompt has 24 tokens"
    );
}

#[test]
fn held_out_rows_of_which_none_is_left_are_told() {
    let mut scene = Scene::new(json!({"eval_dataset": "other", "max_seq_length": 32}));
    fs::create_dir(scene.path("eval")).unwrap();
    let long = json!({"prompt": "p".repeat(40), "completion": "answer"});
    fs::write(scene.path("eval/rows.jsonl"), long.to_string()).unwrap();
    scene.spec["inputs"]["eval_dataset"] = json!(scene.path("eval"));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::NothingToLearn);
    assert!(failure.message.starts_with("eval_dataset: all 1 rows are longer than max_seq_length"), "{failure:?}");
}

#[test]
fn more_than_the_model_can_take_is_a_bad_option() {
    let scene = Scene::new(json!({"max_seq_length": 4096}));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::BadOption);
    assert_eq!(failure.message, "max_seq_length = 4096: the model takes 128 tokens at most");
}

#[test]
fn a_damaged_model_is_told_by_its_tensor() {
    let scene = Scene::new(json!({}));
    let config = fs::read_to_string(scene.path("model/config.json")).unwrap();
    let changed = config.replace("\"intermediate_size\": 128", "\"intermediate_size\": 130");
    fs::write(scene.path("model/config.json"), changed).unwrap();
    let failure = scene.failure();
    assert_eq!((failure.kind, failure.stage), (FailureKind::BadModel, Some(Stage::Load)));
    assert_eq!(
        failure.message,
        "tensor `model.layers.0.mlp.gate_proj.weight` is [128, 64]; the configuration asks for [130, 64]"
    );
}

#[test]
fn a_spec_of_another_contract_is_refused_in_a_report() {
    let mut scene = Scene::new(json!({}));
    scene.spec["contract"] = 2.into();
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::ContractBroken);
    assert_eq!(failure.message, "the spec is of contract 2; this worker knows 1");
}

#[test]
fn without_a_spec_there_is_only_an_exit_code() {
    for arguments in [&["run", "/nowhere/spec.json"][..], &["dance"], &[]] {
        let output = Command::new(WORKER).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(EXIT_MISUSED));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("drydock-worker: "));
    }
}

/// What the worker says of a model: logits of three tokens.
fn logits(scene: &Scene, model: &str, adapter: Option<&str>) -> Vec<Vec<f32>> {
    let out = scene.path("logits.safetensors");
    let mut command = Command::new(WORKER);
    command.args(["logits", "--ids", "1,70,80", "--model"]).arg(scene.path(model)).arg("--out").arg(&out);
    if let Some(adapter) = adapter {
        command.arg("--adapter").arg(scene.path(adapter));
    }
    assert!(command.status().unwrap().success());
    let tensors = candle_core::safetensors::load(&out, &candle_core::Device::Cpu).unwrap();
    tensors["logits"].to_vec2::<f32>().unwrap()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_merged_model_has_the_logits_of_model_and_adapter() {
    for method in ["lora", "dora"] {
        let scene = Scene::new(json!({
            "method": method, "keep": "both", "max_steps": 10, "learning_rate": 0.01, "test_size": 0,
            "target_modules": ["q_proj", "o_proj", "down_proj"],
        }));
        let (code, reports) = scene.run("run");
        assert_eq!(code, EXIT_FINISHED, "{reports:?}");
        let (alone, adapted) = (logits(&scene, "model", None), logits(&scene, "model", Some("out/adapter")));
        assert_eq!((alone.len(), alone[0].len()), (3, 512));
        assert!(largest_difference(&alone, &adapted) > 0.1);
        // What the job has kept is rounded; by hand nothing is.
        let kept = largest_difference(&logits(&scene, "out/model", None), &adapted);
        assert!(kept < 0.1, "{method}: {kept:e}");
        let merged = Command::new(WORKER)
            .args(["merge", "--dtype", "f32", "--model"])
            .arg(scene.path("model"))
            .arg("--adapter")
            .arg(scene.path("out/adapter"))
            .arg("--out")
            .arg(scene.path("merged"))
            .status();
        assert!(merged.unwrap().success());
        let exact = largest_difference(&logits(&scene, "merged", None), &adapted);
        assert!(exact < 1e-5, "{method}: {exact:e}");
    }
}

#[test]
fn an_adapter_over_a_quantized_model_is_merged_with_what_it_was_trained_over() {
    let scene = Scene::new(json!({
        "method": "qlora", "base_quant_type": "Q8_0", "keep": "both", "max_steps": 10, "learning_rate": 0.01,
    }));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let adapted = logits(&scene, "model", Some("out/adapter"));
    let rounded = largest_difference(&logits(&scene, "out/model", None), &adapted);
    assert!(rounded > 1e-3 && rounded < 0.3, "{rounded:e}");
}

#[test]
fn a_full_finetune_leaves_a_whole_model() {
    let scene = Scene::new(json!({"method": "full", "max_steps": 20, "learning_rate": 0.003, "dtype": "bf16"}));
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let sizes = reports.iter().find_map(|report| match report {
        Report::Model(model) => Some((model.parameters, model.trainable_parameters)),
        _ => None,
    });
    assert!(sizes.is_some_and(|(all, trained)| all == trained), "{sizes:?}");
    let names: BTreeSet<String> = fs::read_dir(scene.path("out/model"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names, wanted.map(String::from).into_iter().chain(["tokenizer_config.json".into()]).collect());
    let config = |folder: &str| -> Value {
        serde_json::from_slice(&fs::read(scene.path(folder).join("config.json")).unwrap()).unwrap()
    };
    assert_eq!(config("out/model")["initializer_range"], config("model")["initializer_range"], "what is unknown stays");
    assert!(largest_difference(&logits(&scene, "model", None), &logits(&scene, "out/model", None)) > 0.1);
}

#[test]
fn a_pattern_that_fits_nothing_is_a_bad_option() {
    for method in ["lora", "full"] {
        let scene = Scene::new(json!({"method": method, "trainable": ["model.layers.1.*", "*.attention.*"]}));
        let failure = scene.failure();
        assert_eq!(failure.kind, FailureKind::BadOption);
        assert!(failure.message.starts_with("the pattern `*.attention.*` fits none of the "), "{}", failure.message);
    }
}

#[test]
fn an_adapter_is_gone_on_with_by_its_own_method_only() {
    let mut scene = Scene::new(json!({
        "method": "dora", "max_steps": 3, "learning_rate": 0.01, "test_size": 0, "trainable": ["*.1.mlp.*"],
    }));
    assert_eq!(scene.run("run").0, EXIT_FINISHED);
    fs::rename(scene.path("out/adapter"), scene.path("adapter")).unwrap();
    let before = logits(&scene, "model", Some("adapter"));
    scene.spec["inputs"]["model"]["adapter"] = json!(scene.path("adapter"));
    scene.spec["spec"]["finetune"]["trainable"] = Value::Null;
    assert_eq!(scene.run("run").0, EXIT_FINISHED);
    let read = |folder: &str| fs::read_to_string(scene.path(folder).join("adapter_config.json")).unwrap();
    assert_eq!(read("adapter"), read("out/adapter"), "rank and targets are kept");
    assert!(largest_difference(&before, &logits(&scene, "model", Some("out/adapter"))) > 1e-4);
    scene.spec["spec"]["finetune"]["method"] = json!("lora");
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::BadOption);
    assert!(failure.message.contains("was made by method dora"), "{}", failure.message);
}
