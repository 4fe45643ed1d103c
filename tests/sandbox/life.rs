//! Containers are created, started, found, asked to end and removed.

use std::time::Duration;

use drydock::sandbox::{ContainerName, Exit, Sandbox, SandboxError, Status};

use crate::stage::{PATIENCE, Stage};

#[tokio::test]
async fn a_container_is_created_before_it_runs_and_stays_after_it_ended() {
    let stage = Stage::new();
    let act = stage.act(&["exit", "0"]);
    assert_eq!(stage.status(&act).await.unwrap(), None);
    stage.sandbox.create(&act.launch).await.unwrap();
    assert_eq!(stage.status(&act).await.unwrap(), Some(Status::Created { error: None }));
    stage.sandbox.start(&act.launch.name).await.unwrap();
    assert_eq!(stage.end(&act).await, Exit { code: 0, oom_killed: false });
    stage.sandbox.remove(&act.launch.name).await.unwrap();
    assert_eq!(stage.status(&act).await.unwrap(), None);
}

#[tokio::test]
async fn of_many_creates_of_one_name_one_wins() {
    let stage = Stage::new();
    let act = stage.act(&["exit", "0"]);
    let creates = futures::future::join_all((0..8).map(|_| stage.sandbox.create(&act.launch))).await;
    let taken = Err(SandboxError::NameTaken(act.launch.name.clone()));
    assert_eq!(creates.iter().filter(|create| create.is_ok()).count(), 1, "{creates:?}");
    assert_eq!(creates.iter().filter(|create| **create == taken).count(), 7, "{creates:?}");
}

#[tokio::test]
async fn an_ended_container_is_not_started_again() {
    let stage = Stage::new();
    let act = stage.act(&["exit", "3"]);
    assert_eq!(stage.play(&act).await.code, 3);
    let again = stage.sandbox.start(&act.launch.name).await.unwrap_err();
    assert!(matches!(&again, SandboxError::Refused { message, .. } if message.contains("code 3")), "{again}");
    assert!(matches!(stage.status(&act).await.unwrap(), Some(Status::Exited(Exit { code: 3, .. }))));
}

#[tokio::test]
async fn starting_a_running_container_again_is_no_error() {
    let stage = Stage::new();
    let act = stage.act(&["wait"]);
    stage.begin(&act).await;
    stage.sandbox.start(&act.launch.name).await.unwrap();
    assert_eq!(stage.status(&act).await.unwrap(), Some(Status::Running));
}

#[tokio::test]
async fn waiting_ends_with_the_container_however_fast_it_was() {
    let stage = Stage::new();
    for code in ["0", "1", "143"] {
        let act = stage.act(&["exit", code]);
        stage.begin(&act).await;
        // Long gone, and waited for all the same.
        stage.end(&act).await;
        assert_eq!(stage.end(&act).await.code.to_string(), code);
    }
}

#[tokio::test]
async fn waiting_ends_at_its_limit_with_the_container_running() {
    let stage = Stage::new();
    let act = stage.act(&["wait"]);
    stage.begin(&act).await;
    stage.sandbox.wait(&act.launch.name, Duration::from_millis(300)).await.unwrap();
    assert_eq!(stage.status(&act).await.unwrap(), Some(Status::Running));
}

#[tokio::test]
async fn a_cooperative_container_ends_when_asked_to() {
    let stage = Stage::new();
    let act = stage.act(&["wait"]);
    stage.begin(&act).await;
    act.until_told("ready").await;
    stage.sandbox.terminate(&act.launch.name).await.unwrap();
    assert_eq!(stage.end(&act).await, Exit { code: 143, oom_killed: false });
    // Both have come too late, which is no error.
    stage.sandbox.terminate(&act.launch.name).await.unwrap();
    stage.sandbox.kill(&act.launch.name).await.unwrap();
}

#[tokio::test]
async fn a_container_that_ignores_being_asked_is_killed() {
    let stage = Stage::new();
    let act = stage.act(&["ignore-term"]);
    stage.begin(&act).await;
    act.until_told("ready").await;
    stage.sandbox.terminate(&act.launch.name).await.unwrap();
    stage.sandbox.wait(&act.launch.name, Duration::from_millis(500)).await.unwrap();
    assert_eq!(stage.status(&act).await.unwrap(), Some(Status::Running));
    stage.sandbox.kill(&act.launch.name).await.unwrap();
    assert_eq!(stage.end(&act).await, Exit { code: 137, oom_killed: false });
}

#[tokio::test]
async fn removing_ends_a_running_container_and_can_be_repeated() {
    let stage = Stage::new();
    let act = stage.act(&["ignore-term"]);
    stage.begin(&act).await;
    let name = &act.launch.name;
    let (first, second) = tokio::join!(stage.sandbox.remove(name), stage.sandbox.remove(name));
    first.unwrap();
    second.unwrap();
    assert_eq!(stage.status(&act).await.unwrap(), None);
    stage.sandbox.remove(name).await.unwrap();
}

#[tokio::test]
async fn a_missing_container_is_named_as_missing() {
    let stage = Stage::new();
    let name = ContainerName("drydock-test-sb-nobody".into());
    let missing = Err(SandboxError::NoContainer(name.clone()));
    assert_eq!(stage.sandbox.start(&name).await, missing);
    assert_eq!(stage.sandbox.wait(&name, PATIENCE).await, missing);
    assert_eq!(stage.sandbox.terminate(&name).await, missing);
    assert_eq!(stage.sandbox.kill(&name).await, missing);
    assert_eq!(stage.sandbox.inspect(&name).await, Ok(None));
}

#[tokio::test]
async fn a_list_shows_ours_whatever_their_state_and_nobody_elses() {
    let (stage, other) = (Stage::new(), Stage::new());
    let (created, running, ended) = (stage.act(&["wait"]), stage.act(&["wait"]), stage.act(&["exit", "0"]));
    let foreign = other.act(&["wait"]);
    stage.sandbox.create(&created.launch).await.unwrap();
    other.sandbox.create(&foreign.launch).await.unwrap();
    stage.begin(&running).await;
    stage.play(&ended).await;

    let mut listed = stage.sandbox.list().await.unwrap();
    listed.sort_by_key(|found| found.labels.job);
    let seen: Vec<_> = listed.iter().map(|found| (&found.name, &found.labels, &found.status)).collect();
    let exited = Status::Exited(Exit { code: 0, oom_killed: false });
    let mut ours = [
        (&created.launch.name, &created.launch.labels, &Status::Created { error: None }),
        (&running.launch.name, &running.launch.labels, &Status::Running),
        (&ended.launch.name, &ended.launch.labels, &exited),
    ];
    ours.sort_by_key(|(_, labels, _)| labels.job);
    assert_eq!(seen, ours);
}

#[tokio::test]
async fn last_words_are_what_was_printed_last() {
    let stage = Stage::new();
    let act = stage.act(&["say", "words", "500"]);
    stage.play(&act).await;
    let words = stage.sandbox.last_words(&act.launch.name, 20).await.unwrap();
    assert_eq!(words, "words 498\nwords 499\n");
}
