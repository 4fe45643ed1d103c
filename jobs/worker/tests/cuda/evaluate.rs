//! Evaluations on a GPU, beside the same on the CPU.

use std::fs;

use drydock_spec::contract::EXIT_FINISHED;
use drydock_spec::{FailureKind, Report};
use serde_json::{Value, json};

use crate::emulated_gpu;
use crate::scene::Scene;

/// The same attempt on the emulated GPU.
fn on_gpu(mut scene: Scene) -> Scene {
    scene.spec["gpus"] = json!(1);
    scene.environment.push(("LD_LIBRARY_PATH", emulated_gpu::folder().to_str().unwrap().to_owned()));
    scene
}

/// `results.json` of an evaluation that goes well, and what became of each row.
fn results(scene: &Scene, measures: &[&str]) -> (Value, Vec<Value>) {
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
    assert!(scene.warnings().is_empty(), "{:?}", scene.warnings());
    let samples = measures.iter().flat_map(|measure| {
        let text = fs::read_to_string(scene.path(&format!("out/samples_{measure}.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    (scene.json("results.json"), samples.collect())
}

fn perplexity(scene: &Scene) -> f64 {
    results(scene, &[]).0["results"]["perplexity"]["perplexity,none"].as_f64().unwrap()
}

/// Numbers are the same up to `tolerance` of themselves, everything else is the same altogether.
fn assert_close(place: &str, got: &Value, want: &Value, tolerance: f64) {
    match (got, want) {
        (Value::Object(got), Value::Object(want)) => {
            assert_eq!(got.len(), want.len(), "{place}");
            for (key, value) in got.iter().filter(|(key, _)| *key != "total_evaluation_time_seconds") {
                assert_close(&format!("{place}/{key}"), value, &want[key], tolerance);
            }
        }
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len(), "{place}");
            got.iter().zip(want).for_each(|(got, want)| assert_close(place, got, want, tolerance));
        }
        (Value::Number(got), Value::Number(want)) => {
            let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
            assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{place} is {got} on the GPU, not {want}");
        }
        (got, want) => assert_eq!(got, want, "{place}"),
    }
}

fn assert_same(scene: impl Fn() -> Scene, measures: &[&str], tolerance: f64) {
    let (got, want) = (results(&on_gpu(scene()), measures), results(&scene(), measures));
    assert_close("results", &got.0, &want.0, tolerance);
    assert_eq!(got.1.len(), want.1.len());
    got.1.iter().zip(&want.1).for_each(|(got, want)| assert_close("sample", got, want, tolerance));
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

fn texts() -> String {
    lines((0..5).map(|i| json!({"text": format!("Row {i}: the quick brown fox jumps over {} lazy dogs.\n", i * i)})))
}

fn choices() -> String {
    let row =
        |i: usize| json!({"question": format!("Row {i}"), "choices": ["one", "three", "seventeen"], "answer": i % 3});
    lines((0..8).map(row))
}

fn sums() -> String {
    lines((0..9).map(|i| {
        json!({"messages": [{"role": "user", "content": format!("{i} + 1")},
                            {"role": "assistant", "content": format!("One more.\n#### {}", i + 1)}]})
    }))
}

#[test]
fn texts_choices_and_answers_are_measured_as_on_the_cpu() {
    let windows = json!({"max_seq_length": 32, "stride": 8});
    assert_same(|| Scene::evaluating(windows.clone(), &texts()), &["perplexity"], 1e-4);
    let shots = json!({"num_fewshot": 2, "limit": 5});
    assert_same(|| Scene::evaluating(shots.clone(), &choices()), &["multiple_choice"], 1e-4);
    // Rows that share passes with others, and come and go at different times.
    let answers = json!({"measures": ["exact_match", "numeric_match"], "max_new_tokens": 12, "batch_size": 4});
    assert_same(|| Scene::evaluating(answers.clone(), &sums()), &["exact_match", "numeric_match"], 1e-4);
}

#[test]
fn products_in_bf16_cost_what_eight_bits_of_mantissa_do() {
    let options = json!({"dtype": "bf16", "limit": 4});
    let [got, want] = [on_gpu(Scene::evaluating(options.clone(), &texts())), Scene::evaluating(options, &texts())]
        .map(|scene| perplexity(&scene));
    assert!((got / want - 1.0).abs() < 1e-2, "{got} on the GPU, not {want}");
}

/// Both of an adapter and its base, of which the first answers as it has learnt.
#[test]
fn an_adapter_is_measured_beside_its_base() {
    for method in ["lora", "dora"] {
        an_adapter_is_measured(method);
    }
}

fn an_adapter_is_measured(method: &str) {
    let mut scene = Scene::evaluating(json!({"adapter": "learnt", "max_new_tokens": 24, "limit": 6}), &sums());
    let training = json!({"model": "tiny", "dataset": "rows", "method": method, "learning_rate": 0.01,
                          "num_train_epochs": 10, "test_size": 0});
    let evaluating = std::mem::replace(&mut scene.spec["spec"], json!({"finetune": training}));
    assert_eq!(scene.run("run").0, EXIT_FINISHED);
    scene.spec["spec"] = evaluating;
    scene.spec["inputs"]["model"]["adapter"] = json!(scene.path("out/adapter"));
    let measures = ["perplexity", "numeric_match"];
    let want = results(&scene, &measures);
    let scene = on_gpu(scene);
    let got = results(&scene, &measures);
    assert_eq!(got.0["model_name"], "tiny + learnt");
    assert_close("results", &got.0, &want.0, 1e-4);
    got.1.iter().zip(&want.1).for_each(|(got, want)| assert_close("sample", got, want, 1e-4));
}

/// The CPU rounds activations to eight bits for blocks, a GPU nothing: that is the difference.
#[test]
fn a_quantized_model_stays_in_its_blocks() {
    for kind in ["Q8_0", "Q4_0"] {
        let mut scene = Scene::evaluating(json!({"limit": 4}), &texts());
        let quantizing = json!({"quantize": {"model": "tiny", "quant_type": kind}});
        let evaluating = std::mem::replace(&mut scene.spec["spec"], quantizing);
        assert_eq!(scene.run("run").0, EXIT_FINISHED, "{:?}", scene.reports().last());
        scene.spec["spec"] = evaluating;
        fs::rename(scene.path("out/model"), scene.path("quantized")).unwrap();
        scene.spec["inputs"]["model"]["path"] = json!(scene.path("quantized"));
        let want = perplexity(&scene);
        let got = perplexity(&on_gpu(scene));
        assert!((got / want - 1.0).abs() < 1e-2, "{got} on the GPU, not {want}");
    }
}

#[test]
fn a_worker_says_that_it_measures_on_the_gpu() {
    let scene = on_gpu(Scene::evaluating(json!({"limit": 1}), &texts()));
    let (_, reports) = scene.run("run");
    let Some(Report::Started(started)) = reports.first() else { panic!("{reports:?}") };
    assert_eq!(started.device, "cuda:0 (emulated GPU (CPU))");
}

#[test]
fn what_cannot_be_measured_on_a_gpu_is_told_as_what_it_is() {
    let mut scene = on_gpu(Scene::evaluating(json!({}), &texts()));
    scene.environment.push(("EMULATED_GPU_MEMORY_MIB", "33".to_owned()));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::GpuOutOfMemory, "{failure}");
    assert!(failure.message.contains("the GPU has 33 MiB"), "{failure}");
    for (rows, options, what) in [
        (texts(), json!({}), "the loss of row 1 is no number"),
        (choices(), json!({}), "the log-likelihood of a choice of row 1 is no number"),
        (
            sums(),
            json!({"measures": ["exact_match"], "max_new_tokens": 8}),
            "the model answers with logits that are no",
        ),
    ] {
        let scene = on_gpu(Scene::evaluating(options, &rows));
        scene.break_a_weight();
        let failure = scene.failure();
        assert_eq!(failure.kind, FailureKind::BadModel);
        assert!(failure.message.starts_with(what), "{}", failure.message);
    }
}
