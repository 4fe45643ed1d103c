//! From a failure to what is offered against it: candidates are gathered, worked into the job, put before the planner
//! and ranked.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use drydock_spec::remedy::{Edit, Meaning, Remedied, To, Unfit};
use drydock_spec::{Change, FailureKind, JobId, Remedy};

use super::fit::{Expected, Numbers};
use super::learned::{Learned, learn};
use super::rank::{Count, Prior, Record, weight};
use super::rules::{self, rules};
use super::verdict::Verdict;
use super::{Chooser, Source};
use crate::plan::cut::Longer;
use crate::plan::{Plan, PlanError, Planner};
use crate::store::{Job, KeptFailure, Store, StoreError, Trial};

/// Remedies that are offered at most.
const MOST: usize = 5;
/// Jobs that are learnt from, the newest, and failures that read much the same.
const FOLLOWERS: u32 = 100;
const SIMILAR: u32 = 3;
/// Of the jobs that may pass unchanged, one in so many is tried so when drydock chooses by itself.
const CONTROL_SHARE: u128 = 5;

/// What is known to help, for those who ask.
#[derive(Debug, Clone)]
pub struct Remedies {
    store: Store,
    /// Shared, as it is large and every request has one at hand.
    planner: Arc<Planner>,
}

/// A remedy that is offered.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggested {
    pub remedy: Remedy,
    pub source: Source,
    pub record: Record,
    /// How sure it is that it works, from 0 to 1.
    pub sure: f64,
    pub changes: Vec<Change>,
    pub meaning: Meaning,
}

/// A remedy that may be offered.
#[derive(Debug)]
struct Candidate {
    remedy: Remedy,
    source: Source,
    prior: Prior,
    /// What other jobs have shown that were no trials.
    seen: Count,
}

impl Candidate {
    /// What is known of it: trials, and jobs that did the same unasked.
    fn record(&self, records: &BTreeMap<String, Record>) -> Record {
        let mut record = records.get(&self.remedy.to_string()).copied().unwrap_or_default();
        record.here.worked += self.seen.worked;
        record.here.tried += self.seen.tried;
        record
    }
}

/// A remedy cannot be applied to the job.
#[derive(Debug, thiserror::Error)]
pub enum CannotApply {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl Remedies {
    #[must_use]
    pub fn new(store: Store, planner: Planner) -> Self {
        Self { store, planner: Arc::new(planner) }
    }

    /// What is offered against a failure of the job, the surest first.
    pub async fn suggest(&self, job: &Job, kept: &KeptFailure) -> Result<Vec<Suggested>, StoreError> {
        let trials = self.store.trials(job.id).await?;
        let done: HashSet<String> = refuted(&trials, kept).map(|trial| trial.remedy.to_string()).collect();
        let records = self.store.records(kept).await?;
        let numbers = self.expected(job, kept).await;
        let mut seen = HashSet::new();
        let mut offered = Vec::new();
        for candidate in self.candidates(job, kept, &records).await? {
            let name = candidate.remedy.to_string();
            if done.contains(&name) || !seen.insert(name.clone()) {
                continue;
            }
            let Ok((remedied, said)) = numbers.apply(job, kept, &candidate.remedy) else { continue };
            // What somebody has to do first may be just what the planner misses.
            if !remedied.changes.is_empty() && self.planner.plan(remedied.job, &remedied.limits).await.is_err() {
                continue;
            }
            let record = candidate.record(&records);
            let sure = record.sure(candidate.prior);
            let source = said.map_or(candidate.source, |said| Source::Numbers { said });
            offered.push(Suggested {
                remedy: candidate.remedy,
                source,
                record,
                sure,
                changes: remedied.changes,
                meaning: remedied.meaning,
            });
        }
        // A remedy that comes to the same as a surer one is no other remedy.
        offered.sort_by(|a, b| (b.sure * weight(b.meaning)).total_cmp(&(a.sure * weight(a.meaning))));
        let mut changes: Vec<Vec<Change>> = Vec::new();
        offered.retain(|one| {
            let new = one.changes.is_empty() || !changes.contains(&one.changes);
            changes.push(one.changes.clone());
            new
        });
        offered.truncate(MOST);
        Ok(offered)
    }

    /// The surest remedy against a failure, its record, and how sure it is: without looking whether it fits the job.
    pub async fn best(&self, job: &Job, kept: &KeptFailure) -> Result<Option<(Remedy, Record, f64)>, StoreError> {
        let records = self.store.records(kept).await?;
        let candidates = self.candidates(job, kept, &records).await?.into_iter();
        let ranked = candidates.map(|candidate| {
            let record = candidate.record(&records);
            let sure = record.sure(candidate.prior);
            (candidate.remedy, record, sure)
        });
        // Of those that are as sure the first counts.
        Ok(ranked.rev().max_by(|a, b| a.2.total_cmp(&b.2)))
    }

    /// What drydock does by itself about the failure: the surest remedy that leaves the job's meaning the same and needs
    /// nobody. Where the same again may pass, a share of the jobs is tried unchanged first.
    pub async fn choose(&self, job: &Job, kept: &KeptFailure) -> Result<Option<(Suggested, Chooser)>, StoreError> {
        let mut offered = self.suggest(job, kept).await?;
        offered.retain(|one| one.meaning == Meaning::Same && one.remedy.outside().is_none());
        let is_control = rules::may_pass(kept.failure.kind) && job.id.random().is_multiple_of(CONTROL_SHARE);
        if let (true, Some(at)) = (is_control, offered.iter().position(|one| one.remedy == Remedy::TryAgain)) {
            return Ok(Some((offered.swap_remove(at), Chooser::Control)));
        }
        Ok(offered.into_iter().next().map(|one| (one, Chooser::Auto)))
    }

    /// The job with a remedy worked in, and the plan for it.
    pub async fn apply(&self, job: &Job, kept: &KeptFailure, remedy: &Remedy) -> Result<(Remedied, Plan), CannotApply> {
        let (remedied, _) = self.expected(job, kept).await.apply(job, kept, remedy)?;
        let plan = self.planner.plan(remedied.job.clone(), &remedied.limits).await?;
        Ok((remedied, plan))
    }

    async fn candidates(
        &self,
        job: &Job,
        kept: &KeptFailure,
        records: &BTreeMap<String, Record>,
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut found = Vec::new();
        for advice in self.store.advice_against(kept).await? {
            found.push(advised(advice.advice));
        }
        for learned in learn(&self.store.followers(&kept.fingerprint, FOLLOWERS).await?) {
            found.push(taught(learned));
        }
        found.extend(self.input_in_its_place(job, kept).await?);
        for (at, rule) in rules(&kept.failure, &job.spec).into_iter().enumerate() {
            // The order of the rules is all that is known of them.
            let prior = Prior { worked: 0.62 - 0.04 * at as f64, tried: 1.0 };
            let source = Source::Rule { source: rule.source.to_owned() };
            found.push(Candidate { remedy: rule.remedy, source, prior, seen: Count::default() });
        }
        for (name, record) in records {
            let worked = record.here.worked + record.elsewhere.worked;
            if let (true, Ok(remedy)) = (worked > 0, name.parse()) {
                found.push(Candidate {
                    remedy,
                    source: Source::Asked,
                    prior: Prior { worked: 0.0, tried: 0.0 },
                    seen: Count::default(),
                });
            }
        }
        for similar in self.store.similar(kept, SIMILAR).await? {
            found.extend(self.worked_against(&similar).await?);
        }
        Ok(found)
    }

    /// What worked against a failure that reads much the same.
    async fn worked_against(&self, similar: &KeptFailure) -> Result<Vec<Candidate>, StoreError> {
        let tried = self.store.records(similar).await?.into_iter().filter_map(|(name, record)| {
            (record.here.worked + record.elsewhere.worked > 0).then(|| name.parse().ok()).flatten()
        });
        let learnt = learn(&self.store.followers(&similar.fingerprint, FOLLOWERS).await?);
        let source = || Source::Similar { fingerprint: similar.fingerprint.0.clone() };
        let candidate = |remedy| Candidate {
            remedy,
            source: source(),
            prior: Prior { worked: 0.5, tried: 1.0 },
            seen: Count::default(),
        };
        Ok(tried.chain(learnt.into_iter().map(|learned| learned.remedy)).map(candidate).collect())
    }

    /// Where an input job failed and another one, made in its place, has succeeded: that one's result.
    async fn input_in_its_place(&self, job: &Job, kept: &KeptFailure) -> Result<Option<Candidate>, StoreError> {
        if kept.failure.kind != FailureKind::InputFailed {
            return Ok(None);
        }
        let named = |option: &str, name: Option<&str>| -> Option<(String, JobId)> {
            let id = name?.strip_prefix("job:")?.split('/').next()?.to_ascii_uppercase().parse().ok()?;
            Some((option.to_owned(), id))
        };
        for (option, input) in named("model", job.spec.model()).into_iter().chain(named("adapter", job.spec.adapter()))
        {
            if let Some((better, true)) = self.store.remedied_by(input).await? {
                let to = To::Set(format!("job:{better}").into());
                let said = format!("job {better}, made in place of {input}, has succeeded");
                return Ok(Some(Candidate {
                    remedy: Remedy::Change(vec![Edit { option, to }]),
                    source: Source::Numbers { said },
                    prior: Prior { worked: 1.8, tried: 2.0 },
                    seen: Count::default(),
                }));
            }
        }
        Ok(None)
    }

    /// What the planner expects of the job, and of the same with smaller batches where that may matter.
    async fn expected(&self, job: &Job, kept: &KeptFailure) -> Measures {
        let mut measures = Measures::default();
        if !matches!(kept.failure.kind, FailureKind::OutOfMemory | FailureKind::DiskFull | FailureKind::NothingToLearn)
        {
            return measures;
        }
        let batch = job.spec.recipe().map_or(1, |recipe| recipe.per_device_train_batch_size);
        for rows in (1..=batch).rev().filter(|rows| batch.is_multiple_of(*rows)) {
            let remedy = match rows == batch {
                true => Remedy::TryAgain,
                false => Remedy::edit("per_device_train_batch_size", To::Set(rows.into())),
            };
            let Ok(remedied) = remedy.apply(&job.spec, &job.limits, |_| None) else { break };
            let Ok(plan) = self.planner.plan(remedied.job, &remedied.limits).await else { break };
            measures.longer = plan.cut.as_ref().and_then(|cut| cut.longer);
            measures.disk_bytes = measures.disk_bytes.max(plan.estimate.disk_bytes);
            measures.expected.push(Expected { batch: rows, memory_bytes: plan.estimate.memory_bytes });
            if kept.failure.kind != FailureKind::OutOfMemory || job.spec.recipe().is_none() {
                break;
            }
        }
        measures
    }
}

/// What the planner expects.
#[derive(Debug, Default)]
struct Measures {
    expected: Vec<Expected>,
    disk_bytes: u64,
    longer: Option<Longer>,
}

impl Measures {
    /// The job with the remedy worked in, and what the numbers had to say where it was asked for.
    fn apply(&self, job: &Job, kept: &KeptFailure, remedy: &Remedy) -> Result<(Remedied, Option<String>), Unfit> {
        let numbers = Numbers {
            failure: &kept.failure,
            evidence: &kept.record.evidence,
            spec: &job.spec,
            limits: &job.limits,
            expected: &self.expected,
            disk_bytes: self.disk_bytes,
            longer: self.longer,
        };
        let said = std::cell::RefCell::new(None);
        let remedied = remedy.apply(&job.spec, &job.limits, |option| {
            let fitted = numbers.fit(option)?;
            said.borrow_mut().get_or_insert(fitted.said);
            Some(fitted.value)
        })?;
        Ok((remedied, said.into_inner()))
    }
}

/// What was tried for this job against this failure, in vain.
fn refuted<'a>(trials: &'a [Trial], kept: &'a KeptFailure) -> impl Iterator<Item = &'a Trial> {
    let here = trials.iter().filter(|trial| trial.fingerprint == kept.fingerprint);
    // What the very attempt tried that is about to end so is not settled yet.
    let is_ending = |trial: &Trial| trial.verdict.is_none() && trial.job == kept.job && trial.attempt <= kept.attempt;
    here.filter(move |trial| trial.verdict == Some(Verdict::Failed) || is_ending(trial))
}

fn taught(learned: Learned) -> Candidate {
    let worked = learned.passed.len() as u64;
    let seen = Count { worked, tried: worked + learned.failed as u64 };
    let source = Source::History { jobs: learned.passed };
    Candidate { remedy: learned.remedy, source, prior: Prior { worked: 0.5, tried: 0.5 }, seen }
}

fn advised(advice: crate::store::NewAdvice) -> Candidate {
    let crate::store::NewAdvice { remedy, note, by_whom, origin, .. } = advice;
    match origin {
        None => Candidate {
            remedy,
            source: Source::Person { name: by_whom, note },
            prior: Prior { worked: 1.6, tried: 2.0 },
            seen: Count::default(),
        },
        Some((name, Count { worked, tried })) => {
            // Another team's hosts and data are others; so many of its trials count as a few.
            let share = if tried > 0 { worked as f64 / tried as f64 } else { 0.5 };
            let counts = (tried as f64).clamp(1.0, 5.0);
            Candidate {
                remedy,
                source: Source::Installation { name, worked, tried },
                prior: Prior { worked: share * counts, tried: counts },
                seen: Count::default(),
            }
        }
    }
}
