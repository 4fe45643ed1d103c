//! What a training on a GPU promises besides what every attempt does.

use std::fs;
use std::process::Command;

use drydock_spec::contract::EXIT_FINISHED;
use serde_json::{Value, json};

use crate::emulated_gpu;
use crate::scene::{Scene, WORKER};

fn with_a_gpu(mut scene: Scene) -> Scene {
    scene.spec["gpus"] = json!(1);
    scene.environment.push(("LD_LIBRARY_PATH", emulated_gpu::folder().to_str().unwrap().to_owned()));
    scene
}

fn adapter(scene: &Scene) -> Vec<u8> {
    fs::read(scene.path("out/adapter/adapter_model.safetensors")).unwrap()
}

fn finished(scene: &Scene) {
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
}

#[test]
fn a_selfcheck_finds_that_the_gpu_computes_what_the_cpu_does_and_several_what_one_does() {
    let run = |argument: Option<&str>| {
        let mut command = Command::new(WORKER);
        command.arg("selfcheck").args(argument).env("LD_LIBRARY_PATH", emulated_gpu::folder());
        command.env("EMULATED_GPU_COUNT", "3");
        let output = command.env("RAYON_NUM_THREADS", "1").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    assert!(run(Some("--list-devices")).starts_with("cuda:0  emulated GPU (CPU)"));
    let table = run(None);
    assert!(table.contains("270 of 270 comparisons are right"), "{table}");
    let together = table.lines().filter(|line| line.contains(", 3 GPUs"));
    assert_eq!(together.clone().count(), 30, "{table}");
    assert!(together.filter(|line| line.contains("what ranks hold")).all(|line| line.contains(" 0.0e0 ")), "{table}");
}

fn options() -> Value {
    json!({
        "learning_rate": 0.01, "max_steps": 5, "dtype": "bf16", "gradient_checkpointing": true, "save_steps": 2,
        "lora_dropout": 0.1, "logging_steps": 1,
    })
}

#[test]
fn a_training_on_a_gpu_goes_on_from_its_checkpoint_bit_for_bit() {
    let whole = with_a_gpu(Scene::new(options()));
    finished(&whole);
    assert_eq!(whole.checkpoints(), ["step-4"]);
    let next = with_a_gpu(whole.next_attempt(options()));
    finished(&next);
    assert!(adapter(&whole) == adapter(&next), "the last step is another one after a checkpoint");
}
