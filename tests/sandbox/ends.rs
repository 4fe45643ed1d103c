//! How containers end, in the facts that a diagnosis starts from.

use drydock::sandbox::attempt_dir::{OutputCap, Usage};
use drydock::sandbox::{Exit, Sandbox, Status};
use drydock_spec::Limits;

use crate::stage::{Stage, limits};

const SIGSEGV: &str = "11";
const SIGKILL: &str = "9";
const SIGXFSZ: i64 = 25;

#[tokio::test]
async fn exit_codes_arrive_as_they_are_and_signals_as_128_more() {
    let stage = Stage::new();
    for (arguments, code) in [
        (["exit", "0"], 0),
        (["exit", "1"], 1),
        (["exit", "3"], 3),
        (["raise", SIGSEGV], 139),
        (["raise", SIGKILL], 137),
    ] {
        let act = stage.act(&arguments);
        assert_eq!(stage.play(&act).await, Exit { code, oom_killed: false }, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_memory_eater_is_killed_and_known_as_one() {
    let stage = Stage::new();
    let act = stage.act_within(Limits { memory_bytes: 32 << 20, ..limits() }, &["eat-memory"]);
    stage.begin(&act).await;
    assert_eq!(stage.end_for_want_of_memory(&act).await.code, 137);
}

#[tokio::test]
async fn a_child_that_eats_memory_is_known_even_if_the_rest_ends_well() {
    let stage = Stage::new();
    let act = stage.act_within(Limits { memory_bytes: 32 << 20, ..limits() }, &["child-eats-memory"]);
    stage.begin(&act).await;
    assert_eq!(stage.end_for_want_of_memory(&act).await.code, 0);
}

#[tokio::test]
async fn a_full_output_is_an_error_that_the_inside_can_tell() {
    if !rustix::process::geteuid().is_root() {
        return crate::stage::skipped("only root can give an output a file system of its own");
    }
    let stage = Stage::with(OutputCap::LoopMount, |_| {});
    let act = stage.act_within(Limits { disk_bytes: 16 << 20, ..limits() }, &["fill", "/out/file"]);
    assert_eq!(stage.play(&act).await.code, 0);
    assert_eq!(act.told()["fill"], "ENOSPC");
    let most = Usage { bytes: u64::MAX, files: u64::MAX, events_bytes: u64::MAX };
    assert!(act.dir.usage(most).unwrap().bytes <= 16 << 20);
}

#[tokio::test]
async fn a_watched_output_has_no_file_larger_than_the_cap() {
    let stage = Stage::with(OutputCap::Watched, |_| {});
    let act = stage.act_within(Limits { disk_bytes: 16 << 20, ..limits() }, &["fill", "/out/file"]);
    assert_eq!(stage.play(&act).await.code, 128 + SIGXFSZ);
    assert_eq!(act.dir.output_path().join("file").metadata().unwrap().len(), 16 << 20);
}

#[tokio::test]
async fn scratch_space_is_small() {
    let stage = Stage::with(OutputCap::Auto, |settings| settings.tmpfs_bytes = 4 << 20);
    let act = stage.act(&["fill", "/tmp/file"]);
    assert_eq!(stage.play(&act).await.code, 0);
    assert_eq!(act.told()["fill"], "ENOSPC");
}

#[tokio::test]
async fn a_container_that_cannot_be_started_says_why_and_has_not_run() {
    let stage = Stage::new();
    let mut act = stage.act(&["exit", "0"]);
    // A mount into a file cannot be made, which shows only at the start.
    act.launch.mounts[0].target = "/drydock-worker/spec.json".into();
    stage.sandbox.create(&act.launch).await.unwrap();
    let error = stage.sandbox.start(&act.launch.name).await.unwrap_err();
    assert!(!error.leaves_doubt(), "{error}");
    match stage.status(&act).await.unwrap() {
        Some(Status::Created { error: Some(error) }) => assert!(error.contains("spec.json"), "{error}"),
        other => panic!("{other:?}"),
    }
}
