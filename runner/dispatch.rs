//! From free capacity to attempts: the head of the line is claimed while it fits.

use std::time::Duration;

use drydock_gpu::Capacity;
use drydock_gpu::assign::admit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::desk::need;
use crate::disk::DiskWatch;
use crate::fail_point::{self, Step};
use crate::store::{Holder, StoreError};

/// Jobs that are looked at in one pass.
const LINE: u32 = 64;
/// How long to wait after the database did not do its part.
const RECOVER: Duration = Duration::from_secs(1);
/// How long to wait at most for a retry whose time has not come.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Claims what fits and sets it going.
#[derive(Clone)]
pub struct Dispatch {
    pub attempts: Attempts,
    pub disk: DiskWatch,
    pub holder: Holder,
    pub tracker: TaskTracker,
}

impl Dispatch {
    /// Dispatches whenever there may be something to do, until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let store = self.attempts.store.clone();
        let mut queue = store.changes().queue();
        let mut engine = self.attempts.engine.clone();
        let mut disk = self.disk.clone();
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
        let all = self.attempts.config.capacity.of(&engine);
        loop {
            let (cpu_millis, memory_bytes) = store.reserved().await?;
            let free = all.less(Capacity { cpu_millis, memory_bytes });
            let line = store.queue(LINE).await?;
            let needs: Vec<_> = line.iter().map(need).collect();
            let room = self.disk.now();
            // Nobody is overtaken for want of disk, either.
            let fitting = line.iter().take_while(|job| room.takes(job.limits.disk_bytes)).count();
            let admitted = admit(free, &needs[..fitting]);
            for job in &line[..admitted] {
                fail_point::before(Step::Claim);
                if let Some(lease) = store.claim(job.id, &self.holder).await? {
                    fail_point::after(Step::Claim);
                    self.tracker.spawn(self.attempts.clone().run(lease));
                }
            }
            if admitted < LINE as usize {
                return store.next_retry_ms().await;
            }
        }
    }
}
