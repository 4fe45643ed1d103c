//! What the real binding to NVIDIA's library makes of a library that says what a test wants it to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod fake;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drydock_gpu::health::nvml::{Gpus, NoGpus};
use drydock_gpu::health::{GpuFacts, Trouble, between};
use fake::FakeNvml;

#[test]
fn why_there_are_no_gpus_is_said_in_words() {
    let nowhere = std::path::Path::new("/nowhere/libnvidia-ml.so.1");
    let error = Gpus::open(Some(nowhere)).unwrap_err();
    assert!(matches!(&error, NoGpus::NoLibrary(why) if why.contains("/nowhere")), "{error}");
    for (init, expected, words) in
        [(9, NoGpus::NoDriver, "modprobe nvidia"), (18, NoGpus::VersionMismatch, "reboot the host")]
    {
        let fake = FakeNvml::saying(&format!("init {init}\n"));
        let error = Gpus::open(Some(&fake.library())).unwrap_err();
        assert!(error == expected && error.to_string().contains(words), "{error}");
    }
    let fake = FakeNvml::saying("init 999\n");
    assert!(matches!(Gpus::open(Some(&fake.library())), Err(NoGpus::Failed(_))));
    let text = FakeNvml::saying("");
    std::fs::write(text.library(), "not a library").unwrap();
    assert!(matches!(Gpus::open(Some(&text.library())), Err(NoGpus::NoLibrary(_))));
}

#[test]
fn a_look_reads_what_the_driver_counts() {
    let fake = FakeNvml::saying("count 2\nuncorrected0 2\nuncorrected_ever0 7\npending1 1\n");
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    let look = gpus.look();
    assert_eq!(look.driver.as_deref(), Some("580.159.04"));
    let [first, second] = &look.gpus[..] else { panic!("{look:?}") };
    assert_eq!(first.uuid.as_deref(), Some("GPU-00000000-0000-0000-0000-000000000000"));
    assert_eq!(first.name.as_deref(), Some("NVIDIA Fake 9000"));
    assert_eq!((first.memory_total, first.memory_used), (Some(24 << 30), Some(3 << 30)));
    assert_eq!((first.uncorrected, first.uncorrected_ever), (Some(2), Some(7)));
    assert_eq!((first.rows_pending, second.rows_pending, second.rows_failed), (false, true, false));
    fake.says("count 0\n");
    assert!(gpus.look().gpus.is_empty(), "a driver without GPUs");
}

/// What becomes of two GPUs of which this is said at the end.
fn after(end: &str) -> Vec<GpuFacts> {
    let fake = FakeNvml::saying("count 2\nuncorrected0 2\n");
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    let before = gpus.look();
    fake.says(end);
    between(&before, &gpus.look(), &[])
}

#[test]
fn a_gpu_that_was_lost_or_damaged_meanwhile_is_known() {
    let facts = after("count 2\nuncorrected0 2\nlost1 1\n");
    assert_eq!(facts[0].trouble(), None);
    assert!(matches!(facts[1].trouble(), Some(Trouble::Hardware(told)) if told.contains("000000000001) is lost")));
    let facts = after("count 2\nuncorrected0 5\n");
    assert_eq!((facts[0].new_uncorrected, facts[1].trouble()), (3, None));
    let facts = after("count 1\nuncorrected0 2\n");
    assert_eq!(facts.iter().map(|gpu| gpu.lost).collect::<Vec<_>>(), [false, true]);
    let facts = after("count 2\nuncorrected0 2\nfailed0 1\n");
    assert!(facts[0].rows_failed && facts[0].trouble().is_some());
}

#[test]
fn xid_events_are_told_by_gpu_and_in_their_order_till_the_watch_is_over() {
    let fake = FakeNvml::saying("count 2\nevent1 31\n");
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    let over = AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        let watch = scope.spawn(|| gpus.watch(&over));
        std::thread::sleep(Duration::from_millis(50));
        fake.says("count 2\nevent1 31\nevent1 79\nevent0 45\n");
        std::thread::sleep(Duration::from_millis(600));
        over.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    let facts = between(&gpus.look(), &gpus.look(), &told);
    assert_eq!((&facts[0].xids[..], &facts[1].xids[..]), (&[45][..], &[31, 79][..]));
    assert!(facts[0].trouble().is_none() && matches!(facts[1].trouble(), Some(Trouble::Hardware(_))));
}

#[test]
fn gpus_that_tell_of_no_events_are_not_waited_for() {
    let fake = FakeNvml::saying("events 0\n");
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    assert_eq!(gpus.watch(&AtomicBool::new(false)), []);
}
