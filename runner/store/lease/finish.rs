//! The end of an attempt: artifacts, failure, what it says of remedies, event and job's row in one transaction.

use drydock_spec::{Attempt, Change, JobEvent, JobId, JobSpec, JobState, Limits, Outcome};
use sqlx::{Sqlite, Transaction};

use super::Lease;
use crate::api::Estimate;
use crate::artifacts::Artifact;
use crate::remedy::{Chooser, Source};
use crate::store::failures::{self, FailureRecord};
use crate::store::jobs::{Job, apply, read};
use crate::store::rows::{signed, to_json};
use crate::store::trials::{self, Ended, NewTrial};
use crate::store::{StoreError, followers, forecasts};

/// What the next attempt of the same job does otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Cure {
    pub remedy: drydock_spec::Remedy,
    pub source: Source,
    pub chosen_by: Chooser,
    /// What the remedy comes to.
    pub changes: Vec<Change>,
    /// The job with the remedy worked in.
    pub spec: JobSpec,
    pub limits: Limits,
    /// What the planner expects of it.
    pub estimate: Estimate,
}

impl Lease {
    /// Gives what is known of the failure that the attempt is about to end with, to be kept with it.
    pub fn explain(&mut self, record: FailureRecord) {
        self.explanation = Some(record);
    }

    /// Has the failure that the attempt is about to end with answered by another attempt that does this otherwise,
    /// unless somebody asks for the job's end meanwhile.
    pub fn cure(&mut self, cure: Cure) {
        self.cure = Some(cure);
    }

    /// Ends the attempt. A retry waits until `retry_at_ms`.
    pub async fn finish(self, outcome: Outcome, artifacts: &[Artifact], retry_at_ms: i64) -> Result<Job, StoreError> {
        // Boxed: it looks at several jobs, and comes once in the life of an attempt.
        Box::pin(self.end(outcome, artifacts, retry_at_ms)).await
    }

    async fn end(mut self, outcome: Outcome, artifacts: &[Artifact], retry_at_ms: i64) -> Result<Job, StoreError> {
        let mut tx = self.store.write().await?;
        let now = self.store.clock.now_ms();
        let statement = self.statement(
            "-- store::lease::finish
             UPDATE attempts SET ended_ms = $4, outcome = $5
             WHERE job_id = $1 AND attempt = $2 AND token = $3 AND ended_ms IS NULL",
        );
        self.still_ours(statement.bind(now).bind(to_json(&outcome)?).execute(&mut *tx).await?)?;
        let (id, attempt) = (self.job.id, self.row.attempt);
        for artifact in artifacts {
            keep_artifact(&mut tx, (id, attempt), artifact).await?;
        }
        let mut failure = None;
        if let Outcome::Failed(failed) = &outcome {
            let record = self.explanation.take().unwrap_or_else(|| FailureRecord::of_message(failed));
            failure = Some((failures::keep(&mut tx, (id, attempt, now), failed, &record).await?, record));
        }
        let before = read(&mut tx, id).await?;
        forecasts::keep(&mut tx, (&before, attempt, now), &outcome, artifacts).await?;
        let goes_on = matches!(before.state, JobState::Running { .. }) && attempt < before.last_attempt();
        let cure = self.cure.take().filter(|_| goes_on);
        let event = match (&outcome, &cure) {
            (Outcome::Failed(failed), Some(cure)) => JobEvent::Remedied {
                attempt,
                failure: failed.clone(),
                remedy: cure.remedy.clone(),
                changes: cure.changes.clone(),
            },
            _ => JobEvent::Ended { attempt, outcome: outcome.clone() },
        };
        if let (Some(cure), Outcome::Failed(_)) = (&cure, &outcome) {
            change(&mut tx, id, cure).await?;
        }
        let after = apply(&mut tx, &before, event, now).await?;
        let followed = matches!(after.state, JobState::Queued { .. });
        let failure = failure.as_ref().map(|(number, record)| (*number, record));
        // A remedy ends the trial of the one before it.
        let ended = Ended { job: id, now, outcome: &outcome, failure, followed: followed && cure.is_none() };
        let still_open = trials::settle(&mut tx, &ended).await?;
        match (cure, failure) {
            (Some(cure), Some((number, _))) if followed => {
                try_next(&mut tx, (id, attempt.next(), now), cure.trial(number)).await?;
            }
            (_, Some((number, _))) if followed && !still_open => {
                try_next(&mut tx, (id, attempt.next(), now), again(number)).await?;
            }
            _ => {}
        }
        if followed {
            wait_until(&mut tx, id, retry_at_ms).await?;
        } else {
            // Boxed: it reads whole jobs, and every attempt that ends would hold the room for them.
            Box::pin(followers::note(&mut tx, &before, &ended)).await?;
        }
        tx.commit().await?;
        self.store.announce(&after);
        Ok(after)
    }
}

impl Cure {
    fn trial(self, of_failure: i64) -> NewTrial {
        let Self { remedy, source, chosen_by, .. } = self;
        NewTrial { of_failure, remedy, source, chosen_by }
    }
}

/// The same again, which has a record as any other remedy has.
fn again(of_failure: i64) -> NewTrial {
    let source = Source::Rule { source: "failures of the infrastructure pass".into() };
    NewTrial { of_failure, remedy: drydock_spec::Remedy::TryAgain, source, chosen_by: Chooser::Retry }
}

async fn try_next(
    tx: &mut Transaction<'_, Sqlite>,
    at: (JobId, Attempt, i64),
    trial: NewTrial,
) -> Result<(), StoreError> {
    trials::begin(tx, at, &trial).await
}

async fn keep_artifact(
    tx: &mut Transaction<'_, Sqlite>,
    (job, attempt): (JobId, Attempt),
    artifact: &Artifact,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::lease::keep_artifact
         INSERT INTO artifacts (job_id, path, attempt, role, bytes, sha256) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (job_id, path) DO UPDATE
         SET attempt = excluded.attempt, role = excluded.role, bytes = excluded.bytes, sha256 = excluded.sha256",
    )
    .bind(job.to_string())
    .bind(&artifact.path)
    .bind(i64::from(attempt.0))
    .bind(&artifact.role)
    .bind(signed(artifact.bytes))
    .bind(&artifact.sha256)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The next attempt does what the remedy says. What was asked for first is in the job's history.
async fn change(tx: &mut Transaction<'_, Sqlite>, id: JobId, cure: &Cure) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::lease::change
         UPDATE jobs SET spec = $1, limits = $2, cpu_millis = $3, memory_bytes = $4, estimate = $5 WHERE id = $6",
    )
    .bind(to_json(&cure.spec)?)
    .bind(to_json(&cure.limits)?)
    .bind(i64::from(cure.limits.cpu_millis))
    .bind(signed(cure.limits.memory_bytes))
    .bind(to_json(&cure.estimate)?)
    .bind(id.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn wait_until(tx: &mut Transaction<'_, Sqlite>, id: JobId, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::lease::wait_until
         UPDATE jobs SET not_before_ms = $1 WHERE id = $2",
    )
    .bind(at_ms)
    .bind(id.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
