//! From free capacity to attempts: whoever the rule of the line lets start is claimed.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::fail_point::{self, Step};
use crate::line::Line;
use crate::store::{Holder, StoreError};

/// How long to wait after the database did not do its part.
const RECOVER: Duration = Duration::from_secs(1);
/// How long to wait at most for a retry whose time has not come.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Claims what fits and sets it going.
#[derive(Clone)]
pub struct Dispatch {
    pub attempts: Attempts,
    pub line: Line,
    pub holder: Holder,
    pub tracker: TaskTracker,
}

impl Dispatch {
    /// Dispatches whenever there may be something to do, until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let store = self.attempts.store.clone();
        let mut queue = store.changes().queue();
        let mut engine = self.attempts.engine.clone();
        let (mut disk, mut gpus) = (self.line.disk.clone(), self.line.gpus.clone());
        loop {
            queue.mark_unchanged();
            let pause = match self.dispatch_once().await {
                Ok(retry_at_ms) => retry_at_ms.map(|at| (at - store.clock().now_ms()).max(0)),
                Err(error) => {
                    tracing::error!(%error, "dispatch failed");
                    Some(RECOVER.as_millis() as i64)
                }
            };
            let pause = async {
                match pause {
                    // The clock may be set meanwhile.
                    Some(ms) => tokio::time::sleep(Duration::from_millis(ms as u64).min(LOOK_AGAIN)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives in the store that we hold.
                _ = queue.changed() => {}
                () = engine.changed() => {}
                () = disk.changed() => {}
                () = gpus.changed() => {}
                () = pause => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// One pass over the line: what fits is claimed and set going. Says when the next waiting retry may start.
    pub async fn dispatch_once(&self) -> Result<Option<i64>, StoreError> {
        let store = &self.attempts.store;
        // What can never start must not wait for an engine.
        let orphans = store.fail_orphans_once().await?;
        if orphans > 0 {
            tracing::info!(orphans, "jobs failed with those whose results they were to read");
        }
        // Without an engine or an image nothing could start; the jobs say so while they wait.
        let Ok((engine, _)) = self.attempts.engine.ready() else { return Ok(None) };
        self.line.count_ended_once(&engine).await?;
        loop {
            if self.line.disk.now().shortage.is_some() {
                return store.next_retry_ms().await;
            }
            let look = self.line.look(&engine).await?;
            let mut claimed = 0;
            for start in look.plan().starts {
                fail_point::before(Step::Claim);
                if let Some(lease) = store.claim_on(start.job, &self.holder, &start.units).await? {
                    fail_point::after(Step::Claim);
                    self.tracker.spawn(self.attempts.clone().run(lease));
                    claimed += 1;
                }
            }
            // Behind those that were seen there may be others that fit.
            if claimed == 0 || !look.more {
                return store.next_retry_ms().await;
            }
        }
    }
}
