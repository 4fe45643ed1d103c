//! Many short jobs, eight at a time, each in a real container: what a gateway holds must not grow with what it has done.
//!
//! A job makes a few reports and two artifacts. Retention is set small and a pass of it is asked for again and again, as
//! the gateway makes one by itself only every hour.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::process::{Folders, Gateway};
use crate::process::Process;
use crate::row::{Finding, Length};
use crate::watchers::mib;

const JOBS: usize = 5_000;
const AT_ONCE: usize = 8;
/// Samples of what the gateway holds, over the whole of it.
const SAMPLES: usize = 40;
/// The first part of the samples: caches and pools fill up.
const WARM_UP: f64 = 0.4;
/// What memory may grow by with each job, in bytes; the resident size comes in pages and goes up and down by itself.
const SLOPE: f64 = 1024.0;
/// What is kept, by the retention that is set: bytes and jobs of artifacts, and jobs whose reports are whole.
const KEPT_BYTES: u64 = 8 << 20;
const KEPT_JOBS: usize = 50;
/// What stays of a job in the database for good: its row, its events, its attempt and the last report of each kind.
const ROW_BYTES: u64 = 16 << 10;
const LOG_BYTES: u64 = 16 << 20;

/// What the gateway holds after so many jobs.
struct Sample {
    jobs: usize,
    resident: u64,
    files: usize,
    database: u64,
    log: u64,
    artifacts: (usize, u64),
}

pub(crate) async fn measure(length: Length) -> Vec<Finding> {
    let jobs = length.of(JOBS);
    let folders = Folders::new(8);
    let gateway = folders.stock(gateway(&folders).await).await;
    let process = Process(gateway.pid());
    let began = Instant::now();
    let (mut ids, mut samples) = (HashSet::new(), Vec::new());
    while samples.len() < SAMPLES {
        let goal = jobs * (samples.len() + 1) / SAMPLES;
        while ids.len() - open(&gateway).await < goal {
            for _ in open(&gateway).await..(2 * AT_ONCE).min(jobs - ids.len()) {
                ids.insert(submit(&gateway).await);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        gateway.post("/v1/gc", json!({"dry_run": false})).await;
        samples.push(sample(process, &folders.state(), goal));
    }
    let took = began.elapsed();
    until_tidy(&folders.state(), &ids).await;
    gateway.post("/v1/gc", json!({"dry_run": false})).await;
    let more = gateway.post("/v1/gc", json!({"dry_run": true})).await;
    let over = more["taken"].as_array().map_or(usize::MAX, Vec::len);
    let last = sample(process, &folders.state(), jobs);
    let left = left(&folders.state(), &ids);
    let host = gateway.get("/v1/host").await;
    let whole = whole_logs(&gateway).await;
    gateway.stop().await;

    let warm = &samples[(samples.len() as f64 * WARM_UP) as usize..];
    let slope = slope(warm, |sample| sample.resident as f64);
    let tenths: Vec<_> = samples.chunks(SAMPLES / 10).map(|tenth| format!("{:.1}", mib(tenth[0].resident))).collect();
    let files = warm.iter().map(|sample| sample.files).max().unwrap();
    let log = samples.iter().map(|sample| sample.log).max().unwrap();
    let (most_jobs, most_bytes) =
        samples.iter().fold((0, 0), |most, now| (most.0.max(now.artifacts.0), most.1.max(now.artifacts.1)));
    let succeeded = host["jobs"]["succeeded"].as_u64().unwrap_or(0) as usize;
    let what = format!("{jobs} jobs, {AT_ONCE} at once");
    let row = |what: String, drydock: String, came_to: String, goal: String, met: bool| Finding {
        what,
        drydock,
        peer: String::new(),
        came_to,
        goal,
        met,
    };
    vec![
        row(
            what.clone(),
            format!("{took:.0?}, {:.2} jobs a second", jobs as f64 / took.as_secs_f64()),
            format!("{succeeded} succeeded"),
            format!("{jobs}"),
            succeeded == jobs && ids.len() == jobs,
        ),
        row(
            format!("{what}: memory"),
            format!("MiB after every tenth: {}; {:.1} at rest", tenths.join(", "), mib(last.resident)),
            format!("{slope:.0} bytes a job"),
            format!("at most {SLOPE:.0}"),
            slope <= SLOPE,
        ),
        row(
            format!("{what}: open files"),
            format!("{} after {}, {files} at most", warm[0].files, warm[0].jobs),
            format!("{} at the end", last.files),
            format!("at most {} more than before", AT_ONCE),
            last.files <= warm[0].files + AT_ONCE,
        ),
        row(
            format!("{what}: containers, folders, mounts and loop devices that stay"),
            String::new(),
            format!("{} {}", left.len(), left.iter().take(3).cloned().collect::<Vec<_>>().join(" ")),
            "none".into(),
            left.is_empty(),
        ),
        row(
            format!("{what}: artifacts that are kept"),
            format!("{most_jobs} jobs and {:.1} MiB at most, while others were ending", mib(most_bytes)),
            format!("{} jobs and {:.1} MiB at the end, {over} over the limit", last.artifacts.0, mib(last.artifacts.1)),
            format!("at most {KEPT_JOBS} jobs, {:.0} MiB, 0 over", mib(KEPT_BYTES)),
            last.artifacts.0 <= KEPT_JOBS && last.artifacts.1 <= KEPT_BYTES && over == 0,
        ),
        row(
            format!("{what}: the database"),
            format!("{:.1} MiB, write-ahead log {:.1} MiB at most", mib(last.database), mib(log)),
            format!("{:.1} KiB a job, {whole} with all of their reports", last.database as f64 / 1024.0 / jobs as f64),
            format!("at most {} KiB a job, {} MiB of log, {KEPT_JOBS} jobs", ROW_BYTES >> 10, LOG_BYTES >> 20),
            last.database <= ROW_BYTES * jobs as u64 && log <= LOG_BYTES && whole <= KEPT_JOBS,
        ),
    ]
}

async fn gateway(folders: &Folders) -> Gateway {
    let variables = [
        ("DRYDOCK_SANDBOX__IMAGE", crate::image::probe().to_owned()),
        ("DRYDOCK_CAPACITY__MEMORY", format!("{}MiB", 64 * AT_ONCE)),
        ("DRYDOCK_RETENTION__ARTIFACTS_JOBS", KEPT_JOBS.to_string()),
        ("DRYDOCK_RETENTION__ARTIFACTS_BYTES", KEPT_BYTES.to_string()),
        ("DRYDOCK_RETENTION__REPORTS_JOBS", KEPT_JOBS.to_string()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value));
    Gateway::start_with(&folders.state(), &folders.data(), &variables).await
}

async fn submit(gateway: &Gateway) -> String {
    let job = json!({"finetune": {"model": "tiny", "dataset": "rows", "sample_prompts": ["finish 5 20"]}});
    let limits = json!({"cpus": 0.25, "memory_mib": 64, "disk_mib": 32});
    let answer = gateway.post("/v1/jobs", json!({"job": job, "limits": limits})).await;
    answer["job"]["id"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
}

/// Jobs that have not ended.
async fn open(gateway: &Gateway) -> usize {
    let page = gateway.get("/v1/jobs?state=queued,running,stopping&limit=200").await;
    page["jobs"].as_array().map_or_else(|| panic!("{page:#}"), Vec::len)
}

fn sample(process: Process, state: &Path, jobs: usize) -> Sample {
    let size = |name: &str| fs::metadata(state.join(name)).map_or(0, |file| file.len());
    Sample {
        jobs,
        resident: process.resident_bytes(),
        files: process.open_files(),
        database: size("drydock.db"),
        log: size("drydock.db-wal"),
        artifacts: (fs::read_dir(state.join("artifacts")).map_or(0, Iterator::count), bytes(&state.join("artifacts"))),
    }
}

/// Bytes of the files below a folder.
fn bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// Jobs among the newest whose logs are whole. More of them than are kept would be rows that should have gone.
async fn whole_logs(gateway: &Gateway) -> usize {
    let page = gateway.get("/v1/jobs?limit=200").await;
    let mut whole = 0;
    for job in page["jobs"].as_array().unwrap() {
        let logs: Value = gateway.get(&format!("/v1/jobs/{}/logs", job["id"].as_str().unwrap())).await;
        whole += usize::from(logs["removed_ms"].is_null());
    }
    whole
}

/// Waits a while for what goes after a job's end to go.
async fn until_tidy(state: &Path, ids: &HashSet<String>) {
    for _ in 0..100 {
        if left(state, ids).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// What is left of these jobs that should not be: containers, folders, mounts and loop devices.
fn left(state: &Path, ids: &HashSet<String>) -> Vec<String> {
    let listed = Command::new("docker").args(["ps", "--all", "--format", "{{.Names}}"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap().to_uppercase();
    let ours = |line: &&str| ids.iter().any(|id| line.contains(id.as_str()));
    let mut left: Vec<_> = listed.lines().filter(ours).map(str::to_owned).collect();
    let attempts = state.join("attempts");
    if let Ok(folders) = fs::read_dir(&attempts) {
        left.extend(folders.map(|folder| folder.unwrap().path().display().to_string()));
    }
    let below = attempts.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    left.extend(mounts.lines().filter(|mount| mount.contains(&below)).map(str::to_owned));
    for device in fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if backing.contains(&below) {
            left.push(format!("{} {}", device.path().display(), backing.trim()));
        }
    }
    left
}

/// What something grows by with each job: the slope of the line with the least squares.
fn slope(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let x = samples.iter().map(|sample| sample.jobs as f64).sum::<f64>() / count;
    let y = samples.iter().map(&of).sum::<f64>() / count;
    let both: f64 = samples.iter().map(|sample| (sample.jobs as f64 - x) * (of(sample) - y)).sum();
    let spread: f64 = samples.iter().map(|sample| (sample.jobs as f64 - x).powi(2)).sum();
    both / spread
}
