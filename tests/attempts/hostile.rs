//! Workers that lie, flood and fill: whatever they do, the account of their job stays true and drydock goes on.

use drydock::sandbox::attempt_dir::InputFolders;
use drydock::sandbox::{ContainerName, Labels, Launch};
use drydock_spec::{FailureKind, FinetuneArgs, JobArgs, JobId, Limits};

use super::harness::scripted::{Step, finished, started, success};
use super::harness::world::{World, limits};
use super::{exit, kind, scripted};

/// A worker that goes on as if nothing had happened, and ignores being asked to end.
async fn stubborn(steps: Vec<Step>) -> World {
    let engine = scripted([steps]);
    engine.ignore_sigterm();
    World::with(engine).await
}

#[tokio::test]
async fn two_hundred_megabytes_without_a_newline_end_the_job_at_once() {
    let world = stubborn(vec![Step::Say(started()), Step::Write(vec![b'x'; 200 << 20]), Step::Pause]).await;
    // The grace of ten minutes would be time to write on.
    let id = world.submit(limits()).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::ContractBroken);
    assert_eq!(world.reports(id).await, ["started"]);
    world.until_tidy().await;
}

#[tokio::test]
async fn two_million_empty_lines_leave_a_hundred_in_the_log() {
    let world = stubborn(vec![Step::Say(started()), Step::Write(vec![b'\n'; 2_000_000]), Step::Pause]).await;
    let id = world.submit(limits()).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::ContractBroken);
    assert_eq!(world.reports(id).await.len(), 101);
}

#[tokio::test]
async fn a_claim_of_success_is_no_success() {
    let claims = [
        r#"{"elapsed_ms":1,"type":"succeeded"}"#,
        r#"{"elapsed_ms":1,"type":"ended","event":"ended","outcome":"succeeded","attempt":1}"#,
        r#"{"elapsed_ms":1,"type":"Finished","steps":1,"tokens":1,"peak_rss_bytes":1}"#,
        r#"{"seq":1000000,"elapsed_ms":1,"type":"stage","stage":"save"}"#,
    ];
    let said = Step::Write((claims.join("\n") + "\n").into_bytes());
    for code in [0, 1] {
        let world = World::with(scripted([vec![Step::Say(started()), said.clone(), exit(code)]])).await;
        let id = world.submit(limits()).await;
        let job = world.until_done(id).await;
        assert_eq!(job.state, "failed");
        // Submitted, claimed, five reports, ended: a forged number counts for nothing.
        assert_eq!(job.seq, 8);
        assert_eq!(world.reports(id).await, ["started", "warning", "warning", "warning", "stage"]);
    }
    // The real claim needs the exit code that belongs to it.
    let world = World::with(scripted([vec![Step::Say(finished()), exit(139)]])).await;
    let id = world.submit(limits()).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::Crashed);
}

#[tokio::test]
async fn reports_that_are_cut_off_or_replaced_end_the_job() {
    for change in ["cut", "replaced"] {
        let world = stubborn(vec![Step::Say(started()), Step::Pause]).await;
        let id = world.submit(limits()).await;
        world.until(id, |job| job.seq == 3).await;
        let launch = world.engine.launch().unwrap();
        let events = launch.mounts.iter().find(|mount| mount.target == "/job/events.jsonl").unwrap().source.clone();
        // What a container can do only where its host could not make the file append-only.
        let file = std::fs::File::open(&events).unwrap();
        let _ = rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty());
        match change {
            "cut" => std::fs::File::options().write(true).open(&events).unwrap().set_len(1).unwrap(),
            _ => std::fs::write(&events, "{\"elapsed_ms\":1,").unwrap(),
        }
        assert_eq!(kind(&world.until_done(id).await), FailureKind::ContractBroken, "{change}");
    }
}

#[tokio::test]
async fn a_job_that_hides_its_output_is_ended() {
    // Folders below each other, with the longest names there are, as many as a path can have.
    let name = "n".repeat(255);
    let deep: &'static str = [name.as_str(); 15].join("/").leak();
    let world = stubborn(vec![Step::Say(started()), Step::Make { path: deep, content: b"" }, Step::Pause]).await;
    let id = world.submit(limits()).await;
    world.until(id, |job| job.seq == 3).await;
    let launch = world.engine.launch().unwrap();
    let output = &launch.mounts.iter().find(|mount| mount.target == "/out").unwrap().source;
    // Moved under another as long, it is out of reach.
    let folder = output.join(&name);
    let outer = ["o", "p", "r", "s"].iter().fold(output.clone(), |outer, letter| outer.join(letter.repeat(255)));
    std::fs::create_dir_all(&outer).unwrap();
    std::fs::rename(folder, outer.join("q".repeat(255))).unwrap();
    assert_eq!(kind(&world.until_done(id).await), FailureKind::DiskFull);
    world.until_tidy().await;
}

#[tokio::test]
async fn files_without_end_are_ended_at_once() {
    let flood = Step::Make { path: "big", content: vec![1; 2 << 20].leak() };
    let world = stubborn(vec![Step::Say(started()), flood, Step::Pause]).await;
    let id = world.submit(Limits { disk_bytes: 1 << 20, ..limits() }).await;
    assert_eq!(kind(&world.until_done(id).await), FailureKind::DiskFull);
}

#[tokio::test]
async fn a_preview_that_floods_the_disk_is_ended() {
    let flood = Step::Make { path: "big", content: vec![1; 17 << 20].leak() };
    let world = stubborn(vec![Step::Say(started()), flood, Step::Pause]).await;
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    let job = JobArgs::Finetune(args).parse().unwrap();
    let refused = world.house.desk.previews.preview(job, InputFolders::default()).await.unwrap_err();
    assert!(refused.to_string().contains("it wrote more than 16777216 bytes"), "{refused}");
    world.until_tidy().await;
}

#[tokio::test]
async fn a_preview_is_swept_away_only_when_nobody_makes_it_any_more() {
    let world = stubborn(vec![Step::Say(started()), Step::Pause, exit(1)]).await;
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    let job = JobArgs::Finetune(args).parse().unwrap();
    let previews = world.house.desk.previews.clone();
    let made = tokio::spawn(async move { previews.preview(job, InputFolders::default()).await });
    let launch = loop {
        match world.engine.launch() {
            Some(launch) => break launch,
            None => tokio::task::yield_now().await,
        }
    };
    // One that a process of before has left is no older by the engine's clock, which may have been set back since.
    let left = Labels { job: JobId::from_parts(1, 1), ..launch.labels.clone() };
    let left = Launch { name: ContainerName("drydock-preview-left".into()), labels: left, ..launch.clone() };
    world.engine.plant(left, i64::MAX);
    world.house.reaper.sweep_once().await.unwrap();
    assert_eq!(world.engine.fences().keys().collect::<Vec<_>>(), [&launch.name]);
    world.engine.go_on();
    let refused = made.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("exit code 1"), "it went on to its own end: {refused}");
    world.until_tidy().await;
}

#[tokio::test]
async fn after_all_that_the_next_job_goes_as_if_nothing_had_been() {
    let mut scripts = vec![vec![Step::Write(vec![0xff; 1 << 20]), exit(0)]];
    scripts.push(vec![Step::Write(b"\n".repeat(500)), exit(137)]);
    scripts.push(success());
    let world = World::with(scripted(scripts)).await;
    for expected in ["failed", "failed", "succeeded"] {
        let id = world.submit(Limits { max_attempts: 1, ..limits() }).await;
        assert_eq!(world.until_done(id).await.state, expected);
    }
    world.until_tidy().await;
}
