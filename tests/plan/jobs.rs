//! Models out of jobs: what `job:<id>` stands for, and what is said where it stands for nothing.

use std::path::PathBuf;

use drydock::artifacts::{Caps, Wanted};
use drydock::plan::AdapterInput;
use drydock::store::{Holder, Lease, NewJob};
use drydock_spec::finetune::{Keep, Method};
use drydock_spec::quantize::QuantType;
use drydock_spec::{
    EvaluateArgs, Failure, FailureKind, JobId, OnFailure, Outcome, Owner, Priority, QuantizeArgs, TraceId, TrainArgs,
};

use super::*;

async fn planned(house: &House, job: JobArgs) -> Result<Plan, String> {
    plan_job(engine(8 * GIB), house, job, LimitArgs::default()).await.map_err(|error| error.to_string())
}

/// Queues the job as the gateway would.
pub(crate) async fn submit(house: &House, job: JobArgs) -> JobId {
    submit_with(house, job, LimitArgs::default()).await
}

pub(crate) async fn submit_with(house: &House, job: JobArgs, limits: LimitArgs) -> JobId {
    let plan = plan_job(engine(8 * GIB), house, job, limits).await.unwrap();
    let new = NewJob {
        id: JobId::from_parts(1, rand::random()),
        owner: Owner::local(),
        trace_id: TraceId::from_bits(1),
        spec: plan.spec,
        inputs: plan.inputs,
        limits: plan.limits,
        estimate: Some(plan.estimate),
        priority: Priority::default(),
        idempotency_key: None,
        request_digest: "r".into(),
        on_failure: OnFailure::Ask,
        remedy: None,
    };
    house.store.submit(new).await.unwrap().job.id
}

pub(crate) async fn claim(house: &House, id: JobId) -> Lease {
    let holder = Holder { name: "a".into(), lease_ms: 30_000 };
    house.store.claim(id, &holder).await.unwrap().unwrap()
}

/// The job does its work and leaves these files.
async fn succeed(house: &House, id: JobId, files: Vec<(String, Vec<u8>)>) {
    let lease = claim(house, id).await;
    let output = house.data(&format!("out-{id}"));
    for (path, bytes) in files {
        let path = output.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let caps = Caps::of_disk(1 << 30);
    let artifacts = house.artifacts.collect(id, &output, caps, &Wanted::AllButCheckpoints).unwrap();
    lease.finish(Outcome::Succeeded, &artifacts, 0).await.unwrap();
}

fn within(folder: &str, files: Vec<(&str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    files.into_iter().map(|(name, bytes)| (format!("{folder}/{name}"), bytes)).collect()
}

fn adapter() -> Vec<(String, Vec<u8>)> {
    let config = json!({"peft_type": "LORA", "r": 4}).to_string().into_bytes();
    within("adapter", vec![("adapter_config.json", config), ("adapter_model.safetensors", b"weights".to_vec())])
}

fn merged() -> Vec<(String, Vec<u8>)> {
    within("merged", tiny::hugging_face())
}

fn quantize(model: String) -> JobArgs {
    JobArgs::Quantize(QuantizeArgs { model, quant_type: Some(QuantType::Q8_0), ..QuantizeArgs::default() })
}

fn keep(keep: Keep) -> JobArgs {
    JobArgs::Finetune(FinetuneArgs { keep: Some(keep), ..args() })
}

fn job(id: JobId) -> String {
    format!("job:{id}")
}

/// Where the model's files are.
async fn folder(house: &House, plan: &Plan) -> PathBuf {
    house.models.ensure(plan.inputs.model.as_ref().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_merged_model_is_a_model_by_its_digest() {
    let house = house().await;
    let id = submit(&house, keep(Keep::Both)).await;
    succeed(&house, id, [adapter(), merged()].concat()).await;
    let plan = planned(&house, quantize(job(id))).await.unwrap();
    let model = plan.inputs.model.clone().unwrap();
    assert!(matches!(&model.source, ModelSource::Stored { digest } if digest.len() == 64), "{model:?}");
    assert_eq!(model.adapter, None);
    let files = folder(&house, &plan).await;
    assert!(files.join("config.json").exists() && files.join("model.safetensors").exists());
    // What jobs were accepted with stays, whatever becomes of the artifacts.
    house.artifacts.remove(id).unwrap();
    assert!(folder(&house, &plan).await.join("config.json").exists());
}

#[tokio::test]
async fn an_adapter_alone_stands_for_its_model_with_it() {
    let house = house().await;
    let id = submit(&house, JobArgs::Finetune(args())).await;
    succeed(&house, id, adapter()).await;
    let base = planned(&house, JobArgs::Finetune(args())).await.unwrap().inputs.model.unwrap();
    let model = planned(&house, quantize(job(id))).await.unwrap().inputs.model.unwrap();
    assert_eq!(model.source, base.source);
    let over = model.adapter.unwrap();
    let files = house.models.ensure_adapter(&over).await.unwrap();
    assert_eq!(fs::read(files.join("adapter_model.safetensors")).unwrap(), b"weights");

    let named = QuantizeArgs { model: "tiny".into(), adapter: Some(job(id)), ..QuantizeArgs::default() };
    let named = QuantizeArgs { quant_type: Some(QuantType::Q8_0), ..named };
    let plan = planned(&house, JobArgs::Quantize(named)).await.unwrap();
    assert_eq!(plan.inputs.model.unwrap().adapter, Some(AdapterInput { name: job(id), ..over }));
    assert!(!plan.warnings.iter().any(|warning| warning.contains("was trained on")), "{:?}", plan.warnings);
}

#[tokio::test]
async fn an_adapter_is_gone_on_with_in_its_own_shape() {
    let house = house().await;
    let id = submit(&house, JobArgs::Finetune(FinetuneArgs { lora_r: Some(2), ..args() })).await;
    succeed(&house, id, adapter()).await;
    let on = |change: fn(&mut FinetuneArgs)| {
        let mut args = FinetuneArgs { adapter: Some(job(id)), lora_r: None, ..args() };
        change(&mut args);
        JobArgs::Finetune(args)
    };
    let JobSpec::Finetune(spec) = planned(&house, on(|_| {})).await.unwrap().spec else { panic!() };
    assert_eq!((spec.lora_r, spec.lora_alpha), (2, 4.0));
    let other = planned(&house, on(|args| args.lora_r = Some(4))).await.unwrap();
    assert!(other.warnings.iter().any(|text| text.starts_with("the adapter keeps its lora_r = 2")), "{other:?}");
    let dora = planned(&house, on(|args| args.method = Some(Method::Dora))).await.unwrap_err();
    assert!(dora.contains("was made without DoRA's magnitudes; choose method \"lora\""), "{dora}");
    let whole = FinetuneArgs { model: job(id), method: Some(Method::Full), ..args() };
    let refused = planned(&house, JobArgs::Finetune(whole)).await.unwrap_err();
    assert!(refused.contains("is an adapter over its model; merge it first"), "{refused}");
    let twice = FinetuneArgs { model: job(id), adapter: Some(job(id)), ..args() };
    let refused = planned(&house, JobArgs::Finetune(twice)).await.unwrap_err();
    assert!(refused.contains("is an adapter over its model already"), "{refused}");
}

#[tokio::test]
async fn one_of_several_results_is_named_by_its_path() {
    let house = house().await;
    let id = submit(&house, quantize("tiny".into())).await;
    let gguf = Gguf::tiny().bytes();
    succeed(&house, id, vec![("a.gguf".into(), gguf.clone()), ("b.gguf".into(), gguf)]).await;
    let refused = planned(&house, quantize(job(id))).await.unwrap_err();
    assert!(refused.contains("the job left several: `a.gguf`, `b.gguf`; put the path of one of them"), "{refused}");
    let plan = planned(&house, quantize(format!("{}/b.gguf", job(id)))).await.unwrap();
    assert!(folder(&house, &plan).await.join("model.gguf").exists());
}

#[tokio::test]
async fn a_job_that_left_no_model_is_refused_with_what_it_left() {
    let house = house().await;
    let evaluation = EvaluateArgs { model: "tiny".into(), dataset: "sums".into(), ..EvaluateArgs::default() };
    let id = submit(&house, JobArgs::Evaluate(evaluation)).await;
    let waiting = planned(&house, quantize(job(id))).await.unwrap_err();
    assert!(waiting.contains("is an evaluation and leaves no model"), "{waiting}");
    succeed(&house, id, vec![("results.json".into(), b"{}".to_vec())]).await;
    let refused = planned(&house, quantize(job(id))).await.unwrap_err();
    assert!(refused.contains("the job left neither a model nor an adapter, not a whole model"), "{refused}");
    let adapter = FinetuneArgs { adapter: Some(job(id)), ..args() };
    let refused = planned(&house, JobArgs::Finetune(adapter)).await.unwrap_err();
    assert!(refused.contains("is of the kind evaluate and leaves no adapter"), "{refused}");

    let id = submit(&house, JobArgs::Finetune(args())).await;
    let failure = Failure::new(FailureKind::Diverged, "the loss is NaN");
    claim(&house, id).await.finish(Outcome::Failed(failure), &[], 0).await.unwrap();
    let refused = planned(&house, quantize(job(id))).await.unwrap_err();
    assert!(refused.contains("failed: training diverged: the loss is NaN, so it left nothing"), "{refused}");
    let nobody = planned(&house, quantize(job(JobId::from_parts(9, 9)))).await.unwrap_err();
    assert!(nobody.contains("no job `") && nobody.contains("list_jobs shows"), "{nobody}");
    let nonsense = planned(&house, quantize("job:last".into())).await.unwrap_err();
    assert!(nonsense.contains("`last` is not a job id"), "{nonsense}");
}

#[tokio::test]
async fn a_chain_is_planned_before_any_of_it_has_run() {
    let house = house().await;
    let finetune = submit(&house, JobArgs::Finetune(args())).await;
    let quantization = submit(&house, quantize(job(finetune))).await;
    let compared = vec![drydock_spec::evaluate::Compared { model: job(quantization), adapter: None }];
    let args = EvaluateArgs {
        model: "tiny".into(),
        adapter: Some(job(finetune)),
        compare_with: Some(compared),
        dataset: "sums".into(),
        ..EvaluateArgs::default()
    };
    let plan = planned(&house, JobArgs::Evaluate(args.clone())).await.unwrap();
    let mut both = vec![finetune, quantization];
    both.sort_unstable();
    assert_eq!(plan.inputs.awaited(), both);
    let evaluation = submit(&house, JobArgs::Evaluate(args)).await;

    succeed(&house, finetune, adapter()).await;
    succeed(&house, quantization, vec![("model-Q8_0.gguf".into(), Gguf::tiny().bytes())]).await;
    let lease = claim(&house, evaluation).await;
    let inputs = &lease.job().inputs;
    let adapter = inputs.model.as_ref().unwrap().adapter.as_ref().unwrap();
    assert!(house.models.ensure_adapter(adapter).await.unwrap().join("adapter_config.json").exists());
    assert!(house.models.ensure(&inputs.compared[0]).await.unwrap().join("model.gguf").exists());
}

#[tokio::test]
async fn what_a_job_will_leave_is_known_from_its_options() {
    let house = house().await;
    let training = TrainArgs { dataset: "sums".into(), ..TrainArgs::default() };
    let training = submit(&house, JobArgs::Train(training)).await;
    // The shape of size mini takes a rank that the tiny model would not.
    let wide = FinetuneArgs { model: job(training), lora_r: Some(64), ..args() };
    let plan = planned(&house, JobArgs::Finetune(wide)).await.unwrap();
    assert_eq!(plan.inputs.awaited(), [training]);
    let merging = submit(&house, keep(Keep::Merged)).await;
    let refused = FinetuneArgs { adapter: Some(job(merging)), ..args() };
    let refused = planned(&house, JobArgs::Finetune(refused)).await.unwrap_err();
    assert!(refused.contains("will leave a whole model and no adapter; give it as `model`"), "{refused}");
    let early = planned(&house, quantize(format!("{}/merged", job(merging)))).await.unwrap_err();
    assert!(early.contains("is queued, so its files are not known yet"), "{early}");
}

#[tokio::test]
async fn an_adapter_goes_only_over_a_model_of_its_shape() {
    let house = house().await;
    let id = submit(&house, JobArgs::Finetune(args())).await;
    succeed(&house, id, adapter()).await;
    let training = TrainArgs { dataset: "sums".into(), ..TrainArgs::default() };
    let other = submit(&house, JobArgs::Train(training)).await;
    let over = FinetuneArgs { model: job(other), adapter: Some(job(id)), ..args() };
    let refused = planned(&house, JobArgs::Finetune(over)).await.unwrap_err();
    assert!(refused.contains("was trained on `tiny`, whose shape is not that of"), "{refused}");

    let quantization = submit(&house, quantize("tiny".into())).await;
    let over = FinetuneArgs { model: job(quantization), adapter: Some(job(id)), ..args() };
    let plan = planned(&house, JobArgs::Finetune(over)).await.unwrap();
    assert!(plan.warnings.iter().any(|text| text.contains("was trained on `tiny`, and is put on")), "{plan:?}");
}

#[tokio::test]
async fn what_a_job_left_can_have_a_name_of_its_own() {
    let house = house().await;
    let id = submit(&house, keep(Keep::Merged)).await;
    let early = house.add(&job(id)).await.unwrap_err().to_string();
    assert!(early.contains("is queued; add it when the job has succeeded"), "{early}");
    succeed(&house, id, merged()).await;
    let request = drydock::api::AddModel { name: Some("mine".into()), source: Some(job(id)), files: vec![] };
    let added = house.models.add(request).await.unwrap();
    assert_eq!((added.name.as_str(), added.origin), ("mine", job(id)));
    assert!(planned(&house, quantize("mine".into())).await.is_ok());
}
