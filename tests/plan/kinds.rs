//! Every kind of job: what is accepted, and what is refused with a change that would be.

use drydock_spec::evaluate::{Compared, Measure};
use drydock_spec::finetune::{Keep, Method, Objective};
use drydock_spec::quantize::QuantType;
use drydock_spec::train::{ShapeArgs, Size};
use drydock_spec::{EvaluateArgs, QuantizeArgs, TrainArgs};

use super::*;

const PAIRS: &str = "{\"prompt\": \"2+2=\", \"chosen\": \"4\", \"rejected\": \"5\"}\n\
                     {\"prompt\": \"3+3=\", \"chosen\": \"6\", \"rejected\": \"7\"}\n";
const LABELS: &str = "{\"prompt\": \"2+2=\", \"completion\": \"4\", \"label\": true}\n\
                      {\"prompt\": \"2+2=\", \"completion\": \"5\", \"label\": false}\n";
const CHOICES: &str = "{\"question\": \"2+2\", \"choices\": [\"3\", \"4\"], \"answer\": 1}\n\
                       {\"question\": \"3+3\", \"choices\": [\"6\", \"7\"], \"answer\": \"A\"}\n";

/// The house with rows of every form.
async fn stocked() -> House {
    let house = house().await;
    for (name, rows) in [
        ("pairs.jsonl", PAIRS),
        ("labels.jsonl", LABELS),
        ("choices.jsonl", CHOICES),
        ("play.txt", "To be, or not to be,\nthat is the question.\n"),
    ] {
        fs::write(house.data(name), rows).unwrap();
        house.load(name).await.unwrap();
    }
    house
}

async fn on(house: &House, job: JobArgs, memory_bytes: u64) -> Result<Plan, String> {
    let planned = plan_job(engine(memory_bytes), house, job, LimitArgs::default()).await;
    planned.map_err(|error| error.to_string())
}

fn finetune(change: impl FnOnce(&mut FinetuneArgs)) -> JobArgs {
    let mut args = args();
    change(&mut args);
    JobArgs::Finetune(args)
}

fn train(change: impl FnOnce(&mut TrainArgs)) -> JobArgs {
    let mut args = TrainArgs { dataset: "play".into(), size: Some(Size::Nano), ..TrainArgs::default() };
    change(&mut args);
    JobArgs::Train(args)
}

fn quantize(change: impl FnOnce(&mut QuantizeArgs)) -> JobArgs {
    let mut args = QuantizeArgs { model: "tiny".into(), quant_type: Some(QuantType::Q8_0), ..QuantizeArgs::default() };
    change(&mut args);
    JobArgs::Quantize(args)
}

fn evaluate(change: impl FnOnce(&mut EvaluateArgs)) -> JobArgs {
    let mut args = EvaluateArgs { model: "tiny".into(), dataset: "sums".into(), ..EvaluateArgs::default() };
    change(&mut args);
    JobArgs::Evaluate(args)
}

#[tokio::test]
async fn a_training_from_nothing_needs_only_text() {
    let house = stocked().await;
    let plan = on(&house, train(|_| {}), 8 * GIB).await.unwrap();
    assert_eq!(plan.inputs.model, None);
    assert_eq!(plan.inputs.dataset.unwrap().name, "play");
    // Four layers of 128, and 4096 tokens.
    assert_eq!(plan.estimate.trainable_parameters, 4 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128) + 4096 * 128 + 128);
    // Values, gradients and two moments.
    assert!(plan.estimate.memory_bytes > 16 * plan.estimate.trainable_parameters);

    let theirs = on(&house, train(|args| args.tokenizer = Some("tiny".into())), 8 * GIB).await.unwrap();
    assert_eq!(theirs.inputs.tokenizer.unwrap().name, "tiny");
    assert!(theirs.estimate.trainable_parameters < plan.estimate.trainable_parameters - 4000 * 128);

    let pairs = on(&house, train(|args| args.dataset = "pairs".into()), 8 * GIB).await.unwrap_err();
    assert!(pairs.starts_with("dataset = pairs: its rows hold pairs of a chosen and a rejected answer"), "{pairs}");
}

#[tokio::test]
async fn a_training_that_does_not_fit_is_refused_with_a_change_that_is_accepted() {
    let house = stocked().await;
    let large = |args: &mut TrainArgs| args.per_device_train_batch_size = Some(64);
    let host = 500 << 20;
    let refused = on(&house, train(large), host).await.unwrap_err();
    assert!(refused.starts_with("per_device_train_batch_size = 64: the job needs about "), "{refused}");
    let fewer: u32 = refused
        .split("lower per_device_train_batch_size to ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{refused}"));
    on(&house, train(|args| args.per_device_train_batch_size = Some(fewer)), host).await.unwrap();
}

#[tokio::test]
async fn a_quantization_needs_its_largest_tensor_and_room_for_the_file() {
    let house = stocked().await;
    let plan = on(&house, quantize(|_| {}), 8 * GIB).await.unwrap();
    assert_eq!((plan.inputs.dataset, plan.estimate.trainable_parameters), (None, 0));
    assert!(plan.estimate.disk_bytes < 4 << 20, "{}", plan.estimate.disk_bytes);
    let measured = on(&house, quantize(|args| args.imatrix_dataset = Some("sums".into())), 8 * GIB).await.unwrap();
    assert_eq!(measured.inputs.dataset.unwrap().name, "sums");
    assert!(measured.estimate.memory_bytes > plan.estimate.memory_bytes);

    let unnamed = on(&house, quantize(|args| args.quant_type = None), 8 * GIB).await.unwrap_err();
    assert!(unnamed.contains("missing; choose one of F32"), "{unnamed}");
    let columns = quantize(|args| args.columns = Some(Columns::default()));
    assert!(on(&house, columns, 8 * GIB).await.unwrap_err().contains("given without imatrix_dataset"));
    let choices = quantize(|args| args.imatrix_dataset = Some("choices".into()));
    let refused = on(&house, choices, 8 * GIB).await.unwrap_err();
    assert!(refused.starts_with("imatrix_dataset = choices: its rows hold questions with choices"), "{refused}");
    let small = on(&house, quantize(|_| {}), 100 << 20).await.unwrap_err();
    assert!(small.contains("choose a smaller model, or raise capacity.memory"), "{small}");
}

#[tokio::test]
async fn an_evaluation_reads_every_model_that_it_compares() {
    let house = stocked().await;
    fs::write(house.data("other.gguf"), Gguf::tiny().bytes()).unwrap();
    house.add("other.gguf").await.unwrap();
    let compared = |args: &mut EvaluateArgs| {
        args.compare_with = Some(vec![Compared { model: "other".into(), adapter: None }]);
    };
    let plan = on(&house, evaluate(compared), 8 * GIB).await.unwrap();
    assert_eq!(plan.inputs.model.unwrap().name, "tiny");
    assert_eq!(plan.inputs.compared[0].name, "other");
    let one = on(&house, evaluate(|_| {}), 8 * GIB).await.unwrap();
    assert_eq!(one.estimate.memory_bytes, plan.estimate.memory_bytes, "one model after the other is in memory");

    let unknown = |args: &mut EvaluateArgs| {
        args.compare_with = Some(vec![Compared { model: "another".into(), adapter: None }]);
    };
    assert!(on(&house, evaluate(unknown), 8 * GIB).await.unwrap_err().starts_with("no model `another`"));
    let solved = on(&house, evaluate(|args| args.num_fewshot = Some(10)), 8 * GIB).await.unwrap_err();
    assert!(solved.starts_with("num_fewshot = 10: the dataset has 10 rows"), "{solved}");
    let long = on(&house, evaluate(|args| args.max_seq_length = Some(4096)), 8 * GIB).await.unwrap_err();
    assert!(long.starts_with("max_seq_length = 4096: the model takes 128 tokens at most"), "{long}");
}

#[tokio::test]
async fn an_evaluation_that_does_not_fit_is_refused_with_a_batch_that_does() {
    let house = stocked().await;
    let large = |args: &mut EvaluateArgs| args.batch_size = Some(1024);
    let refused = on(&house, evaluate(large), 150 << 20).await.unwrap_err();
    assert!(refused.starts_with("batch_size = 1024: the job needs about "), "{refused}");
    let fewer = refused.rsplit("lower batch_size to ").next().unwrap().parse().unwrap_or_else(|_| panic!("{refused}"));
    on(&house, evaluate(|args| args.batch_size = Some(fewer)), 150 << 20).await.unwrap();
}

#[tokio::test]
async fn rows_go_to_the_jobs_that_can_use_them_and_to_no_others() {
    let house = stocked().await;
    let objective = |dataset: &str, objective| {
        let dataset = dataset.to_owned();
        finetune(move |args| (args.dataset, args.objective) = (dataset, Some(objective)))
    };
    let measure = |dataset: &str, measure| {
        let dataset = dataset.to_owned();
        evaluate(move |args| (args.dataset, args.measures) = (dataset, Some(vec![measure])))
    };
    for job in [
        objective("pairs", Objective::Dpo),
        objective("pairs", Objective::Orpo),
        objective("labels", Objective::Kto),
        finetune(|args| (args.dataset, args.test_size) = ("play".into(), Some(0.0))),
        measure("choices", Measure::MultipleChoice),
        measure("play", Measure::Perplexity),
        measure("sums", Measure::NumericMatch),
        evaluate(|args| args.dataset = "choices".into()),
    ] {
        let planned = on(&house, job.clone(), 8 * GIB).await;
        assert!(planned.is_ok(), "{job:?}: {planned:?}");
    }
    for (job, said) in [
        (objective("pairs", Objective::Sft), "choose objective \"dpo\" or \"orpo\" for them"),
        (objective("labels", Objective::Sft), "choose objective \"kto\" for them"),
        (objective("sums", Objective::Dpo), "dataset = sums: its rows hold prompts with completions"),
        (objective("play", Objective::Kto), "dataset = play: its rows hold plain text"),
        (objective("choices", Objective::Sft), "evaluate them with measures [\"multiple_choice\"]"),
        (measure("sums", Measure::MultipleChoice), "multiple_choice needs choices"),
        (measure("play", Measure::ExactMatch), "exact_match needs prompts with answers"),
        (measure("choices", Measure::Perplexity), "perplexity is measured on texts"),
        (evaluate(|args| args.dataset = "pairs".into()), "its rows hold nothing that a model is measured on"),
    ] {
        let refused = on(&house, job, 8 * GIB).await.unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
}

#[tokio::test]
async fn every_method_has_its_price() {
    let house = stocked().await;
    let plan = async |method, keep| {
        let job = finetune(|args| (args.method, args.keep) = (Some(method), keep));
        on(&house, job, 8 * GIB).await.unwrap().estimate
    };
    let lora = plan(Method::Lora, None).await;
    let dora = plan(Method::Dora, None).await;
    let full = plan(Method::Full, None).await;
    assert!(lora.trainable_parameters < dora.trainable_parameters);
    assert_eq!(full.trainable_parameters, 2 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16 + 2 * 8) + 32 * 8 + 8);
    assert!(plan(Method::Lora, Some(Keep::Both)).await.disk_bytes > lora.disk_bytes);
    let nothing = finetune(|args| args.trainable = Some(vec!["layers.7.*".into()]));
    let refused = on(&house, nothing, 8 * GIB).await.unwrap_err();
    assert!(refused.contains("matches nothing that could be trained; write for example model.layers.0.*"), "{refused}");
    let one = finetune(|args| args.trainable = Some(vec!["model.layers.1.*".into()]));
    assert_eq!(on(&house, one, 8 * GIB).await.unwrap().estimate.trainable_parameters * 2, lora.trainable_parameters);
}

#[tokio::test]
async fn a_shape_of_ones_own_counts_as_it_is() {
    let house = stocked().await;
    let config = ShapeArgs { num_hidden_layers: Some(8), ..ShapeArgs::default() };
    let deep = on(&house, train(|args| args.config = Some(config)), 8 * GIB).await.unwrap();
    let plain = on(&house, train(|_| {}), 8 * GIB).await.unwrap();
    assert_eq!(
        deep.estimate.trainable_parameters - plain.estimate.trainable_parameters,
        4 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128)
    );
}
