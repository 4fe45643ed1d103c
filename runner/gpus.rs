//! What is known of the host's GPUs, for everybody who decides by it.
//!
//! They are looked at now and then, and listened to for as long as the gateway lives. One that is damaged is cordoned
//! there and then: written down before anything else is done about it, so that no job gets it, whatever happens to this
//! process. Neither a reset nor a reboot lifts a cordon; a person does, who knows that the GPU was mended.

use std::sync::Arc;
use std::time::Duration;

use drydock_gpu::assign::HostUnit;
use drydock_gpu::health::{GpuAccount, GpuFacts, Trouble, Xid, between};
use drydock_gpu::inventory::{Gpu, Inventory};
use drydock_gpu::nvml::NoGpus;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::sandbox::Sandbox;
use crate::store::{BY_DRYDOCK, Cordon, Store, StoreError};

mod host;
mod processes;
pub mod readings;

pub use host::Host;

/// How often the GPUs are looked at while an attempt has one, and while none has.
const ATTENDED: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);
/// How long after the end of a process the driver may still come with why it ended.
const LATE_NEWS: Duration = Duration::from_millis(300);

/// The newest look, and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// When it was taken; never before the first.
    pub looked_ms: Option<i64>,
    /// The GPUs, those that no job gets marked so; or why there are none.
    pub gpus: Result<Inventory, NoGpus>,
    /// The oldest first, also of GPUs that are not there any more.
    pub cordons: Vec<Cordon>,
}

/// The newest look. Cloning shares it.
#[derive(Debug, Clone)]
pub struct GpuWatch(watch::Receiver<Arc<Known>>);

/// Tells the watchers.
#[derive(Debug, Clone)]
pub struct GpuNews(watch::Sender<Arc<Known>>);

/// News without a look yet: no GPUs.
#[must_use]
pub fn news() -> GpuNews {
    GpuNews(watch::Sender::new(Arc::new(Known { looked_ms: None, gpus: Ok(Inventory::default()), cordons: vec![] })))
}

impl GpuNews {
    /// Somebody who hears of it.
    #[must_use]
    pub fn watch(&self) -> GpuWatch {
        GpuWatch(self.0.subscribe())
    }
}

/// Looks at the GPUs, cordons what is damaged, and tells the watchers. Cloning shares it.
#[derive(Clone)]
pub struct GpuProbe {
    host: Host,
    store: Store,
    sandbox: Arc<dyn Sandbox>,
    /// One look at a time.
    last: Arc<Mutex<Last>>,
    news: GpuNews,
    /// Attempts that have GPUs.
    attending: watch::Sender<usize>,
}

/// What the look before has left for the next one.
#[derive(Debug, Default)]
struct Last {
    inventory: Inventory,
    /// Events that were heard by then.
    heard: u64,
    owners: processes::Owners,
}

/// A moment from which on it is told what became of GPUs.
#[derive(Debug, Clone)]
pub struct Mark {
    before: Inventory,
    heard: u64,
}

/// An attempt that has GPUs: they are looked at more often while this lives.
pub struct Attended(watch::Sender<usize>);

impl GpuProbe {
    /// A probe that tells its `news`. The engine is asked whose a container is that computes on a GPU.
    #[must_use]
    pub fn new(host: Host, store: Store, sandbox: Arc<dyn Sandbox>, news: GpuNews) -> Self {
        Self { host, store, sandbox, last: Arc::default(), news, attending: watch::Sender::new(0) }
    }

    /// Looks once: writes down which GPUs have come to be damaged since the last look, and tells the watchers.
    pub async fn look_once(&self) -> Result<(), StoreError> {
        if !self.can_look() {
            return Ok(());
        }
        let mut last = self.last.lock().await;
        let heard = self.host.heard();
        // First what was heard: a GPU that tells of its end may take the driver with it.
        let told = between(&last.inventory, &last.inventory, &self.host.heard_since(last.heard));
        if self.cordon_damaged(&told).await? {
            let known = self.now();
            self.tell(known.gpus.clone(), known.looked_ms).await?;
        }
        last.heard = heard;
        let mut looked = self.host.look().await;
        if let Ok(inventory) = &mut looked {
            self.cordon_damaged(&between(&last.inventory, inventory, &[])).await?;
            processes::recognise(inventory, &mut last.owners, &*self.sandbox).await;
            last.inventory = inventory.clone();
        }
        self.publish(looked).await
    }

    /// Whether there was any that was not cordoned yet.
    async fn cordon_damaged(&self, facts: &[GpuFacts]) -> Result<bool, StoreError> {
        let mut any = false;
        for damaged in facts {
            let (Some(uuid), Some(Trouble::Hardware(why))) = (&damaged.uuid, damaged.trouble()) else { continue };
            if self.store.cordon(uuid, &why, BY_DRYDOCK, damaged.is_fatal()).await? {
                tracing::error!(gpu = uuid, "cordoned: {why}; `drydock gpus uncordon {uuid}` when it is mended");
                any = true;
            }
        }
        Ok(any)
    }

    /// Has no job get the GPU. What runs on it goes on.
    pub async fn cordon(&self, uuid: &str, reason: &str, by: &str) -> Result<(), StoreError> {
        let new = self.store.cordon(uuid, reason, by, false).await?;
        tracing::info!(gpu = uuid, by, new, "cordoned: {reason}");
        self.again().await
    }

    /// Lets jobs have the GPU again; harmless if they may.
    pub async fn uncordon(&self, uuid: &str) -> Result<(), StoreError> {
        let changed = self.store.uncordon(uuid).await?;
        tracing::info!(gpu = uuid, changed, "no longer cordoned");
        self.again().await
    }

    /// Whether there is a driver's library, as far as anybody knows.
    #[must_use]
    pub fn can_look(&self) -> bool {
        !self.host.is_absent()
    }

    /// Tells the watchers anew what the cordons make of the newest look.
    async fn again(&self) -> Result<(), StoreError> {
        let _one = self.last.lock().await;
        let known = self.now();
        self.tell(known.gpus.clone(), known.looked_ms).await
    }

    /// Tells the watchers how the GPUs are; they hear of it only when it matters to who is given what.
    pub async fn publish(&self, gpus: Result<Inventory, NoGpus>) -> Result<(), StoreError> {
        self.tell(gpus, Some(self.store.clock().now_ms())).await
    }

    async fn tell(&self, mut gpus: Result<Inventory, NoGpus>, looked_ms: Option<i64>) -> Result<(), StoreError> {
        let cordons = self.store.cordons().await?;
        for gpu in gpus.iter_mut().flat_map(|inventory| &mut inventory.gpus) {
            gpu.cordoned = cordons.iter().find(|cordon| cordon.uuid == gpu.uuid).map(|cordon| cordon.reason.clone());
        }
        let new = Known { looked_ms, gpus, cordons };
        self.news.0.send_if_modified(|known| {
            let differs = known.units() != new.units() || known.cordons != new.cordons;
            match (&known.gpus, &new.gpus) {
                (Ok(_), Err(error @ (NoGpus::NoLibrary(_) | NoGpus::NoDriver))) => tracing::debug!(%error, "no GPUs"),
                (Ok(_), Err(error)) => tracing::warn!(%error, "no job gets a GPU"),
                (Err(_), Ok(_)) => tracing::info!("the GPUs' driver answers"),
                _ => {}
            }
            *known = Arc::new(new);
            differs
        });
        Ok(())
    }

    /// Looks again and again, until shutdown: at once when a GPU tells of an error. A host without the driver's library
    /// is not looked at again.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut attending = self.attending.subscribe();
        while self.can_look() {
            let pace = if *attending.borrow_and_update() > 0 { ATTENDED } else { IDLE };
            tokio::select! {
                () = tokio::time::sleep(pace) => {}
                () = self.host.told() => {}
                // The sender is ours.
                _ = attending.changed() => {}
                () = shutdown.cancelled() => break,
            }
            let looked = tokio::select! {
                looked = self.look_once() => looked,
                () = shutdown.cancelled() => break,
            };
            if let Err(error) = looked {
                tracing::error!(%error, "what became of the GPUs could not be written down; the next look tries again");
            }
        }
        self.host.close();
    }

    /// The newest look, and what may follow from it.
    #[must_use]
    pub fn now(&self) -> Arc<Known> {
        self.news.0.borrow().clone()
    }

    /// Has the GPUs looked at more often for as long as the answer lives.
    #[must_use]
    pub fn attend(&self) -> Attended {
        self.attending.send_modify(|count| *count += 1);
        Attended(self.attending.clone())
    }

    /// From here on it is told what became of GPUs.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let before = self.now().gpus.clone().unwrap_or_default();
        Mark { before, heard: self.host.heard() }
    }

    /// What became of these units since then, or of all GPUs where there are none. What a GPU tells of may come a moment
    /// later than the end that it has brought about.
    pub async fn account(&self, since: &Mark, units: &[String]) -> Result<GpuAccount, StoreError> {
        tokio::time::sleep(LATE_NEWS).await;
        self.look_once().await?;
        let known = self.now();
        // A driver that does not answer tells nothing of which GPU it is for.
        let Ok(after) = &known.gpus else { return Ok(GpuAccount::default()) };
        Ok(account(&since.before, after, &self.host.heard_since(since.heard), units))
    }
}

/// What became of the units, or of all GPUs where there are none.
fn account(before: &Inventory, after: &Inventory, xids: &[Xid], units: &[String]) -> GpuAccount {
    let looks = [before, after];
    let own: Vec<_> = units
        .iter()
        // A slice of a GPU that was lost is known from before.
        .map(|unit| looks.iter().find_map(|look| look.gpu_of(unit)).map_or(unit.clone(), |gpu| gpu.uuid.clone()))
        .collect();
    let is_own = |facts: &GpuFacts| own.is_empty() || facts.uuid.as_ref().is_some_and(|uuid| own.contains(uuid));
    let gpus = between(before, after, xids).into_iter().filter(is_own).collect();
    GpuAccount { driver: after.driver.clone().or_else(|| before.driver.clone()), gpus }
}

impl Known {
    /// What jobs can be given.
    fn units(&self) -> Vec<HostUnit> {
        self.gpus.as_ref().map_or(Vec::new(), HostUnit::all)
    }

    /// The GPUs; none where there are none.
    pub fn each(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().flat_map(|inventory| &inventory.gpus)
    }

    /// Why nothing may go on upon one of these units, if that is so. The unit's GPU may be lost by now, so that nobody
    /// tells any more of what it was a slice; `before` knows.
    #[must_use]
    pub fn fatal(&self, units: &[String], before: &Mark) -> Option<&str> {
        let looks = || [Some(&before.before), self.gpus.as_ref().ok()].into_iter().flatten();
        let gpu = |unit: &str| looks().find_map(|look| look.gpu_of(unit)).map(|gpu| gpu.uuid.as_str());
        let holds = |cordon: &&Cordon| units.iter().any(|unit| gpu(unit).unwrap_or(unit) == cordon.uuid);
        self.cordons.iter().filter(|cordon| cordon.fatal).find(holds).map(|cordon| cordon.reason.as_str())
    }
}

impl GpuWatch {
    /// The GPUs by the newest look, those that no job gets marked so; none where nobody can look.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        self.0.borrow().gpus.clone().unwrap_or_default()
    }

    /// Returns when what jobs can be given, or what they cannot, is other than last seen here.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use drydock_gpu::inventory::Slice;

    use super::*;

    fn gpu(index: u32) -> Gpu {
        let slice = Slice { uuid: format!("MIG-{index}"), ..Slice::default() };
        Gpu { index, uuid: format!("GPU-{index}"), name: "H".into(), slices: vec![slice], ..Gpu::default() }
    }

    fn look(gpus: &[u32]) -> Inventory {
        Inventory { gpus: gpus.iter().copied().map(gpu).collect(), ..Inventory::default() }
    }

    #[test]
    fn an_attempt_answers_for_its_own_gpus_only_and_without_any_for_all() {
        let xids = [Xid { uuid: Some("GPU-1".into()), number: 79 }];
        let told = |after: &[u32], units: &[&str]| {
            let units: Vec<_> = units.iter().map(|unit| (*unit).to_owned()).collect();
            let account = account(&look(&[0, 1]), &look(after), &xids, &units);
            account.gpus.into_iter().map(|gpu| (gpu.uuid.unwrap(), gpu.lost, gpu.xids)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[0, 1], &["GPU-0"]), [("GPU-0".into(), false, vec![])]);
        assert_eq!(told(&[0, 1], &["MIG-1"]), [("GPU-1".into(), false, vec![79])]);
        assert_eq!(told(&[0], &["MIG-1"]), [("GPU-1".into(), true, vec![79])], "nobody tells of its slices any more");
        assert_eq!(told(&[0, 1], &[]).len(), 2);
    }

    #[test]
    fn only_damage_ends_what_runs_and_only_on_the_gpu_that_it_is_on() {
        let cordon = |uuid: &str, fatal| Cordon {
            uuid: uuid.into(),
            reason: format!("{uuid} is damaged"),
            at_ms: 1,
            by: BY_DRYDOCK.into(),
            fatal,
        };
        let cordons = vec![cordon("GPU-0", false), cordon("GPU-1", true)];
        let known = Known { looked_ms: None, gpus: Ok(look(&[0])), cordons };
        let mark = Mark { before: look(&[0, 1]), heard: 0 };
        let fatal = |unit: &str| known.fatal(&[unit.to_owned()], &mark);
        assert_eq!((fatal("GPU-0"), fatal("MIG-0")), (None, None), "it is cordoned, and what runs on it goes on");
        assert_eq!((fatal("GPU-1"), fatal("MIG-1")), (Some("GPU-1 is damaged"), Some("GPU-1 is damaged")));
    }
}
