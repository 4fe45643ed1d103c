//! What plans predict is compared with what attempts come to.

use drydock::plan::forecast::{Forecast, Measured, Quantity};
use drydock_spec::report::Checkpoint;
use drydock_spec::{Limits, Report};

use super::{Step, World, limits, scripted, started, success};

/// What is known of predictions after a job whose worker does this.
async fn after(world: &World, steps: Vec<Step>, limits: Limits) -> Vec<Forecast> {
    world.engine.script(steps);
    let id = world.submit(limits).await;
    world.until_done(id).await;
    let mut found = world.house.desk.store.forecasts("finetune", Some("lora")).await.unwrap();
    found.sort_by_key(|forecast| forecast.quantity);
    found
}

fn forecast(quantity: Quantity, predicted: u64, measured: Measured) -> Forecast {
    Forecast { kind: "finetune".into(), method: Some("lora".into()), quantity, predicted, measured }
}

#[tokio::test]
async fn an_attempt_that_went_well_is_kept_beside_what_was_predicted() {
    let world = World::with(scripted([])).await;
    let mut steps = success();
    let checkpoint = |step| Report::Checkpoint(Checkpoint { step, path: format!("c{step}"), bytes: 10 });
    // Three were written, and two lie on the disk at once.
    steps.splice(2..2, (1..4).map(|step| Step::Say(checkpoint(step))));
    let found = after(&world, steps, limits()).await;
    assert_eq!(
        found,
        [
            forecast(Quantity::Memory, 2, Measured::Exactly(1)),
            forecast(Quantity::Disk, 14, Measured::Exactly(7 + 2 * 10)),
        ]
    );
    let shown = world.house.desk.host().await.unwrap().forecasts;
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0].spread.unwrap().ratio_median, 0.5);
    assert_eq!((shown[1].above, shown[1].ran_out), (1, 0));
}

#[tokio::test]
async fn an_attempt_that_ran_out_of_memory_is_known_to_need_more_than_it_had() {
    let world = World::with(scripted([])).await;
    let killed = vec![Step::Say(started()), Step::Exit { code: 137, oom_killed: true }];
    let found = after(&world, killed, limits()).await;
    assert_eq!(found, [forecast(Quantity::Memory, 2, Measured::MoreThan(limits().memory_bytes))]);
}
