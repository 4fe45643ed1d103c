//! The engine's own disk is full.

use std::fs::{File, remove_file};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::engine::Engine;
use crate::outages::skipped;
use crate::yard::{Ending, Order, Yard};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_engine_holds_up_the_line_with_its_reason_and_breaks_no_job() {
    if !geteuid().is_root() {
        return skipped("only root can have an engine of its own, with a disk of its own");
    }
    let engine = Engine::with_disk(128);
    let host = engine.host();
    let yard = Yard::with(Some(host.clone()), true, &[("DRYDOCK_DISK__MIN_FREE_ENGINE", "16MiB")]).await;
    let gateway = yard.gateway().await;
    let mut orders = [Order::new(Ending::Finish, 60, 100), Order::short(Ending::Finish)];
    orders[0].submit(&gateway).await.unwrap();
    yard.until(&gateway, &orders[0], |view| !view["progress"].is_null()).await;
    let ballast = fill(&engine.root());
    // What runs goes on, and what comes after it waits.
    yard.until(&gateway, &orders[0], |view| view["state"] == "succeeded").await;
    let reason = |text: &str| text.contains("the container engine") && text.contains("disk.min_free_engine");
    let ready = async || gateway.get("/readyz").await.to_string();
    while !reason(&ready().await) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    orders[1].submit(&gateway).await.unwrap();
    yard.until(&gateway, &orders[1], |view| view["state"] == "queued" && reason(&view["summary"].to_string())).await;
    remove_file(ballast).unwrap();
    yard.see_through(&gateway, &mut orders).await;
    yard.check(&gateway, &orders, 1).await;
    yard.check_tidy(&orders, Some(&host)).await;
    gateway.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_meets_a_full_engine_is_tried_again_when_there_is_room() {
    if !geteuid().is_root() {
        return skipped("only root can have an engine of its own, with a disk of its own");
    }
    let engine = Engine::with_disk(128);
    let host = engine.host();
    // Nobody looks at the disk beforehand.
    let yard = Yard::with(Some(host.clone()), true, &[("DRYDOCK_DISK__MIN_FREE_ENGINE", "0")]).await;
    let gateway = yard.gateway().await;
    let ballast = fill(&engine.root());
    let mut orders = [Order::short(Ending::Finish)];
    orders[0].submit(&gateway).await.unwrap();
    yard.until(&gateway, &orders[0], |view| view["waits_for"]["reason"] == "retry").await;
    let waiting = gateway.get(&format!("/v1/jobs/{}", orders[0].id())).await;
    assert!(waiting["summary"].as_str().unwrap().contains("has no room on its disk"), "{waiting:#}");
    remove_file(ballast).unwrap();
    yard.see_through(&gateway, &mut orders).await;
    yard.check_about(&gateway, &orders, 2..=3).await;
    yard.check_tidy(&orders, Some(&host)).await;
    gateway.kill().await;
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
