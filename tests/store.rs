//! The store on a real database: what a job's row says, its history says too, whoever asks and however often.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::HashMap;

use drydock::api::Submission;
use drydock::artifacts::Artifact;
use drydock::clock::Clock;
use drydock::plan::{DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::store::{AwaitedJob, Filter, Holder, Lease, NewJob, ReportBatch, Store, StoreError, Termination};
use drydock_spec::report::Metrics;
use drydock_spec::{
    Attempt, Failure, FailureKind, JobId, JobState, Limits, OnFailure, Outcome, Owner, Priority, Report, ReportLine,
    Stage, TraceId,
};

#[path = "store/cordons.rs"]
mod cordons;
#[path = "store/fold.rs"]
mod fold;
#[path = "store/line.rs"]
mod line;
#[path = "store/lost.rs"]
mod lost;
#[path = "store/owners.rs"]
mod owners;

const LAST: u32 = 3;

struct House {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    clock: Clock,
    store: Store,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drydock.db");
        let clock = Clock::manual(1_000_000);
        let store = Store::open(&path, clock.clone()).await.unwrap();
        Self { _folder: folder, path, clock, store }
    }

    async fn submit(&self, n: u128, priority: i8) -> JobId {
        let mut new = new_job(n);
        new.priority = Priority::new(priority).unwrap();
        self.store.submit(new).await.unwrap().job.id
    }

    /// Takes over what nobody speaks for, one attempt.
    async fn take_over(&self, name: &str) -> Option<Lease> {
        take_over(&self.store, &holder(name)).await
    }

    async fn claim(&self, id: JobId) -> Lease {
        self.store.claim(id, &holder("a")).await.unwrap().unwrap()
    }
}

async fn take_over(store: &Store, holder: &Holder) -> Option<Lease> {
    let (job, attempt) = *store.abandoned(holder).await.unwrap().first()?;
    Some(store.take_over(job, attempt, holder).await.unwrap().unwrap())
}

fn holder(name: &str) -> Holder {
    Holder { name: name.into(), lease_ms: 30_000 }
}

/// The inputs of a job that starts from what another one leaves.
fn awaiting(job: JobId) -> ResolvedInputs {
    let source = ModelSource::Awaited { job };
    let model = ModelInput { name: format!("job:{job}"), source, adapter: None };
    ResolvedInputs { model: Some(model), ..ResolvedInputs::default() }
}

fn new_job(n: u128) -> NewJob {
    let submission: Submission =
        serde_json::from_str(r#"{"job": {"finetune": {"model": "m", "dataset": "d"}}}"#).unwrap();
    NewJob {
        id: JobId::from_parts(1_000_000, n),
        owner: Owner::local(),
        trace_id: TraceId::from_bits(n),
        spec: submission.job.parse().unwrap(),
        inputs: ResolvedInputs {
            model: Some(ModelInput {
                name: "m".into(),
                source: ModelSource::Stored { digest: "aa".into() },
                adapter: None,
            }),
            dataset: Some(DatasetInput { name: "d".into(), digest: "bb".into() }),
            ..ResolvedInputs::default()
        },
        limits: Limits {
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            pids: 64,
            disk_bytes: 1 << 30,
            time_ms: 60_000,
            silence_ms: 10_000,
            grace_ms: 1000,
            max_attempts: LAST,
            gpus: 0,
            gpu_memory_bytes: None,
        },
        estimate: None,
        priority: Priority::default(),
        idempotency_key: None,
        request_digest: "r".into(),
        on_failure: OnFailure::Ask,
        remedy: None,
    }
}

fn stage_line(elapsed_ms: u64) -> ReportLine {
    ReportLine { elapsed_ms, report: Report::Stage { stage: Stage::Train } }
}

fn metrics_line(step: u64) -> ReportLine {
    let metrics = Metrics {
        step,
        total_steps: 10,
        epoch: 0.5,
        loss: 1.5,
        preferences: None,
        learning_rate: 1e-4,
        grad_norm: 0.5,
        tokens_per_second: 100.0,
        eta_ms: 1000,
        rss_bytes: 1,
    };
    ReportLine { elapsed_ms: step, report: Report::Metrics(metrics) }
}

fn failed(kind: FailureKind) -> Outcome {
    Outcome::Failed(Failure::new(kind, "made up"))
}

#[tokio::test]
async fn the_line_is_by_priority_and_then_by_submission() {
    let house = House::new().await;
    let first = house.submit(1, 0).await;
    let second = house.submit(2, 0).await;
    let urgent = house.submit(3, 5).await;
    let line: Vec<_> = house.store.front(10).await.unwrap().jobs.iter().map(|job| job.id).collect();
    assert_eq!(line, [urgent, first, second]);
    let ahead = house.store.ahead_of(&[first, second, urgent]).await.unwrap();
    assert_eq!(ahead, HashMap::from([(urgent, 0), (first, 1), (second, 2)]));
}

#[tokio::test]
async fn a_job_waits_in_line_until_the_job_that_it_reads_from_has_succeeded() {
    let house = House::new().await;
    let first = house.submit(1, 0).await;
    // Of a higher priority, and nevertheless behind.
    let mut new = new_job(2);
    (new.inputs, new.priority) = (awaiting(first), Priority::new(5).unwrap());
    let second = house.store.submit(new).await.unwrap().job.id;
    let line: Vec<_> = house.store.front(10).await.unwrap().jobs.into_iter().map(|job| job.id).collect();
    assert_eq!(line, [first]);
    assert!(house.store.claim(second, &holder("a")).await.unwrap().is_none());
    let awaited = AwaitedJob { id: first, state: "queued".into() };
    assert_eq!(house.store.awaited(&[first, second]).await.unwrap(), HashMap::from([(second, awaited)]));
    assert_eq!(house.store.ahead_of(&[first]).await.unwrap()[&first], 0);

    house.claim(first).await.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert_eq!(house.store.fail_orphans_once().await.unwrap(), 0);
    assert!(house.store.awaited(&[second]).await.unwrap().is_empty());
    house.claim(second).await;
}

#[tokio::test]
async fn a_chain_fails_as_a_whole_when_its_first_job_does() {
    let house = House::new().await;
    let first = house.submit(1, 0).await;
    let mut ids = vec![first];
    for n in 2..5 {
        let mut new = new_job(n);
        new.inputs = awaiting(ids[ids.len() - 1]);
        ids.push(house.store.submit(new).await.unwrap().job.id);
    }
    house.claim(first).await.finish(failed(FailureKind::Diverged), &[], 0).await.unwrap();
    assert_eq!(house.store.fail_orphans_once().await.unwrap(), 3);
    assert_eq!(house.store.fail_orphans_once().await.unwrap(), 0, "it may be repeated");
    let JobState::Done(Outcome::Failed(failure)) = house.store.job(ids[3]).await.unwrap().state else { panic!() };
    assert_eq!(failure.kind, FailureKind::InputFailed);
    assert!(failure.message.starts_with(&format!("job `{}`, whose result this one was to read, failed", ids[2])));
}

#[tokio::test]
async fn the_failure_of_a_job_that_lost_its_input_is_kept_like_any_other() {
    let house = House::new().await;
    let first = house.submit(1, 0).await;
    let second = house.store.submit(NewJob { inputs: awaiting(first), ..new_job(2) }).await.unwrap().job.id;
    house.claim(first).await.finish(failed(FailureKind::Diverged), &[], 0).await.unwrap();
    house.store.fail_orphans_once().await.unwrap();
    let job = house.store.job(second).await.unwrap();
    let kept = house.store.failure_of(second, job.attempt).await.unwrap().expect("it is kept");
    let JobState::Done(Outcome::Failed(failure)) = job.state else { panic!() };
    assert_eq!((kept.failure, kept.record.signature.kind), (failure, FailureKind::InputFailed));
}

#[tokio::test]
async fn the_same_key_gives_the_same_job_and_another_body_a_conflict() {
    let house = House::new().await;
    let new = NewJob { idempotency_key: Some("k".into()), ..new_job(1) };
    let first = house.store.submit(new.clone()).await.unwrap();
    assert!(first.created);
    let again = house.store.submit(NewJob { id: JobId::from_parts(1, 2), ..new.clone() }).await.unwrap();
    assert_eq!((again.created, again.job.id), (false, first.job.id));
    let other = NewJob { id: JobId::from_parts(1, 3), request_digest: "other".into(), ..new.clone() };
    let refused = house.store.submit(other).await.unwrap_err();
    assert!(matches!(refused, StoreError::KeyReused { job, .. } if job == first.job.id), "{refused}");
    // Keys are an owner's own.
    let stranger = NewJob { id: JobId::from_parts(1, 4), owner: Owner("ann".into()), ..new };
    assert!(house.store.submit(stranger).await.unwrap().created);
}

#[tokio::test]
async fn a_list_of_several_states_is_in_order_and_goes_on_at_its_cursor() {
    let house = House::new().await;
    let mut ids = Vec::new();
    for n in 0..9 {
        ids.push(house.submit(n, 0).await);
    }
    for n in [1, 4, 7] {
        house.claim(ids[n]).await.finish(Outcome::Succeeded, &[], 0).await.unwrap();
        house.store.request_cancel(ids[n - 1]).await.unwrap();
    }
    let states = ["queued", "succeeded", "queued"].map(str::to_owned).to_vec();
    let (mut seen, mut filter) = (Vec::new(), Filter { states, limit: 2, ..Filter::default() });
    loop {
        let page = house.store.jobs(&filter).await.unwrap();
        seen.extend(page.jobs.iter().map(|job| job.id));
        filter.before = seen.last().copied();
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, [8, 7, 5, 4, 2, 1].map(|n| ids[n]));
}

#[tokio::test]
async fn only_one_of_many_claims_wins() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let claims = futures::future::join_all((0..16).map(|n| {
        let store = house.store.clone();
        async move { store.claim(id, &holder(&n.to_string())).await.unwrap().is_some() }
    }))
    .await;
    assert_eq!(claims.into_iter().filter(|won| *won).count(), 1);
}

#[tokio::test]
async fn a_stale_attempt_cannot_finish_a_job() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let mut stale = house.claim(id).await;
    house.clock.advance(31_000);
    let fresh = house.take_over("a").await.unwrap();
    assert_eq!(fresh.row().fence, stale.row().fence, "the container stays the attempt's own");
    let lost = |error: StoreError| matches!(error, StoreError::LeaseLost { .. });
    assert!(lost(stale.renew(1).await.unwrap_err()));
    assert!(lost(stale.launching("x").await.unwrap_err()));
    assert!(lost(stale.terminating(Termination::Silent).await.unwrap_err()));
    assert!(lost(stale.observe(Report::Gpus { gpus: vec![] }).await.unwrap_err()));
    let batch = ReportBatch { lines: vec![stage_line(1)], end_offset: 10 };
    assert!(lost(stale.record(&batch).await.unwrap_err()));
    assert!(lost(stale.finish(Outcome::Succeeded, &[], 0).await.unwrap_err()));
    assert!(!house.store.job(id).await.unwrap().state.is_done());
    fresh.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert_eq!(house.store.job(id).await.unwrap().state, JobState::Done(Outcome::Succeeded));
}

#[tokio::test]
async fn another_process_takes_over_at_once_and_the_same_one_only_what_has_run_out() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let _lease = house.claim(id).await;
    assert!(house.take_over("a").await.is_none());
    assert!(house.take_over("b").await.is_some());
    assert!(house.take_over("b").await.is_none(), "each attempt once");
}

#[tokio::test]
async fn reports_are_stored_with_the_offset_that_they_were_read_to() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let mut lease = house.claim(id).await;
    let batch = ReportBatch { lines: vec![stage_line(1), metrics_line(1)], end_offset: 100 };
    lease.record(&batch).await.unwrap();
    // The process dies; the next one reads on from where the database stands.
    let mut next = house.take_over("b").await.unwrap();
    assert_eq!(next.row().report_offset, 100);
    next.record(&ReportBatch { lines: vec![metrics_line(2)], end_offset: 150 }).await.unwrap();
    let log = house.store.log(id, 0, 100).await.unwrap();
    assert_eq!(log.iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(house.store.metrics(id, 0, 10).await.unwrap().len(), 2);
    assert_eq!(house.store.metrics(id, 4, 10).await.unwrap()[0].metrics.step, 2);
    assert_eq!(house.store.job(id).await.unwrap().last_seq, 5);
    assert_eq!(next.last_report().await.unwrap(), Some(metrics_line(2)));
}

#[tokio::test]
async fn an_infrastructure_failure_waits_in_line_until_its_time() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let later = house.clock.now_ms() + 5_000;
    house.claim(id).await.finish(failed(FailureKind::EngineLost), &[], later).await.unwrap();
    assert!(house.store.front(1).await.unwrap().jobs.is_empty());
    assert_eq!(house.store.next_retry_ms().await.unwrap(), Some(later));
    house.clock.advance(5_000);
    assert_eq!(house.store.front(1).await.unwrap().jobs[0].id, id);
    assert_eq!(house.store.job(id).await.unwrap().state, JobState::Queued { next: Attempt(2) });
}

#[tokio::test]
async fn what_an_earlier_attempt_said_is_history() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let mut first = house.claim(id).await;
    let warning = Report::Warning { code: "w".into(), message: "first".into() };
    let lines = vec![stage_line(1), metrics_line(7), ReportLine { elapsed_ms: 2, report: warning }];
    first.record(&ReportBatch { lines, end_offset: 30 }).await.unwrap();
    assert_eq!(house.store.newest_reports(&[id]).await.unwrap()[&id], [stage_line(1), metrics_line(7)]);
    assert_eq!(house.store.glance(&[id]).await.unwrap().findings[&id].len(), 1);
    first.finish(failed(FailureKind::EngineLost), &[], house.clock.now_ms()).await.unwrap();
    let mut second = house.claim(id).await;
    let lines = vec![stage_line(3), stage_line(4)];
    second.record(&ReportBatch { lines, end_offset: 20 }).await.unwrap();
    assert_eq!(
        house.store.newest_reports(&[id]).await.unwrap()[&id],
        [stage_line(4)],
        "no metrics of the first attempt"
    );
    assert!(house.store.glance(&[id]).await.unwrap().findings.is_empty());
    assert_eq!(house.store.log(id, 0, 100).await.unwrap().len(), 9, "but the log has it all");
}

#[tokio::test]
async fn artifacts_are_there_when_the_job_has_succeeded() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let artifact = Artifact { path: "adapter/x".into(), role: Some("adapter".into()), bytes: 7, sha256: "cc".into() };
    house.claim(id).await.finish(Outcome::Succeeded, std::slice::from_ref(&artifact), 0).await.unwrap();
    assert_eq!(house.store.artifacts(id).await.unwrap(), [artifact]);
}

#[tokio::test]
async fn cancelling_twice_does_no_harm() {
    let house = House::new().await;
    let (queued, running) = (house.submit(1, 0).await, house.submit(2, 0).await);
    let lease = house.claim(running).await;
    for _ in 0..2 {
        assert_eq!(house.store.request_cancel(queued).await.unwrap().state, JobState::Done(Outcome::Cancelled));
        let stopping = JobState::Stopping { attempt: Attempt::FIRST };
        assert_eq!(house.store.request_cancel(running).await.unwrap().state, stopping);
    }
    lease.finish(Outcome::Cancelled, &[], 0).await.unwrap();
    assert_eq!(house.store.request_cancel(running).await.unwrap().state, JobState::Done(Outcome::Cancelled));
    assert!(matches!(
        house.store.request_cancel(JobId::from_parts(1, 99)).await.unwrap_err(),
        StoreError::NoSuchJob(_)
    ));
}

#[tokio::test]
async fn pages_are_newest_first_and_go_on_where_the_last_one_ended() {
    let house = House::new().await;
    let mut ids = Vec::new();
    for n in 1..=5 {
        ids.push(house.submit(n, 0).await);
    }
    let filter = Filter { limit: 2, ..Filter::default() };
    let page = house.store.jobs(&filter).await.unwrap();
    assert!(page.more);
    assert_eq!(page.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[4], ids[3]]);
    let filter = Filter { limit: 9, before: Some(ids[3]), ..Filter::default() };
    let page = house.store.jobs(&filter).await.unwrap();
    assert!(!page.more);
    assert_eq!(page.jobs.len(), 3);
    let filter = Filter { limit: 9, states: vec!["running".into()], ..Filter::default() };
    assert!(house.store.jobs(&filter).await.unwrap().jobs.is_empty());
}

#[tokio::test]
async fn whoever_subscribed_hears_of_every_change() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let mut news = house.store.changes().subscribe(id);
    let mut lease = house.claim(id).await;
    news.changed().await;
    lease.record(&ReportBatch { lines: vec![stage_line(1)], end_offset: 1 }).await.unwrap();
    news.changed().await;
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    news.changed().await;
}
