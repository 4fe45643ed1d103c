//! What one job cannot take from the host and from others.

use drydock::sandbox::Sandbox;
use drydock::sandbox::attempt_dir::{OutputCap, Usage};
use drydock::sandbox::users::Users;
use drydock_spec::Limits;

use crate::stage::{Stage, limits};

fn number(told: &std::collections::BTreeMap<String, String>, fact: &str) -> u64 {
    told.get(fact).unwrap_or_else(|| panic!("the probe does not tell `{fact}`: {told:?}")).parse().unwrap()
}

#[tokio::test]
async fn a_fork_bomb_ends_at_the_limit_of_processes() {
    let stage = Stage::new();
    let act = stage.act_within(Limits { pids: 64, ..limits() }, &["fork-bomb"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let told = act.told();
    // The first process and the one that counts are among them.
    assert!((50..64).contains(&number(&told, "children")), "{told:?}");
    assert_eq!(told["one more child"], "EAGAIN");
}

#[tokio::test]
async fn a_job_gets_no_more_processor_time_than_its_share() {
    let stage = Stage::new();
    let act = stage.act_within(Limits { cpu_millis: 500, ..limits() }, &["spin"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let told = act.told();
    let (used, passed) = (number(&told, "processor time"), number(&told, "time"));
    // Eight threads wanted eight times as much. A quota is counted in periods of 100 ms.
    assert!(used <= passed / 2 + 300, "{used} ms of processors in {passed} ms");
}

#[tokio::test]
async fn memory_that_no_process_has_mapped_is_counted() {
    let stage = Stage::new();
    let act = stage.act_within(Limits { memory_bytes: 48 << 20, ..limits() }, &["eat-unmapped-memory"]);
    stage.begin(&act).await;
    assert_eq!(stage.end_for_want_of_memory(&act).await.code, 137);
}

#[tokio::test]
async fn memory_that_is_taken_before_the_engine_looks_is_counted() {
    if std::fs::File::open("/dev/kmsg").is_err() {
        return crate::stage::skipped("only root can read what the kernel has noted");
    }
    let stage = Stage::new();
    for _ in 0..4 {
        let act = stage.act_within(Limits { memory_bytes: 16 << 20, ..limits() }, &["eat-memory-at-once"]);
        let exit = stage.play(&act).await;
        assert_eq!((exit.code, exit.oom_killed), (137, true));
    }
}

#[tokio::test]
async fn files_without_content_are_limited_in_scratch_space() {
    let stage = Stage::new();
    let act = stage.act(&["fill-with-files", "/tmp"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let told = act.told();
    assert!(number(&told, "files") <= 10_000, "{told:?}");
    assert_eq!(told["one more file"], "ENOSPC");
}

#[tokio::test]
async fn files_without_content_are_limited_in_the_output() {
    if !rustix::process::geteuid().is_root() {
        return crate::stage::skipped("only root can give an output a file system of its own");
    }
    let stage = Stage::with(OutputCap::LoopMount, |_| {});
    let act = stage.act(&["fill-with-files", "/out"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let told = act.told();
    assert!(number(&told, "files") <= 16_384, "{told:?}");
    assert_eq!(told["one more file"], "ENOSPC");
    let most = Usage { bytes: u64::MAX, files: u64::MAX, events_bytes: u64::MAX };
    assert_eq!(act.dir.usage(most).unwrap().files, number(&told, "files"));
}

#[tokio::test]
async fn message_queues_are_few() {
    let stage = Stage::new();
    let act = stage.act(&["fill-with-files", "/dev/mqueue"]);
    assert_eq!(stage.play(&act).await.code, 0);
    assert!(number(&act.told(), "files") <= 256, "{:?}", act.told());
}

#[tokio::test]
async fn shared_memory_is_small_and_its_files_count_as_the_jobs_memory() {
    let stage = Stage::new();
    let act = stage.act(&["fill", "/dev/shm/file"]);
    let exit = stage.play(&act).await;
    // At 64 MiB it is full; a file of more than the output's size ends the process before.
    assert!(exit.code == 128 + 25 || act.told()["fill"] == "ENOSPC", "{exit:?}");
    let act = stage.act_within(Limits { memory_bytes: 32 << 20, ..limits() }, &["fill-with-files", "/dev/shm"]);
    stage.begin(&act).await;
    assert_eq!(stage.end_for_want_of_memory(&act).await.code, 137);
}

#[tokio::test]
async fn what_is_printed_without_end_stays_small() {
    let stage = Stage::new();
    let act = stage.act(&["say", "the same words again and again, until the disk of the host is full", "400000"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let words = stage.sandbox.last_words(&act.launch.name, usize::MAX).await.unwrap();
    assert!(words.ends_with("399999\n"), "the last are kept");
    let inspected = std::process::Command::new("docker")
        .args(["inspect", "--format", "{{.LogPath}}", &act.launch.name.0])
        .output()
        .unwrap();
    let log = std::path::PathBuf::from(String::from_utf8(inspected.stdout).unwrap().trim());
    // Only root may look into the engine's folder.
    if let Ok(files) = std::fs::read_dir(log.parent().unwrap()) {
        let bytes: u64 = files
            .map(|file| file.unwrap())
            .filter(|file| file.file_name().to_string_lossy().contains("json.log"))
            .map(|file| file.metadata().unwrap().len())
            .sum();
        assert!((1..=(2 << 20) + (64 << 10)).contains(&bytes), "{bytes} bytes of log for 30 MB of words");
    }
}

/// Containers that run at the same time, and whether the second finds a watch after the first has taken all.
async fn watch_after_a_hog(users: impl Fn(&Stage) -> Users) -> String {
    let mut stage = Stage::new();
    stage.how.users = users(&stage);
    let (hog, other) = (stage.act(&["take-watches"]), stage.act(&["take-a-watch"]));
    stage.begin(&hog).await;
    hog.until_told("ready").await;
    assert!(number(&hog.told(), "watches") > 0, "{:?}", hog.told());
    assert_eq!(stage.play(&other).await.code, 0);
    other.told()["watch"].clone()
}

#[tokio::test]
async fn containers_with_a_user_each_cannot_use_up_what_the_kernel_gives_a_user() {
    if !rustix::process::geteuid().is_root() {
        return crate::stage::skipped("only root can give files to other users");
    }
    // Users of this test alone: what they take counts for the whole host.
    let first = 1_000_000 + u32::from(rand::random::<u16>()) * 16;
    let range = format!("{first}-{}", first + 7).parse().unwrap();
    assert_eq!(watch_after_a_hog(|stage| Users::own(range, vec![stage.attempts()])).await, "ok");
    // The reason why: with one user for both there is none left.
    assert_eq!(watch_after_a_hog(|_| Users::shared(first + 8, first + 8)).await, "EMFILE");
}
