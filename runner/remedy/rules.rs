//! What is known to help against a kind of failure before anything was tried here, and where that is known from.
//!
//! The order is the one in which they are offered while no record says otherwise: first what leaves the meaning of the
//! job the same, and of that what costs least.

use drydock_spec::remedy::To;
use drydock_spec::{Failure, FailureKind, JobSpec, Remedy};
use serde_json::Value;

use crate::diagnose::signs::names_scratch;
use crate::diagnose::template::Template;

/// A remedy, and what the rule goes back to.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub remedy: Remedy,
    pub source: &'static str,
}

/// What drydock itself knows of its limits, its worker and its store.
const OWN: &str = "drydock's own limits";
const WORKER: &str = "drydock's worker";
/// Sources of rules that others have found out.
const SMALLER_BATCH: &str = "huggingface/peft#739, hiyouga/LLaMA-Factory#4559";
const NOT_A_NUMBER: &str = "hiyouga/LLaMA-Factory#2916, #8088, #9462";
const STUCK: &str = "huggingface/lighteval#353";
const TIME: &str = "huggingface/huggingface_hub#3281, #3665";
const DISK: &str = "dstackai/dstack#1243";
const GATED: &str = "the hub's answer";
const CHANCE: &str = "failures of the infrastructure pass";
const ENGINE: &str = "the engine's answer";
const ERRNO: &str = "errno(3), clone(2)";
/// The system's error of a process that may not have another one: EAGAIN.
const NO_MORE_PROCESSES: u32 = 11;

const HALF_THE_BATCH: &str = "per_device_train_batch_size * 0.5, gradient_accumulation_steps * 2";
const FITTING_BATCH: &str = "per_device_train_batch_size = fit, gradient_accumulation_steps = fit";

/// The rules against a failure of such a job.
#[must_use]
pub fn rules(failure: &Failure, spec: &JobSpec) -> Vec<Rule> {
    let mut found = Vec::new();
    let mut known = |source: &'static str, remedies: &[&str]| {
        // The texts are constants, and a test reads every one of them.
        let parsed = remedies.iter().filter_map(|text| text.parse().ok());
        found.extend(parsed.map(|remedy| Rule { remedy, source }));
    };
    let trains = spec.recipe().is_some();
    match failure.kind {
        FailureKind::OutOfMemory => {
            known(OWN, &["limits.memory_mib = fit"]);
            if trains {
                known(WORKER, &["gradient_checkpointing = true"]);
                known(SMALLER_BATCH, &[FITTING_BATCH, HALF_THE_BATCH]);
            } else {
                known(WORKER, &["batch_size * 0.5"]);
            }
            known(OWN, &["limits.memory_mib * 2"]);
            if trains {
                known(SMALLER_BATCH, &["method = \"qlora\"", "max_seq_length * 0.5"]);
            }
        }
        FailureKind::DiskFull => {
            if names_scratch(&failure.message) {
                known(OWN, &["outside: raise_tmp"]);
            }
            known(OWN, &["limits.disk_mib = fit", "limits.disk_mib * 2"]);
            known(DISK, &["save_steps = default", "keep = \"adapter\""]);
        }
        FailureKind::TimeLimit => {
            known(OWN, &["limits.time_limit_s = fit"]);
            known(TIME, &["limits.time_limit_s * 2"]);
            if trains {
                known(WORKER, &["num_train_epochs * 0.5"]);
            }
        }
        FailureKind::Silent => {
            known(STUCK, &["limits.silence_limit_s * 4", "try again"]);
            known(STUCK, if trains { &[HALF_THE_BATCH] } else { &["batch_size * 0.5"] });
        }
        FailureKind::Diverged => {
            known(NOT_A_NUMBER, &["learning_rate * 0.1", "dtype = \"f32\", learning_rate * 0.1"]);
            known(NOT_A_NUMBER, &["warmup_ratio = 0.1, learning_rate * 0.3", "max_grad_norm = 1"]);
            known(WORKER, &["on_divergence = \"roll_back\""]);
        }
        FailureKind::NothingToLearn => {
            // Where it is not the length that leaves nothing, more of it brings nothing.
            if failure.message.contains("max_seq_length") {
                known(WORKER, &["max_seq_length = fit"]);
                known("ymcui/Chinese-LLaMA-Alpaca-3#29", &["max_seq_length * 2", "max_seq_length * 8"]);
            }
            known(WORKER, &["outside: mend_dataset"]);
        }
        FailureKind::BadDataset => {
            // Rows are rendered by the model's own template, which may be what is wrong; and is, if it leaves turns out.
            let of_template = failure.message.contains("chat template");
            let both = ["outside: mend_dataset", "outside: mend_model"];
            match (of_template, failure.message.contains("does not show")) {
                (true, true) => known(WORKER, &[both[1], both[0]]),
                (true, false) => known(WORKER, &both),
                (false, _) => known(WORKER, &both[..1]),
            }
        }
        FailureKind::BadModel => known(WORKER, &["outside: mend_model"]),
        FailureKind::UnsupportedModel => known(WORKER, &["outside: choose_model"]),
        FailureKind::BadOption => {
            let says = failure.message.to_lowercase();
            if says.contains("dtype") || says.contains("bf16") {
                known(WORKER, &["dtype = \"f32\""]);
            }
            if matches!(spec, JobSpec::Quantize(_)) {
                known("the K-quants' blocks of 256", &["quant_type = \"Q8_0\""]);
            }
            // What was named in vain may as well not be named.
            found.extend(defaults(failure, spec));
        }
        FailureKind::InputFailed => known(WORKER, &["outside: mend_input"]),
        FailureKind::NotFound => {
            // What was in the store and is gone can be brought again; what never was has another name.
            if failure.hint.contains("load the dataset again") {
                known(WORKER, &["outside: mend_dataset"]);
            }
            known(GATED, &["outside: correct_name"]);
        }
        FailureKind::AccessDenied => known(GATED, &["outside: get_access"]),
        FailureKind::HubUnavailable => known(CHANCE, &["try again"]),
        FailureKind::ImageMissing => known(ENGINE, &["outside: build_image"]),
        FailureKind::StartFailed => known(ENGINE, &["try again", "outside: mend_host"]),
        FailureKind::Crashed | FailureKind::Unexplained => {
            if Template::of(&failure.message).system_error() == Some(NO_MORE_PROCESSES) {
                known(ERRNO, &["outside: raise_pids"]);
            }
            known(CHANCE, &["try again"]);
            known(WORKER, &["outside: mend_worker"]);
        }
        FailureKind::ContractBroken => known(WORKER, &["outside: mend_image", "try again"]),
        FailureKind::ArtifactRejected => known(WORKER, &["outside: mend_worker"]),
        FailureKind::EngineLost => known(CHANCE, &["try again"]),
        FailureKind::NoRoom => known(DISK, &["outside: free_disk", "try again"]),
        FailureKind::Internal => known(CHANCE, &["try again"]),
        FailureKind::GpuOutOfMemory => {
            if trains {
                known(WORKER, &["gradient_checkpointing = true"]);
                known(SMALLER_BATCH, &[HALF_THE_BATCH]);
                known(SMALLER_BATCH, &["method = \"qlora\"", "max_seq_length * 0.5"]);
            } else {
                known(WORKER, &["batch_size * 0.5"]);
            }
        }
        FailureKind::GpuMissing => known(ENGINE, &["outside: mend_host"]),
        FailureKind::GpuDriver => known("huggingface/candle#2237, #2498", &["outside: mend_driver"]),
        FailureKind::GpuFault => known("NVIDIA's catalogue of Xid errors", &["try again", "outside: mend_worker"]),
        FailureKind::GpuHardware => known("NVIDIA's catalogue of Xid errors", &["outside: another_gpu", "try again"]),
        FailureKind::GpuLost => known("NVIDIA's catalogue of Xid errors", &["try again"]),
        FailureKind::NotPermitted => known(OWN, &["outside: mend_worker"]),
    }
    found
}

/// Options without a default.
const MUST_BE_NAMED: [&str; 3] = ["model", "dataset", "adapter"];

/// Options that the failure names, or one of whose words it repeats, as they are where nobody names them.
fn defaults(failure: &Failure, spec: &JobSpec) -> Vec<Rule> {
    let Ok(Value::Object(document)) = serde_json::to_value(spec) else { return Vec::new() };
    let Some(Value::Object(options)) = document.get(spec.kind()) else { return Vec::new() };
    let words: Vec<&str> = failure.message.split(|c: char| c.is_whitespace() || "`'\",;:()".contains(c)).collect();
    let says = |option: &str| {
        failure.message.contains(&format!("`{option}`")) || option.contains('_') && words.contains(&option)
    };
    let meant = |(option, value): &(&String, &Value)| {
        !MUST_BE_NAMED.contains(&option.as_str()) && (says(option) || repeats(&words, value))
    };
    let meant = options.iter().filter(meant).map(|(option, _)| option);
    meant.map(|option| Rule { remedy: Remedy::edit(option, To::Default), source: WORKER }).collect()
}

/// Whether one of the words is a text that the value holds.
fn repeats(words: &[&str], value: &Value) -> bool {
    match value {
        Value::String(text) => words.contains(&text.as_str()),
        Value::Array(values) => values.iter().any(|value| repeats(words, value)),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| words.contains(&name.as_str()) || repeats(words, value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether the same again may well pass: then a share of what is tried by itself is tried unchanged, so that what
/// passes by chance is not put to a remedy's credit.
#[must_use]
pub fn may_pass(kind: FailureKind) -> bool {
    kind.retryable()
        || matches!(kind, FailureKind::Crashed | FailureKind::Unexplained | FailureKind::Silent | FailureKind::GpuFault)
}

/// Whether a checkpoint can be gone on from after such a failure: not if it, or what made it, may be what was wrong.
#[must_use]
pub fn checkpoint_holds(kind: FailureKind) -> bool {
    match kind {
        FailureKind::BadDataset
        | FailureKind::NothingToLearn
        | FailureKind::BadModel
        | FailureKind::UnsupportedModel
        | FailureKind::BadOption
        | FailureKind::Diverged
        | FailureKind::InputFailed
        | FailureKind::ContractBroken
        | FailureKind::ArtifactRejected => false,
        FailureKind::OutOfMemory
        | FailureKind::GpuOutOfMemory
        | FailureKind::GpuMissing
        | FailureKind::GpuDriver
        | FailureKind::GpuFault
        | FailureKind::GpuHardware
        | FailureKind::GpuLost
        | FailureKind::NotPermitted
        | FailureKind::DiskFull
        | FailureKind::TimeLimit
        | FailureKind::Silent
        | FailureKind::NotFound
        | FailureKind::AccessDenied
        | FailureKind::HubUnavailable
        | FailureKind::ImageMissing
        | FailureKind::StartFailed
        | FailureKind::Crashed
        | FailureKind::Unexplained
        | FailureKind::EngineLost
        | FailureKind::NoRoom
        | FailureKind::Internal => true,
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::{FinetuneArgs, JobArgs, QuantizeArgs};

    use super::*;

    fn specs() -> [JobSpec; 3] {
        let finetune = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        let quantize = QuantizeArgs {
            model: "m".into(),
            quant_type: Some(drydock_spec::quantize::QuantType::Q4_K_M),
            ..QuantizeArgs::default()
        };
        let evaluate: JobArgs = serde_json::from_str(r#"{"evaluate": {"model": "m", "dataset": "d"}}"#).unwrap();
        [
            JobArgs::Finetune(finetune).parse().unwrap(),
            JobArgs::Quantize(quantize).parse().unwrap(),
            evaluate.parse().unwrap(),
        ]
    }

    #[test]
    fn there_is_something_to_do_about_every_kind_of_failure() {
        for kind in FailureKind::ALL.into_iter().filter(|kind| *kind != FailureKind::BadOption) {
            assert!(!rules(&Failure::new(kind, "x"), &specs()[0]).is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn every_text_is_a_remedy() {
        for text in [HALF_THE_BATCH, FITTING_BATCH] {
            assert!(text.parse::<Remedy>().is_ok(), "{text}");
        }
        // What does not parse would be left out in silence: each kind has as many rules as texts stand above.
        let count = |kind, spec: usize| rules(&Failure::new(kind, "x"), &specs()[spec]).len();
        assert_eq!(count(FailureKind::OutOfMemory, 0), 7);
        assert_eq!(count(FailureKind::OutOfMemory, 2), 3);
        assert_eq!(count(FailureKind::DiskFull, 0), 4);
        assert_eq!(count(FailureKind::TimeLimit, 0), 3);
        assert_eq!(count(FailureKind::Silent, 0), 3);
        assert_eq!(count(FailureKind::Diverged, 0), 5);
        let short = Failure::new(FailureKind::NothingToLearn, "all rows are longer than max_seq_length = 8");
        assert_eq!((rules(&short, &specs()[0]).len(), count(FailureKind::NothingToLearn, 0)), (4, 1));
        assert_eq!(count(FailureKind::BadOption, 1), 1);
    }

    #[test]
    fn an_option_that_the_failure_speaks_of_may_have_its_default_again() {
        let args = serde_json::json!({"finetune": {
            "model": "m", "dataset": "d", "method": "full", "trainable": ["*.mlp.*", "blk.77.*"], "learning_rate": 0.5
        }});
        let spec = serde_json::from_value::<JobArgs>(args).unwrap().parse().unwrap();
        let of = |message: &str| -> Vec<String> {
            let failure = Failure::new(FailureKind::BadOption, message);
            rules(&failure, &spec).into_iter().map(|rule| rule.remedy.to_string()).collect()
        };
        assert_eq!(of("the pattern `blk.77.*` fits none of the names"), ["trainable = default"]);
        assert_eq!(of("`learning_rate` is beyond what the model `m` takes"), ["learning_rate = default"]);
        assert_eq!(of("something else"), [""; 0]);
    }

    #[test]
    fn a_full_scratch_space_and_too_few_processes_are_known_by_what_was_printed() {
        let first = |kind, message: &str| rules(&Failure::new(kind, message), &specs()[0])[0].remedy.to_string();
        let full =
            |path: &str| first(FailureKind::DiskFull, &format!("it had printed: cannot write {path}: os error 28"));
        assert_eq!([full("/tmp/x"), full("/out/x")], ["outside: raise_tmp", "limits.disk_mib = fit"]);
        let spawned = "failed to spawn thread: Os { code: 11, kind: WouldBlock, message: \"x\" }";
        assert_eq!(first(FailureKind::Crashed, spawned), "outside: raise_pids");
        assert_eq!(first(FailureKind::Crashed, "SIGSEGV"), "try again");
    }

    #[test]
    fn what_changes_nothing_that_is_learnt_comes_first() {
        let of_memory = rules(&Failure::new(FailureKind::OutOfMemory, "x"), &specs()[0]);
        assert_eq!(of_memory[0].remedy.to_string(), "limits.memory_mib = fit");
        assert_eq!(of_memory[1].remedy.to_string(), "gradient_checkpointing = true");
        assert_eq!(of_memory.last().unwrap().remedy.to_string(), "max_seq_length * 0.5");
    }
}
