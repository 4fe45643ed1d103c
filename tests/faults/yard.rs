//! A place to break things in: a state folder, a gateway that runs the probe in it, and jobs whose end is known
//! beforehand.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::process::{Folders, Gateway, spawn};

/// Longest that anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How a job is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Finish,
    /// The worker says why it fails.
    Fail,
    /// The worker leaves without a word.
    Leave,
    Crash,
    /// The worker's memory runs out.
    Eat,
    /// Somebody cancels the job while it runs.
    Cancel,
}

impl Ending {
    pub(crate) const GENTLE: [Self; 4] = [Self::Finish, Self::Fail, Self::Leave, Self::Cancel];

    /// What the probe is told.
    fn word(self) -> &'static str {
        match self {
            Self::Finish => "finish",
            // One that is cancelled would finish otherwise, but not before somebody has cancelled it.
            Self::Cancel => "linger",
            Self::Fail => "fail",
            Self::Leave => "leave",
            Self::Crash => "crash",
            Self::Eat => "eat",
        }
    }
}

/// A job: how it is to end, and after how many reports in what pace.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) ending: Ending,
    pub(crate) reports: u32,
    pub(crate) pace_ms: u32,
    key: String,
    id: Option<String>,
}

impl Order {
    pub(crate) fn new(ending: Ending, reports: u32, pace_ms: u32) -> Self {
        Self { ending, reports, pace_ms, key: format!("{:032x}", rand::random::<u128>()), id: None }
    }

    /// One that takes a moment; what is to be cancelled would take ten minutes.
    pub(crate) fn short(ending: Ending) -> Self {
        if ending == Ending::Cancel { Self::new(ending, 6000, 100) } else { Self::new(ending, 20, 10) }
    }

    /// The job's id, once it was accepted.
    pub(crate) fn id(&self) -> &str {
        self.id.as_deref().expect("the job was accepted")
    }

    /// Hands the job in, unless that is done. May be cut off and repeated: the key makes one job of it. An error is a
    /// gateway's that died while it was asked.
    pub(crate) async fn submit(&mut self, gateway: &Gateway) -> reqwest::Result<()> {
        if self.id.is_some() {
            return Ok(());
        }
        let submission = json!({
            "job": {"finetune": {
                "model": "tiny", "dataset": "rows",
                "sample_prompts": [format!("{} {} {}", self.ending.word(), self.reports, self.pace_ms)],
            }},
            // As many attempts as may be asked for: an engine may be killed more often than jobs are tried by default.
            "limits": {"cpus": 0.25, "memory_mib": 64, "disk_mib": 32, "max_attempts": 10},
            "idempotency_key": self.key,
        });
        let asked = gateway.client.post(format!("{}/v1/jobs", gateway.url)).json(&submission);
        let answer: Value = asked.send().await?.json().await?;
        self.id = Some(answer["job"]["id"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned());
        Ok(())
    }

    /// Asks for the end of a job that is to be cancelled, once its worker has spoken. Says whether the job has ended.
    pub(crate) async fn drive(&self, gateway: &Gateway) -> bool {
        let view = gateway.get(&format!("/v1/jobs/{}", self.id())).await;
        if self.ending == Ending::Cancel && view["state"] == "running" && !view["progress"].is_null() {
            gateway.post(&format!("/v1/jobs/{}/cancel", self.id()), json!({})).await;
        }
        ["succeeded", "failed", "cancelled"].contains(&view["state"].as_str().unwrap_or_else(|| panic!("{view:#}")))
    }
}

pub(crate) struct Yard {
    pub(crate) folders: Folders,
    /// Whether a worker that is asked to stop has all the time that it may need.
    pub(crate) patient: bool,
    variables: Vec<(String, String)>,
}

impl Yard {
    /// On the engine that everybody uses.
    pub(crate) async fn new() -> Self {
        Self::on(None, true).await
    }

    /// On the engine at this address.
    pub(crate) async fn on(host: Option<String>, patient: bool) -> Self {
        Self::with(host, patient, &[]).await
    }

    /// The same with more settings, by the names of their variables.
    pub(crate) async fn with(host: Option<String>, patient: bool, settings: &[(&str, &str)]) -> Self {
        let mut variables: Vec<(String, String)> = vec![
            ("DRYDOCK_SANDBOX__IMAGE".into(), crate::image::probe().into()),
            ("DRYDOCK_LIMITS__GRACE".into(), if patient { "2m" } else { "2s" }.into()),
        ];
        variables.extend(host.map(|host| ("DRYDOCK_SANDBOX__DOCKER_HOST".into(), host)));
        variables.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let yard = Self { folders: Folders::new(8), patient, variables };
        yard.folders.stock(yard.gateway().await).await.kill().await;
        yard
    }

    pub(crate) async fn gateway(&self) -> Gateway {
        Gateway::start_with(&self.folders.state(), &self.folders.data(), &self.variables).await
    }

    /// A gateway that dies at a fail point.
    pub(crate) async fn doomed(&self, place: &str) -> Gateway {
        let mut variables = self.variables.clone();
        variables.push((drydock::fail_point::VARIABLE.into(), place.into()));
        Gateway::start_with(&self.folders.state(), &self.folders.data(), &variables).await
    }

    /// A gateway that is killed this long after its start, whatever it is about then.
    pub(crate) async fn still_born(&self, after: Duration) {
        let mut child = spawn(&self.folders.state(), &self.folders.data(), &self.variables);
        tokio::time::sleep(after).await;
        child.start_kill().unwrap();
        child.wait().await.unwrap();
    }

    /// The gateway's log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folders.state().join("gateway.log")).unwrap()
    }

    /// Hands in what is not handed in yet, and returns when all of it has ended.
    pub(crate) async fn see_through(&self, gateway: &Gateway, orders: &mut [Order]) {
        let end = tokio::time::Instant::now() + PATIENCE;
        for order in orders {
            order.submit(gateway).await.unwrap();
            while !order.drive(gateway).await {
                if tokio::time::Instant::now() > end {
                    let view: Value = gateway.get(&format!("/v1/jobs/{}", order.id())).await;
                    panic!("{order:?} does not end: {view:#}\n{}", self.log());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Returns when `holds` holds for the job.
    pub(crate) async fn until(&self, gateway: &Gateway, order: &Order, holds: impl Fn(&Value) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let view = gateway.get(&format!("/v1/jobs/{}", order.id())).await;
            if holds(&view) {
                return;
            }
            assert!(tokio::time::Instant::now() < end, "waited in vain: {view:#}\n{}", self.log());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
