//! Images that cannot be run, and engines that go away.

use std::io::Write as _;

use drydock_spec::FailureKind::{ContractBroken, EngineLost, ImageMissing};
use drydock_spec::{FailureKind, Stage};
use rustix::process::geteuid;

use crate::case::{Case, GUISES, Guise};
use crate::engine_of_its_own::Engine;
use crate::image_of_its_own::{Image, blocking};
use crate::order::Order;
use crate::place::{Place, has_spoken};
use crate::table::Played;

fn waits(guise: Guise) -> Order {
    Order::probe(guise, guise.pick(["linger 500 50 train", "linger 420 60 train"]), "", "")
}

const fn case(name: &'static str, kind: FailureKind, stage: Option<Stage>, remedy: &'static str) -> Case {
    Case { name, kind, stage, order: waits, mend: None }.mended(remedy)
}

const IMAGE_GONE: Case = case("image gone", ImageMissing, Some(Stage::Start), "outside: build_image");

/// The image was there when the engine was last asked, and is not any more; then it is built again.
pub(crate) async fn image_gone() -> Played {
    let mut played = Played::default();
    for number in 0..GUISES {
        let image = blocking(move || Image::tagged(number)).await;
        let place = Place::with(&image.name, |_| ()).await;
        let job = place.accept_case(IMAGE_GONE, number).await;
        let name = image.name.clone();
        drop(image);
        // Who asked the engine once more would wait for the image instead.
        place.house.reaper.dispatch.dispatch_once().await.unwrap();
        played.findings.push(place.finding(IMAGE_GONE, number, job).await);
        let image = blocking(move || Image::called(name)).await;
        place.house.start().await.unwrap();
        played.mend_last(&place).await;
        place.close().await;
        blocking(move || drop(image)).await;
    }
    played
}

const NO_PROGRAM: Case = case("image without its program", ContractBroken, None, "outside: mend_image");
const SHUT_PROGRAM: Case = case("program without the right to run", ContractBroken, None, "outside: mend_image");

/// Images whose program cannot be executed, and then can.
pub(crate) async fn images() -> Played {
    let mut played = Played::default();
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
            played.findings.push(place.finding(case, number, job).await);
            let name = image.name.clone();
            let mended = blocking(move || Image::called(name)).await;
            played.mend_last(&place).await;
            place.close().await;
            blocking(move || drop((image, mended))).await;
        }
    }
    played
}

const ENGINE_KILLED: Case = case("engine killed", EngineLost, Some(Stage::Train), "try again");

/// The engine dies under its containers, and comes back.
pub(crate) async fn engine_killed() -> Played {
    let mut played = Played::default();
    if !geteuid().is_root() {
        let _ =
            writeln!(std::io::stderr(), "{} is not tried: only root can have an engine to kill", ENGINE_KILLED.name);
        return played;
    }
    let mut engine = blocking(|| Engine::start(false)).await;
    let host = engine.host();
    let place = Place::with(crate::image::probe(), |config| config.sandbox.docker_host = Some(host)).await;
    let mut jobs = Vec::new();
    for number in 0..GUISES {
        jobs.push((number, place.accept_case(ENGINE_KILLED, number).await));
    }
    place.house.start().await.unwrap();
    for (_, job) in &jobs {
        place.until(*job, has_spoken).await;
    }
    let engine = blocking(move || {
        engine.kill();
        engine.up();
        engine
    })
    .await;
    for (number, job) in jobs {
        played.findings.push(place.finding(ENGINE_KILLED, number, job).await);
        played.mend_last(&place).await;
    }
    place.close().await;
    blocking(move || drop(engine)).await;
    played
}
