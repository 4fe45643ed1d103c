//! What the real binding to NVIDIA's library makes of a library that says what a test wants it to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod fake;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drydock_gpu::health::{GpuFacts, Trouble, Xid, between};
use drydock_gpu::inventory::{Ecc, Memory, RemappedRows, Utilization};
use drydock_gpu::nvml::{Gpus, NoGpus};
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
fn a_look_reads_all_that_the_driver_tells() {
    let fake = FakeNvml::saying(
        "count 2\nuncorrected0 2\nuncorrected_ever0 7\ncorrected0 5\npending1 1\nbusy0 97\nprocess0 4711\nprocess0 12\nheld0 100\n",
    );
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    let look = gpus.look().unwrap();
    assert_eq!((look.driver.as_deref(), look.cuda.as_deref()), (Some("580.159.04"), Some("13.0")));
    let [first, second] = &look.gpus[..] else { panic!("{look:?}") };
    assert_eq!(
        (first.uuid.as_str(), first.name.as_str(), first.compute_capability, first.lost, first.divided),
        ("GPU-00000000-0000-0000-0000-000000000000", "NVIDIA Fake 9000", Some((9, 0)), false, false)
    );
    let memory = Memory { total_bytes: 24 << 30, reserved_bytes: 1 << 29, free_bytes: (24 << 30) - (7 << 29) };
    assert_eq!((first.memory, first.memory.used_bytes()), (memory, 3 << 30));
    assert_eq!(first.utilization, Some(Utilization { gpu_percent: 97, memory_percent: 48 }));
    assert_eq!(
        (first.temperature_celsius, first.power_watts, first.power_limit_watts),
        (Some(41), Some(71.5), Some(450.0))
    );
    let ecc = Ecc { enabled: true, corrected: Some(5), uncorrected: Some(2), uncorrected_ever: Some(7) };
    assert_eq!(first.ecc, Some(ecc));
    let rows = RemappedRows { corrected: 1, ..RemappedRows::default() };
    assert_eq!((first.remapped_rows, second.remapped_rows), (Some(rows), Some(RemappedRows { pending: true, ..rows })));
    let processes: Vec<_> = first.processes.iter().map(|process| (process.pid, process.memory_bytes)).collect();
    assert_eq!(processes, [(4711, Some(100 << 20)), (12, Some(100 << 20))]);
    assert!(second.processes.is_empty());
    fake.says("count 0\n");
    assert!(gpus.look().unwrap().gpus.is_empty(), "a driver without GPUs");
}

#[test]
fn a_divided_gpu_has_the_slices_that_are_there_and_is_not_to_be_had_as_a_whole() {
    let fake = FakeNvml::saying("count 2\nslices0 2\nslices1 0\n");
    let look = Gpus::open(Some(&fake.library())).unwrap().look().unwrap();
    let [divided, empty] = &look.gpus[..] else { panic!("{look:?}") };
    let slice = |place: u32| format!("MIG-00000000-0000-0000-{place:04}-000000000000");
    let told: Vec<_> = divided.slices.iter().map(|slice| (slice.uuid.clone(), slice.profile.as_deref())).collect();
    assert_eq!(told, [(slice(1), Some("3g.12gb")), (slice(3), Some("3g.12gb"))], "their places have a gap");
    let found: Vec<_> = divided.slices.iter().map(|slice| (slice.index, slice.instances)).collect();
    assert_eq!(found, [(0, Some((7, 0))), (2, Some((9, 0)))], "what they are called by in /dev and by CDI");
    assert!(divided.divided && divided.utilization.is_none() && empty.divided && empty.slices.is_empty());
    let units: Vec<_> = look.units().into_iter().map(|unit| (unit.uuid, unit.memory_bytes)).collect();
    assert_eq!(units, [(slice(1), 12 << 30), (slice(3), 12 << 30)]);
}

/// What becomes of two GPUs of which this is said at the end.
fn after(end: &str) -> Vec<GpuFacts> {
    let fake = FakeNvml::saying("count 2\nuncorrected0 2\n");
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    let before = gpus.look().unwrap();
    fake.says(end);
    between(&before, &gpus.look().unwrap(), &[])
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

/// What is heard while the states are said one after the other.
fn heard(fake: &FakeNvml, states: &[&str]) -> Vec<Xid> {
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    let (over, told) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| gpus.listen(&over, |xid| told.lock().unwrap().push(xid)));
        std::thread::sleep(Duration::from_millis(50));
        for state in states {
            fake.says(state);
            std::thread::sleep(Duration::from_millis(1300));
        }
        over.store(true, Ordering::Relaxed);
        listener.join().unwrap();
    });
    told.into_inner().unwrap()
}

#[test]
fn xid_events_are_told_by_gpu_and_in_their_order_till_nobody_listens() {
    let fake = FakeNvml::saying("count 2\nevent1 31\n");
    let told = heard(&fake, &["count 2\nevent1 31\nevent1 79\nevent0 45\n"]);
    let look = Gpus::open(Some(&fake.library())).unwrap().look().unwrap();
    let facts = between(&look, &look, &told);
    assert_eq!((&facts[0].xids[..], &facts[1].xids[..]), (&[45][..], &[31, 79][..]));
    assert!(facts[0].trouble().is_none() && matches!(facts[1].trouble(), Some(Trouble::Hardware(_))));
}

#[test]
fn a_gpu_that_tells_of_its_own_loss_is_known_by_what_it_was_called() {
    let fake = FakeNvml::saying("count 2\n");
    let told = heard(&fake, &["count 2\nlost1 1\nevent1 79\n"]);
    let uuid = "GPU-00000000-0000-0000-0000-000000000001".to_owned();
    assert_eq!(told, [Xid { uuid: Some(uuid), number: 79 }]);
}

#[test]
fn gpus_that_tell_of_no_events_are_not_waited_for() {
    let fake = FakeNvml::saying("events 0\n");
    let gpus = Gpus::open(Some(&fake.library())).unwrap();
    gpus.listen(&AtomicBool::new(false), |xid| panic!("{xid:?}"));
}
