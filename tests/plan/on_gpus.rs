//! Plans for a host with a GPU: what fits it, what is chosen so that it does, and what is refused.

use drydock::sandbox::EngineInfo;
use drydock::sandbox::gpus::{GpuAccess, Injector};
use drydock_gpu::inventory::{Gpu, Inventory, Memory};
use drydock_spec::EvaluateArgs;
use drydock_spec::evaluate::Measure;

use super::*;

/// A host with one GPU of so much memory, on which the worker computes a job.
async fn plan_with_gpu(house: &House, bytes: u64, args: FinetuneArgs, limits: LimitArgs) -> Result<Plan, PlanError> {
    plan_job_with_gpus(house, (1, bytes), JobArgs::Finetune(args), limits).await
}

async fn plan_job_with_gpu(house: &House, bytes: u64, job: JobArgs, limits: LimitArgs) -> Result<Plan, PlanError> {
    plan_job_with_gpus(house, (1, bytes), job, limits).await
}

/// A host with so many GPUs of so much memory each, on all of which the worker computes a training.
async fn plan_job_with_gpus(
    house: &House,
    (count, bytes): (u32, u64),
    job: JobArgs,
    limits: LimitArgs,
) -> Result<Plan, PlanError> {
    let memory = Memory { total_bytes: bytes, reserved_bytes: 0, free_bytes: bytes };
    let gpu = move |at: u32| Gpu { uuid: format!("GPU-{at}"), name: "NVIDIA L4".into(), memory, ..Gpu::default() };
    let known = KnownGpus::asked(move || Inventory { gpus: (1..=count).map(gpu).collect(), ..Inventory::default() });
    let units = count as usize;
    let access = GpuAccess { units, most_gpus: count, injection: Ok(Injector::Cdi), ..GpuAccess::default() };
    let engine = EngineWatch::still(Ok(EngineInfo { gpus: access, ..engine_with(4, 8 * GIB) }));
    house.planner(engine, known).plan(job, &limits).await
}

/// The tiny model with more rows in a pass than a small GPU has room for.
fn wide(rows: u32) -> FinetuneArgs {
    FinetuneArgs { max_seq_length: Some(128), packing: Some(true), ..with_rows(rows) }
}

fn on_gpu(plan: &Plan) -> u64 {
    plan.estimate.needs[&Quantity::GpuMemory].expected
}

#[tokio::test]
async fn a_finetune_gets_the_gpu_without_asking_and_its_plan_says_what_it_needs_of_it_by_part() {
    let house = house().await;
    let plan = plan_with_gpu(&house, 24 * GIB, args(), LimitArgs::default()).await.unwrap();
    assert_eq!(plan.limits.gpus, 1);
    let need = &plan.estimate.needs[&Quantity::GpuMemory];
    assert_eq!(need.parts.values().sum::<u64>(), need.expected);
    assert!(need.parts.contains_key("context") && need.range.is_none(), "nothing was measured: {need:?}");
    let cpu = LimitArgs { gpus: Some(0), ..LimitArgs::default() };
    let plan = plan_with_gpu(&house, 24 * GIB, args(), cpu).await.unwrap();
    assert!(plan.limits.gpus == 0 && !plan.estimate.needs.contains_key(&Quantity::GpuMemory));
}

#[tokio::test]
async fn several_gpus_hold_the_whole_model_each_and_what_they_exchange() {
    let house = house().await;
    let plan = async |gpus: u32| {
        let limits = LimitArgs { gpus: Some(gpus), ..LimitArgs::default() };
        plan_job_with_gpus(&house, (2, 24 * GIB), JobArgs::Finetune(args()), limits).await.unwrap()
    };
    let (one, two) = (plan(1).await, plan(2).await);
    assert_eq!(two.limits.gpus, 2);
    let exchanged = two.estimate.needs[&Quantity::GpuMemory].parts["exchange"];
    assert_eq!(on_gpu(&two), on_gpu(&one) + exchanged, "the rest is as on one");
    assert!(two.limits.memory_bytes > one.limits.memory_bytes, "and of the host each takes some");
    let few = FinetuneArgs { per_device_train_batch_size: Some(1), gradient_accumulation_steps: Some(1), ..args() };
    let limits = LimitArgs { gpus: Some(2), ..LimitArgs::default() };
    let refused =
        plan_job_with_gpus(&house, (2, 24 * GIB), JobArgs::Finetune(few), limits).await.unwrap_err().to_string();
    assert!(refused.contains("2 GPUs need as many rows in a step, and it has 1"), "{refused}");
}

#[tokio::test]
async fn what_no_gpu_of_the_host_has_room_for_is_refused_with_a_change_that_is_accepted() {
    let house = house().await;
    let most = on_gpu(&plan_with_gpu(&house, 24 * GIB, wide(4096), LimitArgs::default()).await.unwrap());
    // Below what the formula may be wrong by, and above what every process takes of a GPU.
    let small = (most as f64 / 1.3) as u64;
    let refused = plan_with_gpu(&house, small, wide(4096), LimitArgs::default()).await.unwrap_err().to_string();
    assert!(refused.contains("of a GPU's memory") && refused.contains("set limits.gpus to 0"), "{refused}");
    let rows: u32 = refused
        .split("lower per_device_train_batch_size to ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.trim_end_matches(',').parse().ok())
        .unwrap_or_else(|| panic!("{refused}"));
    let plan = plan_with_gpu(&house, small, wide(rows), LimitArgs::default()).await.unwrap();
    assert!(on_gpu(&plan) <= small);
    let cpu = LimitArgs { gpus: Some(0), ..LimitArgs::default() };
    assert_eq!(plan_with_gpu(&house, small, wide(4096), cpu).await.unwrap().limits.gpus, 0);
}

#[tokio::test]
async fn what_is_left_to_the_plan_is_chosen_so_that_it_fits_the_gpu() {
    let house = house().await;
    let auto = FinetuneArgs { auto: Some(vec![Auto::BatchSize]), ..wide(4096) };
    let most = on_gpu(&plan_with_gpu(&house, 24 * GIB, auto.clone(), LimitArgs::default()).await.unwrap());
    // Below what the formula may be wrong by, and above what every process takes of a GPU.
    let small = (most as f64 / 1.3) as u64;
    let plan = plan_with_gpu(&house, small, auto, LimitArgs::default()).await.unwrap();
    let JobSpec::Finetune(spec) = &plan.spec else { panic!("{:?}", plan.spec) };
    let recipe = &spec.recipe;
    assert!(on_gpu(&plan) <= small && recipe.per_device_train_batch_size < 4096, "{recipe:?}");
    assert_eq!(recipe.rows_per_step(), 4096, "a step learns from as many rows");
}

fn evaluation(rows: u32) -> JobArgs {
    JobArgs::Evaluate(EvaluateArgs {
        model: "tiny".into(),
        dataset: "sums".into(),
        measures: Some(vec![Measure::ExactMatch]),
        batch_size: Some(rows),
        ..EvaluateArgs::default()
    })
}

#[tokio::test]
async fn an_evaluation_gets_the_gpu_without_asking_and_is_refused_where_it_does_not_fit() {
    let house = house().await;
    let plan = |bytes, rows, limits| plan_job_with_gpu(&house, bytes, evaluation(rows), limits);
    let large = plan(24 * GIB, 1024, LimitArgs::default()).await.unwrap();
    assert_eq!(large.limits.gpus, 1);
    let parts = &large.estimate.needs[&Quantity::GpuMemory].parts;
    assert!(parts["cache"] > parts["weights"], "1024 answers are remembered at once: {parts:?}");
    let cpu = LimitArgs { gpus: Some(0), ..LimitArgs::default() };
    assert!(!plan(GIB, 1024, cpu).await.unwrap().estimate.needs.contains_key(&Quantity::GpuMemory));
    // Below what the formula may be wrong by, and above what every process takes of a GPU.
    let small = (on_gpu(&large) as f64 / 1.3) as u64;
    let refused = plan(small, 1024, LimitArgs::default()).await.unwrap_err().to_string();
    assert!(refused.contains("of a GPU's memory") && refused.contains("set limits.gpus to 0"), "{refused}");
}
