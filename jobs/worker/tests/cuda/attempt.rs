//! Whole attempts on a GPU: a process, a spec, and what comes out, beside the same on the CPU.

use std::io::Write;
use std::path::Path;

use drydock_spec::contract::EXIT_FINISHED;
use drydock_spec::{FailureKind, Report};
use serde_json::{Value, json};

use crate::emulated_gpu;
use crate::scene::Scene;

/// A finetune on the emulated GPU.
fn on_gpu(options: Value) -> Scene {
    let mut scene = Scene::new(options);
    scene.spec["gpus"] = json!(1);
    scene.environment.push(("LD_LIBRARY_PATH", emulated_gpu::folder().to_str().unwrap().to_owned()));
    scene
}

fn with(mut scene: Scene, name: &'static str, value: &str) -> Scene {
    scene.environment.push((name, value.to_owned()));
    scene
}

/// The loss of each step.
fn losses(scene: &Scene) -> Vec<f64> {
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let losses = reports.into_iter().filter_map(|report| match report {
        Report::Metrics(metrics) => Some(metrics.loss),
        _ => None,
    });
    losses.collect()
}

/// What the adapter or model weighs, byte for byte.
fn weights(scene: &Scene, path: &str) -> Vec<u8> {
    std::fs::read(scene.path("out").join(path)).unwrap()
}

fn lora() -> Value {
    json!({"learning_rate": 0.01, "max_steps": 6, "logging_steps": 1, "lora_dropout": 0.1, "test_size": 0.0})
}

fn dora() -> Value {
    json!({"method": "dora", "learning_rate": 0.01, "max_steps": 6, "logging_steps": 1, "lora_dropout": 0.1,
           "test_size": 0.0})
}

fn full() -> Value {
    json!({"method": "full", "learning_rate": 0.001, "max_steps": 6, "logging_steps": 1, "test_size": 0.0})
}

#[test]
fn a_finetune_on_a_gpu_goes_as_on_the_cpu() {
    for options in [lora(), dora(), full()] {
        let (gpu, cpu) = (losses(&on_gpu(options.clone())), losses(&Scene::new(options)));
        assert_eq!(gpu.len(), cpu.len());
        for (gpu, cpu) in gpu.iter().zip(&cpu) {
            assert!((gpu - cpu).abs() < 1e-4 * cpu, "losses are {gpu} and {cpu}");
        }
        assert!(gpu.last() < gpu.first(), "and they fall: {gpu:?}");
    }
}

#[test]
fn what_a_model_answers_on_a_gpu_it_answers_on_the_cpu() {
    let options = json!({
        "learning_rate": 0.01, "max_steps": 8, "test_size": 0.0, "max_new_tokens": 16,
        "sample_prompts": ["Say 1", "Say 3", "Tell me something longer than that"],
    });
    let [gpu, cpu] = [on_gpu(options.clone()), Scene::new(options)].map(|scene| {
        let (code, reports) = scene.run("run");
        assert_eq!(code, EXIT_FINISHED, "{reports:?}");
        let samples = reports.into_iter().filter_map(|report| match report {
            Report::Sample(sample) => Some((sample.prompt, sample.completion, sample.stopped)),
            _ => None,
        });
        samples.collect::<Vec<_>>()
    });
    assert_eq!(gpu.len(), 6, "before and after");
    assert_eq!(gpu, cpu);
}

#[test]
fn a_worker_says_which_gpu_it_computes_on() {
    let scene = on_gpu(lora());
    let (_, reports) = scene.run("run");
    let Some(Report::Started(started)) = reports.first() else { panic!("{reports:?}") };
    assert_eq!(started.device, "cuda:0 (emulated GPU (CPU))");
}

#[test]
fn the_order_of_threads_does_not_show_in_what_is_learnt() {
    let adapter = "adapter/adapter_model.safetensors";
    for (options, path) in [(lora(), adapter), (dora(), adapter), (full(), "model/model.safetensors")] {
        let (forwards, backwards) = (on_gpu(options.clone()), with(on_gpu(options), "EMULATED_GPU_BACKWARDS", "1"));
        assert_eq!(losses(&forwards), losses(&backwards));
        assert!(weights(&forwards, path) == weights(&backwards, path), "every bit of {path} is the same");
    }
}

#[test]
fn a_training_that_does_not_fit_says_what_it_lacked() {
    let scene = with(on_gpu(lora()), "EMULATED_GPU_MEMORY_MIB", "33");
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::GpuOutOfMemory, "{failure}");
    assert!(failure.message.contains("of GPU memory were asked for in addition to 33 MiB"), "{failure}");
    assert!(failure.message.contains("the GPU has 33 MiB"), "{failure}");
    assert!(failure.hint.contains("gradient_checkpointing"), "{}", failure.hint);
}

#[test]
fn a_job_that_was_promised_a_gpu_does_not_compute_on_the_cpu_instead() {
    let scene = with(on_gpu(lora()), "EMULATED_GPU_COUNT", "0");
    assert_eq!(scene.failure().kind, FailureKind::GpuMissing);
    let scene = with(on_gpu(lora()), "EMULATED_GPU_DRIVER", "12080");
    assert_eq!(scene.failure().kind, FailureKind::GpuDriver);
}

#[test]
fn a_host_without_a_driver_is_told_apart_from_a_driver_without_gpus() {
    if Path::new("/dev/nvidiactl").exists() {
        let name = "a_host_without_a_driver_is_told_apart_from_a_driver_without_gpus";
        let _ = writeln!(std::io::stderr(), "skipped: {name}: this host has an NVIDIA driver");
        return;
    }
    let mut scene = Scene::new(lora());
    scene.spec["gpus"] = json!(1);
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::GpuMissing);
    assert_eq!(failure.message, "NVIDIA's driver (libcuda.so.1) is not here");
}
