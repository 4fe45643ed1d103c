//! A long line: what a submission, a page of the list, a look at a job and a claim take with 100,000 jobs queued, beside
//! the same with 1,000.
//!
//! Two state folders, one with each line, and a gateway on each, which are asked in turn: what else the machine does
//! falls on both. In each a job that takes all of its CPUs runs all the while, so that what is queued stays so. Claims are
//! made as the dispatch makes them, in this process and without gateways.

use std::time::{Duration, Instant};

use drydock::api::Submission;
use drydock::clock::Clock;
use drydock::plan::{DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::store::{Holder, NewJob, Store};
use drydock_spec::{JobId, Limits, OnFailure, Outcome, Owner, TraceId};
use serde_json::{Value, json};

use crate::harness::process::{Folders, Gateway};
use crate::row::{Finding, Length};

const SHORT_LINE: usize = 1_000;
const LONG_LINE: usize = 100_000;
/// CPUs that jobs may use, all together.
const CPUS: u32 = 1;
/// How often each thing is done for each line.
const TIMES: usize = 1_000;
/// How much more a thing may take in the long line, for the 99th of a hundred.
const GOAL: f64 = 2.0;

/// A state folder with a line of jobs in it.
struct Yard {
    folders: Folders,
    /// In order of submission.
    jobs: Vec<JobId>,
}

impl Yard {
    async fn with(jobs: usize) -> Self {
        let folders = Folders::new(8);
        let first = folders.stock(gateway(&folders).await).await;
        block(&first).await;
        first.stop().await;
        let store = store(&folders).await;
        let mut ids = Vec::with_capacity(jobs);
        for n in 0..jobs {
            ids.push(store.submit(new_job(n as u128)).await.unwrap().job.id);
        }
        store.close().await;
        Self { folders, jobs: ids }
    }
}

/// Starts a job that leaves nothing for others.
async fn block(gateway: &Gateway) {
    let job = json!({"finetune": {"model": "tiny", "dataset": "rows", "sample_prompts": ["linger 100000 5000"]}});
    let limits = json!({"cpus": CPUS, "memory_mib": 64, "disk_mib": 32});
    let answer = gateway.post("/v1/jobs", json!({"job": job, "limits": limits})).await;
    let id = answer["job"]["id"].as_str().unwrap_or_else(|| panic!("{answer:#}"));
    while gateway.get(&format!("/v1/jobs/{id}")).await["progress"].is_null() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn measure(length: Length) -> Vec<Finding> {
    let long = length.of(LONG_LINE);
    let yards = [Yard::with(SHORT_LINE).await, Yard::with(long).await];
    let gateways = [gateway(&yards[0].folders).await, gateway(&yards[1].folders).await];
    let mut findings = Vec::new();
    let mut found = |what: &str, [short, mut long_times]: [Vec<Duration>; 2]| {
        let mut short = short;
        let (before, after) = (percentile(&mut short, 0.99), percentile(&mut long_times, 0.99));
        let times = after.as_secs_f64() / before.as_secs_f64();
        let median = [percentile(&mut short, 0.5), percentile(&mut long_times, 0.5)];
        findings.push(Finding {
            what: format!("{what}, {long} queued beside {SHORT_LINE}"),
            drydock: format!("p99 {after:.2?} beside {before:.2?}, median {:.2?} beside {:.2?}", median[1], median[0]),
            peer: String::new(),
            came_to: format!("{times:.2}x"),
            goal: format!("at most {GOAL}x"),
            met: times <= GOAL,
        });
    };
    let times = length.of(TIMES);
    found("first page of the list", in_turn(times, async |yard, _| list(&gateways[yard], "").await).await);
    let deep = |yard: usize, n: usize| {
        let jobs = &yards[yard].jobs;
        // From the middle half: deep inside, and another page each time.
        jobs[jobs.len() / 4 + n * 7919 % (jobs.len() / 2)]
    };
    let page = async |yard: usize, n| list(&gateways[yard], &format!("&before={}", deep(yard, n))).await;
    found("page deep in the list", in_turn(times, page).await);
    let look = async |yard: usize, n| {
        let job = gateways[yard].get(&format!("/v1/jobs/{}", deep(yard, n))).await;
        assert_eq!(job["waits_for"]["reason"], "jobs_ahead", "{job:#}");
    };
    found("get_job", in_turn(times, look).await);
    // Few enough that the short line stays short.
    found("submit", in_turn(times / 4, async |yard, n| submit(&gateways[yard], n).await).await);
    for gateway in gateways {
        gateway.stop().await;
    }
    let stores = [store(&yards[0].folders).await, store(&yards[1].folders).await];
    let mut took = [Vec::new(), Vec::new()];
    for n in 0..times / 4 + times / 40 {
        for (yard, took) in took.iter_mut().enumerate() {
            let claimed = claim(&stores[yard]).await;
            if n >= times / 40 {
                took.push(claimed);
            }
        }
    }
    found("claim", took);
    findings
}

/// Does something in both yards by turns, and says how long it took in each.
async fn in_turn(times: usize, mut act: impl AsyncFnMut(usize, usize)) -> [Vec<Duration>; 2] {
    let mut took = [Vec::new(), Vec::new()];
    for n in 0..times + times / 10 {
        for (yard, took) in took.iter_mut().enumerate() {
            let began = Instant::now();
            act(yard, n).await;
            // The first tenth warms up.
            if n >= times / 10 {
                took.push(began.elapsed());
            }
        }
    }
    took
}

async fn submit(gateway: &Gateway, n: usize) {
    let job = json!({"job": {"finetune": {"model": "tiny", "dataset": "rows", "lora_r": 1 + n % 8}}});
    let answer = gateway.post("/v1/jobs", job).await;
    assert_eq!(answer["created"], true, "{answer:#}");
}

async fn list(gateway: &Gateway, cursor: &str) {
    let page: Value = gateway.get(&format!("/v1/jobs?limit=50{cursor}")).await;
    assert_eq!(page["jobs"].as_array().map(Vec::len), Some(50), "{page:#}");
}

/// How long it takes as a pass of the dispatch does it. The attempt is ended afterwards.
async fn claim(store: &Store) -> Duration {
    let began = Instant::now();
    let holder = Holder { name: "load".into(), lease_ms: 60_000 };
    assert_eq!(store.fail_orphans_once().await.unwrap(), 0);
    store.count_ended_once(|standing, _, _, _| standing).await.unwrap();
    let line = store.front(64).await.unwrap().jobs;
    store.under_way().await.unwrap();
    store.owners().await.unwrap();
    let lease = store.claim(line[0].id, &holder).await.unwrap().unwrap();
    store.next_retry_ms().await.unwrap();
    let took = began.elapsed();
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    took
}

/// A gateway whose engine has [`CPUS`] to give.
async fn gateway(folders: &Folders) -> Gateway {
    let variables = [
        ("DRYDOCK_SANDBOX__IMAGE".into(), crate::image::probe().into()),
        ("DRYDOCK_CAPACITY__CPUS".into(), CPUS.to_string()),
    ];
    Gateway::start_with(&folders.state(), &folders.data(), &variables).await
}

async fn store(folders: &Folders) -> Store {
    Store::open(&folders.state().join("drydock.db"), Clock::System).await.unwrap()
}

fn new_job(n: u128) -> NewJob {
    let submission: Submission =
        serde_json::from_value(json!({"job": {"finetune": {"model": "tiny", "dataset": "rows"}}})).unwrap();
    let stored = ModelSource::Stored { digest: "00".repeat(32) };
    NewJob {
        id: JobId::from_parts(Clock::System.now_ms(), rand::random()),
        owner: Owner::local(),
        trace_id: TraceId::from_bits(n),
        spec: submission.job.parse().unwrap(),
        inputs: ResolvedInputs {
            model: Some(ModelInput { name: "tiny".into(), source: stored, adapter: None }),
            dataset: Some(DatasetInput { name: "rows".into(), digest: "00".repeat(32) }),
            ..ResolvedInputs::default()
        },
        limits: Limits {
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            pids: 64,
            disk_bytes: 1 << 30,
            time_ms: 60_000,
            silence_ms: 60_000,
            grace_ms: 1000,
            max_attempts: 3,
            gpus: 0,
            gpu_memory_bytes: None,
        },
        estimate: None,
        priority: submission.priority,
        idempotency_key: None,
        request_digest: String::new(),
        on_failure: OnFailure::Ask,
        remedy: None,
    }
}

/// What the given share of the durations does not exceed.
pub(crate) fn percentile(durations: &mut [Duration], share: f64) -> Duration {
    durations.sort_unstable();
    durations[((durations.len() - 1) as f64 * share).round() as usize]
}
