//! Trainings on several GPUs, beside the same on one.

use std::time::{Duration, Instant};

use drydock_spec::contract::EXIT_FINISHED;
use drydock_spec::{Failure, FailureKind, Report};
use drydock_worker::cuda::device::Device;
use drydock_worker::cuda::error::CudaError;
use drydock_worker::cuda::exchange::Exchange;
use drydock_worker::cuda::memory::Buffer;
use serde_json::{Value, json};

use crate::device::in_a_process_of_its_own;
use crate::emulated_gpu;
use crate::scene::Scene;

/// Whatever goes wrong on one GPU ends the training well before anybody's patience with a sum.
const SOON: Duration = Duration::from_secs(60);

fn on(gpus: u32, options: Value) -> Scene {
    let mut scene = Scene::new(options);
    scene.spec["gpus"] = json!(gpus);
    scene.environment.push(("EMULATED_GPU_COUNT", gpus.to_string()));
    scene.environment.push(("LD_LIBRARY_PATH", emulated_gpu::folder().to_str().unwrap().to_owned()));
    scene
}

fn with(mut scene: Scene, name: &'static str, value: &str) -> Scene {
    scene.environment.push((name, value.to_owned()));
    scene
}

/// What a training of four steps came to.
struct Trained {
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    tokens: u64,
    weights: Vec<u8>,
}

fn trained(scene: &Scene) -> Trained {
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
    let (mut losses, mut grad_norms, mut tokens) = (Vec::new(), Vec::new(), 0);
    for report in reports {
        match report {
            Report::Metrics(metrics) => {
                losses.push(metrics.loss);
                grad_norms.push(metrics.grad_norm);
            }
            Report::Finished(finished) => tokens = finished.tokens,
            _ => {}
        }
    }
    let adapter = scene.path("out/adapter/adapter_model.safetensors");
    let path = if adapter.exists() { adapter } else { scene.path("out/model/model.safetensors") };
    Trained { losses, grad_norms, tokens, weights: std::fs::read(path).unwrap() }
}

fn options(more: Value) -> Value {
    let mut options = json!({
        "learning_rate": 0.01, "max_steps": 4, "logging_steps": 1, "lora_dropout": 0.1, "test_size": 0.0,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
    });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

#[track_caller]
fn assert_alike(ours: &[f64], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= tolerance * theirs.abs(), "{ours}, not {theirs}");
    }
}

/// In f32, so that nothing but the order of sums makes a difference: dropout is the same, row by row.
#[test]
fn several_gpus_learn_what_one_does() {
    let cases: [(&[u32], Value); 5] = [
        (&[2, 3], json!({})),
        (&[2], json!({"method": "full", "learning_rate": 0.001, "lora_dropout": null})),
        (&[3], json!({"packing": true, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})),
        (
            &[3],
            json!({
                "per_device_train_batch_size": 1, "gradient_accumulation_steps": 5, "gradient_checkpointing": true,
            }),
        ),
        (&[2], json!({"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1})),
    ];
    for (gpus, case) in cases {
        let mut case = options(case);
        case.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let one = trained(&on(1, case.clone()));
        assert!(one.losses.last() < one.losses.first(), "{:?}", one.losses);
        for &gpus in gpus {
            let several = trained(&on(gpus, case.clone()));
            assert_alike(&several.losses, &one.losses, 1e-5);
            assert_alike(&several.grad_norms, &one.grad_norms, 1e-3);
            assert_eq!(several.tokens, one.tokens);
        }
    }
}

#[test]
fn several_gpus_prefer_what_one_does() {
    let words = ["zero", "one", "two", "three"];
    let pair = |i: usize| {
        json!({"prompt": format!("Say {}: ", i % 4), "chosen": words[i % 4], "rejected": words[(i + 1) % 4]})
            .to_string()
    };
    let judged = |i: usize| {
        json!({"prompt": format!("Say {}: ", i % 4), "completion": words[i / 2 % 4], "label": i.is_multiple_of(2)})
            .to_string()
    };
    for objective in ["dpo", "orpo", "kto"] {
        let rows: Vec<String> = (0..24).map(|i| if objective == "kto" { judged(i) } else { pair(i) }).collect();
        let run = |gpus| {
            let scene = on(gpus, options(json!({"objective": objective, "beta": 0.5})));
            scene.write_dataset(&rows.join("\n"));
            trained(&scene)
        };
        let one = run(1);
        assert_alike(&run(2).losses, &one.losses, 1e-5);
    }
}

#[test]
fn a_training_on_several_gpus_comes_out_the_same_each_time() {
    let options = options(json!({"dtype": "bf16"}));
    let (first, second) = (trained(&on(3, options.clone())), trained(&on(3, options)));
    assert_eq!(first.losses, second.losses);
    assert!(first.weights == second.weights, "every bit is the same");
}

#[test]
fn a_training_goes_on_with_another_number_of_gpus() {
    let options = options(json!({"save_steps": 2}));
    let losses = trained(&on(2, options.clone())).losses;
    let first = with(on(2, options.clone()), "EMULATED_NCCL_FAILS", "7");
    assert_eq!(first.failure().kind, FailureKind::GpuFault);
    assert_eq!(first.checkpoints(), ["step-2"]);
    for gpus in [1, 2, 3] {
        let mut next = on(gpus, options.clone());
        next.spec["inputs"]["checkpoint"] = json!(first.path("out/checkpoints/step-2"));
        assert_alike(&trained(&next).losses, &losses[2..], 1e-5);
    }
}

#[test]
fn a_worker_says_which_gpus_it_computes_on() {
    let (_, reports) = on(2, options(json!({"max_steps": 1}))).run("run");
    let Some(Report::Started(started)) = reports.first() else { panic!("{reports:?}") };
    assert_eq!(started.device, "cuda:0-1 (2 x emulated GPU (CPU))");
}

fn soon(scene: &Scene) -> Failure {
    let began = Instant::now();
    let failure = scene.failure();
    assert!(began.elapsed() < SOON, "{failure}");
    failure
}

#[test]
fn a_gpu_without_room_ends_the_training_of_all() {
    let failure = soon(&with(on(3, options(json!({}))), "EMULATED_GPU_MEMORY_MIB", "4096,33,4096"));
    assert_eq!(failure.kind, FailureKind::GpuOutOfMemory, "{failure}");
    assert!(failure.message.contains("the GPU has 33 MiB"), "{failure}");
}

/// The last GPU fails in the middle of a backward pass, of which nobody has heard when it has been asked for.
#[test]
fn a_gpu_that_fails_ends_the_training_of_all_before_any_waits_for_it() {
    let failure = soon(&with(on(2, options(json!({}))), "EMULATED_GPU_BREAKS", "gate_backward_f32"));
    assert_eq!(failure.kind, FailureKind::GpuFault, "{failure}");
    assert!(failure.message.contains("CUDA_ERROR_LAUNCH_FAILED"), "{failure}");
}

#[test]
fn a_sum_that_fails_is_told_in_the_words_of_nccl() {
    let failure = soon(&with(on(2, options(json!({}))), "EMULATED_NCCL_FAILS", "3"));
    assert_eq!(failure.kind, FailureKind::GpuFault);
    let said = "summing gradients: remote process exited or there was a network error: the link between two GPUs broke";
    assert_eq!(failure.message, said);
    assert!(failure.hint.contains("limits.gpus to 1"), "{}", failure.hint);
}

#[test]
fn fewer_rows_than_gpus_are_refused_with_what_would_do() {
    let failure = on(3, options(json!({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}))).failure();
    assert_eq!(failure.kind, FailureKind::BadOption);
    assert_eq!(failure.message, "3 GPUs need as many rows in a step, and it has 2");
    assert!(failure.hint.contains("set limits.gpus to 2"), "{}", failure.hint);
}

#[test]
fn a_host_without_nccl_or_with_an_old_one_says_so() {
    let failure = with(on(2, options(json!({}))), "EMULATED_NCCL_VERSION", "21805").failure();
    assert_eq!(failure.kind, FailureKind::GpuMissing);
    assert_eq!(failure.message, "NCCL (libnccl.so.2) is of version 2.18; 2.22 is needed");
    // SAFETY: opens a library of the system, as the worker would.
    if unsafe { libloading::Library::new("libnccl.so.2") }.is_ok() {
        return;
    }
    let without = tempfile::tempdir().unwrap();
    for library in ["libcuda.so", "libcublas.so"] {
        std::fs::copy(emulated_gpu::folder().join(library), without.path().join(library)).unwrap();
    }
    let alone = |gpus| with(on(gpus, options(json!({}))), "LD_LIBRARY_PATH", without.path().to_str().unwrap());
    let failure = alone(2).failure();
    assert_eq!(failure.kind, FailureKind::GpuMissing);
    assert_eq!(failure.message, "NCCL (libnccl.so.2), by which GPUs compute together, is not on the library path");
    assert!(failure.hint.contains("make image-cuda"), "{}", failure.hint);
    assert!(!trained(&alone(1)).losses.is_empty(), "one GPU does without");
}

/// As many GPUs as the test's own process has been given.
fn devices(count: u32) -> Vec<Device> {
    emulated_gpu::plug_in();
    (0..count).map(|ordinal| Device::open(ordinal).unwrap()).collect()
}

fn sum(exchange: &mut Exchange, of_ranks: &mut [Vec<Buffer<f32>>]) -> Result<(), CudaError> {
    exchange.sum(&mut of_ranks.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())
}

#[test]
fn every_rank_gets_the_sums_of_all() {
    let name = "ranks::every_rank_gets_the_sums_of_all";
    if in_a_process_of_its_own(name, &[("EMULATED_GPU_COUNT", "3")]).is_some() {
        return;
    }
    let devices = devices(3);
    let mut exchange = Exchange::open(&devices, SOON).unwrap();
    let values = |rank: usize, len: usize| (0..len).map(|i| (i * 10 + rank) as f32).collect::<Vec<_>>();
    let buffers = |rank: usize| [5, 0, 1].map(|len| devices[rank].upload(&values(rank, len)).unwrap()).into();
    let mut of_ranks: Vec<Vec<Buffer<f32>>> = (0..3).map(buffers).collect();
    for times in [1.0, 3.0] {
        sum(&mut exchange, &mut of_ranks).unwrap();
        for buffers in &of_ranks {
            let wanted = [3.0, 33.0, 63.0, 93.0, 123.0].map(|value: f32| value * times);
            assert_eq!(buffers[0].download().unwrap(), wanted);
            assert_eq!(buffers[2].download().unwrap(), [3.0 * times]);
        }
    }
}

#[test]
fn gpus_that_never_finish_a_sum_are_not_waited_for_without_end() {
    let name = "ranks::gpus_that_never_finish_a_sum_are_not_waited_for_without_end";
    if in_a_process_of_its_own(name, &[("EMULATED_GPU_COUNT", "2"), ("EMULATED_NCCL_HANGS", "1")]).is_some() {
        return;
    }
    let devices = devices(2);
    let mut exchange = Exchange::open(&devices, Duration::from_secs(1)).unwrap();
    let mut of_ranks: Vec<Vec<Buffer<f32>>> = devices.iter().map(|device| vec![device.zeros(8).unwrap()]).collect();
    let began = Instant::now();
    let failure = Failure::from(sum(&mut exchange, &mut of_ranks).unwrap_err());
    assert!((Duration::from_secs(1)..SOON).contains(&began.elapsed()));
    assert_eq!(failure.kind, FailureKind::GpuFault);
    assert_eq!(failure.message, "summing gradients: the GPUs were not done after 1 s");
    // Everybody has left off, so that the GPUs can be asked for other things.
    assert_eq!(of_ranks[1][0].download().unwrap(), [0.0; 8]);
}

#[test]
fn ranks_that_do_not_sum_the_same_are_told() {
    let name = "ranks::ranks_that_do_not_sum_the_same_are_told";
    if let Some(said) = in_a_process_of_its_own(name, &[("EMULATED_GPU_COUNT", "2")]) {
        assert!(said.contains("emulated GPU: NCCL: rank 0 sums 8 values, and rank 1 9"), "{said}");
        assert!(said.contains("emulated GPU: NCCL: rank 1 never comes to sum 1 of a group"), "{said}");
        return;
    }
    let devices = devices(2);
    for lengths in [[8, 9], [8, 0]] {
        let mut exchange = Exchange::open(&devices, Duration::from_millis(100)).unwrap();
        let buffers = devices.iter().zip(lengths).map(|(device, len)| vec![device.zeros(len).unwrap()]);
        let mut of_ranks: Vec<Vec<Buffer<f32>>> = buffers.collect();
        assert!(sum(&mut exchange, &mut of_ranks).is_err());
    }
}

#[test]
fn a_gpu_that_is_given_anothers_memory_is_at_fault() {
    let name = "ranks::a_gpu_that_is_given_anothers_memory_is_at_fault";
    if let Some(said) = in_a_process_of_its_own(name, &[("EMULATED_GPU_COUNT", "2")]) {
        assert!(said.contains("kernel `fill_f32` on GPU 1 is given memory of GPU 0"), "{said}");
        return;
    }
    use drydock_worker::cuda::module::{Shape, arguments};
    let devices = devices(2);
    let mut x: Buffer<f32> = devices[0].zeros(16).unwrap();
    devices[1].launch("fill_f32", Shape::over(16, 256), arguments![&mut x, 1.0f32, 16u64]).unwrap();
    assert!(devices[1].wait().is_err());
    devices[0].wait().expect("the other GPU is as it was");
}

#[test]
fn what_is_there_is_not_what_was_asked_for() {
    let mut scene = on(2, options(json!({})));
    scene.spec["gpus"] = json!(3);
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::GpuMissing);
    assert_eq!(failure.message, "of GPU 2 the driver sees nothing; it has 2, from 0 on");
}
