//! Whole attempts on a GPU made of the CPU: the worker as a process, with libraries that look like NVIDIA's.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use drydock_spec::contract::EXIT_FINISHED;
use drydock_spec::{FailureKind, Report};
use serde_json::{Value, json};

use crate::emulated_gpu;
use crate::scene::{Scene, WORKER};

fn with_a_gpu(mut scene: Scene) -> Scene {
    scene.spec["gpus"] = json!(1);
    scene.environment.push(("LD_LIBRARY_PATH", emulated_gpu::folder().into()));
    scene
}

fn adapter(scene: &Scene) -> Vec<f32> {
    let bytes = fs::read(scene.path("out/adapter/adapter_model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn finished(scene: &Scene) -> Vec<Report> {
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
    reports
}

fn losses(reports: &[Report]) -> Vec<f64> {
    let loss = |report: &Report| match report {
        Report::Metrics(metrics) => Some(metrics.loss),
        Report::Evaluation(evaluation) => Some(evaluation.loss),
        _ => None,
    };
    reports.iter().filter_map(loss).collect()
}

#[test]
fn a_selfcheck_finds_that_the_gpu_computes_what_the_cpu_does() {
    let run = |argument: Option<&str>| {
        let mut command = Command::new(WORKER);
        command.arg("selfcheck").args(argument).env("LD_LIBRARY_PATH", emulated_gpu::folder());
        let output = command.env("RAYON_NUM_THREADS", "1").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    assert!(run(Some("--list-devices")).starts_with("cuda:0  emulated GPU (CPU)"));
    let table = run(None);
    assert!(table.contains("90 of 90 comparisons are right"), "{table}");
}

#[test]
fn a_finetune_on_a_gpu_learns_what_it_learns_on_the_cpu() {
    let options = json!({
        "learning_rate": 0.01, "max_steps": 4, "lora_dropout": 0.1, "eval_steps": 2, "logging_steps": 1,
        "gradient_accumulation_steps": 2, "sample_prompts": ["Say 1"], "max_new_tokens": 4,
    });
    let (cpu, gpu) = (Scene::new(options.clone()), with_a_gpu(Scene::new(options)));
    let (on_cpu, on_gpu) = (finished(&cpu), finished(&gpu));
    let Report::Started(started) = &on_gpu[0] else { panic!("{:?}", on_gpu[0]) };
    assert_eq!(started.device, "cuda:0 (emulated GPU (CPU))");
    let (want, got) = (losses(&on_cpu), losses(&on_gpu));
    assert!(got.len() == want.len() && got.len() > 6, "{got:?}");
    assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-4 * want), "{got:?}, not {want:?}");
    let (want, got) = (adapter(&cpu), adapter(&gpu));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(got, want)| got - want)) / norm(&mut want.iter().copied());
    assert!(error < 1e-3, "the adapter is off by {error:e}");
}

fn rolling() -> Value {
    json!({
        "learning_rate": 0.01, "max_steps": 5, "dtype": "bf16", "gradient_checkpointing": true, "save_steps": 2,
        "lora_dropout": 0.1, "logging_steps": 1,
    })
}

#[test]
fn a_training_on_a_gpu_is_the_same_again_whatever_comes_first_and_goes_on_from_its_checkpoint() {
    let once = with_a_gpu(Scene::new(rolling()));
    finished(&once);
    let mut again = with_a_gpu(Scene::new(rolling()));
    // Blocks and threads from the last to the first.
    again.environment.push(("EMULATED_GPU_BACKWARDS", OsString::from("1")));
    finished(&again);
    assert!(adapter(&once) == adapter(&again), "the order in which threads run is seen");
    assert_eq!(once.checkpoints(), ["step-4"]);
    let next = with_a_gpu(once.next_attempt(rolling()));
    finished(&next);
    assert!(adapter(&once) == adapter(&next), "the last step is another one after a checkpoint");
}

#[test]
fn a_training_without_enough_gpu_memory_ends_with_the_numbers() {
    let mut scene = with_a_gpu(Scene::new(json!({})));
    scene.environment.push(("EMULATED_GPU_MEMORY_MIB", OsString::from("33")));
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::GpuOutOfMemory, "{failure:?}");
    assert!(failure.message.ends_with("and the GPU has 33 MiB"), "{}", failure.message);
}

#[test]
fn a_gpu_that_is_not_there_is_told_and_the_cpu_does_not_take_its_place() {
    let mut scene = Scene::new(json!({}));
    scene.spec["gpus"] = json!(1);
    // No driver lies there.
    scene.environment.push(("LD_LIBRARY_PATH", scene.path("model").into()));
    assert_eq!(scene.failure().kind, FailureKind::GpuMissing);
    assert!(!scene.path("out/adapter").exists());
}

#[test]
fn what_a_gpu_cannot_train_is_refused_with_what_it_can() {
    let failure = with_a_gpu(Scene::new(json!({"method": "dora"}))).failure();
    assert_eq!(failure.kind, FailureKind::BadOption);
    assert!(failure.message.contains("method \"lora\" is"), "{}", failure.message);
}
