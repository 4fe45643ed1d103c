//! Why a job failed, with everything that helps to judge it.

use drydock_spec::JobId;
use drydock_spec::remedy::limit_args;
use serde_json::{Value, json};

use super::{Desk, DeskError};
use crate::api::{Explanation, LastGood, ModelWords, SimilarFailure};
use crate::diagnose::difference;
use crate::store::{Job, KeptFailure, StoreError};
use crate::wording;

/// Jobs that went well among which the one is looked for that is most like the failed one.
const LOOKED_AT: u32 = 100;
/// Failures that read much the same that are told of.
const SIMILAR: u32 = 3;

impl Desk {
    /// How the newest failed attempt of the job ended; `None` if none has failed.
    pub async fn explain(&self, id: JobId) -> Result<Option<Explanation>, DeskError> {
        let job = self.store.job(id).await?;
        let Some(kept) = self.store.newest_failure(id).await? else { return Ok(None) };
        let seen = self.store.seen(&kept.fingerprint).await?;
        let seen_elsewhere = self.store.seen_elsewhere(&kept.fingerprint).await?;
        let last_good = self.last_good(&job).await?;
        let remedies = if job.state.word() == "failed" { self.offered(&job, &kept).await? } else { Vec::new() };
        let tried = self.store.trials(id).await?.into_iter().map(Into::into).collect();
        let similar = self.store.similar(&kept, SIMILAR).await?.into_iter().map(similar).collect();
        let KeptFailure { attempt, at_ms, fingerprint, failure, record, .. } = kept;
        Ok(Some(Explanation {
            job: id,
            attempt: attempt.0,
            at_ms,
            failure,
            fingerprint: fingerprint.0,
            template: record.signature.root.text,
            frame: record.signature.frame,
            seen: seen.count,
            seen_by_jobs: seen.jobs,
            seen_elsewhere,
            evidence: record.evidence,
            last_good,
            remedies,
            tried,
            similar,
            in_words: None,
        }))
    }

    /// The same with a language model's words, or with a note on why there are none.
    pub async fn explain_in_words(&self, id: JobId) -> Result<Option<Explanation>, DeskError> {
        let Some(mut told) = self.explain(id).await? else { return Ok(None) };
        let output = self.store.last_words(id).await?.unwrap_or_default();
        let config = &self.config.wording;
        told.in_words = Some(match wording::in_words(config, &told, &output).await {
            Ok(text) => ModelWords::Said { model: config.model.clone(), text },
            Err(error) => ModelWords::Silent { note: error.to_string() },
        });
        Ok(Some(told))
    }

    /// The newest job of the same kind that succeeded, one on the same model and rows before others.
    async fn last_good(&self, job: &Job) -> Result<Option<LastGood>, StoreError> {
        let good = self.store.succeeded(job.spec.kind(), LOOKED_AT).await?;
        let alike = |one: &Job| {
            let same_model = one.inputs.model == job.inputs.model;
            let same_rows = one.inputs.dataset == job.inputs.dataset;
            u8::from(same_model) * 2 + u8::from(same_rows)
        };
        // Of those that are alike the first is the newest.
        let best = good.iter().rev().filter(|one| one.id != job.id).max_by_key(|one| alike(one));
        Ok(best.map(|one| LastGood {
            job: one.id,
            same_model: one.inputs.model == job.inputs.model,
            same_dataset: one.inputs.dataset == job.inputs.dataset,
            changes: difference::between(&document(one), &document(job)),
        }))
    }
}

fn similar(kept: KeptFailure) -> SimilarFailure {
    let KeptFailure { fingerprint, job, failure, .. } = kept;
    SimilarFailure { fingerprint: fingerprint.0, kind: failure.kind, job, message: failure.message }
}

/// What a job is made of, by the names and in the units in which it would be asked for.
fn document(job: &Job) -> Value {
    let mut document = difference::options(&job.spec);
    if let Value::Object(options) = &mut document {
        options.insert("limits".into(), json!(limit_args(&job.limits)));
        options.insert("inputs".into(), json!(job.inputs));
    }
    document
}
