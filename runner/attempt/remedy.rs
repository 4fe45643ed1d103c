//! What drydock does by itself about an attempt that failed.

use drydock_spec::{Failure, OnFailure};

use super::{Attempts, stopping};
use crate::store::{Cure, FailureRecord, KeptFailure, Lease, StoreError};

impl Attempts {
    /// What the next attempt does otherwise, where the job says that drydock may choose: only what leaves its meaning the
    /// same, only while attempts and time are left. What the infrastructure did is tried again in any case.
    pub(super) async fn cure_for(
        &self,
        lease: &Lease,
        failure: &Failure,
        record: &FailureRecord,
    ) -> Result<Option<Cure>, StoreError> {
        let job = lease.job();
        let begun_ms = job.started_ms.unwrap_or_default();
        let most_ms = i64::try_from(self.config.remedies.time.as_millis()).unwrap_or(i64::MAX);
        let may = job.on_failure == OnFailure::Auto
            && !failure.kind.retryable()
            && !stopping(lease)
            && lease.attempt() < job.last_attempt()
            && self.store.clock().now_ms() - begun_ms < most_ms;
        if !may {
            return Ok(None);
        }
        let fingerprint = self.store.stands_for(record.signature.fingerprint()).await?;
        let kept = KeptFailure {
            number: 0,
            job: job.id,
            attempt: lease.attempt(),
            at_ms: self.store.clock().now_ms(),
            fingerprint,
            failure: failure.clone(),
            record: record.clone(),
        };
        // Boxed: the planner's future is large, and failures are rare.
        let Some((chosen, chosen_by)) = Box::pin(self.remedies.choose(job, &kept)).await? else { return Ok(None) };
        match Box::pin(self.remedies.apply(job, &kept, &chosen.remedy)).await {
            Ok((remedied, plan)) => {
                tracing::info!(remedy = %chosen.remedy, ?chosen_by, "another attempt is made with a remedy");
                Ok(Some(Cure {
                    remedy: chosen.remedy,
                    source: chosen.source,
                    chosen_by,
                    changes: remedied.changes,
                    spec: plan.spec,
                    limits: plan.limits,
                    estimate: plan.estimate,
                }))
            }
            Err(error) => {
                tracing::warn!(%error, remedy = %chosen.remedy, "the remedy cannot be applied");
                Ok(None)
            }
        }
    }
}
