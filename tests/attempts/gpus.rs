//! What the GPUs' driver counts while an attempt is under way is a fact of its end.

use drydock::store::KeptFailure;
use drydock_spec::report::Started;
use drydock_spec::{Attempt, FailureKind, Report};

use super::fake_nvml::FakeNvml;
use super::{Step, World, exit, limits, scripted};

fn on(device: &str) -> Report {
    Report::Started(Started { worker: "scripted".into(), device: device.into(), threads: 1, features: vec![] })
}

/// How an attempt on this device fails that prints this and leaves, while the GPUs come to be like this.
async fn meanwhile(device: &str, gpus: &str, printed: &str) -> KeptFailure {
    let fake = FakeNvml::saying("count 2\nuncorrected0 4\n");
    let steps = vec![Step::Say(on(device)), Step::Pause, Step::Print(printed.into()), exit(1)];
    let world = World::with_config(scripted([steps]), |config| config.sandbox.nvml = Some(fake.library())).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.seq >= 3).await;
    fake.says(gpus);
    world.engine.go_on();
    let job = world.until_done(id).await;
    assert_eq!(job.attempt, 1, "it is not tried again on the same GPU");
    let kept = world.house.desk.store.failure_of(id, Attempt::FIRST).await.unwrap();
    kept.expect("a failure is kept")
}

#[tokio::test]
async fn a_gpu_that_is_damaged_meanwhile_is_why_the_attempt_failed_whatever_was_printed() {
    let printed = "RuntimeError: CUDA error: an illegal memory access was encountered\n";
    for (gpus, words) in [
        ("count 2\nuncorrected0 4\nlost1 1\n", "is lost to the driver"),
        ("count 2\nuncorrected0 6\n", "has counted 2 new errors of its memory"),
        ("count 1\nuncorrected0 4\n", "is lost to the driver"),
        ("count 2\nuncorrected0 4\nevent0 79\n", "has told of Xid 79"),
    ] {
        let kept = meanwhile("cuda:0", gpus, printed).await;
        let failure = &kept.failure;
        assert_eq!(failure.kind, FailureKind::GpuHardware, "{gpus}: {failure:?}");
        assert!(failure.message.starts_with("NVIDIA Fake 9000 (GPU-") && failure.message.contains(words), "{failure}");
        let evidence = &kept.record.evidence;
        assert_eq!(evidence.gpus.len(), 2, "{evidence:?}");
        assert_eq!(evidence.environment.driver.as_deref(), Some("580.159.04"));
        assert_eq!(evidence.environment.gpus, ["NVIDIA Fake 9000"; 2]);
    }
}

#[tokio::test]
async fn a_program_that_failed_on_a_good_gpu_is_not_the_gpus_fault() {
    let kept = meanwhile("cuda:0", "count 2\nuncorrected0 4\nevent1 31\n", "").await;
    assert_eq!(kept.failure.kind, FailureKind::GpuFault, "{:?}", kept.failure);
    let kept = meanwhile("cuda:0", "count 2\nuncorrected0 4\n", "").await;
    assert_eq!(kept.failure.kind, FailureKind::Unexplained, "old errors are no news: {:?}", kept.failure);
}

#[tokio::test]
async fn what_befalls_a_gpu_is_nothing_to_a_worker_on_the_cpu() {
    let kept = meanwhile("cpu", "count 2\nuncorrected0 9\nlost1 1\n", "").await;
    assert_eq!(kept.failure.kind, FailureKind::Unexplained, "{:?}", kept.failure);
    assert!(kept.record.evidence.gpus.is_empty() && kept.record.evidence.environment.driver.is_none());
}
