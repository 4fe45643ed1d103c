//! What has had its time goes, and nothing else; and the account of the job that it came from stays true.

use std::time::Duration;

use drydock::api::{GcReport, LoadDataset, TakenKind};
use drydock::plan::{AdapterInput, DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock_spec::report::Metrics;
use drydock_spec::{FinetuneArgs, JobArgs, JobId, JobState, Outcome};

use super::{Report, Step, World, finished, halfway, limits, scripted, started};
use crate::exit;

fn metrics(step: u64) -> Step {
    Step::Say(Report::Metrics(Metrics {
        step,
        total_steps: 9,
        epoch: 0.5,
        preferences: None,
        loss: 1.0,
        learning_rate: 0.1,
        grad_norm: 1.0,
        tokens_per_second: 1.0,
        eta_ms: 1,
        rss_bytes: 1,
    }))
}

/// A worker that takes nine steps and leaves an adapter.
fn trains() -> Vec<Step> {
    let made = [
        Step::Make { path: "adapter/adapter_model.safetensors", content: b"weights" },
        Step::Make { path: "adapter/adapter_config.json", content: b"{}" },
        Step::Say(finished()),
        exit(0),
    ];
    std::iter::once(Step::Say(started())).chain((1..=9).map(metrics)).chain(made).collect()
}

async fn gc(world: &World, dry_run: bool) -> GcReport {
    world.house.desk.retention.gc_once(dry_run).await.unwrap()
}

/// The names of those of one kind.
fn names(report: &GcReport, what: TakenKind) -> Vec<&str> {
    report.taken.iter().filter(|taken| taken.what == what).map(|taken| taken.name.as_str()).collect()
}

async fn ended(world: &World) -> JobId {
    let id = world.submit(limits()).await;
    assert_eq!(world.until_done(id).await.state, "succeeded");
    id
}

#[tokio::test]
async fn a_dry_pass_says_what_the_next_one_takes_and_the_account_stays_true() {
    let world = World::with_config(scripted([trains(), trains(), trains()]), |config| {
        config.retention.artifacts_jobs = Some(1);
    })
    .await;
    let ids = [ended(&world).await, ended(&world).await, ended(&world).await];
    let before = world.job(ids[0]).await;
    let planned = gc(&world, true).await;
    assert_eq!(names(&planned, TakenKind::Artifacts), [ids[1].to_string(), ids[0].to_string()]);
    assert_eq!(planned.taken[0].why, "1 jobs with such are newer, artifacts_jobs is 1");
    assert_eq!(planned.bytes, 2 * 9);
    assert!(world.house.desk.artifacts.folder(ids[0]).exists(), "a dry pass takes nothing");
    let taken = gc(&world, false).await;
    assert_eq!((taken.taken, taken.bytes, taken.dry_run), (planned.taken, planned.bytes, false));
    assert!(gc(&world, false).await.taken.is_empty());
    for (id, kept) in [(ids[0], false), (ids[1], false), (ids[2], true)] {
        assert_eq!(world.house.desk.artifacts.folder(id).exists(), kept);
        let list = world.house.desk.artifacts(id).await.unwrap();
        assert_eq!((list.artifacts.len(), list.folder.is_some(), list.removed_ms.is_none()), (2, kept, kept));
    }
    assert_eq!(world.job(ids[0]).await, before);
    let refused = world.house.desk.models.resolve(&format!("job:{}", ids[0])).await.unwrap_err();
    assert!(refused.to_string().contains("was removed, as [retention] of the configuration says"), "{refused}");
}

#[tokio::test]
async fn what_another_job_reads_stays() {
    let world = World::with_config(scripted([trains(), halfway()]), |config| {
        config.retention.artifacts_jobs = Some(0);
    })
    .await;
    let first = ended(&world).await;
    let source = ModelSource::Awaited { job: first };
    let inputs = ResolvedInputs {
        model: Some(ModelInput {
            name: "m".into(),
            source: ModelSource::Stored { digest: "aa".into() },
            adapter: Some(AdapterInput { name: format!("job:{first}"), source }),
        }),
        dataset: Some(DatasetInput { name: "d".into(), digest: "bb".into() }),
        ..ResolvedInputs::default()
    };
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    let second = world.submit_job(JobArgs::Finetune(args), inputs).await;
    world.until(second, |job| job.progress.is_some()).await;
    assert!(gc(&world, false).await.taken.is_empty());
    world.engine.go_on();
    world.until_done(second).await;
    // What the second one has left stands on the first one's: they go from the newest on.
    assert_eq!(names(&gc(&world, false).await, TakenKind::Artifacts), [second.to_string()]);
    assert_eq!(names(&gc(&world, false).await, TakenKind::Artifacts), [first.to_string()]);
}

#[tokio::test]
async fn a_removal_that_was_cut_off_is_finished_by_the_next_pass() {
    let world = World::with(scripted([trains()])).await;
    let id = ended(&world).await;
    assert!(world.house.desk.store.remove_artifacts(id).await.unwrap());
    assert!(!world.house.desk.store.remove_artifacts(id).await.unwrap(), "only once");
    assert!(world.house.desk.artifacts.folder(id).exists());
    gc(&world, false).await;
    assert!(!world.house.desk.artifacts.folder(id).exists());
}

#[tokio::test]
async fn nothing_of_a_job_that_has_not_ended_is_removed() {
    let world = World::with(scripted([halfway()])).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.progress.is_some()).await;
    let store = &world.house.desk.store;
    assert!(!store.remove_artifacts(id).await.unwrap());
    assert!(!store.remove_reports(id).await.unwrap());
}

#[tokio::test]
async fn what_a_job_said_on_its_way_goes_but_for_what_it_is_shown_by() {
    let world = World::with_config(scripted([trains()]), |config| {
        config.retention.reports_age = Some(Duration::ZERO);
    })
    .await;
    let id = ended(&world).await;
    let before = world.job(id).await;
    assert_eq!(world.house.desk.metrics(id, 0, 100).await.unwrap().metrics.len(), 9);
    // What ends in the very millisecond of the sweep has no age yet.
    let ended_ms = before.ended_ms.unwrap();
    while world.house.desk.store.clock().now_ms() <= ended_ms {
        tokio::task::yield_now().await;
    }
    let taken = gc(&world, false).await;
    assert_eq!(names(&taken, TakenKind::Reports), [id.to_string()]);
    assert_eq!(world.job(id).await, before, "the account of the job is what it was");
    let left = world.house.desk.metrics(id, 0, 100).await.unwrap();
    assert_eq!(left.metrics.iter().map(|point| point.metrics.step).collect::<Vec<_>>(), [9]);
    assert!(left.removed_ms.is_some() && world.house.desk.logs(id, None, 10).await.unwrap().removed_ms.is_some());
    assert_eq!(world.house.desk.store.job(id).await.unwrap().state, JobState::Done(Outcome::Succeeded));
}

#[tokio::test]
async fn files_that_nothing_needs_go_and_those_of_the_catalogue_and_of_jobs_stay() {
    let world = World::with_config(scripted([halfway()]), |config| config.retention.unused_age = Duration::ZERO).await;
    let desk = &world.house.desk;
    let load = async |name: &str| {
        let rows = format!(r#"[{{"text": "a row of {name}"}}]"#);
        let rows = serde_json::from_str(&rows).unwrap();
        let request = LoadDataset { name: Some(name.into()), rows, ..LoadDataset::default() };
        desk.load_dataset(request).await.unwrap().dataset.digest
    };
    let (kept, read, forgotten) = (load("kept").await, load("read").await, load("forgotten").await);
    let stray = desk.blobs.put_bytes(b"nobody came back for this").unwrap().sha256;
    let inputs = ResolvedInputs {
        model: Some(ModelInput {
            name: "m".into(),
            source: ModelSource::Stored { digest: "aa".into() },
            adapter: None,
        }),
        dataset: Some(DatasetInput { name: "read".into(), digest: read.clone() }),
        ..ResolvedInputs::default()
    };
    let args = FinetuneArgs { model: "m".into(), dataset: "read".into(), ..FinetuneArgs::default() };
    let job = world.submit_job(JobArgs::Finetune(args), inputs).await;
    world.until(job, |job| job.progress.is_some()).await;
    for name in ["read", "forgotten"] {
        assert!(desk.datasets.remove(name).await.unwrap());
    }
    let planned = gc(&world, true).await;
    assert_eq!(names(&planned, TakenKind::Dataset), [forgotten.as_str()]);
    let files = names(&planned, TakenKind::File);
    assert!(files.len() == 2 && files.contains(&stray.as_str()), "{files:?}");
    assert_eq!(gc(&world, false).await.taken, planned.taken);
    let there = |digest: &str| desk.config.state_dir.join("datasets").join(digest).exists();
    assert_eq!([&kept, &read, &forgotten].map(|digest| there(digest)), [true, true, false]);
    assert!(!desk.blobs.has(&stray).await);
    world.engine.go_on();
    assert_eq!(world.until_done(job).await.state, "succeeded");
}

#[tokio::test]
async fn what_was_touched_lately_stays() {
    let world = World::with(scripted([])).await;
    world.house.desk.blobs.put_bytes(b"it will be named in a moment").unwrap();
    assert!(gc(&world, false).await.taken.is_empty());
}
