//! The engine itself: what it is, and what is known when it does not do as asked.

use drydock::clock::Clock;
use drydock::sandbox::attempt_dir::OutputCap;
use drydock::sandbox::docker::{DockerSandbox, DockerSettings};
use drydock::sandbox::{Sandbox, SandboxError};

use crate::stage::{PATIENCE, Stage, limits};

#[tokio::test]
async fn a_probe_says_what_the_engine_has() {
    let stage = Stage::new();
    let info = stage.sandbox.probe().await.unwrap();
    assert!(info.engine.starts_with("docker "), "{info:?}");
    assert!(info.cpus >= 1 && info.memory_bytes > 64 << 20, "{info:?}");
    assert!(info.image.as_ref().unwrap().starts_with("sha256:"), "{info:?}");
    assert_eq!(stage.sandbox.probe().await.unwrap(), info, "nothing changes while the engine lives");
}

#[tokio::test]
async fn an_engine_that_is_not_there_leaves_doubt_about_everything() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("docker.sock");
    let mut settings = DockerSettings::new("image", "test", vec![]);
    settings.host = Some(format!("unix://{}", socket.display()));
    let sandbox = DockerSandbox::new(settings);
    let name = drydock::sandbox::ContainerName("drydock-test-sb-nobody".into());
    let all_in_doubt = async |what: &str| {
        for error in [
            sandbox.probe().await.unwrap_err(),
            sandbox.inspect(&name).await.unwrap_err(),
            sandbox.start(&name).await.unwrap_err(),
            sandbox.wait(&name, PATIENCE).await.unwrap_err(),
            sandbox.kill(&name).await.unwrap_err(),
            sandbox.remove(&name).await.unwrap_err(),
            sandbox.list().await.unwrap_err(),
        ] {
            assert!(error.leaves_doubt(), "{what}: {error}");
        }
    };
    all_in_doubt("no socket").await;
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    all_in_doubt("nobody listens").await;
}

#[tokio::test]
async fn an_engine_that_does_not_answer_in_time_leaves_doubt() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("docker.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut settings = DockerSettings::new("image", "test", vec![]);
    settings.host = Some(format!("unix://{}", socket.display()));
    settings.timeouts.query = std::time::Duration::from_millis(100);
    let error = DockerSandbox::new(settings).list().await.unwrap_err();
    assert!(matches!(error, SandboxError::TimedOut(..)) && error.leaves_doubt(), "{error}");
}

#[tokio::test]
async fn a_trial_that_was_killed_leaves_its_container_for_two_minutes_at_most() {
    let stage = Stage::new();
    stage.sandbox.create(&stage.act(&["exit", "0"]).launch).await.unwrap();
    let made_ms = stage.sandbox.list().await.unwrap()[0].created_ms;
    for (age_ms, left) in [(119_000, 1), (120_000, 0)] {
        stage.sandbox.sweep_trials(&Clock::manual(made_ms + age_ms)).await.unwrap();
        assert_eq!(stage.sandbox.list().await.unwrap().len(), left, "after {age_ms} ms");
    }
}

#[tokio::test]
async fn a_missing_image_is_named() {
    let stage = Stage::with(OutputCap::Watched, |settings| settings.image = "drydock-test-sb-no-such-image".into());
    let missing = SandboxError::ImageMissing("drydock-test-sb-no-such-image".into());
    assert_eq!(stage.sandbox.probe().await.unwrap().image, Err(missing.clone()));
    assert_eq!(stage.sandbox.create(&stage.act(&["exit", "0"]).launch).await, Err(missing));
}

#[tokio::test]
async fn a_mount_from_elsewhere_is_refused_before_the_engine_hears_of_it() {
    let stage = Stage::new();
    let mut act = stage.act(&["exit", "0"]);
    act.launch.mounts[0].source = "/var/run/docker.sock".into();
    let refused = stage.sandbox.create(&act.launch).await;
    assert_eq!(refused, Err(SandboxError::MountRefused("/var/run/docker.sock".into())));
    assert_eq!(stage.status(&act).await.unwrap(), None);
}

#[tokio::test]
async fn more_cpus_than_the_host_has_are_no_error() {
    let stage = Stage::new();
    let act = stage.act_within(drydock_spec::Limits { cpu_millis: 1_000_000, ..limits() }, &["exit", "0"]);
    assert_eq!(stage.play(&act).await.code, 0);
}
