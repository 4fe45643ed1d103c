//! Images that cannot be run, and engines that go away.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use drydock_spec::FailureKind::{ContractBroken, EngineLost, ImageMissing};
use drydock_spec::Stage;
use rustix::process::geteuid;

use crate::case::{Case, GUISES, Guise};
use crate::engine_of_its_own::Engine;
use crate::order::Order;
use crate::place::{Place, has_spoken};
use crate::table::Finding;

fn waits(guise: Guise) -> Order {
    Order::probe(guise, guise.pick(["linger 900 50 train", "linger 800 60 train"]), "", "")
}

const IMAGE_GONE: Case = Case { name: "image gone", kind: ImageMissing, stage: Some(Stage::Start), order: waits };

/// The image was there when the engine was last asked, and is not any more.
pub(crate) async fn image_gone() -> Vec<Finding> {
    let mut findings = Vec::new();
    for number in 0..GUISES {
        let image = blocking(move || Image::tagged(number)).await;
        let place = Place::with(&image.name, |_| ()).await;
        let job = place.accept_case(IMAGE_GONE, number).await;
        drop(image);
        // Who asked the engine once more would wait for the image instead.
        place.house.reaper.dispatch.dispatch_once().await.unwrap();
        findings.push(place.finding(IMAGE_GONE, job).await);
        place.close().await;
    }
    findings
}

const NO_PROGRAM: Case = Case { name: "image without its program", kind: ContractBroken, stage: None, order: waits };
const SHUT_PROGRAM: Case =
    Case { name: "program without the right to run", kind: ContractBroken, stage: None, order: waits };

/// Images whose program cannot be executed.
pub(crate) async fn images() -> Vec<Finding> {
    let mut findings = Vec::new();
    for number in 0..GUISES {
        for case in [NO_PROGRAM, SHUT_PROGRAM] {
            let image = blocking(move || match case.name == NO_PROGRAM.name {
                true => Image::built(number, &format!("/opt/worker-{number}"), 0o755),
                false => Image::built(number, "/drydock-worker", [0o644, 0o640][number as usize]),
            })
            .await;
            let place = Place::with(&image.name, |_| ()).await;
            let job = place.accept_case(case, number).await;
            place.house.start().await.unwrap();
            findings.push(place.finding(case, job).await);
            place.close().await;
            blocking(move || drop(image)).await;
        }
    }
    findings
}

const ENGINE_KILLED: Case = Case { name: "engine killed", kind: EngineLost, stage: Some(Stage::Train), order: waits };

/// The engine dies under its containers, and comes back.
pub(crate) async fn engine_killed() -> Vec<Finding> {
    if !geteuid().is_root() {
        let _ =
            writeln!(std::io::stderr(), "{} is not tried: only root can have an engine to kill", ENGINE_KILLED.name);
        return Vec::new();
    }
    let mut engine = blocking(|| Engine::start(false)).await;
    let host = engine.host();
    let place = Place::with(crate::image::probe(), |config| config.sandbox.docker_host = Some(host)).await;
    let mut jobs = Vec::new();
    for number in 0..GUISES {
        jobs.push(place.accept_case(ENGINE_KILLED, number).await);
    }
    place.house.start().await.unwrap();
    for job in &jobs {
        place.until(*job, has_spoken).await;
    }
    let engine = blocking(move || {
        engine.kill();
        engine.up();
        engine
    })
    .await;
    let mut findings = Vec::new();
    for job in jobs {
        findings.push(place.finding(ENGINE_KILLED, job).await);
    }
    place.close().await;
    blocking(move || drop(engine)).await;
    findings
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A name for an image, which goes with this value.
struct Image {
    name: String,
}

impl Image {
    /// The probe under another name.
    fn tagged(number: u32) -> Self {
        let image = Self::named(number);
        docker(&["tag", crate::image::probe(), &image.name]);
        image
    }

    /// The probe's program with these rights, in an image that starts `entrypoint`.
    fn built(number: u32, entrypoint: &str, mode: u32) -> Self {
        let image = Self::named(number);
        let context = tempfile::tempdir().unwrap();
        let program = context.path().join("drydock-worker");
        std::fs::copy(crate::image::program(), &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
        let lines = [
            "FROM scratch",
            "COPY drydock-worker /drydock-worker",
            "USER 65532:65532",
            &format!("ENTRYPOINT [\"{entrypoint}\"]"),
        ];
        std::fs::write(context.path().join("Dockerfile"), lines.join("\n")).unwrap();
        docker(&["build", "--quiet", "--tag", &image.name, context.path().to_str().unwrap()]);
        image
    }

    fn named(number: u32) -> Self {
        Self { name: format!("drydock-test-failures-{number}:{:032x}", rand::random::<u128>()) }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.name]);
    }
}

fn docker(arguments: &[&str]) {
    let mut docker = Command::new("docker");
    let done = docker.env("DOCKER_BUILDKIT", "0").args(arguments).output().unwrap();
    assert!(done.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}
