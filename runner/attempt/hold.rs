//! Keeping the lease while something takes its time.

use std::time::Duration;

use crate::store::{Lease, StoreError};

/// How often a lease is renewed while it is held, given for how long it is renewed; both in milliseconds.
pub(super) fn renewal_ms(lease_ms: i64) -> i64 {
    (lease_ms / 3).max(1)
}

pub(super) fn renewal(lease_ms: i64) -> Duration {
    Duration::from_millis(renewal_ms(lease_ms).unsigned_abs())
}

/// Waits for `work` and renews the lease meanwhile. Gives up when the lease is lost.
pub(super) async fn renewing<T>(lease: &Lease, lease_ms: i64, work: impl Future<Output = T>) -> Result<T, StoreError> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(renewal(lease_ms), &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => lease.renew(lease_ms).await?,
        }
    }
}
