use drydock_spec::{JobArgs, Stage};

use super::*;

fn limits(memory_bytes: u64) -> Limits {
    Limits {
        memory_bytes,
        cpu_millis: 1000,
        pids: 64,
        disk_bytes: 500,
        time_ms: 1000,
        silence_ms: 100,
        grace_ms: 1,
        max_attempts: 1,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}

/// A finetune with these options.
fn finetune(options: Value) -> JobSpec {
    let mut args = json!({"model": "m", "dataset": "d"});
    for (name, value) in options.as_object().unwrap() {
        args[name] = value.clone();
    }
    serde_json::from_value::<JobArgs>(json!({"finetune": args})).unwrap().parse().unwrap()
}

fn past(options: Value, memory_bytes: u64, outcome: Outcome) -> Past {
    let (job, attempt) = (JobId::from_parts(1, 1), Attempt::FIRST);
    Past { job, attempt, spec: finetune(options), limits: limits(memory_bytes), outcome }
}

fn failed(options: Value, memory_bytes: u64, kind: FailureKind) -> Past {
    past(options, memory_bytes, Outcome::Failed(Failure::new(kind, "why").at(Stage::Train)))
}

/// The names of what is worse about a job with these options and this memory than about what is foreseen for it.
fn worse(options: Value, memory_bytes: u64, past: &[Past]) -> Option<Vec<String>> {
    let omen = foresee(&finetune(options), &limits(memory_bytes), past)?;
    Some(omen.worse.into_iter().map(|change| change.name).collect())
}

const NONE: Option<Vec<String>> = Some(Vec::new());

#[test]
fn the_same_options_end_in_the_same_way() {
    let before = [failed(json!({}), 512, FailureKind::Crashed)];
    assert_eq!(worse(json!({}), 512, &before), NONE);
    assert_eq!(worse(json!({"seed": 7, "logging_steps": 9, "sample_prompts": ["Hi"]}), 512, &before), NONE);
    assert_eq!(worse(json!({"lora_r": 16}), 512, &before), None, "nobody knows what that does to a crash");
}

#[test]
fn what_asks_for_more_memory_runs_out_of_it_too() {
    let before = [failed(json!({"per_device_train_batch_size": 8}), 512, FailureKind::OutOfMemory)];
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert_eq!(worse(json!({"per_device_train_batch_size": 8, "learning_rate": 1e-3}), 512, &before), NONE);
    assert_eq!(
        worse(json!({"per_device_train_batch_size": 16}), 256, &before),
        names(&["limits.memory_bytes", "options.per_device_train_batch_size"])
    );
    assert_eq!(
        worse(json!({"per_device_train_batch_size": 8, "max_seq_length": 1024}), 512, &before),
        names(&["options.max_seq_length"]),
        "512 without it"
    );
    for milder in [
        json!({"per_device_train_batch_size": 4}),
        json!({"per_device_train_batch_size": 8, "gradient_checkpointing": true}),
        json!({"per_device_train_batch_size": 16, "max_seq_length": 128}),
        json!({"per_device_train_batch_size": 8, "method": "qlora"}),
    ] {
        assert_eq!(worse(milder.clone(), 512, &before), None, "{milder}");
    }
    assert_eq!(worse(json!({"per_device_train_batch_size": 8}), 513, &before), None, "it has more memory");
}

#[test]
fn a_success_since_then_that_asked_for_as_much_counts_for_more() {
    let four = json!({"per_device_train_batch_size": 4});
    let oom = || failed(four.clone(), 512, FailureKind::OutOfMemory);
    let good = |options: Value, memory| past(options, memory, Outcome::Succeeded);
    assert_eq!(worse(four.clone(), 512, &[good(four.clone(), 512), oom()]), None);
    let eight = json!({"per_device_train_batch_size": 8});
    assert_eq!(worse(four.clone(), 512, &[good(eight, 512), oom()]), None);
    let two = json!({"per_device_train_batch_size": 2});
    assert_eq!(worse(four.clone(), 512, &[good(two, 512), oom()]), NONE, "two rows are no proof for four");
    assert_eq!(worse(four.clone(), 512, &[good(four.clone(), 1024), oom()]), NONE, "it had more memory");
    assert_eq!(worse(four.clone(), 512, &[oom(), good(four.clone(), 512)]), NONE, "the failure is newer");
}

#[test]
fn what_others_brought_about_foretells_nothing() {
    for kind in FailureKind::ALL.into_iter().filter(|kind| kind.retryable()) {
        assert_eq!(worse(json!({}), 512, &[failed(json!({}), 512, kind)]), None, "{kind}");
    }
    let gated = failed(json!({}), 512, FailureKind::AccessDenied);
    let crashed = failed(json!({}), 512, FailureKind::Crashed);
    assert_eq!(worse(json!({}), 512, &[gated, crashed]), NONE, "the one before it still does");
    assert_eq!(worse(json!({}), 512, &[past(json!({}), 512, Outcome::Cancelled)]), None);
}

#[test]
fn a_divergence_follows_the_learning_rate_and_no_limit() {
    let before = [failed(json!({"learning_rate": 0.1}), 512, FailureKind::Diverged)];
    assert_eq!(worse(json!({"learning_rate": 0.1}), 2048, &before), NONE);
    assert_eq!(worse(json!({"learning_rate": 0.2}), 512, &before), Some(vec!["options.learning_rate".into()]));
    assert_eq!(worse(json!({"learning_rate": 0.01}), 512, &before), None);
}

#[test]
fn a_sentence_says_which_job_how_it_ended_and_what_to_do() {
    let before = [failed(json!({"lora_r": 4}), 512, FailureKind::OutOfMemory)];
    let said = |rank: u32| {
        let omen = foresee(&finetune(json!({"lora_r": rank, "lora_alpha": 8})), &limits(512), &before).unwrap();
        omen.foreseen("v1:x".into()).text
    };
    let (job, hint) = (before[0].job, FailureKind::OutOfMemory.hint());
    assert_eq!(said(4), format!("job {job} with the same options ended: out of memory at train (why); {hint}"));
    let worse = "and this one differs for the worse: lora_r = 8 rather than 4";
    let less = |name: &str, before: u64, now: u64| {
        in_words(&Change { name: name.into(), before: json!(before), now: json!(now) })
    };
    assert_eq!(less("limits.memory_bytes", 300 << 20, 290 << 20), "limits.memory_mib = 290 rather than 300");
    assert_eq!(less("limits.cpu_millis", 2000, 1500), "limits.cpus = 1.5 rather than 2");
    assert_eq!(said(8), format!("job {job} ended: out of memory at train (why), {worse}; {hint}"));
}
