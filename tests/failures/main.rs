//! Real failures in real containers: each is provoked twice, with other numbers and names, and has to be known for what
//! it is the first time and known again the second.
//!
//! Then one of each is mended: what drydock offers first or second against it is applied, and the job has to pass.
//!
//! A case says how it is provoked and what mends it; where a planner would refuse what is wrong, the files are damaged in
//! the store after the plan, or a probe that does as it is told stands in for the worker. Needs a container engine and
//! the worker's image (`make image`). `cargo test --test failures -- --nocapture` prints the tables.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

#[allow(dead_code, reason = "there are more ways to harm an engine than these tests need")]
#[path = "../faults/engine.rs"]
mod engine_of_its_own;
#[path = "../harness/harness.rs"]
mod harness;
#[path = "../sandbox/image.rs"]
mod image;
#[path = "../support/small_hub.rs"]
mod small_hub;
#[path = "../support/tiny.rs"]
mod tiny;

mod alone;
mod case;
mod damage;
mod engine;
mod hub;
mod image_of_its_own;
mod learning;
mod mend;
mod model;
mod none;
mod order;
mod place;
mod program;
mod rights;
mod room;
mod rows;
mod table;
mod tokenizer;

use case::Case;
use place::Place;
use table::Table;

/// Those that the real worker meets.
fn of_the_worker() -> Vec<Case> {
    [model::CASES, tokenizer::CASES, rows::CASES, learning::CASES, room::OF_THE_WORKER, hub::CASES].concat()
}

/// Those that the probe plays.
fn of_the_probe() -> Vec<Case> {
    [room::OF_THE_PROBE, program::CASES, rights::CASES].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_failure_is_known_and_known_again_and_most_are_mended_by_what_is_offered() {
    let worker = tokio::spawn(async { Box::pin(Place::of_the_worker().await.play(of_the_worker())).await });
    let probe = tokio::spawn(async { Box::pin(Place::of_the_probe().await.play(of_the_probe())).await });
    let mut table = Table::default();
    let engine =
        [tokio::spawn(engine::image_gone()), tokio::spawn(engine::images()), tokio::spawn(engine::engine_killed())];
    for played in [worker, probe].into_iter().chain(engine) {
        table.extend(played.await.unwrap());
    }
    table.print();
    assert_eq!(table.mistakes(), Vec::<String>::new());
    // Of these one is not tried without an engine of its own to kill.
    assert!(table.count_mended() >= 80 && table.by_options() >= 12, "{} are mended", table.count_mended());
}
