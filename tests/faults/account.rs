//! What drydock says of a job, held against what is known to have happened.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::process::Gateway;
use crate::yard::{Ending, Order, PATIENCE, Yard};

/// What the account of one job came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) jobs: usize,
    pub(crate) attempts: usize,
    pub(crate) reports: usize,
    pub(crate) artifacts: usize,
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.attempts += other.attempts;
        self.reports += other.reports;
        self.artifacts += other.artifacts;
    }
}

impl Yard {
    /// Checks every job that has ended, and that each took so many attempts.
    pub(crate) async fn check(&self, gateway: &Gateway, orders: &[Order], attempts: usize) -> Sum {
        self.check_about(gateway, orders, attempts..=attempts).await
    }

    /// The same where nobody can know how many attempts it had to be.
    pub(crate) async fn check_about(
        &self,
        gateway: &Gateway,
        orders: &[Order],
        attempts: RangeInclusive<usize>,
    ) -> Sum {
        let mut sum = Sum::default();
        for order in orders {
            sum += check(gateway, order, &attempts, self.patient).await;
        }
        sum
    }

    /// Checks that nothing of these jobs is left but what should be: no container, no folder, no mount.
    pub(crate) async fn check_tidy(&self, orders: &[Order], host: Option<&str>) {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let left = self.left(orders, host);
            if left.is_empty() {
                return;
            }
            assert!(tokio::time::Instant::now() < end, "these stay: {left:#?}\n{}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    fn left(&self, orders: &[Order], host: Option<&str>) -> Vec<String> {
        let mut docker = Command::new("docker");
        docker.args(host.iter().flat_map(|host| ["--host", host]));
        let listed = docker.args(["ps", "--all", "--format", "{{.Names}} {{.Status}}"]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).unwrap();
        let ours = |line: &&str| orders.iter().any(|order| line.contains(&order.id().to_lowercase()));
        let mut left: Vec<_> = listed.lines().filter(ours).map(str::to_owned).collect();
        let attempts = self.folders.state().join("attempts");
        if let Ok(folders) = std::fs::read_dir(&attempts) {
            left.extend(folders.map(|folder| folder.unwrap().path().display().to_string()));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let below = attempts.display().to_string();
        left.extend(mounts.lines().filter(|mount| mount.contains(&below)).map(str::to_owned));
        left
    }
}

async fn check(gateway: &Gateway, order: &Order, attempts: &RangeInclusive<usize>, patient: bool) -> Sum {
    let view = gateway.get(&format!("/v1/jobs/{}", order.id())).await;
    let lines = log(gateway, order.id()).await;
    let told: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let told = format!("{order:?}: {view:#}\n{told}");

    let (state, kind) = truth(order.ending);
    assert_eq!(view["state"], state, "{told}");
    assert_eq!(view["failure"]["kind"].as_str(), kind, "{told}");
    let taken = view["attempt"].as_u64().unwrap() as usize;
    assert!(attempts.contains(&taken), "{told}");
    let attempts = taken;

    let numbers: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<_>>(), "{told}");
    assert_eq!(view["seq"], json!(lines.len()), "{told}");
    check_events(&lines, attempts, &told);
    let reports = check_reports(order, &lines, attempts, patient, &told);
    let artifacts = check_artifacts(gateway, order, &told).await;
    Sum { jobs: 1, attempts, reports, artifacts }
}

/// The state that a job is to end in, and why it fails if it does.
fn truth(ending: Ending) -> (&'static str, Option<&'static str>) {
    match ending {
        Ending::Finish => ("succeeded", None),
        Ending::Fail => ("failed", Some("bad_dataset")),
        Ending::Leave => ("failed", Some("unexplained")),
        Ending::Crash => ("failed", Some("crashed")),
        Ending::Eat => ("failed", Some("out_of_memory")),
        Ending::Cancel => ("cancelled", None),
    }
}

/// Submitted once; each attempt claimed once and ended once, in order.
fn check_events(lines: &[Value], attempts: usize, told: &str) {
    let events: Vec<_> = lines.iter().filter_map(|line| line["event"]["event"].as_str()).collect();
    let count = |name: &str| events.iter().filter(|event| **event == name).count();
    assert_eq!((count("submitted"), count("claimed"), count("ended")), (1, attempts, attempts), "{told}");
    assert_eq!((events.first(), events.last()), (Some(&"submitted"), Some(&"ended")), "{told}");
    assert!(count("cancel_requested") <= 1, "{told}");
}

/// Every worker was started once, and of what it said nothing is missing, doubled or out of order. Gives how much that
/// was.
fn check_reports(order: &Order, lines: &[Value], attempts: usize, patient: bool, told: &str) -> usize {
    let mut said: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for report in lines.iter().map(|line| &line["report"]).filter(|report| report.is_object()) {
        said.entry(report["attempt"].as_u64().unwrap()).or_default().push(report);
    }
    for (attempt, reports) in &said {
        let count = |name: &str| reports.iter().filter(|report| report["type"] == name).count();
        assert_eq!((count("started"), &reports[0]["type"]), (1, &json!("started")), "{told}");
        let steps: Vec<_> = reports.iter().filter_map(|report| report["done"].as_u64()).collect();
        assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "{told}");
        let last = &reports[reports.len() - 1]["type"];
        if *attempt == attempts as u64 {
            let (whole, ends_with) = match order.ending {
                Ending::Finish => (true, "finished"),
                Ending::Fail => (true, "failed"),
                Ending::Leave | Ending::Crash | Ending::Eat => (true, "progress"),
                Ending::Cancel => (false, "stopped"),
            };
            // In a later attempt the probe does not dawdle, and may be done before it is asked to stop.
            let killed = order.ending == Ending::Cancel && (!patient || attempts > 1);
            assert!(last == ends_with || killed, "{last} instead of {ends_with}: {told}");
            assert!(!whole || steps.len() == order.reports as usize, "{told}");
        }
    }
    said.values().map(Vec::len).sum()
}

/// The artifacts of a success are there, and are what the probe wrote; of anything else there are none.
async fn check_artifacts(gateway: &Gateway, order: &Order, told: &str) -> usize {
    let listed = gateway.get(&format!("/v1/jobs/{}/artifacts", order.id())).await;
    let listed = listed["artifacts"].as_array().unwrap_or_else(|| panic!("{listed:#}"));
    if order.ending != Ending::Finish {
        assert!(listed.is_empty(), "{listed:#?} {told}");
        return 0;
    }
    let made = [("made/deep/large", 20_000), ("made/small", 1)];
    assert_eq!(listed.len(), made.len(), "{listed:#?} {told}");
    for (file, (path, times)) in listed.iter().zip(made) {
        let content = format!("{}\n", order.id()).repeat(times);
        let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((&file["path"], &file["sha256"]), (&json!(path), &json!(digest)), "{told}");
        let url = format!("{}/v1/jobs/{}/artifacts/{path}", gateway.url, order.id());
        let kept = gateway.client.get(url).send().await.unwrap().bytes().await.unwrap();
        assert!(kept == content.as_bytes(), "{path} is not what was made: {told}");
    }
    listed.len()
}

/// All of a job's log.
async fn log(gateway: &Gateway, job: &str) -> Vec<Value> {
    let mut lines: Vec<Value> = Vec::new();
    loop {
        let page = gateway.get(&format!("/v1/jobs/{job}/logs?after={}&limit=1000", lines.len())).await;
        let page = page["lines"].as_array().unwrap_or_else(|| panic!("{page:#}"));
        if page.is_empty() {
            return lines;
        }
        lines.extend(page.iter().cloned());
    }
}
