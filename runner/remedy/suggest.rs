//! From a failure to what is offered against it: candidates are gathered, worked into the job, put before the planner
//! and ranked.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use drydock_spec::remedy::{Edit, Meaning, Remedied, To, Unfit};
use drydock_spec::{Change, FailureKind, JobId, Limits, Remedy};

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
/// Jobs that are learnt from, the newest: that followed, and that failed. And failures that read much the same.
const FOLLOWERS: u32 = 100;
const FAILED: u32 = 200;
const SIMILAR: u32 = 3;
/// Of the jobs that may pass unchanged, one in so many is tried so when drydock chooses by itself.
const CONTROL_SHARE: u128 = 5;

/// What the prior of a remedy is worth where the planner expects it not to be enough: estimates have been wrong.
const UNLIKELY: f64 = 0.5;

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
    /// What other jobs have shown that were no trials of it.
    seen: Record,
    /// Of half of what is known to work: the record of all of it, which speaks for the half until that was tried.
    of_whole: Option<Record>,
}

impl Candidate {
    /// What is known of it: trials, and jobs that did the same unasked.
    fn record(&self, records: &BTreeMap<String, Record>) -> Record {
        let mut record = records.get(&self.remedy.to_string()).copied().unwrap_or_default();
        record.here = record.here + self.seen.here;
        record.elsewhere = record.elsewhere + self.seen.elsewhere;
        record
    }

    /// How sure it is that it works, beside the record of the same again.
    fn sure(&self, prior: Prior, record: &Record, control: Option<&Record>) -> f64 {
        let record = self.of_whole.as_ref().unwrap_or(record);
        match control {
            Some(control) if self.remedy != Remedy::TryAgain => {
                record.sure_beside(prior, Some((control, control.sure(CONTROL))))
            }
            _ => record.sure(prior),
        }
    }
}

/// What speaks for the same again before it was tried, where it is known by its record alone.
const CONTROL: Prior = Prior { worked: 0.5, tried: 1.0 };

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
        let control = records.get(&Remedy::TryAgain.to_string());
        let numbers = self.expected(job, kept).await;
        let mut offered = Vec::new();
        for candidate in self.candidates(job, kept, &records).await? {
            let name = candidate.remedy.to_string();
            if done.contains(&name) {
                continue;
            }
            let Ok((remedied, said)) = numbers.apply(job, kept, &candidate.remedy) else { continue };
            // What somebody has to do first may be just what the planner misses.
            let mut prior = candidate.prior;
            if !remedied.changes.is_empty() {
                let Ok(plan) = self.planner.plan(remedied.job, &remedied.limits).await else { continue };
                if kept.failure.kind == FailureKind::OutOfMemory
                    && numbers.are_against(&job.limits, plan.estimate.memory_bytes, plan.limits.memory_bytes)
                {
                    prior.worked *= UNLIKELY;
                }
            }
            let record = candidate.record(&records);
            let sure = candidate.sure(prior, &record, control);
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
        let mut candidates = self.candidates(job, kept, &records).await?;
        // What is to be tried is not known yet.
        candidates.retain(|candidate| candidate.of_whole.is_none());
        let ranked = candidates.into_iter().map(|candidate| {
            let record = candidate.record(&records);
            let sure = candidate.sure(candidate.prior, &record, records.get(&Remedy::TryAgain.to_string()));
            (candidate.remedy, record, sure)
        });
        // Of those that are as sure the first counts.
        Ok(ranked.rev().max_by(|a, b| a.2.total_cmp(&b.2)))
    }

    /// What drydock does by itself about the failure: the surest remedy that leaves the job's meaning the same and needs
    /// nobody. Where the same again may pass, a share of the jobs is tried unchanged first.
    pub async fn choose(&self, job: &Job, kept: &KeptFailure) -> Result<Option<(Suggested, Chooser)>, StoreError> {
        let mut offered = self.suggest(job, kept).await?;
        let of_rules: Vec<Remedy> = rules(&kept.failure, &job.spec).into_iter().map(|rule| rule.remedy).collect();
        // What only another installation says is for people to try first.
        let is_hearsay = |one: &Suggested| {
            let unseen = one.record.here.worked + one.record.elsewhere.worked == 0;
            matches!(one.source, Source::Installation { .. }) && unseen && !of_rules.contains(&one.remedy)
        };
        offered.retain(|one| one.meaning == Meaning::Same && one.remedy.outside().is_none() && !is_hearsay(one));
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
        found.extend(self.learnt(kept, records).await?);
        found.extend(self.input_in_its_place(job, kept).await?);
        for (at, rule) in rules(&kept.failure, &job.spec).into_iter().enumerate() {
            // The order of the rules is all that is known of them.
            let prior = Prior { worked: 0.62 - 0.04 * at as f64, tried: 1.0 };
            let source = Source::Rule { source: rule.source.to_owned() };
            found.push(Candidate { remedy: rule.remedy, source, prior, seen: Record::default(), of_whole: None });
        }
        for (name, record) in records {
            let worked = record.here.worked + record.elsewhere.worked;
            if let (true, Ok(remedy)) = (worked > 0, name.parse()) {
                found.push(Candidate {
                    remedy,
                    source: Source::Asked,
                    prior: Prior { worked: 0.0, tried: 0.0 },
                    seen: Record::default(),
                    of_whole: None,
                });
            }
        }
        for similar in self.store.similar(kept, SIMILAR).await? {
            found.extend(self.worked_against(&similar).await?);
        }
        Ok(merged(found))
    }

    /// What jobs teach that followed those that failed so: all of them together, and those on the same kind of device
    /// alone, as a device may need what no other does.
    async fn learnt(
        &self,
        kept: &KeptFailure,
        records: &BTreeMap<String, Record>,
    ) -> Result<Vec<Candidate>, StoreError> {
        let device = kept.record.evidence.environment.device.as_deref().unwrap_or_default();
        let followers = self.store.followers(&kept.fingerprint, FOLLOWERS).await?;
        let mut failed = self.store.failed_so(&kept.fingerprint, FAILED).await?;
        let of_all = learn(&followers, &failed, device);
        failed.retain(|one| one.device == device);
        let here = learn(followers.iter().filter(|one| one.device == device), &failed, device);
        Ok(of_all.into_iter().chain(here).flat_map(|learned| taught(learned, records)).collect())
    }

    /// What worked against a failure that reads much the same.
    async fn worked_against(&self, similar: &KeptFailure) -> Result<Vec<Candidate>, StoreError> {
        let tried = self.store.records(similar).await?.into_iter().filter_map(|(name, record)| {
            (record.here.worked + record.elsewhere.worked > 0).then(|| name.parse().ok()).flatten()
        });
        let followers = self.store.followers(&similar.fingerprint, FOLLOWERS).await?;
        let learnt = learn(&followers, &self.store.failed_so(&similar.fingerprint, FAILED).await?, "");
        let source = || Source::Similar { fingerprint: similar.fingerprint.0.clone() };
        let candidate = |remedy| Candidate {
            remedy,
            source: source(),
            prior: Prior { worked: 0.5, tried: 1.0 },
            seen: Record::default(),
            of_whole: None,
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
                    seen: Record::default(),
                    of_whole: None,
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
    /// Whether a job that is expected to need so much memory is expected to need more than it would have, if the estimate
    /// is as far off for it as it was for the one that failed.
    fn are_against(&self, had: &Limits, expected_bytes: u64, has_bytes: u64) -> bool {
        let Some(failed) = self.expected.first() else { return false };
        let off = (had.memory_bytes as f64 / failed.memory_bytes as f64).max(1.0);
        expected_bytes as f64 * off > has_bytes as f64
    }

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

/// Each remedy once, from the first that names it, with the most that was seen of it.
fn merged(found: Vec<Candidate>) -> Vec<Candidate> {
    let mut once: Vec<Candidate> = Vec::new();
    for candidate in found {
        match once.iter_mut().find(|one| one.remedy == candidate.remedy) {
            Some(known) => {
                let tried = |seen: &Record| (seen.here + seen.elsewhere).tried;
                known.seen = if tried(&candidate.seen) > tried(&known.seen) { candidate.seen } else { known.seen };
            }
            None => once.push(candidate),
        }
    }
    once
}

/// What was tried for this job against this failure, in vain.
fn refuted<'a>(trials: &'a [Trial], kept: &'a KeptFailure) -> impl Iterator<Item = &'a Trial> {
    let here = trials.iter().filter(|trial| trial.fingerprint == kept.fingerprint);
    // What the very attempt tried that is about to end so is not settled yet.
    let is_ending = |trial: &Trial| trial.verdict.is_none() && trial.job == kept.job && trial.attempt <= kept.attempt;
    here.filter(move |trial| trial.verdict == Some(Verdict::Failed) || is_ending(trial))
}

/// What was learnt, and the half of it that is to be tried, which comes before the whole as long as it has not failed.
fn taught(learned: Learned, records: &BTreeMap<String, Record>) -> impl Iterator<Item = Candidate> {
    let failed = |remedy: &Remedy| {
        let record = records.get(&remedy.to_string()).copied().unwrap_or_default();
        let all = record.here + record.elsewhere;
        all.worked < all.tried
    };
    let source = Source::History { jobs: learned.passed };
    let prior = Prior { worked: 0.5, tried: 0.5 };
    let whole = Candidate { remedy: learned.remedy, source, prior, seen: learned.seen, of_whole: None };
    let half = learned.half.filter(|half| !failed(&half.remedy)).map(|half| Candidate {
        remedy: half.remedy,
        source: Source::History { jobs: half.passed },
        prior,
        seen: Record::default(),
        of_whole: Some(whole.record(records)),
    });
    half.into_iter().chain([whole])
}

fn advised(advice: crate::store::NewAdvice) -> Candidate {
    let crate::store::NewAdvice { remedy, note, by_whom, origin, .. } = advice;
    match origin {
        None => Candidate {
            remedy,
            source: Source::Person { name: by_whom, note },
            prior: Prior { worked: 1.6, tried: 2.0 },
            seen: Record::default(),
            of_whole: None,
        },
        Some((name, Count { worked, tried })) => {
            // Another team's hosts and data are others; so many of its trials count as a few.
            let share = if tried > 0 { worked as f64 / tried as f64 } else { 0.5 };
            let counts = (tried as f64).clamp(1.0, 5.0);
            Candidate {
                remedy,
                source: Source::Installation { name, worked, tried },
                prior: Prior { worked: share * counts, tried: counts },
                seen: Record::default(),
                of_whole: None,
            }
        }
    }
}
