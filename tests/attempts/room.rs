//! A full disk holds up the line, with a reason, before it breaks jobs.

use drydock::api::WaitsFor;
use drydock_spec::Limits;

use super::{World, limits, scripted, success};

#[tokio::test]
async fn without_room_no_job_starts_and_each_says_why_until_there_is_room() {
    let world = World::with_config(scripted([success()]), |config| {
        config.disk.min_free_state = bytesize::ByteSize(u64::MAX / 2);
    })
    .await;
    let id = world.submit(limits()).await;
    let job = world.until(id, |job| matches!(job.waits_for, Some(WaitsFor::Disk { .. }))).await;
    assert!(job.summary.contains("are kept free; free disk space"), "{}", job.summary);
    assert!(job.summary.contains("disk.min_free_state"), "{}", job.summary);
    let host = world.house.desk.host().await.unwrap();
    assert!(host.problems.iter().any(|problem| problem.contains("the state folder")), "{:?}", host.problems);
    // There is room, whatever the looks in between find.
    let roomy = async {
        loop {
            world.house.disk.publish(drydock::disk::Room { free_bytes: 1 << 40, shortage: None });
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let done = tokio::select! {
        job = world.until_done(id) => job,
        _ = roomy => unreachable!(),
    };
    assert_eq!(done.state, "succeeded");
}

#[tokio::test]
async fn a_job_whose_output_has_no_room_waits_and_is_not_overtaken() {
    let world = World::with(scripted([success(), success()])).await;
    let large = world.submit(Limits { disk_bytes: 1 << 60, ..limits() }).await;
    let small = world.submit(limits()).await;
    let job = world.until(large, |job| matches!(job.waits_for, Some(WaitsFor::Disk { .. }))).await;
    assert!(job.summary.contains("its output may take 1.0 EiB"), "{}", job.summary);
    assert_eq!(world.job(small).await.waits_for, Some(WaitsFor::Kept { job: large, from_ms: None }));
    world.house.desk.cancel(large).await.unwrap();
    assert_eq!(world.until_done(small).await.state, "succeeded");
}
