//! The host's GPUs behind a driver that may hang.
//!
//! A GPU that is dying can keep its driver, and whoever asks it, waiting for good. So the driver is only ever asked from
//! threads of their own, which nobody waits for: neither a look that hangs nor the end of the gateway.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drydock_gpu::health::Xid;
use drydock_gpu::inventory::Inventory;
use drydock_gpu::nvml::{Gpus, NoGpus};
use tokio::sync::{Notify, oneshot};

use super::processes;

/// How long a look may take.
const LOOK: Duration = Duration::from_secs(10);

/// What asks the driver. Cloning shares it.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    /// The driver's library, where it is not its own.
    library: Option<PathBuf>,
    gpus: Mutex<Option<Arc<Gpus>>>,
    /// Whether a look is under way, or hangs.
    busy: AtomicBool,
    /// Whether the library was looked for and is not there.
    absent: AtomicBool,
    heard: Mutex<Heard>,
    /// Told of every event.
    news: Notify,
    /// When nobody listens any more.
    over: Arc<AtomicBool>,
}

/// The newest event of each kind that each GPU has told of: a GPU that is about to die can tell of thousands.
#[derive(Debug, Default)]
struct Heard {
    /// How many there were.
    count: u64,
    /// With its number, counted from 0.
    newest: Vec<(u64, Xid)>,
}

impl Host {
    /// What this library knows, by default the driver's own. Nothing is loaded before the first look.
    #[must_use]
    pub fn new(library: Option<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            library,
            gpus: Mutex::default(),
            busy: AtomicBool::default(),
            absent: AtomicBool::default(),
            heard: Mutex::default(),
            news: Notify::new(),
            over: Arc::default(),
        }))
    }

    /// Whether the library was looked for and is not there: then nobody ever tells anything.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.0.absent.load(Ordering::Relaxed)
    }

    /// All GPUs as they are now, and who computes on them.
    pub async fn look(&self) -> Result<Inventory, NoGpus> {
        if self.0.busy.swap(true, Ordering::AcqRel) {
            return Err(NoGpus::Silent);
        }
        let (answer, answered) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        let look = move || {
            let looked = inner.look();
            inner.busy.store(false, Ordering::Release);
            // Nobody waits for a look that took too long.
            let _ = answer.send(looked);
        };
        if let Err(error) = std::thread::Builder::new().name("gpu-look".into()).spawn(look) {
            self.0.busy.store(false, Ordering::Release);
            return Err(NoGpus::Failed(format!("no thread for it: {error}")));
        }
        match tokio::time::timeout(LOOK, answered).await {
            Ok(Ok(looked)) => looked,
            Ok(Err(_)) | Err(_) => Err(NoGpus::Silent),
        }
    }

    /// How many events there have been.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.0.heard().count
    }

    /// The events after the first so many: of the same kind on the same GPU the newest.
    #[must_use]
    pub fn heard_since(&self, count: u64) -> Vec<Xid> {
        self.0.heard().newest.iter().filter(|(number, _)| *number >= count).map(|(_, xid)| xid.clone()).collect()
    }

    /// Returns when there is an event that nobody has waited for yet.
    pub async fn told(&self) {
        self.0.news.notified().await;
    }

    /// Listens no more.
    pub fn close(&self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Inner {
    fn look(self: &Arc<Self>) -> Result<Inventory, NoGpus> {
        let gpus = self.open()?;
        let mut inventory = gpus.look()?;
        for process in inventory.gpus.iter_mut().flat_map(|gpu| &mut gpu.processes) {
            processes::describe(process);
        }
        Ok(inventory)
    }

    /// The library, and from the first time on somebody who listens.
    fn open(self: &Arc<Self>) -> Result<Arc<Gpus>, NoGpus> {
        let mut opened = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpus) = opened.as_ref() {
            return Ok(Arc::clone(gpus));
        }
        let gpus = Gpus::open(self.library.as_deref());
        self.absent.store(matches!(gpus, Err(NoGpus::NoLibrary(_))), Ordering::Relaxed);
        let gpus = Arc::new(gpus?);
        *opened = Some(Arc::clone(&gpus));
        let (inner, listener, over) = (Arc::downgrade(self), Arc::clone(&gpus), Arc::clone(&self.over));
        let listen = move || {
            listener.listen(&over, |xid| {
                tracing::warn!(
                    gpu = xid.uuid.as_deref().unwrap_or("unknown"),
                    xid = xid.number,
                    "a GPU tells of an error"
                );
                if let Some(inner) = inner.upgrade() {
                    inner.heard().push(xid);
                    inner.news.notify_one();
                }
            });
        };
        if let Err(error) = std::thread::Builder::new().name("gpu-events".into()).spawn(listen) {
            tracing::error!(%error, "nobody listens to the GPUs' errors");
        }
        Ok(gpus)
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Heard {
    fn push(&mut self, xid: Xid) {
        self.newest.retain(|(_, known)| *known != xid);
        self.newest.push((self.count, xid));
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_event_is_heard_by_everybody_who_counted_before_it_however_often_it_comes() {
        let host = Host::new(None);
        let xid = |number| Xid { uuid: Some("GPU-0".into()), number };
        for number in [31, 79, 31, 79, 79] {
            host.0.heard().push(xid(number));
        }
        assert_eq!((host.heard(), host.heard_since(0)), (5, vec![xid(31), xid(79)]));
        assert_eq!((host.heard_since(2), host.heard_since(3)), (vec![xid(31), xid(79)], vec![xid(79)]));
        assert!(host.heard_since(5).is_empty());
        let other = Xid { uuid: None, number: 79 };
        host.0.heard().push(other.clone());
        assert_eq!(host.heard_since(5), [other]);
    }

    #[tokio::test]
    async fn a_host_without_the_library_has_no_gpus_and_says_why() {
        let host = Host::new(Some("/nowhere/libnvidia-ml.so.1".into()));
        for _ in 0..2 {
            assert!(matches!(host.look().await, Err(NoGpus::NoLibrary(why)) if why.contains("/nowhere")));
        }
        assert!(host.is_absent());
    }
}
