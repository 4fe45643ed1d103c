//! The engine dies under jobs that are under way, or what it stands on does. What the outage has cut off is tried again;
//! what it has not is left alone; and how a worker ended by itself is told from both.

use std::time::Duration;

use rustix::process::geteuid;

use crate::account::Sum;
use crate::engine::Engine;
use crate::yard::{Ending, Order, Yard};
use crate::{full_length, say};

/// A way for an engine to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// Stopped in good order, and started again.
    Stopped,
    Killed,
    /// It does not move for longer than the gateway waits for an answer.
    Frozen,
    ContainerdKilled,
    ShimsKilled,
    WorkersKilled,
    /// Everything at once.
    PowerCut,
}

impl Outage {
    fn strike(self, engine: &mut Engine) {
        match self {
            Self::Stopped => engine.stop(),
            Self::Killed => engine.kill(),
            Self::Frozen => engine.freeze(Duration::from_secs(20)),
            Self::ContainerdKilled => engine.kill_containerd(),
            Self::ShimsKilled => engine.kill_shims(),
            Self::WorkersKilled => engine.kill_workers(),
            Self::PowerCut => engine.cut_power(),
        }
    }

    /// Whether the engine has to be started again.
    fn leaves_it_down(self) -> bool {
        matches!(self, Self::Stopped | Self::Killed | Self::PowerCut)
    }
}

/// An outage in the middle of jobs, and how many attempts these take in all.
struct Trial {
    outage: Outage,
    live_restore: bool,
    attempts: usize,
}

const fn trial(outage: Outage, live_restore: bool, attempts: usize) -> Trial {
    Trial { outage, live_restore, attempts }
}

/// Those of the short form come first.
const TRIALS: [Trial; 12] = [
    trial(Outage::Stopped, false, 2),
    trial(Outage::Killed, true, 1),
    trial(Outage::ShimsKilled, false, 2),
    trial(Outage::PowerCut, true, 2),
    trial(Outage::Killed, false, 2),
    trial(Outage::Stopped, true, 1),
    trial(Outage::Frozen, false, 1),
    trial(Outage::ContainerdKilled, false, 1),
    trial(Outage::ContainerdKilled, true, 1),
    trial(Outage::ShimsKilled, true, 2),
    trial(Outage::WorkersKilled, false, 2),
    trial(Outage::PowerCut, false, 2),
];
const SHORT: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_an_outage_cuts_off_is_tried_again_and_what_it_spares_goes_on() {
    if !geteuid().is_root() {
        return skipped("only root can have an engine of its own to kill");
    }
    let trials = &TRIALS[..if full_length() { TRIALS.len() } else { SHORT }];
    let mut sum = Sum::default();
    // Two at a time: each is an engine with everything that belongs to it.
    for pair in trials.chunks(2) {
        for one in futures::future::join_all(pair.iter().map(survive)).await {
            sum += one;
        }
    }
    say(&format!("{} outages of the engine: {sum:?}", trials.len()));
}

async fn survive(trial: &Trial) -> Sum {
    let mut engine = Engine::start(trial.live_restore);
    let host = engine.host();
    let yard = Yard::on(Some(host.clone()), true).await;
    let gateway = yard.gateway().await;
    let mut orders = [Ending::Finish, Ending::Fail, Ending::Leave].map(|ending| Order::new(ending, 200, 20));
    for order in &mut orders {
        order.submit(&gateway).await.unwrap();
    }
    for order in &orders {
        yard.until(&gateway, order, |view| !view["progress"].is_null()).await;
    }
    trial.outage.strike(&mut engine);
    if trial.outage.leaves_it_down() {
        engine.up();
    }
    yard.see_through(&gateway, &mut orders).await;
    let sum = yard.check(&gateway, &orders, trial.attempts).await;
    yard.check_tidy(&orders, Some(&host)).await;
    gateway.kill().await;
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_worker_ended_while_the_engine_was_away_is_known_when_it_is_back() {
    if !geteuid().is_root() {
        return skipped("only root can have an engine of its own to kill");
    }
    let mut engine = Engine::start(true);
    let host = engine.host();
    let yard = Yard::on(Some(host.clone()), true).await;
    let gateway = yard.gateway().await;
    let endings = [Ending::Finish, Ending::Fail, Ending::Leave, Ending::Crash, Ending::Cancel];
    let mut orders = endings.map(|ending| match ending {
        Ending::Cancel => Order::short(ending),
        _ => Order::new(ending, 40, 20),
    });
    // The kernel's kill is counted by the engine, so without one it looks like any other; with one it does not.
    let mut eater = [Order::new(Ending::Eat, 40, 20)];
    for order in orders.iter_mut().chain(&mut eater) {
        order.submit(&gateway).await.unwrap();
    }
    for order in orders.iter().chain(&eater) {
        yard.until(&gateway, order, |view| !view["progress"].is_null()).await;
    }
    engine.kill();
    for order in &orders {
        // Every worker but the one that goes on says its last word, engine or not.
        if order.ending == Ending::Cancel {
            order.drive(&gateway).await;
        } else {
            yard.until(&gateway, order, |view| view["progress"]["part"]["done"] == 40).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    engine.up();
    yard.see_through(&gateway, &mut orders).await;
    yard.see_through(&gateway, &mut eater).await;
    let mut sum = yard.check(&gateway, &orders, 1).await;
    sum += yard.check(&gateway, &eater, 2).await;
    yard.check_tidy(&orders, Some(&host)).await;
    gateway.kill().await;
    say(&format!("workers that ended while the engine was away: {sum:?}"));
}

/// Says that a test was not run here; `make test` counts these lines.
fn skipped(why: &str) {
    say(&format!("skipped: {}: {why}", std::thread::current().name().unwrap_or_default()));
}
