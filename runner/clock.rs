//! The time of day and the time that passes, as things that can be set in tests.
//!
//! The two are not the same: somebody may set a host's clock while jobs run. What is written down for people and for
//! other processes is the time of day; how long something took or may take is told by the steady time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// Tells the time of day in milliseconds since 1970, and the time that passes.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The host's clocks.
    System,
    /// A clock that stands still until it is moved.
    Manual(Arc<Manual>),
}

/// See [`Clock::Manual`].
#[derive(Debug)]
pub struct Manual {
    day_ms: AtomicI64,
    steady_ms: watch::Sender<i64>,
}

/// When this process first asked for the steady time: milliseconds since the host was booted, to a second or so.
static ORIGIN: LazyLock<(i64, Instant)> =
    LazyLock::new(|| (rustix::system::sysinfo().uptime.saturating_mul(1000), Instant::now()));

/// The kernel's name for the time since the host was booted; empty if it does not tell.
static BOOT: LazyLock<String> = LazyLock::new(|| {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
});

impl Clock {
    /// A manual clock that shows `ms`.
    #[must_use]
    pub fn manual(ms: i64) -> Self {
        Self::Manual(Arc::new(Manual { day_ms: AtomicI64::new(ms), steady_ms: watch::Sender::new(0) }))
    }

    /// The time of day. It may jump, both ways.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match self {
            Self::System => {
                // A host whose clock stands before 1970 has other problems; time zero is as good as any.
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            }
            Self::Manual(manual) => manual.day_ms.load(Ordering::SeqCst),
        }
    }

    /// Milliseconds that have passed since the host was booted, whatever was done to its clock. Processes of the same
    /// [`Clock::boot`] agree on it, to a second or so.
    #[must_use]
    pub fn steady_ms(&self) -> i64 {
        match self {
            Self::System => {
                let (uptime_ms, then) = *ORIGIN;
                uptime_ms.saturating_add(i64::try_from(then.elapsed().as_millis()).unwrap_or(i64::MAX))
            }
            Self::Manual(manual) => *manual.steady_ms.borrow(),
        }
    }

    /// What steady times are counted from; `None` where that cannot be told, so that no process knows another's.
    #[must_use]
    pub fn boot(&self) -> Option<&str> {
        match self {
            Self::System => Some(BOOT.as_str()).filter(|boot| !boot.is_empty()),
            Self::Manual(_) => Some("manual"),
        }
    }

    /// Returns when so much steady time has passed.
    pub async fn sleep(&self, time: Duration) {
        match self {
            Self::System => tokio::time::sleep(time).await,
            Self::Manual(manual) => {
                let mut steady = manual.steady_ms.subscribe();
                let until = *steady.borrow() + i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2);
                // The sender is ours as well, so it cannot be gone.
                let _ = steady.wait_for(|now| *now >= until).await;
            }
        }
    }

    /// Lets time pass on a manual clock; the host's clocks do not listen.
    pub fn advance(&self, by_ms: i64) {
        if let Self::Manual(manual) = self {
            manual.day_ms.fetch_add(by_ms, Ordering::SeqCst);
            manual.steady_ms.send_modify(|now| *now += by_ms);
        }
    }

    /// Sets the time of day of a manual clock on or back, though no time has passed.
    pub fn step(&self, by_ms: i64) {
        if let Self::Manual(manual) = self {
            manual.day_ms.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn setting_the_clock_lets_no_time_pass() {
        let clock = Clock::manual(1_000);
        let mut sleep = std::pin::pin!(clock.sleep(Duration::from_secs(1)));
        assert!(futures::poll!(&mut sleep).is_pending());
        clock.step(3_600_000);
        assert_eq!((clock.now_ms(), clock.steady_ms()), (3_601_000, 0));
        assert!(futures::poll!(&mut sleep).is_pending());
        clock.advance(1_000);
        assert!(futures::poll!(&mut sleep).is_ready());
    }
}
