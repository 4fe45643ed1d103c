//! What comes between the gateway and the engine: no such fault fails a job, costs an attempt, or starts anything twice.

use std::path::PathBuf;

use futures::StreamExt as _;

use crate::account::Sum;
use crate::proxy::{Call, Fault, Harm, Proxy};
use crate::yard::{Ending, Order, Yard};
use crate::{full_length, say};

/// Gateways that are tried at the same time: each of them mostly waits.
const AT_ONCE: usize = 9;

#[tokio::test]
async fn whatever_befalls_the_engines_answers_no_job_pays_for_it() {
    let every_call = |fault, times| Call::ALL.map(|call| Harm::new(call, fault, times)).to_vec();
    let trials: Vec<Vec<Harm>> = if full_length() {
        let one_by_one = |fault, times| Call::ALL.map(|call| vec![Harm::new(call, fault, times)]);
        let silences = one_by_one(Fault::Silence, 1);
        silences.into_iter().chain(Fault::QUICK.into_iter().flat_map(|fault| one_by_one(fault, 2))).collect()
    } else {
        Fault::QUICK.into_iter().map(|fault| every_call(fault, 1)).collect()
    };
    let count = trials.len();
    let sums: Vec<Sum> = futures::stream::iter(trials).map(survive).buffer_unordered(AT_ONCE).collect().await;
    let mut sum = Sum::default();
    sums.into_iter().for_each(|one| sum += one);
    say(&format!("{count} trials with harm between gateway and engine: {sum:?}"));
}

async fn survive(harms: Vec<Harm>) -> Sum {
    let proxy = Proxy::before(socket());
    let yard = Yard::on(Some(proxy.host()), false).await;
    proxy.harm(harms);
    let gateway = yard.gateway().await;
    let mut orders = [Ending::Finish, Ending::Cancel].map(Order::short);
    yard.see_through(&gateway, &mut orders).await;
    let sum = yard.check(&gateway, &orders, 1).await;
    yard.check_tidy(&orders, None).await;
    assert!(proxy.undone().is_empty(), "this was never asked for: {:?}", proxy.undone());
    gateway.kill().await;
    sum
}

/// The socket of the engine that everybody uses.
fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let path = host.strip_prefix("unix://").expect("the engine is reached by a unix socket");
    path.into()
}
