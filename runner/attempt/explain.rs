//! What is kept of an attempt that failed, while everything is still there to be looked at.

use drydock_spec::{Failure, Outcome, Report};

use super::{AttemptError, Attempts};
use crate::desk::LAST_WORDS_BYTES;
use crate::diagnose::evidence::Evidence;
use crate::diagnose::fingerprint::{Signature, Witness};
use crate::diagnose::signs::Traces;
use crate::diagnose::{Ending, excerpt, root};
use crate::disk;
use crate::legible::legible;
use crate::sandbox::ContainerName;
use crate::store::{FailureRecord, Lease, StoreError};

/// How much of the end of what a worker printed is searched for why it failed, in bytes.
const SEARCHED_BYTES: usize = 1 << 20;

impl Attempts {
    /// Keeps the end of what the container printed, and has it say more exactly why the worker failed where the facts
    /// leave that open.
    pub(super) async fn look_at_output(
        &self,
        lease: &Lease,
        outcome: Outcome,
        ending: Option<&Ending>,
    ) -> Result<(Outcome, Option<Traces>), AttemptError> {
        let name = ContainerName::of(lease.job().id, lease.attempt());
        let failure = match &outcome {
            Outcome::Failed(failure) => Some(failure.clone()),
            Outcome::Succeeded | Outcome::Cancelled => None,
        };
        let bytes = if failure.is_some() { SEARCHED_BYTES } else { LAST_WORDS_BYTES };
        // They are a convenience; their loss must not cost the outcome.
        let output = self.sandbox.last_words(&name, bytes).await.unwrap_or_default();
        let ending = ending.cloned();
        let looked = tokio::task::spawn_blocking(move || {
            let find = if output.len() < SEARCHED_BYTES { root::of_output } else { root::of_tail };
            let root = failure.as_ref().and_then(|_| find(&output));
            let kept = excerpt::of(&output, root.as_ref().map(|root| &root.at), LAST_WORDS_BYTES);
            let traces = ending.zip(failure).and_then(|(ending, failure)| Traces::of(&ending, &failure, root));
            (legible(&kept).into_owned(), traces)
        });
        let (kept, traces) = looked.await?;
        if !kept.is_empty() {
            lease.keep_last_words(&kept).await?;
        }
        let outcome = match (outcome, &traces) {
            (Outcome::Failed(failure), Some(traces)) => Outcome::Failed(traces.explain(failure)),
            (outcome, _) => outcome,
        };
        Ok((outcome, traces))
    }

    /// What is known of a failure: by what it is known again, and the facts.
    pub(super) async fn record_of(
        &self,
        lease: &Lease,
        failure: &Failure,
        ending: Option<&Ending>,
        traces: Option<&Traces>,
    ) -> Result<FailureRecord, StoreError> {
        let mut evidence = ending.map(Evidence::of).unwrap_or_default();
        let id = lease.job().id;
        // The newest reports are an earlier attempt's where this one has said nothing.
        if lease.row().report_offset > 0 {
            let newest = self.store.newest_reports(&[id]).await?.remove(&id).unwrap_or_default();
            evidence.metrics = newest.into_iter().find_map(|line| match line.report {
                Report::Metrics(metrics) => Some(metrics),
                _ => None,
            });
        }
        evidence.limits = Some(lease.job().limits);
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
        let witness = traces.map_or(Witness::Message, Witness::Traces);
        Ok(FailureRecord { signature: Signature::of(failure, witness), evidence })
    }
}
