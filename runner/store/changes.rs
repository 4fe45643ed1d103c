//! Tells who waits that there is something new to read. The database stays the log: a signal only says "look again".

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use drydock_spec::JobId;
use tokio::sync::watch;

/// Signals for every job that somebody waits for, and one for the queue as a whole.
#[derive(Debug)]
pub struct Changes {
    watched: Mutex<Watched>,
    queue: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Watched {
    jobs: HashMap<JobId, watch::Sender<i64>>,
    /// Entries at which those that nobody waits for any more are thrown out.
    sweep_at: usize,
}

impl Default for Changes {
    fn default() -> Self {
        Self { watched: Mutex::default(), queue: watch::Sender::new(0) }
    }
}

/// Waits for news of one job.
#[derive(Debug, Clone)]
pub struct Subscription(watch::Receiver<i64>);

impl Subscription {
    /// Returns when the job's history has grown since the last call.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The store is gone, so nothing will ever change again.
            std::future::pending::<()>().await;
        }
    }
}

impl Changes {
    /// Waits for news of `job` from now on: subscribe first, read afterwards, and nothing slips through.
    pub fn subscribe(&self, job: JobId) -> Subscription {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.jobs.len() >= watched.sweep_at {
            watched.jobs.retain(|_, sender| sender.receiver_count() > 0);
            watched.sweep_at = 2 * watched.jobs.len() + 64;
        }
        let sender = watched.jobs.entry(job).or_insert_with(|| watch::Sender::new(0));
        Subscription(sender.subscribe())
    }

    /// Changes whenever a job enters or leaves the queue, or an attempt ends.
    pub fn queue(&self) -> watch::Receiver<u64> {
        self.queue.subscribe()
    }

    pub(super) fn job_grew(&self, job: JobId, seq: i64) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.jobs.get(&job)
            && sender.send(seq).is_err()
        {
            // Nobody waits any more.
            watched.jobs.remove(&job);
        }
    }

    pub(super) fn queue_moved(&self) {
        self.queue.send_modify(|moves| *moves += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_nobody_waits_for_are_forgotten() {
        let changes = Changes::default();
        let kept = changes.subscribe(JobId::from_parts(0, 0));
        for n in 1..10_000 {
            changes.subscribe(JobId::from_parts(0, n));
        }
        let watched = changes.watched.lock().unwrap();
        assert!(watched.jobs.len() < 200, "{}", watched.jobs.len());
        assert!(watched.jobs.contains_key(&JobId::from_parts(0, 0)));
        drop(kept);
    }
}
