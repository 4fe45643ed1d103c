//! Remedies: what is offered, applied, advised.

use drydock_spec::remedy::{Meaning, Remedied};
use drydock_spec::{FailureKind, JobId, OnFailure, Owner, Remedy, TraceId};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Answer, Desk, DeskError, submitted};
use crate::api::{AdviceList, Advise, ApplyRemedy, BestRemedy, JoinedFingerprint, RemedyList, RemedyView};
use crate::diagnose::fingerprint::Fingerprint;
use crate::plan::Plan;
use crate::remedy::rank::Count;
use crate::remedy::{CannotApply, Chooser, Source, Suggested, rules};
use crate::store::{Advice, Against, Job, KeptFailure, NewAdvice, NewJob, NewTrial, RemedyOf, StoreError};

/// A remedy cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RemedyError {
    #[error("job `{0}` has not failed: it is {1}")]
    NotFailed(JobId, &'static str),
    #[error("job `{0}` was submitted with on_failure \"never\"")]
    Never(JobId),
    #[error("nothing is known that would help job `{0}` and has not been tried")]
    NothingKnown(JobId),
    #[error("{remedy}: {error}")]
    CannotApply { remedy: Remedy, error: Box<CannotApply> },
    #[error("no failure `{0}` has been seen")]
    NoSuchFailure(String),
    #[error("no advice {0}")]
    NoSuchAdvice(i64),
}

impl Desk {
    /// What is offered against the newest failure of the job.
    pub async fn suggest(&self, id: JobId) -> Result<RemedyList, DeskError> {
        let (job, kept) = self.failed(id).await?;
        let remedies = self.offered(&job, &kept).await?;
        let tried = self.store.trials(id).await?.into_iter().map(Into::into).collect();
        let next = match remedies.first() {
            Some(first) => format!("call apply_remedy with id {id} and remedy `{}`, or another one", first.remedy),
            None => {
                format!("nothing is known that would help; call apply_remedy with id {id} and a remedy of your own")
            }
        };
        Ok(RemedyList { job: id, fingerprint: kept.fingerprint.0, remedies, tried, next })
    }

    /// The same for everybody to see.
    pub(super) async fn offered(&self, job: &Job, kept: &KeptFailure) -> Result<Vec<RemedyView>, DeskError> {
        if job.on_failure == OnFailure::Never {
            return Ok(Vec::new());
        }
        let checkpoint = self.store.checkpoint(job.id).await?;
        let device = kept.record.evidence.environment.device.as_deref();
        let offered = Box::pin(self.remedies.suggest(job, kept)).await?;
        let view = |one: Suggested| {
            let resumes = resumes(kept.failure.kind, one.meaning);
            RemedyView {
                does: does(&one),
                evidence: evidence(&one, device),
                goes_on_from: checkpoint.as_ref().filter(|_| resumes).map(|checkpoint| checkpoint.step),
                remedy: one.remedy,
                meaning: one.meaning,
                changes: one.changes,
                source: one.source,
                record: one.record,
                sure: one.sure,
            }
        };
        Ok(offered.into_iter().map(view).collect())
    }

    /// Makes a job of one that failed, with a remedy worked in and linked to it: the surest remedy, unless one is named.
    pub async fn apply_remedy(&self, owner: Owner, id: JobId, asked: ApplyRemedy) -> Result<Answer, DeskError> {
        let (job, kept) = self.failed(id).await?;
        let digest = digest(id, &asked);
        if let Some(key) = asked.idempotency_key.as_ref().filter(|_| !asked.dry_run)
            && let Some((job, before)) = self.store.job_by_key(&owner, key).await?
        {
            if before != digest {
                return Err(StoreError::KeyReused { key: key.clone(), job: job.id }.into());
            }
            return Ok(Answer::Submitted(Box::new(submitted(self.view(&job).await?, false, Vec::new()))));
        }
        if job.on_failure == OnFailure::Never {
            return Err(RemedyError::Never(id).into());
        }
        let offered = Box::pin(self.remedies.suggest(&job, &kept)).await?;
        let (remedy, source) = match asked.remedy {
            Some(remedy) => {
                let known = offered.into_iter().find(|one| one.remedy == remedy);
                (remedy, known.map_or(Source::Asked, |one| one.source))
            }
            None => {
                let first = offered.into_iter().next().ok_or(RemedyError::NothingKnown(id))?;
                (first.remedy, first.source)
            }
        };
        let applied = Box::pin(self.remedies.apply(&job, &kept, &remedy)).await;
        let (remedied, plan) =
            applied.map_err(|error| RemedyError::CannotApply { remedy: remedy.clone(), error: Box::new(error) })?;
        if asked.dry_run {
            let rows = self.rows(&plan.spec, &plan.inputs).await;
            return Ok(Answer::Planned(Box::new(self.shown(plan, rows)?)));
        }
        let resumes = !asked.anew && goes_on(&job, &kept, &remedied, &plan);
        let trial = NewTrial { of_failure: kept.number, remedy, source, chosen_by: Chooser::Caller };
        let Plan { spec, inputs, limits, mut warnings, estimate, cut, .. } = plan;
        warnings.extend(cut.map(|cut| cut.to_string()));
        let new = NewJob {
            id: JobId::from_parts(self.store.clock().now_ms(), rand::random()),
            owner,
            trace_id: TraceId::from_bits(rand::random()),
            spec,
            inputs,
            limits,
            estimate: Some(estimate),
            priority: job.priority,
            idempotency_key: asked.idempotency_key,
            request_digest: digest,
            on_failure: job.on_failure,
            remedy: Some(RemedyOf { job: id, resumes, trial }),
        };
        let accepted = self.store.submit(new).await?;
        tracing::info!(job = %accepted.job.id, of = %id, trace_id = %accepted.job.trace_id, "a remedy is applied");
        Ok(Answer::Submitted(Box::new(submitted(self.view(&accepted.job).await?, accepted.created, warnings))))
    }

    /// A plan that says what helps against the failures that it foresees.
    pub(super) async fn with_remedies(&self, mut plan: Plan) -> Result<Plan, DeskError> {
        for foreseen in &mut plan.foreseen {
            let job = self.store.job(foreseen.job).await?;
            let Some(kept) = self.store.newest_failure(job.id).await? else { continue };
            let Some((remedy, record, sure)) = self.remedies.best(&job, &kept).await? else { continue };
            let Count { worked, tried } = record.here + record.elsewhere;
            if tried > 0 {
                plan.warnings.push(format!("against that, `{remedy}` worked {worked} of {tried} times"));
            }
            foreseen.best = Some(BestRemedy { remedy, record, sure });
        }
        Ok(plan)
    }

    /// A job that has failed, with its newest failure.
    async fn failed(&self, id: JobId) -> Result<(Job, KeptFailure), DeskError> {
        let job = self.store.job(id).await?;
        let kept = self.store.newest_failure(id).await?;
        match (job.state.word(), kept) {
            ("failed", Some(kept)) => Ok((job, kept)),
            (state, _) => Err(RemedyError::NotFailed(id, state).into()),
        }
    }

    /// Keeps what somebody advises.
    pub async fn advise(&self, owner: &Owner, advise: Advise) -> Result<Advice, DeskError> {
        if let Against::Fingerprint(fingerprint) = &advise.against
            && self.store.newest_of(&self.store.stands_for(fingerprint.clone()).await?).await?.is_none()
        {
            return Err(RemedyError::NoSuchFailure(fingerprint.0.clone()).into());
        }
        let Advise { against, remedy, note, by_whom } = advise;
        let by_whom = by_whom.unwrap_or_else(|| owner.0.clone());
        Ok(self.store.advise(&NewAdvice { against, remedy, note, by_whom, origin: None }).await?)
    }

    /// Everything that was advised.
    pub async fn advice(&self) -> Result<AdviceList, DeskError> {
        let advice = self.store.all_advice().await?.into_iter().map(Into::into).collect();
        Ok(AdviceList { advice })
    }

    /// Takes advice back.
    pub async fn remove_advice(&self, number: i64) -> Result<(), DeskError> {
        match self.store.remove_advice(number).await? {
            true => Ok(()),
            false => Err(RemedyError::NoSuchAdvice(number).into()),
        }
    }

    /// Has one fingerprint stand for another, or for itself alone again.
    pub async fn join(&self, fingerprint: String, into: Option<String>) -> Result<JoinedFingerprint, DeskError> {
        let one = Fingerprint(fingerprint);
        let known = |one: Fingerprint| async move {
            let stands_for = self.store.stands_for(one.clone()).await?;
            match self.store.newest_of(&stands_for).await? {
                Some(_) => Ok(()),
                None => Err(DeskError::from(RemedyError::NoSuchFailure(one.0))),
            }
        };
        known(one.clone()).await?;
        let stands_for = match into.map(Fingerprint) {
            Some(into) => {
                known(into.clone()).await?;
                self.store.join_fingerprints(&one, &into).await?
            }
            None => {
                self.store.split_fingerprint(&one).await?;
                one.clone()
            }
        };
        Ok(JoinedFingerprint { fingerprint: one.0, stands_for: stands_for.0 })
    }
}

/// Whether the next job goes on where the failed one had come to: with the same inputs, and with changes that bear on no
/// step to come.
fn goes_on(job: &Job, kept: &KeptFailure, remedied: &Remedied, plan: &Plan) -> bool {
    job.spec.recipe().is_some() && job.inputs == plan.inputs && resumes(kept.failure.kind, remedied.meaning)
}

/// Whether the next job may go on from the failed one's checkpoint.
fn resumes(kind: FailureKind, meaning: Meaning) -> bool {
    rules::checkpoint_holds(kind) && meaning == Meaning::Same
}

/// What makes two applications the same: everything but the key itself.
fn digest(id: JobId, asked: &ApplyRemedy) -> String {
    let what = format!("remedy of {id}: {:?} {}", asked.remedy.as_ref().map(Remedy::to_string), asked.anew);
    Sha256::digest(what.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a remedy does, in words.
fn does(one: &Suggested) -> String {
    if let Some(action) = one.remedy.outside() {
        return format!("first {}; then the same again", action.does());
    }
    if one.changes.is_empty() {
        return "the same again".to_owned();
    }
    let word = |value: &Value| match value {
        Value::Null => "its default".to_owned(),
        value => value.to_string(),
    };
    let changes = one.changes.iter();
    let changes: Vec<_> = changes
        .map(|change| format!("{} {} instead of {}", change.name, word(&change.now), word(&change.before)))
        .collect();
    changes.join(", ")
}

/// What speaks for a remedy: its record where it has one, and otherwise where it comes from.
fn evidence(one: &Suggested, device: Option<&str>) -> String {
    let times = |Count { worked, tried }: Count| format!("worked {worked} of {tried} times");
    let record = &one.record;
    if record.here.tried > 0 {
        let on = device.map(|device| format!(" on {device}")).unwrap_or_default();
        return format!("{} for this failure{on}", times(record.here));
    }
    if record.elsewhere.tried > 0 {
        return format!("{} for this failure, on other devices", times(record.elsewhere));
    }
    if record.kind.tried > 0 {
        return format!("{} for other failures of this kind", times(record.kind));
    }
    match &one.source {
        Source::Rule { source } => format!("not tried yet; a rule ({source})"),
        Source::Numbers { said } => format!("not tried yet; by the numbers: {said}"),
        Source::History { jobs } => format!("{} job(s) passed with it", jobs.len()),
        Source::Person { name, note } if note.is_empty() => format!("not tried yet; advised by {name}"),
        Source::Person { name, note } => format!("not tried yet; advised by {name}: {note}"),
        Source::Installation { name, worked, tried } => {
            format!("not tried here; worked {worked} of {tried} times at {name}")
        }
        Source::Similar { fingerprint } => format!("not tried yet; worked for the similar failure {fingerprint}"),
        Source::Asked => "not tried yet".to_owned(),
    }
}
