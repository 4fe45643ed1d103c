//! Plans: what would be done for a job, and why some jobs are refused before anything is queued.

#![allow(clippy::unwrap_used, reason = "the steps that tests share may panic as tests do")]

mod foresight;
#[path = "../support/house.rs"]
mod house;
mod jobs;
mod kinds;
mod on_gpus;
#[path = "../support/tiny.rs"]
mod tiny;

use std::fs;

use bytesize::ByteSize;
use drydock::api::LoadDataset;
use drydock::engine::EngineWatch;
use drydock::plan::forecast::Quantity;
use drydock::plan::{ModelSource, Plan, PlanError};
use drydock::sandbox::SandboxError;
use drydock::sandbox::gpus::KnownGpus;
use drydock_spec::dataset::Columns;
use drydock_spec::finetune::{Method, TargetModule};
use drydock_spec::recipe::Auto;
use drydock_spec::{FinetuneArgs, JobArgs, JobSpec, LimitArgs};
use house::{House, engine_with};
use serde_json::json;
use tiny::Gguf;

const GIB: u64 = 1 << 30;

/// A house with the tiny model and ten sums, and the same sums over and over.
async fn house() -> House {
    furnished(House::open().await).await
}

/// The same of a house of one's own.
async fn furnished(house: House) -> House {
    fs::write(house.data("tiny.gguf"), Gguf::tiny().bytes()).unwrap();
    house.add("tiny.gguf").await.unwrap();
    let rows: String =
        (0..10).map(|i| format!("{{\"prompt\": \"{i}+{i}=\", \"completion\": \"{}\"}}\n", i + i)).collect();
    fs::write(house.data("many.jsonl"), rows.repeat(500)).unwrap();
    fs::write(house.data("sums.jsonl"), rows).unwrap();
    for dataset in ["sums.jsonl", "many.jsonl"] {
        house.load(dataset).await.unwrap();
    }
    house
}

fn engine(memory_bytes: u64) -> EngineWatch {
    EngineWatch::still(Ok(engine_with(4, memory_bytes)))
}

fn args() -> FinetuneArgs {
    FinetuneArgs { model: "tiny".into(), dataset: "sums".into(), lora_r: Some(4), ..FinetuneArgs::default() }
}

/// The same with many rows in a forward pass.
fn with_rows(rows: u32) -> FinetuneArgs {
    FinetuneArgs { dataset: "many".into(), per_device_train_batch_size: Some(rows), ..args() }
}

async fn plan_job(engine: EngineWatch, house: &House, job: JobArgs, limits: LimitArgs) -> Result<Plan, PlanError> {
    house.planner(engine, KnownGpus::none()).plan(job, &limits).await
}

async fn plan_on(engine: EngineWatch, house: &House, args: FinetuneArgs, limits: LimitArgs) -> Result<Plan, PlanError> {
    plan_job(engine, house, JobArgs::Finetune(args), limits).await
}

async fn plan(house: &House, args: FinetuneArgs) -> Result<Plan, PlanError> {
    plan_on(engine(8 * GIB), house, args, LimitArgs::default()).await
}

async fn refusal(house: &House, args: FinetuneArgs) -> String {
    plan(house, args).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_plan_fixes_inputs_and_fills_in_every_limit() {
    let house = house().await;
    let plan = plan(&house, args()).await.unwrap();
    let digest = house.models.list().await.unwrap().remove(0).digest;
    assert_eq!(plan.inputs.model.unwrap().source, ModelSource::Stored { digest });
    assert_eq!(
        plan.inputs.dataset.unwrap().digest,
        house.datasets.list().await.unwrap().into_iter().find(|rows| rows.name == "sums").unwrap().digest
    );
    assert_eq!((plan.limits.cpu_millis, plan.limits.pids, plan.limits.max_attempts), (4000, 512, 3));
    assert_eq!(plan.limits.memory_bytes % (1 << 20), 0);
    assert!(plan.limits.memory_bytes > plan.estimate.memory_bytes + (64 << 20));
    let parts = &plan.estimate.needs[&Quantity::Memory].parts;
    assert_eq!(parts.values().sum::<u64>(), plan.estimate.memory_bytes);
    let range = plan.estimate.range(Quantity::Memory).unwrap();
    assert!((range.low..=range.high).contains(&plan.estimate.memory_bytes), "{range:?}");
    assert_eq!((range.of_100, range.jobs), (90, 0), "nothing was measured here yet");
    assert_eq!(plan.estimate.range(Quantity::Time), None, "and nobody knows how fast it is");
    assert_eq!(plan.estimate.trainable_parameters, 2 * 4 * (2 * 16 + 2 * 12 + 3 * 24));
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_asked_for_comes_before_what_is_estimated() {
    let house = house().await;
    let limits = LimitArgs {
        memory_mib: Some(64),
        cpus: Some(1.5),
        disk_mib: Some(100),
        time_limit_s: Some(60),
        silence_limit_s: Some(7),
        max_attempts: Some(1),
        gpus: None,
        gpu_memory_mib: None,
    };
    let large = with_rows(2048);
    let plan = plan_on(engine(8 * GIB), &house, large, limits).await.unwrap();
    assert_eq!((plan.limits.memory_bytes, plan.limits.cpu_millis, plan.limits.disk_bytes), (64 << 20, 1500, 100 << 20));
    assert_eq!((plan.limits.time_ms, plan.limits.silence_ms, plan.limits.max_attempts), (60_000, 7_000, 1));
    assert!(plan.warnings[0].contains("limits.memory_mib = 64 is below"), "{:?}", plan.warnings);
}

#[tokio::test]
async fn every_wrong_option_and_limit_is_named_at_once() {
    let house = house().await;
    let wrong = FinetuneArgs { learning_rate: Some(7.0), ..args() };
    let limits = LimitArgs { cpus: Some(0.0), ..LimitArgs::default() };
    let error = plan_on(engine(GIB), &house, wrong, limits).await.unwrap_err().to_string();
    assert!(error.contains("learning_rate = 7") && error.contains("cpus = 0"), "{error}");

    let wrong = FinetuneArgs { max_seq_length: Some(512), lora_r: Some(8), ..args() };
    let error = refusal(&house, wrong).await;
    let expected = "max_seq_length = 512: the model takes 128 tokens at most; choose at most 128, or leave it out\n\
                    lora_r = 8: the narrowest of the target modules has 4 inputs or outputs; choose at most 4; 8 to 64 is usual";
    assert_eq!(error, expected);
    let wide = FinetuneArgs { lora_r: Some(8), target_modules: Some(vec![TargetModule::QProj]), ..args() };
    assert!(plan(&house, wide).await.is_ok());
}

#[tokio::test]
async fn a_job_that_is_too_large_for_the_host_is_refused_with_a_change_that_is_accepted() {
    let house = house().await;
    let large = with_rows(4096);
    let small_host = engine(500 << 20);
    let error = plan_on(small_host.clone(), &house, large.clone(), LimitArgs::default()).await.unwrap_err().to_string();
    assert!(error.starts_with("per_device_train_batch_size = 4096: the job needs about "), "{error}");
    assert!(
        error.contains("jobs may use 400.0 MiB on this host; set gradient_checkpointing to true, or lower"),
        "{error}"
    );
    let offered = |words: &str| -> u32 {
        let rest = error.split(words).nth(1).unwrap();
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let changed = FinetuneArgs {
        per_device_train_batch_size: Some(offered("batch_size to ")),
        gradient_accumulation_steps: Some(offered("accumulation_steps to ")),
        ..large
    };
    assert!(plan_on(small_host, &house, changed, LimitArgs::default()).await.is_ok());
}

#[tokio::test]
async fn what_is_left_to_the_plan_is_chosen_so_that_the_job_fits() {
    let house = house().await;
    let large = with_rows(4096);
    let on = async |auto: &[Auto], limits| {
        plan_on(engine(500 << 20), &house, FinetuneArgs { auto: Some(auto.to_vec()), ..large.clone() }, limits).await
    };
    assert!(on(&[], LimitArgs::default()).await.is_err());
    let plan = on(&[Auto::BatchSize], LimitArgs::default()).await.unwrap();
    let recipe = plan.spec.recipe().unwrap();
    assert_eq!((recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps), (2048, 2));
    assert!(recipe.auto.is_empty() && !recipe.gradient_checkpointing);
    assert!(plan.warnings[0].starts_with("chosen to fit: per_device_train_batch_size = 2048"), "{:?}", plan.warnings);
    let plan = on(&[Auto::GradientCheckpointing], LimitArgs::default()).await.unwrap();
    assert!(plan.spec.recipe().unwrap().gradient_checkpointing);
    // What was asked for is what there is, not what the host has.
    let little = LimitArgs { memory_mib: Some(120), ..LimitArgs::default() };
    let plan = on(&[Auto::BatchSize], little).await.unwrap();
    assert!(plan.estimate.memory_bytes <= 120 << 20, "{:?}", plan.estimate);
    assert_eq!(plan.spec.recipe().unwrap().rows_per_step(), 4096);
    let dora = FinetuneArgs { method: Some(Method::Dora), auto: Some(vec![Auto::Method]), ..args() };
    assert!(refusal(&house, dora).await.contains("auto = method: nothing stands in for dora"));
}

#[tokio::test]
async fn more_than_the_host_has_is_refused_with_what_it_has() {
    let house = house().await;
    let ask = async |limits| plan_on(engine(5 * GIB), &house, args(), limits).await.unwrap_err().to_string();
    let error = ask(LimitArgs { memory_mib: Some(8192), cpus: Some(8.0), ..LimitArgs::default() }).await;
    assert!(
        error.contains("limits.memory_mib = 8192: jobs may use 4.0 GiB on this host; choose at most 4096"),
        "{error}"
    );
    assert!(error.contains("limits.cpus = 8: jobs may use 4 CPUs on this host; choose at most 4"), "{error}");
}

#[tokio::test]
async fn a_job_whose_artifacts_do_not_fit_is_refused() {
    let house = House::with(|config| config.limits.disk = ByteSize::kib(100)).await;
    fs::write(house.data("tiny.gguf"), Gguf::tiny().bytes()).unwrap();
    house.add("tiny.gguf").await.unwrap();
    fs::write(house.data("sums.jsonl"), "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
    house.load("sums.jsonl").await.unwrap();
    let error = refusal(&house, args()).await;
    assert!(error.contains("limits.disk_mib = 0: the artifacts need about 1.0 MiB; choose at least 2"), "{error}");
}

#[tokio::test]
async fn an_engine_that_is_away_or_lacks_the_image_is_only_warned_of() {
    let house = house().await;
    let away = EngineWatch::still(Err(SandboxError::Unreachable("connection refused".into())));
    let warnings = plan_on(away, &house, args(), LimitArgs::default()).await.unwrap().warnings;
    assert!(warnings[0].contains("not compared with what this host can give"), "{warnings:?}");
    let mut info = engine(8 * GIB).now().unwrap();
    info.image = Err(SandboxError::ImageMissing("worker".into()));
    let warnings = plan_on(EngineWatch::still(Ok(info)), &house, args(), LimitArgs::default()).await.unwrap().warnings;
    assert!(warnings[0].contains("worker image `worker` is not on this host"), "{warnings:?}");
}

#[tokio::test]
async fn a_single_row_cannot_be_held_out() {
    let house = house().await;
    fs::write(house.data("one.jsonl"), "{\"text\": \"a\"}\n{\"text\": \" \"}\n").unwrap();
    house.load("one.jsonl").await.unwrap();
    let one = FinetuneArgs { dataset: "one".into(), ..args() };
    let error = refusal(&house, one.clone()).await;
    assert!(error.starts_with("test_size = 0.1: the dataset has a single row"), "{error}");
    let plan = plan(&house, FinetuneArgs { test_size: Some(0.0), ..one }).await.unwrap();
    assert_eq!(plan.warnings, ["1 rows of `one` have a blank answer or text and are passed over"]);
}

#[tokio::test]
async fn columns_named_at_loading_are_the_jobs_unless_it_names_its_own() {
    let house = house().await;
    let row = json!({"q": "question", "a": "answer", "n": 1}).as_object().unwrap().clone();
    let named = |prompt: &str, completion: &str| {
        Some(Columns { prompt: Some(prompt.into()), completion: Some(completion.into()), ..Columns::default() })
    };
    let rows = vec![row.clone(), row];
    let load = LoadDataset { name: Some("qa".into()), rows, columns: named("q", "a"), ..LoadDataset::default() };
    house.datasets.load(load).await.unwrap();
    let columns = async |columns| {
        let job = FinetuneArgs { dataset: "qa".into(), columns, ..args() };
        plan(&house, job).await.map(|plan| {
            let JobSpec::Finetune(spec) = plan.spec else { panic!("{:?}", plan.spec) };
            spec.columns
        })
    };
    assert_eq!(columns(None).await.unwrap(), named("q", "a"));
    assert_eq!(columns(named("a", "q")).await.unwrap(), named("a", "q"));
    let error = columns(named("q", "n")).await.unwrap_err().to_string();
    assert!(error.contains("column `n` holds a number"), "{error}");
    let other = FinetuneArgs { eval_dataset: Some("qa".into()), ..args() };
    let error = refusal(&house, other).await;
    assert!(error.contains("no known columns; found `a`, `n`, `q`"), "{error}");
}

#[tokio::test]
async fn unknown_inputs_are_refused_by_name() {
    let house = house().await;
    let error = refusal(&house, FinetuneArgs { model: "tinny".into(), ..args() }).await;
    assert_eq!(error, "no model `tinny`; did you mean `tiny`? there is `tiny`");
    let error = refusal(&house, FinetuneArgs { dataset: "sum".into(), ..args() }).await;
    assert_eq!(error, "no dataset `sum`; did you mean `sums`? there is `many`, `sums`");
    let error = refusal(&house, FinetuneArgs { eval_dataset: Some("held".into()), ..args() }).await;
    assert!(error.starts_with("no dataset `held`"), "{error}");
}
