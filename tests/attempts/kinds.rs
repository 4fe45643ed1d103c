//! Every kind of job on a scripted engine: what its worker says is what people see.

use drydock::api::Part;
use drydock::artifacts::CHECKPOINTS;
use drydock::plan::{AdapterInput, DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock_spec::contract::{ADAPTER_PATH, COMPARED_PATH, DATASET_PATH, MODEL_PATH, SPEC_PATH, TOKENIZER_PATH};
use drydock_spec::evaluate::Measure;
use drydock_spec::quantize::QuantType;
use drydock_spec::report::{Checkpoint, Evaluation, Finished, Phase, Quantized, Score};
use drydock_spec::{AttemptSpec, EvaluateArgs, JobArgs, QuantizeArgs, TrainArgs};

use super::*;

fn model(name: &str) -> ModelInput {
    ModelInput { name: name.into(), source: ModelSource::Stored { digest: "aa".into() }, adapter: None }
}

fn dataset() -> Option<DatasetInput> {
    Some(DatasetInput { name: "d".into(), digest: "bb".into() })
}

fn done() -> Report {
    Report::Finished(Finished { steps: 0, train_loss: None, tokens: 7, peak_rss_bytes: 1 })
}

/// What the worker says, and a file that it leaves.
fn script(says: impl IntoIterator<Item = Report>, path: &'static str) -> Vec<Step> {
    let steps = says.into_iter().map(Step::Say);
    std::iter::once(Step::Say(started()))
        .chain(steps)
        .chain([Step::Make { path, content: b"made" }, Step::Say(done()), exit(0)])
        .collect()
}

fn quantize() -> JobArgs {
    let args = QuantizeArgs { model: "m".into(), quant_type: Some(QuantType::Q4_K_M), ..QuantizeArgs::default() };
    JobArgs::Quantize(args)
}

fn evaluate() -> JobArgs {
    JobArgs::Evaluate(EvaluateArgs { model: "m".into(), dataset: "d".into(), ..EvaluateArgs::default() })
}

fn train() -> JobArgs {
    JobArgs::Train(TrainArgs { dataset: "d".into(), ..TrainArgs::default() })
}

#[tokio::test]
async fn a_quantization_counts_its_tensors_and_tells_what_became_of_them() {
    let quantized = Quantized {
        quant_type: QuantType::Q4_K_M,
        tensors: 20,
        bytes_before: 4 << 20,
        bytes_after: 1 << 20,
        bits_per_weight: 4.9,
        relative_error: 0.0625,
    };
    let progress = Report::Progress { stage: Stage::Quantize, done: 5, total: 20 };
    let mut steps =
        script([Report::Stage { stage: Stage::Quantize }, progress, Report::Quantized(quantized)], "m.gguf");
    steps.insert(3, Step::Pause);
    let world = World::with(scripted([steps])).await;
    let inputs = ResolvedInputs { model: Some(model("m")), ..ResolvedInputs::default() };
    let id = world.submit_job(quantize(), inputs).await;
    let job = world.until(id, |job| job.progress.as_ref().is_some_and(|progress| progress.part.is_some())).await;
    let progress = job.progress.unwrap();
    assert_eq!((progress.part, progress.fraction), (Some(Part { done: 5, total: 20 }), 0.25));
    assert_eq!(job.summary, "attempt 1 is at stage quantize, 5 of 20");
    world.engine.go_on();
    let job = world.until_done(id).await;
    assert_eq!((job.kind.as_str(), job.about.as_str(), job.dataset), ("quantize", "quantize m to Q4_K_M", None));
    let expected = "succeeded: Q4_K_M, 1.0 MiB instead of 4.0 MiB, 4.90 bits a weight, relative error 0.0625";
    assert_eq!(job.summary, expected);
}

#[tokio::test]
async fn an_evaluation_shows_its_scores_side_by_side() {
    let score = |model: &str, metric: &str, value| {
        let (measure, stderr) = (Measure::ExactMatch, Some(0.01));
        Report::Score(Score { model: model.into(), measure, metric: metric.into(), value, stderr, rows: 9 })
    };
    let says = [score("m", "f1", 0.5), score("n", "f1", 0.75), score("n", "f1_difference", 0.25)];
    let world = World::with(scripted([script(says, "results.json")])).await;
    let adapter = AdapterInput { name: "job:a".into(), source: ModelSource::Stored { digest: "aa".into() } };
    let inputs = ResolvedInputs {
        model: Some(ModelInput { adapter: Some(adapter), ..model("m") }),
        compared: vec![model("n")],
        dataset: dataset(),
        ..ResolvedInputs::default()
    };
    let id = world.submit_job(evaluate(), inputs).await;
    let job = world.until_done(id).await;
    assert_eq!(job.scores.len(), 3);
    assert_eq!(job.summary, "succeeded: f1 of m 0.5000, n 0.7500 (better by 0.2500 ± 0.0100)");
    let lines = drydock::scores::lines(&job.scores);
    assert_eq!(lines[2], "  n  0.7500 ± 0.0100  +0.2500 ± 0.0100");
}

#[tokio::test]
async fn a_worker_finds_every_input_where_its_spec_says() {
    let mut steps = success();
    steps.insert(1, Step::Pause);
    let world = World::with(scripted([steps])).await;
    let adapter =
        |name: &str| Some(AdapterInput { name: name.into(), source: ModelSource::Stored { digest: "aa".into() } });
    let inputs = ResolvedInputs {
        model: Some(ModelInput { adapter: adapter("a"), ..model("m") }),
        compared: vec![model("n"), ModelInput { adapter: adapter("b"), ..model("o") }],
        tokenizer: Some(model("t")),
        dataset: dataset(),
        eval_dataset: None,
    };
    let id = world.submit_job(evaluate(), inputs).await;
    world.until(id, |job| job.seq >= 3).await;
    let launch = world.engine.launch().unwrap();
    let source = |target: &str| launch.mounts.iter().find(|mount| mount.target == target).map(|mount| &mount.source);
    let spec: AttemptSpec = serde_json::from_slice(&std::fs::read(source(SPEC_PATH).unwrap()).unwrap()).unwrap();
    let first = spec.inputs.model.unwrap();
    assert_eq!((first.path.as_path(), first.name.as_str()), (MODEL_PATH.as_ref(), "m"));
    assert_eq!(first.adapter.as_deref(), Some(ADAPTER_PATH.as_ref()));
    let second = &spec.inputs.compared[1];
    assert_eq!(second.path, std::path::Path::new(COMPARED_PATH).join("1/model"));
    assert_eq!(spec.inputs.compared[0].adapter, None);
    let named = [first.path, second.path.clone(), second.adapter.clone().unwrap(), first.adapter.unwrap()];
    for path in named.iter().chain(&spec.inputs.tokenizer).chain(&spec.inputs.dataset) {
        assert!(source(path.to_str().unwrap()).is_some_and(|source| source.is_dir()), "{} is mounted", path.display());
    }
    assert_eq!(spec.inputs.tokenizer.as_deref(), Some(TOKENIZER_PATH.as_ref()));
    assert_eq!(spec.inputs.dataset.as_deref(), Some(DATASET_PATH.as_ref()));
    assert_eq!(spec.inputs.eval_dataset, None);
    world.engine.go_on();
    world.until_done(id).await;
}

#[tokio::test]
async fn a_training_tells_of_its_checkpoints_and_leaves_them_behind() {
    let evaluation = |phase, step, loss| {
        Report::Evaluation(Evaluation { phase, step, loss, perplexity: 1.0, tokens: 1, preferences: None })
    };
    let checkpoint = Checkpoint { step: 10, path: format!("{CHECKPOINTS}/step-10"), bytes: 12 };
    let says = [
        evaluation(Phase::Before, None, 4.0),
        evaluation(Phase::During, Some(10), 3.0),
        Report::Checkpoint(checkpoint.clone()),
        evaluation(Phase::After, None, 2.0),
    ];
    let mut steps = script(says, "model/config.json");
    steps.insert(1, Step::Make { path: "checkpoints/step-10/state", content: b"state" });
    let world = World::with(scripted([steps])).await;
    let id = world.submit_job(train(), ResolvedInputs { dataset: dataset(), ..ResolvedInputs::default() }).await;
    let job = world.until_done(id).await;
    assert_eq!(job.summary, "succeeded: held-out loss 4.0000 before, 2.0000 after");
    assert_eq!((job.model, job.evaluations[1].step), (None, Some(10)));
    assert_eq!(job.progress.unwrap().checkpoint, Some(checkpoint));
    let made = world.house.desk.artifacts(id).await.unwrap();
    let paths: Vec<_> = made.artifacts.iter().map(|artifact| artifact.path.as_str()).collect();
    assert_eq!(paths, ["model/config.json"]);
}

#[tokio::test]
async fn the_evidence_of_a_failure_is_kept() {
    let announced = Report::Artifact { path: "evidence.json".into(), role: "evidence".into() };
    let failure = Failure::new(FailureKind::Diverged, "the loss is NaN at step 7").at(Stage::Train);
    let steps = vec![
        Step::Say(started()),
        Step::Make { path: "half.safetensors", content: b"half" },
        Step::Make { path: "evidence.json", content: b"{}" },
        Step::Say(announced),
        Step::Say(Report::Failed(failure)),
        exit(1),
    ];
    let world = World::with(scripted([steps])).await;
    let id = world.submit(limits()).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::Diverged);
    let made = world.house.desk.artifacts(id).await.unwrap();
    assert_eq!(made.artifacts.len(), 1);
    assert_eq!(made.artifacts[0].path, "evidence.json");
}

/// The inputs of a job that quantizes what another one leaves.
fn awaiting(job: JobId) -> ResolvedInputs {
    let source = ModelSource::Awaited { job };
    let model = ModelInput { name: format!("job:{job}"), source, adapter: None };
    ResolvedInputs { model: Some(model), ..ResolvedInputs::default() }
}

#[tokio::test]
async fn a_chain_goes_through_by_itself() {
    let gguf = super::tiny::Gguf::tiny().bytes().leak();
    let mut first = vec![Step::Say(started()), Step::Pause, Step::Make { path: "model.gguf", content: gguf }];
    first.extend([Step::Say(done()), exit(0)]);
    let world = World::with(scripted([first, script([], "smaller.gguf")])).await;
    let inputs = ResolvedInputs { model: Some(model("m")), ..ResolvedInputs::default() };
    let input = world.submit_job(quantize(), inputs).await;
    let reader = world.submit_job(quantize(), awaiting(input)).await;
    world.until(input, |job| job.seq >= 3).await;
    let waits = world.job(reader).await;
    assert_eq!(waits.waits_for, Some(WaitsFor::Job { id: input, state: "running".into() }));
    assert_eq!(waits.summary, format!("queued: waits for job {input}, which is running"));
    world.engine.go_on();
    assert_eq!(world.until_done(reader).await.state, "succeeded");
}

#[tokio::test]
async fn a_job_fails_with_the_job_that_it_waits_for() {
    let world = World::with(scripted([halfway()])).await;
    let input = world.submit(limits()).await;
    let reader = world.submit_job(quantize(), awaiting(input)).await;
    let last = world.submit_job(quantize(), awaiting(reader)).await;
    world.until(input, |job| job.progress.is_some()).await;
    world.house.desk.cancel(input).await.unwrap();
    let job = world.until_done(last).await;
    assert_eq!(kind(&job), FailureKind::InputFailed);
    let failure = world.job(reader).await.failure.unwrap();
    assert_eq!(failure.message, format!("job `{input}`, whose result this one was to read, was cancelled"));
    assert_eq!(world.engine.starts(), [1], "neither was started");
}
