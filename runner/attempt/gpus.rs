//! The host's GPUs while an attempt is under way: looked at before and after, and listened to in between.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drydock_gpu::health::nvml::Gpus;
use drydock_gpu::health::{GpuAccount, Look, Xid, between};
use tokio::task::JoinHandle;

/// How long a look may take: a GPU that is dying can keep its driver waiting for good.
const LOOK: Duration = Duration::from_secs(10);

/// The host's GPUs, if it has any. Cloning shares them.
#[derive(Clone, Default)]
pub struct HostGpus {
    gpus: Option<Arc<Gpus>>,
}

/// GPUs that are watched until [`Watched::end`], or until this is dropped.
pub(super) struct Watched {
    /// Nothing on a host without any.
    begun: Option<Begun>,
}

struct Begun {
    gpus: Arc<Gpus>,
    before: Look,
    over: Arc<AtomicBool>,
    xids: JoinHandle<Vec<Xid>>,
}

impl HostGpus {
    /// Those that this library of the driver's knows, by default the host's own.
    #[must_use]
    pub fn open(library: Option<&Path>) -> Self {
        match Gpus::open(library) {
            Ok(gpus) => Self { gpus: Some(Arc::new(gpus)) },
            Err(error) => {
                tracing::debug!(%error, "no GPU is looked at");
                Self::default()
            }
        }
    }

    pub(super) async fn watch(&self) -> Watched {
        let Some(gpus) = self.gpus.clone() else { return Watched { begun: None } };
        let Some(before) = look(&gpus).await.filter(|look| !look.gpus.is_empty()) else {
            return Watched { begun: None };
        };
        let over = Arc::new(AtomicBool::new(false));
        let (listener, until) = (Arc::clone(&gpus), Arc::clone(&over));
        let xids = tokio::task::spawn_blocking(move || listener.watch(&until));
        Watched { begun: Some(Begun { gpus, before, over, xids }) }
    }
}

impl Watched {
    /// What became of the GPUs since the watch began.
    pub(super) async fn end(mut self) -> GpuAccount {
        let Some(begun) = self.begun.as_mut() else { return GpuAccount::default() };
        begun.over.store(true, Ordering::Relaxed);
        let heard = tokio::time::timeout(LOOK, &mut begun.xids).await;
        let xids = heard.ok().and_then(Result::ok).unwrap_or_default();
        // A driver that does not answer tells nothing of which GPU it is for.
        let Some(after) = look(&begun.gpus).await else { return GpuAccount::default() };
        let gpus = between(&begun.before, &after, &xids);
        GpuAccount { driver: after.driver.or_else(|| begun.before.driver.clone()), gpus }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(begun) = &self.begun {
            begun.over.store(true, Ordering::Relaxed);
        }
    }
}

async fn look(gpus: &Arc<Gpus>) -> Option<Look> {
    let gpus = Arc::clone(gpus);
    let looked = tokio::time::timeout(LOOK, tokio::task::spawn_blocking(move || gpus.look())).await;
    match looked {
        Ok(look) => look.ok(),
        Err(_) => {
            tracing::warn!(limit = ?LOOK, "NVIDIA's driver does not answer; see `nvidia-smi` and the kernel's log");
            None
        }
    }
}
