//! The gateway is killed with a signal that nothing can catch: at every named step, and at any time at all.

use std::time::Duration;

use drydock::fail_point::Step;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::account::Sum;
use crate::harness::process::Gateway;
use crate::yard::{Ending, Order, Yard};
use crate::{full_length, say};

#[tokio::test]
async fn a_gateway_killed_before_any_step_takes_it_once_when_it_is_back() {
    die_at_every_step("before").await;
}

#[tokio::test]
async fn a_gateway_killed_after_any_step_does_not_take_it_again() {
    die_at_every_step("after").await;
}

async fn die_at_every_step(when: &str) {
    let yard = Yard::new().await;
    let (mut all, mut sum) = (Vec::new(), Sum::default());
    // At full length, also when the step is reached for another job than the first.
    let times = if full_length() { 2 } else { 1 };
    for (step, time) in Step::ALL.into_iter().flat_map(|step| (1..=times).map(move |time| (step, time))) {
        let place = format!("{when}:{}:{time}", step.name());
        let mut orders = Ending::GENTLE.map(Order::short).to_vec();
        let gateway = yard.doomed(&place).await;
        for order in &mut orders {
            // It may die while it is asked.
            let _ = order.submit(&gateway).await;
        }
        gateway.until_dead().await;
        assert!(yard.log().contains("the fail point is reached"), "{place}");
        let gateway = yard.gateway().await;
        yard.see_through(&gateway, &mut orders).await;
        sum += yard.check(&gateway, &orders, 1).await;
        gateway.kill().await;
        all.extend(orders);
    }
    let gateway = yard.gateway().await;
    yard.check_tidy(&all, None).await;
    gateway.kill().await;
    say(&format!("killed {when} each of {} steps, {times} times: {sum:?}", Step::ALL.len()));
}

/// Gateways that are killed at the same time, each on a state folder of its own.
const YARDS: usize = 4;
/// Jobs of one gateway that are under way at once.
const OPEN: usize = 6;

#[tokio::test]
async fn a_gateway_killed_again_and_again_tells_the_truth_about_every_job() {
    let kills = if full_length() { 50 } else { 3 };
    let mut random = seeded();
    let yards = (0..YARDS).map(|_| killed_at_random(kills, StdRng::seed_from_u64(random.random())));
    let mut sum = Sum::default();
    futures::future::join_all(yards).await.into_iter().for_each(|one| sum += one);
    say(&format!("killed {} times at random under load: {sum:?}", YARDS * kills));
}

async fn killed_at_random(kills: usize, mut random: StdRng) -> Sum {
    let yard = Yard::new().await;
    let (mut open, mut ended): (Vec<Order>, Vec<Order>) = (Vec::new(), Vec::new());
    for _ in 0..kills {
        if random.random_bool(0.2) {
            yard.still_born(Duration::from_millis(random.random_range(0..150))).await;
            continue;
        }
        let gateway = yard.gateway().await;
        let life = Duration::from_millis(random.random_range(200..700));
        // Whatever is asked when the time is up is left without an answer.
        let _ = tokio::time::timeout(life, keep_busy(&gateway, &mut open, &mut ended, &mut random)).await;
        gateway.kill().await;
    }
    let gateway = yard.gateway().await;
    yard.see_through(&gateway, &mut open).await;
    ended.append(&mut open);
    let sum = yard.check(&gateway, &ended, 1).await;
    yard.check_tidy(&ended, None).await;
    gateway.kill().await;
    sum
}

/// What decides when somebody dies. It is said aloud, so that it can be asked for again.
pub(crate) fn seeded() -> StdRng {
    let seed = std::env::var("DRYDOCK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    say(&format!("{}: DRYDOCK_SEED={seed}", std::thread::current().name().unwrap_or_default()));
    StdRng::seed_from_u64(seed)
}

/// Keeps so many jobs under way, of every kind, until it is cut off.
pub(crate) async fn keep_busy(gateway: &Gateway, open: &mut Vec<Order>, ended: &mut Vec<Order>, random: &mut StdRng) {
    loop {
        while open.len() < OPEN {
            let ending = Ending::GENTLE[random.random_range(0..Ending::GENTLE.len())];
            open.push(match ending {
                Ending::Cancel => Order::short(ending),
                _ => Order::new(ending, random.random_range(1..80), 10),
            });
        }
        for at in (0..open.len()).rev() {
            open[at].submit(gateway).await.unwrap();
            if open[at].drive(gateway).await {
                ended.push(open.swap_remove(at));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
