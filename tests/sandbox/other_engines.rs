//! Engines that are set up otherwise than this host's: each is started for its test and gone afterwards. Root starts
//! engines, and it takes them some seconds; `make test-sandbox` does, other runs say that they do not.

use std::process::{Command, Stdio};

use drydock::sandbox::Sandbox;
use drydock::sandbox::attempt_dir::OutputCap;
use drydock::sandbox::users::{IdMap, Users};

use crate::own_engine::{Engine, FIRST, in_path};
use crate::stage::{Stage, skipped};
use crate::told::Told;

/// The walls that every engine has to hold, whatever stands behind it.
fn assert_sealed(told: &Told) {
    assert_eq!(told.get("create /out/file"), "ok");
    assert_eq!(told.get("reports append"), "ok");
    assert!(["EROFS", "EACCES"].contains(&told.get("create /in/model/file")), "{}", told.get("create /in/model/file"));
    assert_eq!(told.get("rise setuid"), "EPERM");
    assert_ne!(told.get("connect somewhere"), "ok");
    assert_ne!(told.get("connect the host's abstract socket"), "ok");
    // gVisor does not know of ambient ones.
    let sets = told.all("Cap");
    assert!(sets.values().all(|set| ["0000000000000000", "missing"].contains(set)), "{sets:?}");
    assert_eq!(sets["Eff"], "0000000000000000");
    for folder in ["/tmp", "/dev/shm"] {
        assert_eq!(told.get(&format!("execute in {folder}")), "EACCES", "{folder}");
    }
}

#[tokio::test]
async fn on_an_engine_that_remaps_users_jobs_are_nobody_on_the_host() {
    let Some(engine) = Engine::start(&["--userns-remap=daemon"]) else { return };
    for cap in [OutputCap::LoopMount, OutputCap::Watched] {
        let mut stage = Stage::within(engine.shared(), cap, |settings| settings.host = Some(engine.host()));
        let info = stage.sandbox.probe().await.unwrap();
        assert_eq!(info.isolation.ids, IdMap { uid: FIRST, gid: FIRST });
        let range = "1000-1003".parse().unwrap();
        for users in [Users::shared(65532, 65532), Users::own(range, vec![stage.attempts()])] {
            stage.ids = info.isolation.ids;
            stage.how.users = users.mapped(stage.ids);
            let told = Told::tell(&stage).await;
            assert_sealed(&told);
            assert!(told.user.0 == 65532 || told.user.0 == 1000, "{:?}", told.user);
            assert_eq!(told.get("execute in /out"), "EACCES");
            assert_eq!(told.get("Uid"), [told.user.0; 4].map(|id| id.to_string()).join(" "));
            assert_eq!(told.made_by, FIRST + told.user.0, "{cap:?}: whose the output is on the host");
        }
    }
}

#[tokio::test]
async fn under_gvisor_a_job_finds_the_same_walls() {
    if !in_path("runsc") {
        return skipped("there is no runsc");
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("daemon.json");
    // The network is none anyway; the platform is the one that works in virtual machines.
    let runtimes =
        r#"{"runtimes": {"runsc": {"path": "runsc", "runtimeArgs": ["--network=none", "--platform=ptrace"]}}}"#;
    std::fs::write(&config, runtimes).unwrap();
    let Some(engine) = Engine::start(&["--config-file", config.to_str().unwrap()]) else { return };
    let mut stage = Stage::within(engine.shared(), OutputCap::Auto, |settings| {
        settings.host = Some(engine.host());
        settings.runtime = Some("runsc".into());
    });
    let info = stage.sandbox.probe().await.unwrap();
    assert_eq!(info.runtime, Ok("runsc".into()));
    // Its server on the host could not append.
    stage.how.append_only = info.isolation.append_only;
    let told = Told::tell(&stage).await;
    assert_sealed(&told);
    // It makes its own of a mount, and knows nothing of the host's flags.
    assert_eq!(told.get("execute in /out"), "ok");
    assert!(told.get("kernel").contains("gVisor") || told.get("kernel").contains("4.4.0"), "{}", told.get("kernel"));
}

#[tokio::test]
async fn a_configured_runtime_is_the_one_that_runs() {
    let stage = Stage::with(OutputCap::Auto, |settings| settings.runtime = Some("io.containerd.runc.v2".into()));
    let act = stage.act(&["exit", "0"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let inspected = Command::new("docker")
        .args(["inspect", "--format", "{{.HostConfig.Runtime}}", &act.launch.name.0])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(inspected.stdout).unwrap().trim(), "io.containerd.runc.v2");
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_named_with_its_setting() {
    let stage = Stage::with(OutputCap::Auto, |settings| settings.runtime = Some("drydock-none".into()));
    let missing = drydock::sandbox::SandboxError::RuntimeMissing("drydock-none".into());
    assert!(missing.to_string().contains("sandbox.runtime"));
    assert_eq!(stage.sandbox.probe().await.unwrap().runtime, Err(missing.clone()));
    let act = stage.act(&["exit", "0"]);
    assert_eq!(stage.sandbox.create(&act.launch).await, Err(missing));
    assert_eq!(stage.status(&act).await.unwrap(), None);
}

#[tokio::test]
async fn an_image_with_volumes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("drydock-test-sb-volumes:{:032x}", rand::random::<u128>());
    let dockerfile = format!(
        "FROM {}\nVOLUME /data\nHEALTHCHECK CMD [\"/drydock-worker\", \"exit\", \"0\"]\n",
        crate::image::probe()
    );
    std::fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
    let docker = |arguments: &[&str]| {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_BUILDKIT", "0").args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        docker.status().unwrap().success()
    };
    assert!(docker(&["build", "--tag", &name, &folder.path().display().to_string()]));
    let stage = Stage::with(OutputCap::Auto, |settings| settings.image = name.clone());
    let refused = stage.sandbox.probe().await.unwrap().image.unwrap_err();
    let created = stage.sandbox.create(&stage.act(&["exit", "0"]).launch).await;
    assert!(docker(&["image", "rm", &name]));
    assert!(refused.to_string().contains("/data") && !refused.leaves_doubt(), "{refused}");
    assert_eq!(created, Err(refused));
}
