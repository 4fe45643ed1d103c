//! What is known of the container engine right now, for everybody who decides by it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::sandbox::{EngineInfo, Sandbox, SandboxError};

/// The newest answer of the engine. Cloning shares it.
#[derive(Debug, Clone)]
pub struct EngineWatch(watch::Receiver<Result<EngineInfo, SandboxError>>);

/// Asks the engine and tells the watchers. Cloning shares it.
#[derive(Clone)]
pub struct EngineProbe {
    sandbox: Arc<dyn Sandbox>,
    news: watch::Sender<Result<EngineInfo, SandboxError>>,
}

impl EngineProbe {
    /// A probe whose watchers see an unreachable engine until [`EngineProbe::probe_once`] has asked it.
    pub fn new(sandbox: Arc<dyn Sandbox>) -> (Self, EngineWatch) {
        let (news, watch) = watch::channel(Err(SandboxError::Unreachable("not asked yet".into())));
        (Self { sandbox, news }, EngineWatch(watch))
    }

    /// Asks the engine once; the watchers hear of it only when the answer differs from the last one.
    pub async fn probe_once(&self) {
        let answer = self.sandbox.probe().await;
        self.news.send_if_modified(|known| {
            let differs = *known != answer;
            if differs {
                match &answer {
                    Ok(info) => tracing::info!(engine = %info.engine, image = ?info.image, "container engine answers"),
                    Err(error) => tracing::warn!(%error, "container engine does not answer"),
                }
                *known = answer;
            }
            differs
        });
    }

    /// Finds out how containers get GPUs, where that is to be found out.
    pub async fn try_injectors_once(&self) {
        if self.sandbox.try_injectors().await {
            self.probe_once().await;
        }
    }

    /// Asks again and again, until shutdown.
    pub async fn run(self, every: Duration, shutdown: CancellationToken) {
        let look = async || {
            // Behind an answer that is known already: trying takes seconds, which nobody else shall wait for.
            self.try_injectors_once().await;
            tokio::time::sleep(every).await;
            self.probe_once().await;
        };
        loop {
            tokio::select! {
                () = look() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

impl EngineWatch {
    /// A watch on an engine whose answer never changes.
    #[must_use]
    pub fn still(answer: Result<EngineInfo, SandboxError>) -> Self {
        Self(watch::channel(answer).1)
    }

    /// The newest answer.
    pub fn now(&self) -> Result<EngineInfo, SandboxError> {
        self.0.borrow().clone()
    }

    /// Returns when the answer differs from the last one seen here.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why containers get none of the GPUs that the host has, in words; nothing where it has none, or they do.
    pub fn no_gpu_access(&self) -> Option<String> {
        let access = self.now().ok()?.gpus;
        let why = access.barrier().filter(|_| access.units > 0)?;
        Some(format!("{why}; see `drydock doctor`"))
    }

    /// The engine's info and the image's id, or why no attempt can start.
    pub fn ready(&self) -> Result<(EngineInfo, String), SandboxError> {
        let info = self.now()?;
        let image = info.image.clone()?;
        info.runtime.clone()?;
        Ok((info, image))
    }
}
