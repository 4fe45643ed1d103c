//! Images that cannot be run, and engines that go away.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

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
const OTHER_CPU: Case = Case { name: "program for another processor", kind: ContractBroken, stage: None, order: waits };

/// Images whose program cannot be executed.
pub(crate) async fn images() -> Vec<Finding> {
    let mut findings = Vec::new();
    for number in 0..GUISES {
        for case in [NO_PROGRAM, OTHER_CPU] {
            let image = blocking(move || match case.name == NO_PROGRAM.name {
                true => Image::built(number, &format!("/opt/worker-{number}"), |program| program),
                false => Image::built(number, "/drydock-worker", for_another_processor),
            })
            .await;
            let place = Place::with(&image.name, |_| ()).await;
            let job = place.accept_case(case, number).await;
            place.house.start().await.unwrap();
            findings.push(place.finding(case, job).await);
            place.close().await;
        }
    }
    findings
}

const ENGINE_KILLED: Case = Case { name: "engine killed", kind: EngineLost, stage: Some(Stage::Train), order: waits };

/// The engine dies under its containers, and comes back.
pub(crate) async fn engine_killed() -> Vec<Finding> {
    if !geteuid().is_root() {
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

    /// The probe's program, changed, in an image that starts `entrypoint`.
    fn built(number: u32, entrypoint: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        let image = Self::named(number);
        let context = tempfile::tempdir().unwrap();
        let program = context.path().join("drydock-worker");
        std::fs::write(&program, change(std::fs::read(crate::image::program()).unwrap())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let lines = format!(
            "FROM scratch\nCOPY drydock-worker /drydock-worker\nUSER 65532:65532\nENTRYPOINT [\"{entrypoint}\"]\nLABEL drydock.contract=\"1\"\n"
        );
        std::fs::write(context.path().join("Dockerfile"), lines).unwrap();
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
    docker.env("DOCKER_BUILDKIT", "0").args(arguments).stdout(Stdio::null());
    assert!(docker.status().unwrap().success(), "docker {arguments:?}");
}

/// The same program with the number of a processor in its header that nobody has: EM_NONE's neighbour, the WE 32100.
fn for_another_processor(mut program: Vec<u8>) -> Vec<u8> {
    program[18..20].copy_from_slice(&1u16.to_le_bytes());
    program
}
