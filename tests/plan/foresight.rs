//! What plans know from jobs that went before.

use drydock::artifacts::Artifact;
use drydock::plan::forecast::Quantity;
use drydock::plan::lengths::Counting;
use drydock_spec::evaluate::Measure;
use drydock_spec::finetune::Keep;
use drydock_spec::lengths::RowLengths;
use drydock_spec::quantize::QuantType;
use drydock_spec::report::{DatasetReport, Finished};
use drydock_spec::{EvaluateArgs, Failure, FailureKind, Outcome, QuantizeArgs, Report, ReportLine, Stage, TrainArgs};

use super::jobs::{claim, submit, submit_with};
use super::*;

/// A finetune that needs more than the least that can be asked for.
fn wide() -> FinetuneArgs {
    with_rows(2048)
}

/// A finetune that peaks at `ratio` of what its plan predicts.
async fn peak(house: &House, ratio: f64) {
    let predicted = plan(house, wide()).await.unwrap().estimate.memory_bytes;
    let id = submit(house, JobArgs::Finetune(wide())).await;
    let mut lease = claim(house, id).await;
    let peak_rss_bytes = (predicted as f64 * ratio) as u64;
    let report = Report::Finished(Finished { steps: 1, train_loss: None, tokens: 1, peak_rss_bytes });
    let lines = vec![ReportLine { elapsed_ms: 1, report }];
    lease.record(&drydock::store::ReportBatch { lines, end_offset: 1 }).await.unwrap();
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
}

#[tokio::test]
async fn a_plan_says_where_the_peak_will_lie_by_what_jobs_of_its_kind_came_to() {
    let house = house().await;
    let expected = async || plan(&house, wide()).await.unwrap();
    let at_first = expected().await;
    for ratio in [1.3, 1.25, 1.35] {
        peak(&house, ratio).await;
    }
    let (plan_now, range) = (expected().await, expected().await.estimate.range(Quantity::Memory).unwrap());
    assert_eq!((range.jobs, plan_now.forecasts[0].jobs), (3, 3));
    let ratio = range.high as f64 / plan_now.estimate.memory_bytes as f64;
    assert!((1.29..1.36).contains(&ratio), "the first few pull the upper end towards them: {range:?}");
    assert!(plan_now.limits.memory_bytes > at_first.limits.memory_bytes * 11 / 10, "and the limit with it");
    for _ in 0..19 {
        peak(&house, 1.3).await;
    }
    let range = expected().await.estimate.range(Quantity::Memory).unwrap();
    assert!(range.low > plan_now.estimate.memory_bytes * 6 / 5, "enough of them are all there is: {range:?}");
    let full = FinetuneArgs { method: Some(drydock_spec::finetune::Method::Full), lora_r: None, ..wide() };
    let full = plan(&house, full).await.unwrap();
    assert_eq!(
        (full.forecasts.len(), full.estimate.range(Quantity::Memory).unwrap().jobs),
        (0, 0),
        "another method is another"
    );
    assert!(
        full.estimate.range(Quantity::Memory).unwrap().high > full.estimate.memory_bytes * 6 / 5,
        "but of the same kind"
    );
}

#[tokio::test]
async fn memory_within_the_error_of_the_prediction_is_warned_of() {
    let house = house().await;
    let needed = plan(&house, wide()).await.unwrap().estimate.memory_bytes.div_ceil(1 << 20);
    let tight = |mib| LimitArgs { memory_mib: Some(mib), ..LimitArgs::default() };
    let warned = async |limits| plan_on(engine(8 * GIB), &house, wide(), limits).await.unwrap().warnings;
    for _ in 0..5 {
        assert_eq!(warned(tight(needed + 2)).await, Vec::<String>::new());
        peak(&house, 1.1).await;
    }
    let warnings = warned(tight(needed + 2)).await;
    assert!(warnings[0].contains("is within the error of the prediction: 5 of 100 jobs"), "{warnings:?}");
    let offered: u64 = warnings[0].rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(warned(tight(offered)).await, Vec::<String>::new());
    assert!(warned(tight(64)).await[0].contains("is below the"));
}

#[tokio::test]
async fn memory_below_the_prediction_may_do_where_others_needed_less() {
    let house = house().await;
    let needed = plan(&house, wide()).await.unwrap().estimate.memory_bytes.div_ceil(1 << 20);
    for _ in 0..5 {
        peak(&house, 0.9).await;
    }
    let limits = LimitArgs { memory_mib: Some(needed - 1), ..LimitArgs::default() };
    let warnings = plan_on(engine(8 * GIB), &house, wide(), limits).await.unwrap().warnings;
    let said = "it may be enough all the same: 95 of 100 jobs of this kind needed at most 0.90x";
    assert!(warnings[0].contains("is below the") && warnings[0].contains(said), "{warnings:?}");
}

#[tokio::test]
async fn rows_that_may_be_cut_are_told_with_the_length_that_keeps_them() {
    let house = house().await;
    let row = |letters: usize| format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "a".repeat(letters));
    // 64 for a row, 8 for each of two turns, and a token for every two letters.
    fs::write(house.data("long.jsonl"), [row(10), row(10), row(60), row(100)].concat()).unwrap();
    house.load("long.jsonl").await.unwrap();
    let long = |length| FinetuneArgs { dataset: "long".into(), max_seq_length: Some(length), ..args() };
    let cut = plan(&house, long(96)).await.unwrap().cut.unwrap();
    assert_eq!((cut.rows, cut.of, cut.max_seq_length, cut.tokenized), (2, 4, 96, false));
    assert_eq!(cut.longer.map(|longer| (longer.max_seq_length, longer.rows)), Some((128, 1)));
    assert_eq!(plan(&house, args()).await.unwrap().cut, None);
}

#[tokio::test]
async fn tokens_that_the_model_lacks_are_warned_of() {
    let house = house().await;
    let mut files = tiny::hugging_face();
    let mut tokenizer = tiny::tokenizer_json();
    tokenizer["added_tokens"] = json!([{"id": 99, "content": "<image>", "special": true}]);
    files.retain(|(name, _)| *name != "tokenizer.json");
    files.push(("tokenizer.json", tokenizer.to_string().into_bytes()));
    tiny::write(&house.data("small"), files);
    house.add("small").await.unwrap();
    let warnings = plan(&house, FinetuneArgs { model: "small".into(), ..args() }).await.unwrap().warnings;
    let said = "the model has no embedding for 1 of its tokenizer's tokens, such as `<image>`; the job fails if a row of \
                `sums` has one";
    assert!(warnings.iter().any(|warning| warning.starts_with(said)), "{warnings:?}");
}

#[tokio::test]
async fn a_chain_of_jobs_that_the_disk_has_no_room_for_is_warned_of() {
    let house = House::with(|config| config.disk.min_free_state = ByteSize::pib(1)).await;
    let house = furnished(house).await;
    let merging = submit(&house, JobArgs::Finetune(FinetuneArgs { keep: Some(Keep::Merged), ..args() })).await;
    let quantize = |model: String| {
        JobArgs::Quantize(QuantizeArgs { model, quant_type: Some(QuantType::Q8_0), ..QuantizeArgs::default() })
    };
    let warned = async |job: JobArgs| {
        let warnings = plan_job(engine(8 * GIB), &house, job, LimitArgs::default()).await.unwrap().warnings;
        warnings.into_iter().find(|warning| warning.starts_with("this job and the ")).unwrap()
    };
    let said = warned(quantize(format!("job:{merging}"))).await;
    assert!(said.starts_with("this job and the 1 that it waits for will write about "), "{said}");
    assert!(said.contains("; 0 B can be written on the disk of the state folder: submit job"), "{said}");
    assert!(said.contains(&format!("submit job {merging} again with keep \"adapter\"")), "{said}");

    let quantizing = submit(&house, quantize(format!("job:{merging}"))).await;
    let evaluate = EvaluateArgs {
        model: format!("job:{quantizing}"),
        dataset: "sums".into(),
        measures: Some(vec![Measure::ExactMatch]),
        ..EvaluateArgs::default()
    };
    let said = warned(JobArgs::Evaluate(evaluate)).await;
    assert!(said.starts_with("this job and the 2 that it waits for will write about "), "{said}");
    assert!(!said.contains("again with keep"), "an adapter is of no use to whoever reads the quantized model: {said}");
}

#[tokio::test]
async fn a_disk_limit_that_is_too_small_is_refused_with_what_would_do() {
    let house = house().await;
    let training = submit(&house, JobArgs::Train(TrainArgs { dataset: "sums".into(), ..TrainArgs::default() })).await;
    let both = FinetuneArgs { model: format!("job:{training}"), keep: Some(Keep::Both), ..args() };
    let little = |mib| LimitArgs { disk_mib: Some(mib), ..LimitArgs::default() };
    let error = plan_on(engine(8 * GIB), &house, both.clone(), little(16)).await.unwrap_err().to_string();
    let offered = |words: &str| -> u64 {
        let rest = error.split(words).nth(1).unwrap_or_else(|| panic!("{error}"));
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let (more, less) = (offered("choose at least "), offered(", or set keep to \"adapter\", with which "));
    assert!(plan_on(engine(8 * GIB), &house, both.clone(), little(more)).await.is_ok());
    let adapter = FinetuneArgs { keep: Some(Keep::Adapter), ..both };
    assert!(plan_on(engine(8 * GIB), &house, adapter, little(less.max(16))).await.is_ok());
}

/// A finetune with these options and this memory that fails.
async fn failed(house: &House, args: FinetuneArgs, memory_mib: u64) -> drydock_spec::JobId {
    let limits = LimitArgs { memory_mib: Some(memory_mib), ..LimitArgs::default() };
    let id = submit_with(house, JobArgs::Finetune(args), limits).await;
    let failure = Failure::new(FailureKind::OutOfMemory, "needed more than the 64.0 MiB it had").at(Stage::Train);
    claim(house, id).await.finish(Outcome::Failed(failure), &[], 0).await.unwrap();
    id
}

#[tokio::test]
async fn a_job_whose_like_failed_last_time_is_warned_of() {
    let house = house().await;
    let id = failed(&house, args(), 64).await;
    let little = LimitArgs { memory_mib: Some(64), ..LimitArgs::default() };
    let planned = async |args, limits| plan_on(engine(8 * GIB), &house, args, limits).await.unwrap();
    let again = planned(FinetuneArgs { seed: Some(1), ..args() }, little.clone()).await;
    let kept = house.store.failure_of(id, drydock_spec::Attempt::FIRST).await.unwrap().unwrap();
    assert_eq!((again.foreseen[0].job, again.foreseen[0].fingerprint.as_str()), (id, kept.fingerprint.0.as_str()));
    let said =
        format!("job {id} with the same options ended: out of memory at train (needed more than the 64.0 MiB it");
    assert!(again.warnings.last().unwrap().starts_with(&said), "{:?}", again.warnings);
    assert_eq!(planned(args(), LimitArgs::default()).await.foreseen, [], "with the memory that it needs it may work");
    let milder = FinetuneArgs { gradient_checkpointing: Some(true), ..args() };
    assert_eq!(planned(milder, little).await.foreseen, []);
}

#[tokio::test]
async fn a_job_on_other_rows_says_nothing_of_this_one() {
    let house = house().await;
    fs::write(house.data("more.jsonl"), "{\"prompt\": \"1+1=\", \"completion\": \"2\"}\n".repeat(3)).unwrap();
    house.load("more.jsonl").await.unwrap();
    failed(&house, FinetuneArgs { dataset: "more".into(), ..args() }, 64).await;
    let little = LimitArgs { memory_mib: Some(64), ..LimitArgs::default() };
    assert_eq!(plan_on(engine(8 * GIB), &house, args(), little).await.unwrap().foreseen, []);
}

#[tokio::test]
async fn rows_that_a_tokenizer_has_counted_are_planned_by_their_own_length() {
    let house = house().await;
    let wide = FinetuneArgs { max_seq_length: Some(128), ..with_rows(512) };
    let before = plan(&house, wide.clone()).await.unwrap();
    let of = Counting::of(&before.spec, &before.inputs).unwrap();
    let mut lengths = RowLengths::default();
    (0..5000).for_each(|_| lengths.add(9, 9));
    house.store.keep_row_lengths(&of, &lengths).await.unwrap();
    let activations = |plan: &Plan| plan.estimate.needs[&Quantity::Memory].parts["activations"];
    let after = plan(&house, wide.clone()).await.unwrap();
    // 64 for a row, 8 for each of two turns, and a token for each of five letters and signs.
    assert_eq!(activations(&before) / activations(&after), 85 / 9);
    let paired =
        FinetuneArgs { columns: Some(Columns { prompt: Some("completion".into()), ..Columns::default() }), ..wide };
    assert_ne!(Counting::of(&plan(&house, paired).await.unwrap().spec, &before.inputs), Some(of), "read otherwise");
}

#[tokio::test]
async fn a_finetune_whose_rows_were_not_cut_teaches_plans_how_long_they_are() {
    let house = house().await;
    let wide = with_rows(512);
    let before = plan(&house, wide.clone()).await.unwrap().estimate.memory_bytes;
    let rows = DatasetReport { train_rows: 5000, train_tokens: 45_000, longest_row: 9, ..DatasetReport::default() };
    let teach = async |rows: DatasetReport| {
        let id = submit(&house, JobArgs::Finetune(wide.clone())).await;
        let mut lease = claim(&house, id).await;
        let lines = vec![ReportLine { elapsed_ms: 1, report: Report::Dataset(rows) }];
        lease.record(&drydock::store::ReportBatch { lines, end_offset: 1 }).await.unwrap();
        lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
        plan(&house, wide.clone()).await.unwrap().estimate.memory_bytes
    };
    assert_eq!(teach(DatasetReport { truncated_rows: 1, ..rows.clone() }).await, before, "one may be longer");
    let after = teach(rows.clone()).await;
    assert!(after < before, "{after} of {before}");
    assert_eq!(teach(DatasetReport { longest_row: 4, ..rows }).await, after, "they are the same rows");
}

#[tokio::test]
async fn the_disk_has_a_range_learnt_from_what_jobs_left_behind() {
    let house = house().await;
    let need = async || plan(&house, args()).await.unwrap().estimate.needs[&Quantity::Disk].clone();
    let first = need().await;
    assert_eq!(first.parts.values().sum::<u64>(), first.expected);
    assert!(first.range.is_some_and(|range| range.jobs == 0), "by what drydock was measured with: {first:?}");
    for _ in 0..19 {
        let id = submit(&house, JobArgs::Finetune(args())).await;
        let lease = claim(&house, id).await;
        let left = Artifact {
            path: "adapter/adapter_model.safetensors".into(),
            role: Some("adapter".into()),
            bytes: first.expected / 2,
            sha256: "0".repeat(64),
        };
        lease.finish(Outcome::Succeeded, &[left], 0).await.unwrap();
    }
    let range = need().await.range.unwrap();
    assert_eq!((range.low, range.high, range.jobs), (first.expected / 2, first.expected / 2, 19));
}
