//! What a job reads, fixed to what it was when the job was accepted.

use drydock_spec::JobId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A job's inputs. Which of them there are depends on the kind of job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedInputs {
    /// The model that the job starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelInput>,
    /// Models that are measured beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compared: Vec<ModelInput>,
    /// The model whose tokenizer is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<ModelInput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetInput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<DatasetInput>,
}

/// A model that a job reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInput {
    /// As the caller named it.
    pub name: String,
    pub source: ModelSource,
    /// The adapter over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterInput>,
}

/// An adapter that a job reads together with its model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdapterInput {
    /// As the caller named it.
    pub name: String,
    pub source: ModelSource,
}

/// Where the files of a model or an adapter are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// In the model store, under this digest.
    Stored { digest: String },
    /// On the hub, at this commit; fetched before the attempt starts.
    Hub { repo: String, commit: String },
    /// What this job leaves behind, which has not ended yet. The job that reads it waits for that one.
    Awaited { job: JobId },
}

/// A dataset that a job reads; always in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetInput {
    /// As the caller named it.
    pub name: String,
    pub digest: String,
}

impl ResolvedInputs {
    /// The jobs that must have succeeded before this one can start, each once.
    #[must_use]
    pub fn awaited(&self) -> Vec<JobId> {
        let models = self.model.iter().chain(&self.compared).chain(&self.tokenizer);
        let sources = models.flat_map(|model| {
            std::iter::once(&model.source).chain(model.adapter.as_ref().map(|adapter| &adapter.source))
        });
        let mut jobs: Vec<_> = sources
            .filter_map(|source| match source {
                ModelSource::Awaited { job } => Some(*job),
                ModelSource::Stored { .. } | ModelSource::Hub { .. } => None,
            })
            .collect();
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }
}
