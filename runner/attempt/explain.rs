//! What is kept of an attempt that failed, while everything is still there to be looked at.

use drydock_spec::{Failure, FailureKind, Report};

use super::Attempts;
use crate::diagnose::Ending;
use crate::diagnose::evidence::Evidence;
use crate::diagnose::fingerprint::{Signature, Witness};
use crate::disk;
use crate::store::{FailureRecord, Lease, StoreError};

impl Attempts {
    /// What is known of a failure: by what it is known again, and the facts.
    pub(super) async fn record_of(
        &self,
        lease: &Lease,
        failure: &Failure,
        ending: Option<&Ending>,
        output: &str,
    ) -> Result<FailureRecord, StoreError> {
        let mut evidence = ending.map(Evidence::of).unwrap_or_default();
        let newest = self.store.newest_reports(&[lease.job().id]).await?.remove(&lease.job().id).unwrap_or_default();
        evidence.metrics = newest.into_iter().find_map(|line| match line.report {
            Report::Metrics(metrics) => Some(metrics),
            _ => None,
        });
        evidence.elapsed_ms = self.store.clock().now_ms() - lease.row().claimed_ms;
        evidence.free_disk_bytes = disk::free(&self.config.state_dir);
        evidence.environment.drydock = env!("CARGO_PKG_VERSION").to_owned();
        if let Ok(engine) = self.engine.now() {
            evidence.environment.image = engine.image.ok();
            evidence.environment.engine = Some(match engine.runtime {
                Ok(runtime) => format!("{}, {runtime}", engine.engine),
                Err(_) => engine.engine,
            });
        }
        if let Some(started) = lease.started().await? {
            evidence.environment.worker_said(started);
        }
        // What drydock says of the worker's end is in its own words, and says less than what the worker printed.
        let by_traces =
            matches!(failure.kind, FailureKind::Crashed | FailureKind::Unexplained | FailureKind::ContractBroken);
        let witness = match evidence.exit_code {
            exit @ Some(_) if by_traces && !evidence.reported => Witness::Traces { exit, output },
            _ => Witness::Message,
        };
        Ok(FailureRecord { signature: Signature::of(failure, witness), evidence })
    }
}
