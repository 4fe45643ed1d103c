//! The engine's own disk is full.

use std::fs::{File, remove_file};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::account::Sum;
use crate::engine::Engine;
use crate::harness::process::Gateway;
use crate::outages::skipped;
use crate::say;
use crate::yard::{Ending, Order, Yard};

/// An engine with a small disk to itself, and a gateway that keeps so much of it free.
struct Narrow {
    engine: Engine,
    yard: Yard,
    gateway: Gateway,
}

impl Narrow {
    /// `None` where that cannot be had, and says so.
    async fn keeping_free(least: &str) -> Option<Self> {
        if !geteuid().is_root() {
            skipped("only root can have an engine of its own, with a disk of its own");
            return None;
        }
        let engine = Engine::with_disk(128);
        let yard = Yard::with(Some(engine.host()), true, &[("DRYDOCK_DISK__MIN_FREE_ENGINE", least)]).await;
        let gateway = yard.gateway().await;
        Some(Self { engine, yard, gateway })
    }

    async fn end(self, mut orders: Vec<Order>, attempts: std::ops::RangeInclusive<usize>) -> Sum {
        self.yard.see_through(&self.gateway, &mut orders).await;
        let sum = self.yard.check_about(&self.gateway, &orders, attempts).await;
        self.yard.check_tidy(&orders, Some(&self.engine.host())).await;
        self.gateway.kill().await;
        sum
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_engine_holds_up_the_line_with_its_reason_and_breaks_no_job() {
    let Some(narrow) = Narrow::keeping_free("16MiB").await else { return };
    let Narrow { engine, yard, gateway } = &narrow;
    let mut orders = vec![Order::new(Ending::Finish, 60, 100), Order::short(Ending::Finish)];
    orders[0].submit(gateway).await.unwrap();
    yard.until(gateway, &orders[0], |view| !view["progress"].is_null()).await;
    let ballast = fill(&engine.root());
    // What runs goes on, and what comes after it waits.
    yard.until(gateway, &orders[0], |view| view["state"] == "succeeded").await;
    let reason = |text: &str| text.contains("the container engine") && text.contains("disk.min_free_engine");
    while !reason(&gateway.get("/readyz").await.to_string()) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    orders[1].submit(gateway).await.unwrap();
    yard.until(gateway, &orders[1], |view| view["state"] == "queued" && reason(&view["summary"].to_string())).await;
    remove_file(ballast).unwrap();
    let sum = narrow.end(orders, 1..=1).await;
    say(&format!("the engine's disk full while a job runs and another waits: {sum:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_meets_a_full_engine_is_tried_again_when_there_is_room() {
    // Nobody looks at the disk beforehand.
    let Some(narrow) = Narrow::keeping_free("0").await else { return };
    let Narrow { engine, yard, gateway } = &narrow;
    let ballast = fill(&engine.root());
    let mut orders = vec![Order::short(Ending::Finish)];
    orders[0].submit(gateway).await.unwrap();
    yard.until(gateway, &orders[0], |view| view["waits_for"]["reason"] == "retry").await;
    let waiting = gateway.get(&format!("/v1/jobs/{}", orders[0].id())).await;
    assert!(waiting["summary"].as_str().unwrap().contains("has no room on its disk"), "{waiting:#}");
    remove_file(ballast).unwrap();
    let sum = narrow.end(orders, 2..=3).await;
    say(&format!("the engine's disk full before a job begins: {sum:?}"));
}

/// Fills the disk that the folder lies on, to the last byte.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("ballast");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 20, 1 << 10, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}
