//! The engine dies under jobs that are under way, or what it stands on does. What the outage has cut off is tried
//! again; what it has not is left alone; and how a worker ended by itself is told from both.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::RngExt as _;
use rustix::process::geteuid;

use crate::account::Sum;
use crate::engine::{Engine, detach};
use crate::kills::{keep_busy, seeded};
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
    /// Everything on the engine's side at once.
    PowerCut,
    /// Everything at once, the gateway included.
    Reboot,
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
            Self::PowerCut | Self::Reboot => engine.cut_power(),
        }
    }

    /// Whether the engine has to be started again.
    fn leaves_it_down(self) -> bool {
        matches!(self, Self::Stopped | Self::Killed | Self::PowerCut | Self::Reboot)
    }
}

/// An outage in the middle of jobs, and how many attempts each of these takes.
struct Trial {
    outage: Outage,
    live_restore: bool,
    attempts: RangeInclusive<usize>,
}

const fn trial(outage: Outage, live_restore: bool, attempts: usize) -> Trial {
    Trial { outage, live_restore, attempts: attempts..=attempts }
}

/// Workers end before there is another containerd. Of one that left without a word the engine may have missed how, and
/// then the next attempt tells; what the others said last is enough.
const fn overlooked(live_restore: bool) -> Trial {
    Trial { outage: Outage::ContainerdKilled, live_restore, attempts: 1..=2 }
}

/// Those of the short form come first.
static TRIALS: [Trial; 13] = [
    trial(Outage::Stopped, false, 2),
    trial(Outage::Killed, true, 1),
    trial(Outage::ShimsKilled, false, 2),
    trial(Outage::Reboot, true, 2),
    trial(Outage::Killed, false, 2),
    trial(Outage::Stopped, true, 1),
    trial(Outage::Frozen, false, 1),
    overlooked(false),
    overlooked(true),
    trial(Outage::ShimsKilled, true, 2),
    trial(Outage::WorkersKilled, false, 2),
    trial(Outage::PowerCut, false, 2),
    trial(Outage::PowerCut, true, 2),
];
const SHORT: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_outage_cuts_off_is_tried_again_and_what_it_spares_goes_on() {
    if !geteuid().is_root() {
        return skipped("only root can have an engine of its own to kill");
    }
    let trials = &TRIALS[..if full_length() { TRIALS.len() } else { SHORT }];
    let mut sum = Sum::default();
    // Two at a time: each is an engine with everything that belongs to it, and keeps a thread waiting for it.
    for pair in trials.chunks(2) {
        for one in futures::future::join_all(pair.iter().map(|trial| tokio::spawn(survive(trial)))).await {
            sum += one.unwrap();
        }
    }
    say(&format!("{} outages of the engine: {sum:?}", trials.len()));
}

async fn survive(trial: &'static Trial) -> Sum {
    let mut engine = Engine::start(trial.live_restore);
    let host = engine.host();
    let yard = Yard::on(Some(host.clone()), true).await;
    let mut gateway = yard.gateway().await;
    let mut orders = [Ending::Finish, Ending::Fail, Ending::Leave].map(|ending| Order::new(ending, 80, 100));
    for order in &mut orders {
        order.submit(&gateway).await.unwrap();
    }
    for order in &orders {
        yard.until(&gateway, order, |view| !view["progress"].is_null()).await;
    }
    if trial.outage == Outage::Reboot {
        gateway.kill().await;
        trial.outage.strike(&mut engine);
        // The files of the state folder outlive it, what was mounted there does not.
        detach(&yard.folders.state());
        engine.up();
        gateway = yard.gateway().await;
    } else {
        trial.outage.strike(&mut engine);
        if trial.outage.leaves_it_down() {
            engine.up();
        }
    }
    yard.see_through(&gateway, &mut orders).await;
    let sum = yard.check_about(&gateway, &orders, trial.attempts.clone()).await;
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
        _ => Order::new(ending, 40, 100),
    });
    // The kernel's kill is counted by the engine, and there is none; but the kernel itself has noted it.
    let mut eater = [Order::new(Ending::Eat, 40, 100)];
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
    // Where its log cannot be read the kill looks like any other, until the next attempt tells.
    let attempts = if std::fs::File::open("/dev/kmsg").is_ok() { 1 } else { 2 };
    sum += yard.check(&gateway, &eater, attempts).await;
    yard.check_tidy(&orders, Some(&host)).await;
    gateway.kill().await;
    say(&format!("workers that ended while the engine was away: {sum:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_and_engine_killed_in_turns_lose_nothing_between_them() {
    if !geteuid().is_root() {
        return skipped("only root can have an engine of its own to kill");
    }
    let rounds = if full_length() { 20 } else { 2 };
    let mut random = seeded();
    let mut engine = Engine::start(true);
    let host = engine.host();
    let yard = Yard::on(Some(host.clone()), true).await;
    let (mut open, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let gateway = yard.gateway().await;
        let life = Duration::from_millis(random.random_range(500..2500));
        let _ = tokio::time::timeout(life, keep_busy(&gateway, &mut open, &mut ended, &mut random)).await;
        // Now the engine first, now the gateway, and sometimes the gateway while the engine comes up.
        if random.random_bool(0.5) {
            engine.kill();
            gateway.kill().await;
            engine.up();
        } else {
            gateway.kill().await;
            engine.kill();
            engine.up();
        }
    }
    let gateway = yard.gateway().await;
    yard.see_through(&gateway, &mut open).await;
    ended.append(&mut open);
    let sum = yard.check_about(&gateway, &ended, 1..=10).await;
    yard.check_tidy(&ended, Some(&host)).await;
    gateway.kill().await;
    say(&format!("gateway and engine killed {rounds} times each under load: {sum:?}"));
}

/// Says that a test was not run here; `make test` counts these lines.
pub(crate) fn skipped(why: &str) {
    say(&format!("skipped: {}: {why}", std::thread::current().name().unwrap_or_default()));
}
