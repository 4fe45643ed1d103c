//! What is given to whom: GPUs to one job at a time, a turn to every owner, and what each has had.

use drydock::store::NewJob;
use drydock_gpu::assign::Standing;
use drydock_spec::{JobId, Outcome, Owner, Priority};

use crate::{House, holder, new_job};

async fn submit(house: &House, new: NewJob) -> JobId {
    house.store.submit(new).await.unwrap().job.id
}

fn owned(n: u128, owner: &str, priority: i8) -> NewJob {
    NewJob { owner: Owner(owner.into()), priority: Priority::new(priority).unwrap(), ..new_job(n) }
}

/// A job for so many GPUs, or for memory of one.
fn for_gpus(n: u128, gpus: u32, shared: Option<u64>) -> NewJob {
    let mut new = new_job(n);
    (new.limits.gpus, new.limits.gpu_memory_bytes) = (gpus, shared);
    new
}

#[tokio::test]
async fn a_gpu_is_claimed_by_one_job_or_by_several_that_all_share_it() {
    let house = House::new().await;
    let claim = async |id, gpus: &[&str]| {
        let gpus: Vec<_> = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
        house.store.claim_on(id, &holder("a"), &gpus).await.unwrap()
    };
    let [two, one] = [submit(&house, for_gpus(1, 2, None)).await, submit(&house, for_gpus(2, 1, None)).await];
    let [shares, as_well] =
        [submit(&house, for_gpus(3, 1, Some(1))).await, submit(&house, for_gpus(4, 1, Some(1))).await];
    assert!(claim(two, &[]).await.is_none(), "it asks for two");
    assert!(claim(two, &["GPU-0"]).await.is_none(), "it asks for two");
    let lease = claim(two, &["GPU-0", "GPU-1"]).await.unwrap();
    assert_eq!(lease.row().gpus, ["GPU-0", "GPU-1"]);
    assert!(claim(one, &["GPU-1"]).await.is_none(), "somebody else has it");
    assert!(claim(shares, &["GPU-1"]).await.is_none(), "somebody else has it alone");
    let sharing = claim(shares, &["MIG-2"]).await.unwrap();
    assert!(claim(one, &["MIG-2"]).await.is_none(), "it is shared");
    assert!(claim(as_well, &["MIG-2"]).await.is_some());
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    assert!(claim(one, &["GPU-1"]).await.is_some(), "it was given back");
    sharing.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    let late = submit(&house, for_gpus(5, 1, None)).await;
    assert!(claim(late, &["MIG-2"]).await.is_none(), "one still shares it");
}

#[tokio::test]
async fn the_front_of_the_line_has_the_first_jobs_of_every_owner_and_the_oldest_of_each() {
    let house = House::new().await;
    let mut greedy = Vec::new();
    for n in 0..20 {
        greedy.push(submit(&house, owned(n, "greedy", i8::from(n > 0))).await);
    }
    let modest = submit(&house, owned(20, "modest", 0)).await;
    let front = house.store.front(3).await.unwrap();
    let ids: Vec<_> = front.jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids, [greedy[1], greedy[2], greedy[3], greedy[0], modest]);
    assert!(front.more, "there are others behind them");
    let front = house.store.front(30).await.unwrap();
    assert_eq!((front.jobs.len(), front.more), (21, false));
}

#[tokio::test]
async fn what_an_attempt_has_had_is_counted_once_and_not_lost_by_a_restart() {
    let mut house = House::new().await;
    let began = house.clock.now_ms();
    let id = submit(&house, owned(1, "ann", 0)).await;
    let lease = house.claim(id).await;
    house.clock.advance(1000);
    lease.finish(Outcome::Succeeded, &[], 0).await.unwrap();
    house.clock.advance(500);
    house.store = drydock::store::Store::open(&house.path, house.clock.clone()).await.unwrap();
    let counted = std::cell::RefCell::new(Vec::new());
    let count = |standing: Standing, limits: &drydock_spec::Limits, time: (i64, i64), now_ms: i64| {
        counted.borrow_mut().push((limits.cpu_millis, time, now_ms));
        Standing { mean: standing.mean + 0.25, as_of_ms: now_ms, ..standing }
    };
    for _ in 0..2 {
        house.store.count_ended_once(count).await.unwrap();
    }
    assert_eq!(*counted.borrow(), [(1000, (began, began + 1000), began + 1500)]);
    let owners = house.store.owners().await.unwrap();
    let ann = owners[&Owner("ann".into())];
    // It was the oldest of her jobs when it was claimed.
    assert_eq!(ann, Standing { mean: 0.25, as_of_ms: began + 1500, oldest_started_ms: began });
}

#[tokio::test]
async fn only_the_start_of_an_owners_oldest_job_makes_the_next_one_its_oldest() {
    let house = House::new().await;
    let oldest_started = async || house.store.owners().await.unwrap().get(&Owner::local()).copied();
    let first = submit(&house, owned(1, "local", 0)).await;
    let urgent = submit(&house, owned(2, "local", 5)).await;
    house.claim(urgent).await;
    assert_eq!(oldest_started().await, None);
    house.clock.advance(7);
    house.claim(first).await;
    assert_eq!(oldest_started().await.unwrap().oldest_started_ms, house.clock.now_ms());
}
