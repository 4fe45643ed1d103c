//! What helps: offered, applied, tried, and learnt from.

use drydock::api::{AddModel, ApplyRemedy, JobView, LoadDataset, RemedyList, Submission};
use drydock::desk::{Answer, DeskError, RemedyError};
use drydock::remedy::rank::Count;
use drydock::remedy::verdict::Verdict;
use drydock::remedy::{Chooser, Source};
use drydock::store::{Against, NewAdvice};
use drydock_spec::report::{Checkpoint, Metrics};
use drydock_spec::{FinetuneArgs, JobArgs, LimitArgs, OnFailure, Owner, Priority, Remedy};

use super::*;

/// A house with a model and rows that can be planned with.
pub(super) async fn stocked(scripts: impl IntoIterator<Item = Vec<Step>>) -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    std::fs::write(&file, tiny::Gguf::tiny().bytes()).unwrap();
    let data_dirs = vec![folder.path().to_owned()];
    let world = World::with_config(scripted(scripts), |config| config.data_dirs = data_dirs).await;
    let desk = &world.house.desk;
    let source = Some(file.display().to_string());
    desk.models.add(AddModel { name: Some("tiny".into()), source, files: vec![] }).await.unwrap();
    let row = |n: u32| {
        let text = format!("the sum of {n} and one is {}", n + 1);
        serde_json::Map::from_iter([("text".to_owned(), text.into())])
    };
    let rows = (0..8).map(row).collect();
    desk.load_dataset(LoadDataset { name: Some("sums".into()), rows, ..LoadDataset::default() }).await.unwrap();
    (world, folder)
}

pub(super) fn finetune() -> FinetuneArgs {
    FinetuneArgs { model: "tiny".into(), dataset: "sums".into(), lora_r: Some(2), ..FinetuneArgs::default() }
}

pub(super) async fn submit(world: &World, args: FinetuneArgs, limits: LimitArgs, on_failure: OnFailure) -> JobId {
    let submission = Submission {
        job: JobArgs::Finetune(args),
        priority: Priority::default(),
        limits,
        idempotency_key: None,
        dry_run: false,
        on_failure: Some(on_failure),
    };
    match world.house.desk.submit(Owner::local(), submission).await.unwrap() {
        Answer::Submitted(submitted) => submitted.job.id,
        Answer::Planned(plan) => panic!("{plan:?}"),
    }
}

pub(super) async fn asks(world: &World, args: FinetuneArgs) -> JobId {
    submit(world, args, LimitArgs::default(), OnFailure::Ask).await
}

pub(super) async fn apply(world: &World, id: JobId, remedy: Option<&str>) -> Result<JobView, DeskError> {
    let asked = ApplyRemedy { remedy: remedy.map(|text| text.parse().unwrap()), ..ApplyRemedy::default() };
    match world.house.desk.apply_remedy(Owner::local(), id, asked).await? {
        Answer::Submitted(submitted) => Ok(submitted.job),
        Answer::Planned(plan) => panic!("{plan:?}"),
    }
}

pub(super) async fn offered(world: &World, id: JobId) -> RemedyList {
    world.house.desk.suggest(id).await.unwrap()
}

pub(super) fn names(list: &RemedyList) -> Vec<String> {
    list.remedies.iter().map(|one| one.remedy.to_string()).collect()
}

fn out_of_memory() -> Vec<Step> {
    vec![
        Step::Say(started()),
        Step::Say(Report::Stage { stage: Stage::Train }),
        Step::Exit { code: 137, oom_killed: true },
    ]
}

fn fails(kind: FailureKind, message: &str) -> Vec<Step> {
    vec![Step::Say(started()), Step::Say(Report::Failed(Failure::new(kind, message).at(Stage::Train))), exit(1)]
}

fn at_step(step: u64) -> Step {
    Step::Say(Report::Metrics(Metrics {
        step,
        total_steps: 100,
        epoch: 0.0,
        loss: 1.0,
        preferences: None,
        learning_rate: 1e-4,
        grad_norm: 1.0,
        tokens_per_second: 1.0,
        eta_ms: 1,
        rss_bytes: 1,
    }))
}

async fn verdicts(world: &World, id: JobId) -> Vec<(String, Chooser, Option<Verdict>)> {
    let trials = world.house.desk.store.trials(id).await.unwrap();
    trials.into_iter().map(|trial| (trial.remedy.to_string(), trial.chosen_by, trial.verdict)).collect()
}

#[tokio::test]
async fn a_remedy_makes_a_linked_job_and_its_success_is_its_record() {
    let (world, _folder) = stocked([out_of_memory()]).await;
    let failed = asks(&world, finetune()).await;
    assert_eq!(world.until_done(failed).await.state, "failed");
    let list = offered(&world, failed).await;
    assert_eq!(list.remedies[0].remedy.to_string(), "limits.memory_mib = fit", "{list:#?}");
    assert!(list.remedies[0].evidence.starts_with("not tried yet; by the numbers: it had "), "{list:#?}");
    let better = apply(&world, failed, None).await.unwrap();
    assert_eq!(better.remedy_of, Some(failed));
    let job = world.until_done(better.id).await;
    assert_eq!(job.state, "succeeded");
    let store = &world.house.desk.store;
    let (before, after) = (store.job(failed).await.unwrap(), store.job(better.id).await.unwrap());
    assert!(after.limits.memory_bytes > before.limits.memory_bytes);
    assert_eq!(before.spec, after.spec);
    assert_eq!(
        verdicts(&world, better.id).await,
        [("limits.memory_mib = fit".into(), Chooser::Caller, Some(Verdict::Worked))]
    );
    // The next one that fails so is told of it.
    world.engine.script(out_of_memory());
    let next = asks(&world, finetune()).await;
    world.until_done(next).await;
    let list = offered(&world, next).await;
    assert_eq!(list.remedies[0].evidence, "worked 1 of 1 times for this failure on cpu");
}

#[tokio::test]
async fn what_was_tried_in_vain_for_a_job_is_not_offered_again() {
    let (world, _folder) = stocked([out_of_memory(), out_of_memory()]).await;
    let failed = asks(&world, finetune()).await;
    world.until_done(failed).await;
    let again = apply(&world, failed, Some("gradient_checkpointing = true")).await.unwrap().id;
    assert_eq!(world.until_done(again).await.state, "failed");
    assert_eq!(verdicts(&world, again).await[0].2, Some(Verdict::Failed));
    let list = offered(&world, again).await;
    assert!(!names(&list).contains(&"gradient_checkpointing = true".to_owned()), "{list:#?}");
    assert_eq!(list.tried.len(), 1);
}

#[tokio::test]
async fn where_the_job_says_so_the_next_attempt_is_made_with_a_remedy() {
    let (world, _folder) = stocked([out_of_memory(), out_of_memory()]).await;
    let id = submit(&world, finetune(), LimitArgs::default(), OnFailure::Auto).await;
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("succeeded", 3), "{job:#?}");
    let tried = verdicts(&world, id).await;
    assert_eq!(
        tried.iter().map(|(_, by, verdict)| (*by, *verdict)).collect::<Vec<_>>(),
        [(Chooser::Auto, Some(Verdict::Worked)), (Chooser::Auto, Some(Verdict::Failed)),]
    );
    assert_ne!(tried[0].0, tried[1].0, "what did not help is not tried twice");
    // What was asked for, and what became of it, stands in the job's history.
    let log = world.house.desk.logs(id, Some(0), 100).await.unwrap();
    let text = serde_json::to_string(&log).unwrap();
    assert!(text.contains(r#""event":"remedied""#) && text.contains("limits.memory_mib"), "{text}");
}

#[tokio::test]
async fn drydock_itself_applies_nothing_that_changes_what_is_learnt() {
    let diverged = || fails(FailureKind::Diverged, "the loss is no longer a number");
    let (world, _folder) = stocked([diverged(), diverged()]).await;
    let id = submit(&world, finetune(), LimitArgs::default(), OnFailure::Auto).await;
    let job = world.until_done(id).await;
    // Going back to a checkpoint and other rates learn something else.
    assert_eq!((job.state.as_str(), job.attempt), ("failed", 1), "{job:#?}");
    let list = offered(&world, id).await;
    assert_eq!(names(&list)[0], "learning_rate * 0.1");
}

#[tokio::test]
async fn what_only_another_installation_knows_is_offered_and_not_applied_by_itself() {
    let diverged = || fails(FailureKind::Diverged, "the loss is no longer a number");
    let (world, _folder) = stocked([diverged()]).await;
    let advice = NewAdvice {
        against: Against::Kind(FailureKind::Diverged),
        remedy: "gradient_checkpointing = true".parse().unwrap(),
        note: String::new(),
        by_whom: "elsewhere".into(),
        origin: Some(("elsewhere".into(), Count { worked: 90, tried: 90 })),
    };
    world.house.desk.store.advise(&advice).await.unwrap();
    let id = submit(&world, finetune(), LimitArgs::default(), OnFailure::Auto).await;
    let job = world.until_done(id).await;
    assert_eq!((job.state.as_str(), job.attempt), ("failed", 1), "{job:#?}");
    assert_eq!(names(&offered(&world, id).await)[0], "gradient_checkpointing = true");
}

#[tokio::test]
async fn a_job_that_wants_no_remedy_gets_none() {
    let (world, _folder) = stocked([out_of_memory()]).await;
    let id = submit(&world, finetune(), LimitArgs::default(), OnFailure::Never).await;
    world.until_done(id).await;
    assert_eq!(names(&offered(&world, id).await), [""; 0]);
    let refused = apply(&world, id, Some("try again")).await.unwrap_err();
    assert!(matches!(refused, DeskError::Remedy(RemedyError::Never(_))), "{refused}");
}

#[tokio::test]
async fn a_job_that_did_not_fail_has_no_remedy_and_one_that_does_not_fit_says_why() {
    let (world, _folder) = stocked([]).await;
    let fine = asks(&world, finetune()).await;
    world.until_done(fine).await;
    let refused = apply(&world, fine, None).await.unwrap_err();
    assert!(matches!(refused, DeskError::Remedy(RemedyError::NotFailed(_, "succeeded"))), "{refused}");
    world.engine.script(out_of_memory());
    let failed = asks(&world, finetune()).await;
    world.until_done(failed).await;
    let refused = apply(&world, failed, Some("quant_type = \"Q8_0\"")).await.unwrap_err().to_string();
    assert!(refused.contains("has no option `quant_type`"), "{refused}");
    let refused = apply(&world, failed, Some("learning_rate = 7")).await.unwrap_err().to_string();
    assert!(refused.contains("learning_rate = 7"), "{refused}");
}

#[tokio::test]
async fn a_remedy_goes_on_from_the_last_checkpoint_where_that_is_right() {
    let announced = Checkpoint { step: 5, path: "checkpoints/step-5".into(), bytes: 6 };
    let late = |end: Step| {
        vec![
            Step::Say(started()),
            Step::Say(Report::Stage { stage: Stage::Train }),
            at_step(5),
            Step::Make { path: "checkpoints/step-5/state", content: b"sixsix" },
            Step::Say(Report::Checkpoint(announced.clone())),
            end,
        ]
    };
    let (world, _folder) = stocked([late(Step::Exit { code: 137, oom_killed: true })]).await;
    let failed = asks(&world, finetune()).await;
    world.until_done(failed).await;
    assert_eq!(offered(&world, failed).await.remedies[0].goes_on_from, Some(5));
    world.house.reaper.sweep_once().await.unwrap();
    let better = apply(&world, failed, None).await.unwrap().id;
    let job = world.until_done(better).await;
    let from = job.resumed_from.unwrap();
    assert_eq!((from.job, from.attempt, from.step), (Some(failed), 1, 5));
    // Another rate is another training.
    let other = apply(&world, failed, Some("learning_rate * 0.1")).await.unwrap().id;
    assert_eq!(world.until_done(other).await.resumed_from, None);
}

#[tokio::test]
async fn a_remedy_counts_only_if_the_step_that_failed_was_passed() {
    let fails_at = |step, message: &str| {
        let failed = Failure::new(FailureKind::Diverged, message).at(Stage::Train);
        vec![Step::Say(started()), at_step(step), Step::Say(Report::Failed(failed)), exit(1)]
    };
    let (world, _folder) =
        stocked([fails_at(10, "ran away"), fails_at(3, "other words"), fails_at(12, "yet other words")]).await;
    let failed = asks(&world, finetune()).await;
    world.until_done(failed).await;
    for expected in [Verdict::Unknown, Verdict::Worked] {
        let id = apply(&world, failed, Some("learning_rate * 0.1")).await.unwrap().id;
        assert_eq!(world.until_done(id).await.state, "failed");
        assert_eq!(verdicts(&world, id).await[0].2, Some(expected));
    }
}

#[tokio::test]
async fn what_somebody_changed_and_passed_with_is_learnt() {
    let (world, _folder) = stocked([fails(FailureKind::Crashed, "tile 7 does not fit")]).await;
    let failed = asks(&world, finetune()).await;
    world.until_done(failed).await;
    let changed = FinetuneArgs { packing: Some(true), seed: Some(7), ..finetune() };
    let passed = asks(&world, changed).await;
    assert_eq!(world.until_done(passed).await.state, "succeeded");
    world.engine.script(fails(FailureKind::Crashed, "tile 9 does not fit"));
    let next = asks(&world, finetune()).await;
    world.until_done(next).await;
    let list = offered(&world, next).await;
    let first = &list.remedies[0];
    assert_eq!(
        (first.remedy.to_string().as_str(), &first.source),
        ("packing = true", &Source::History { jobs: vec![passed] })
    );
}

#[tokio::test]
async fn what_people_advise_is_offered_for_its_failure_and_for_its_kind() {
    let (world, _folder) = stocked([fails(FailureKind::Crashed, "no such tile")]).await;
    let failed = asks(&world, finetune()).await;
    world.until_done(failed).await;
    let fingerprint = world.house.desk.store.newest_failure(failed).await.unwrap().unwrap().fingerprint;
    let advise = |against: Against, remedy: &str| NewAdvice {
        against,
        remedy: remedy.parse::<Remedy>().unwrap(),
        note: "seen it".into(),
        by_whom: "ann".into(),
        origin: None,
    };
    let store = &world.house.desk.store;
    store.advise(&advise(Against::Fingerprint(fingerprint), "packing = true")).await.unwrap();
    store.advise(&advise(Against::Kind(FailureKind::Crashed), "dtype = \"bf16\"")).await.unwrap();
    store.advise(&advise(Against::Kind(FailureKind::Diverged), "lora_r = 1")).await.unwrap();
    let list = offered(&world, failed).await;
    let names = names(&list);
    assert!(names.contains(&"packing = true".into()) && names.contains(&"dtype = \"bf16\"".into()), "{names:?}");
    assert!(!names.contains(&"lora_r = 1".into()), "{names:?}");
    let packing = list.remedies.iter().find(|one| one.remedy.to_string() == "packing = true").unwrap();
    assert_eq!(packing.evidence, "not tried yet; advised by ann: seen it");
}

#[tokio::test]
async fn what_the_infrastructure_did_is_tried_again_and_has_a_record_of_its_own() {
    let dies = vec![Step::Say(started()), exit(137)];
    let (world, _folder) = stocked([dies]).await;
    let id = asks(&world, finetune()).await;
    assert_eq!(world.until_done(id).await.state, "succeeded");
    assert_eq!(verdicts(&world, id).await, [("try again".into(), Chooser::Retry, Some(Verdict::Worked))]);
}

#[tokio::test]
async fn joined_failures_share_what_is_known_and_can_be_parted_again() {
    let (world, _folder) =
        stocked([fails(FailureKind::Crashed, "no such tile"), vec![Step::Say(started()), exit(139)]]).await;
    let (one, other) = (asks(&world, finetune()).await, asks(&world, finetune()).await);
    let store = &world.house.desk.store;
    let mut prints = Vec::new();
    for id in [one, other] {
        world.until_done(id).await;
        prints.push(store.newest_failure(id).await.unwrap().unwrap().fingerprint);
    }
    assert_ne!(prints[0], prints[1]);
    let desk = &world.house.desk;
    let joined = desk.join(prints[0].0.clone(), Some(prints[1].0.clone())).await.unwrap();
    assert_eq!(joined.stands_for, prints[1].0);
    assert_eq!(store.failure_groups(10).await.unwrap().len(), 1);
    assert_eq!(store.seen(&prints[1]).await.unwrap().count, 2);
    desk.join(prints[0].0.clone(), None).await.unwrap();
    assert_eq!(store.failure_groups(10).await.unwrap().len(), 2);
    let unknown = desk.join("v1:beef".into(), None).await.unwrap_err().to_string();
    assert_eq!(unknown, "no failure `v1:beef` has been seen");
}
