//! From the submission of a job to the first report that a client sees of it, beside `docker run` of the same worker.
//!
//! Ours is the whole way: a `tools/call` over MCP that plans the job, queues it and answers with its number, then
//! server-sent events until the first of them is a report. The peer's is the client's command line until there is a line
//! in the events file: with the image, spec, inputs, limits and walls that the engine shows of a container of ours, but
//! with an output folder that is there already and has no cap, and without the paths that only we mask, for which the
//! command has no option. The two take turns, and which of them begins does as well.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use drydock::sandbox::ContainerName;
use drydock_spec::{Attempt, JobId};
use serde_json::{Value, json};

use crate::harness::process::{Folders, Gateway};
use crate::row::{Finding, Length};

const PAIRS: usize = 20;
const GOAL: f64 = 1.15;
const WORKER: &str = "drydock-worker:latest";
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A worker that is measured.
struct Subject {
    what: &'static str,
    image: String,
    /// Options of a short finetune, and of one that lasts until it is cancelled.
    short: Value,
    long: Value,
}

pub(crate) async fn measure(length: Length) -> Vec<Finding> {
    let tuned = |more: Value| {
        let mut options = json!({"model": "tiny", "dataset": "rows"});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let mut subjects = vec![Subject {
        what: "the probe",
        image: crate::image::probe().to_owned(),
        short: tuned(json!({"sample_prompts": ["finish 1 0"]})),
        long: tuned(json!({"sample_prompts": ["linger 6000 100"]})),
    }];
    let has_worker = docker(&["image", "inspect", WORKER]).is_ok();
    if has_worker {
        subjects.push(Subject {
            what: "the worker",
            image: WORKER.to_owned(),
            short: tuned(json!({"max_steps": 1})),
            long: tuned(json!({"max_steps": 100_000})),
        });
    }
    let mut findings = Vec::new();
    for subject in subjects {
        findings.push(compare(&subject, length.of(PAIRS).max(3)).await);
    }
    findings
}

async fn compare(subject: &Subject, pairs: usize) -> Finding {
    let folders = Folders::new(8);
    let variables = [("DRYDOCK_SANDBOX__IMAGE".to_owned(), subject.image.clone())];
    let gateway = Gateway::start_with(&folders.state(), &folders.data(), &variables).await;
    let gateway = folders.stock(gateway).await;
    let peer = Peer::like(&gateway, &folders.state(), &subject.long).await;
    // The first of each finds the host's caches cold.
    ours(&gateway, &subject.short).await;
    peer.run();
    let (mut our_ms, mut peer_ms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        let (our, peer) = if pair % 2 == 0 {
            let our = ours(&gateway, &subject.short).await;
            (our, peer.run())
        } else {
            let peer = peer.run();
            (ours(&gateway, &subject.short).await, peer)
        };
        our_ms.push(our.as_secs_f64() * 1e3);
        peer_ms.push(peer.as_secs_f64() * 1e3);
        ratios.push(our.as_secs_f64() / peer.as_secs_f64());
    }
    gateway.stop().await;
    let (ratio, least, most) = spread(&mut ratios);
    Finding {
        what: format!("submit over MCP to first report, {}", subject.what),
        drydock: format!("{:.0} ms", spread(&mut our_ms).0),
        peer: format!("{:.0} ms `docker run`", spread(&mut peer_ms).0),
        came_to: format!("{ratio:.2}x ({least:.2}-{most:.2}), {pairs} pairs"),
        goal: format!("at most {GOAL}x"),
        met: ratio <= GOAL,
    }
}

/// Median, least and most.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median =
        if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] };
    (median, values[0], values[values.len() - 1])
}

/// Submits a job and returns how long it took until the first report of it was here.
async fn ours(gateway: &Gateway, options: &Value) -> Duration {
    let begun = Instant::now();
    let submitted = gateway.call("finetune", options.clone()).await;
    let job = submitted["structuredContent"]["job"]["id"].as_str().unwrap_or_else(|| panic!("{submitted:#}"));
    let events = gateway.events(job, 0, |event| !event["report"].is_null()).await;
    let took = begun.elapsed();
    assert!(!events.last().unwrap()["report"].is_null(), "the job said nothing: {events:#?}");
    until_gone(gateway, job).await;
    took
}

/// Returns when the job has ended and its container is removed, so that nothing of it disturbs the next one.
async fn until_gone(gateway: &Gateway, job: &str) {
    while gateway.get(&format!("/v1/jobs/{job}")).await["ended_ms"].is_null() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while docker(&["inspect", &container(job)]).is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The folder goes after the container.
    tokio::time::sleep(Duration::from_millis(200)).await;
}

fn container(job: &str) -> String {
    ContainerName::of(job.parse::<JobId>().unwrap(), Attempt::FIRST).to_string()
}

/// `docker run` of what a job of ours runs.
struct Peer {
    arguments: Vec<String>,
    /// What is in place of an attempt's folder.
    folder: tempfile::TempDir,
    events: PathBuf,
}

impl Peer {
    /// Has a job run and copies what the engine shows of its container.
    async fn like(gateway: &Gateway, state: &Path, options: &Value) -> Self {
        let submitted = gateway.call("finetune", options.clone()).await;
        let job = submitted["structuredContent"]["job"]["id"].as_str().unwrap_or_else(|| panic!("{submitted:#}"));
        gateway.events(job, 0, |event| !event["report"].is_null()).await;
        let shown: Value = serde_json::from_slice(&docker(&["inspect", &container(job)]).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let attempt = state.join("attempts").join(format!("{job}-1")).canonicalize().unwrap();
        std::fs::copy(attempt.join("spec.json"), folder.path().join("spec.json")).unwrap();
        std::fs::write(folder.path().join("seccomp.json"), seccomp(&shown[0])).unwrap();
        let arguments = arguments(&shown[0], &attempt, folder.path());
        gateway.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
        until_gone(gateway, job).await;
        Self { arguments, events: folder.path().join("events.jsonl"), folder }
    }

    /// How long it takes until there is a line in the events file.
    fn run(&self) -> Duration {
        let out = self.folder.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        std::fs::write(&self.events, "").unwrap();
        for path in [&out, &self.events] {
            std::os::unix::fs::chown(path, Some(65532), Some(65532)).unwrap();
        }
        let begun = Instant::now();
        let mut command = Command::new("docker");
        let mut client = command.args(&self.arguments).stdout(Stdio::piped()).spawn().unwrap();
        while !std::fs::read(&self.events).unwrap().contains(&b'\n') {
            std::thread::sleep(LOOK_AGAIN);
            assert!(begun.elapsed() < Duration::from_secs(60), "`docker run` says nothing: {:?}", self.arguments);
        }
        let took = begun.elapsed();
        let mut id = String::new();
        std::io::Read::read_to_string(client.stdout.as_mut().unwrap(), &mut id).unwrap();
        client.wait().unwrap();
        docker(&["rm", "--force", id.trim()]).unwrap();
        took
    }
}

/// The text of the system call filter.
fn seccomp(shown: &Value) -> String {
    let options = strings(&shown["HostConfig"]["SecurityOpt"]);
    options.iter().find_map(|option| option.strip_prefix("seccomp=")).unwrap().to_owned()
}

/// The command that makes such a container, with `folder` in place of the attempt's.
fn arguments(shown: &Value, attempt: &Path, folder: &Path) -> Vec<String> {
    let (host, config) = (&shown["HostConfig"], &shown["Config"]);
    let mut words: Vec<String> = vec!["run".into(), "--detach".into(), "--no-healthcheck".into()];
    let mut give = |option: &str, value: String| words.extend([format!("--{option}"), value]);
    give("memory", host["Memory"].to_string());
    give("memory-swap", host["MemorySwap"].to_string());
    give("cpus", (host["NanoCpus"].as_f64().unwrap() / 1e9).to_string());
    give("pids-limit", host["PidsLimit"].to_string());
    give("oom-score-adj", host["OomScoreAdj"].to_string());
    for limit in host["Ulimits"].as_array().unwrap() {
        give("ulimit", format!("{}={}:{}", text(&limit["Name"]), limit["Soft"], limit["Hard"]));
    }
    for mount in host["Mounts"].as_array().unwrap() {
        let source = Path::new(text(&mount["Source"]));
        let source = source.strip_prefix(attempt).map_or_else(|_| source.to_owned(), |own| folder.join(own));
        let access = if mount["ReadOnly"] == json!(true) { ",readonly" } else { "" };
        let (source, target) = (source.display(), text(&mount["Target"]));
        give("mount", format!("type=bind,source={source},target={target},bind-propagation=rprivate{access}"));
    }
    for (path, options) in host["Tmpfs"].as_object().unwrap() {
        give("tmpfs", format!("{path}:{}", text(options)));
    }
    give("network", text(&host["NetworkMode"]).to_owned());
    give("ipc", text(&host["IpcMode"]).to_owned());
    give("cgroupns", text(&host["CgroupnsMode"]).to_owned());
    for capability in strings(&host["CapDrop"]) {
        give("cap-drop", capability);
    }
    for option in strings(&host["SecurityOpt"]).into_iter().filter(|option| !option.starts_with("seccomp=")) {
        give("security-opt", option);
    }
    give("security-opt", format!("seccomp={}", folder.join("seccomp.json").display()));
    give("log-driver", text(&host["LogConfig"]["Type"]).to_owned());
    for (name, value) in host["LogConfig"]["Config"].as_object().unwrap() {
        give("log-opt", format!("{name}={}", text(value)));
    }
    give("user", text(&config["User"]).to_owned());
    give("hostname", text(&config["Hostname"]).to_owned());
    give("workdir", text(&config["WorkingDir"]).to_owned());
    for variable in strings(&config["Env"]) {
        give("env", variable);
    }
    words.extend(["--init".into(), "--read-only".into(), text(&shown["Image"]).to_owned()]);
    words.extend(strings(&config["Cmd"]));
    words
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| text(word).to_owned()).collect()
}

/// What the client prints; an error if it fails.
fn docker(arguments: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new("docker").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
