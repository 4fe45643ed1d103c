//! An attempt that goes on from a checkpoint takes the steps that the first would have taken.

use std::collections::BTreeMap;
use std::fs;

use drydock_spec::contract::{EXIT_FINISHED, EXIT_STOPPED};
use drydock_spec::report::Phase;
use drydock_spec::{FailureKind, Report};
use serde_json::{Value, json};

use crate::scene::{Scene, rows};

/// Everything that a step can depend on: dropout, packs, accumulation, several epochs, metrics over several steps.
fn options() -> Value {
    json!({
        "learning_rate": 0.01, "num_train_epochs": 40, "lora_dropout": 0.1, "packing": true, "max_seq_length": 96,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2, "eval_steps": 7,
        "load_best_model_at_end": true, "early_stopping_patience": 100,
    })
}

fn with(mut options: Value, more: Value) -> Value {
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

/// What the metrics and the held-out losses were, to the last bit.
fn losses(reports: &[Report]) -> BTreeMap<(u64, &'static str), [u64; 3]> {
    let mut losses = BTreeMap::new();
    for report in reports {
        match report {
            Report::Metrics(m) => {
                losses.insert((m.step, "train"), [m.loss, m.learning_rate, m.grad_norm].map(f64::to_bits));
            }
            Report::Evaluation(e) if e.phase == Phase::During => {
                losses.insert((e.step.unwrap(), "held out"), [e.loss.to_bits(), e.tokens, 0]);
            }
            _ => {}
        }
    }
    losses
}

fn adapter(scene: &Scene) -> Vec<u8> {
    fs::read(scene.path("out/adapter/adapter_model.safetensors")).unwrap()
}

fn metrics_of(step: u64) -> impl Fn(&Report) -> bool {
    move |report| matches!(report, Report::Metrics(metrics) if metrics.step >= step)
}

/// The attempt that is cut off, and the one that goes on: together they say what an undisturbed one says.
fn assert_goes_on(cut: &Scene, options: Value) -> Scene {
    let whole = Scene::new(options.clone());
    let (code, reports) = whole.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let wanted = losses(&reports);
    let next = cut.next_attempt(options);
    let (code, reports) = next.run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let (before, after) = (cut.reports(), losses(&reports));
    let mut together = losses(&before);
    for (at, values) in &after {
        assert_eq!(
            together.insert(*at, *values).unwrap_or(*values),
            *values,
            "what was done twice is the same: {at:?}"
        );
    }
    assert_eq!(together, wanted);
    assert!(!after.is_empty() && after.len() < wanted.len(), "{} of {}", after.len(), wanted.len());
    assert_eq!(adapter(&next), adapter(&whole));
    let undisturbed = |scene: &Scene| {
        let mut summary = scene.json("training.json");
        for field in ["seconds", "tokens_per_second"] {
            summary["training"].as_object_mut().unwrap().remove(field);
        }
        summary
    };
    assert_eq!(undisturbed(&next), undisturbed(&whole));
    next
}

#[test]
fn what_sigterm_cuts_off_goes_on_bit_for_bit() {
    let options = with(options(), json!({"sample_prompts": ["Say 1"], "max_new_tokens": 4}));
    let cut = Scene::new(options.clone());
    let code = cut.kill_after(cut.start("run"), metrics_of(16), libc::SIGTERM);
    assert_eq!(code, Some(EXIT_STOPPED));
    let reports = cut.reports();
    let [.., Report::Checkpoint(checkpoint), Report::Stopped { step }] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(checkpoint.path, format!("checkpoints/step-{step}"));
    assert_eq!((checkpoint.step, cut.checkpoints()), (*step, vec![format!("step-{step}")]));
    assert!(*step >= 16 && checkpoint.bytes > 0);
    assert!(!cut.path("out/adapter").exists(), "nothing half-way is left");
    let next = assert_goes_on(&cut, options);
    assert!(next.checkpoints().is_empty(), "a job that is done needs none");
}

#[test]
fn what_is_killed_between_two_checkpoints_goes_on_bit_for_bit() {
    let options = with(options(), json!({"save_steps": 5}));
    let cut = Scene::new(options.clone());
    // A step after one of the checkpoints, and before the next.
    let code = cut.kill_after(cut.start("run"), metrics_of(18), libc::SIGKILL);
    assert_eq!(code, None, "it had no time to say anything");
    let kept = cut.checkpoints();
    assert!(!kept.is_empty() && kept.len() <= 2, "{kept:?}");
    let next = assert_goes_on(&cut, options);
    assert_eq!(next.checkpoints().len(), 1, "the last is kept where checkpoints were asked for");
}

#[test]
fn a_checkpoint_of_something_else_is_refused_by_what_differs() {
    let options = json!({"max_steps": 4, "save_steps": 2});
    let first = Scene::new(options.clone());
    assert_eq!(first.run("run").0, EXIT_FINISHED);
    let refused = |next: Scene| {
        let failure = next.failure();
        assert_eq!(failure.kind, FailureKind::BadOption, "{failure:?}");
        failure.message
    };
    let other = first.next_attempt(json!({"max_steps": 4, "learning_rate": 0.5, "save_steps": 1}));
    assert_eq!(refused(other), "the checkpoint at step 4 is of something else: learning_rate was 0.0002 and is 0.5");
    let other = first.next_attempt(options.clone());
    other.write_dataset(&rows(41));
    let message = refused(other);
    assert!(message.contains("the rows had the digest "), "{message}");
    let mut other = first.next_attempt(options.clone());
    other.spec["inputs"]["model"]["name"] = json!("another/model");
    let message = refused(other);
    assert!(message.ends_with("the model was `tiny/random-llama` and is `another/model`"), "{message}");
}

/// The rows of a step may be put into more and smaller passes: it is how an attempt that ran out of memory goes on.
#[test]
fn a_checkpoint_may_be_gone_on_from_with_smaller_passes() {
    let options = |batch: u32, accumulation: u32| {
        json!({"max_steps": 150, "learning_rate": 0.003, "per_device_train_batch_size": batch,
               "gradient_accumulation_steps": accumulation})
    };
    let (_, whole) = Scene::new(options(4, 1)).run("run");
    let cut = Scene::new(options(4, 1));
    assert_eq!(cut.kill_after(cut.start("run"), metrics_of(20), libc::SIGTERM), Some(EXIT_STOPPED));
    let (code, reports) = cut.next_attempt(options(2, 2)).run("run");
    assert_eq!(code, EXIT_FINISHED, "{reports:?}");
    let by_step = |reports: &[Report]| -> BTreeMap<u64, f64> {
        let metrics = reports.iter().filter_map(|report| match report {
            Report::Metrics(metrics) => Some((metrics.step, metrics.loss)),
            _ => None,
        });
        metrics.collect()
    };
    let wanted = by_step(&whole);
    for (step, loss) in by_step(&reports).into_iter().take(10) {
        assert!((loss - wanted[&step]).abs() < 1e-3 * wanted[&step], "step {step}: {loss}, not {}", wanted[&step]);
    }
}
