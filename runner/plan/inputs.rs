//! What a job reads, fixed to what it was when the job was accepted.

use drydock_spec::JobId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

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
    /// The models that the job reads.
    fn models(&self) -> impl Iterator<Item = &ModelInput> {
        self.model.iter().chain(&self.compared).chain(&self.tokenizer)
    }

    /// Where its models and adapters are.
    fn sources(&self) -> impl Iterator<Item = &ModelSource> {
        self.models().flat_map(|model| {
            std::iter::once(&model.source).chain(model.adapter.as_ref().map(|adapter| &adapter.source))
        })
    }

    /// What the caller called its models and adapters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models().flat_map(|model| {
            std::iter::once(model.name.as_str()).chain(model.adapter.as_ref().map(|adapter| adapter.name.as_str()))
        })
    }

    /// The digests of what it reads out of the store.
    pub fn digests(&self) -> impl Iterator<Item = String> {
        let models = self.sources().filter_map(|source| match source {
            ModelSource::Stored { digest } => Some(digest.clone()),
            ModelSource::Hub { .. } | ModelSource::Awaited { .. } => None,
        });
        models.chain(self.dataset.iter().chain(&self.eval_dataset).map(|dataset| dataset.digest.clone()))
    }

    /// What is the same for all jobs of a kind that read the same models and the same rows, whatever these are called.
    #[must_use]
    pub fn likeness(&self, kind: &str) -> String {
        let model = |model: &ModelInput| json!([model.source, model.adapter.as_ref().map(|adapter| &adapter.source)]);
        let rows = |rows: &Option<DatasetInput>| json!(rows.as_ref().map(|rows| &rows.digest));
        let compared: Vec<_> = self.compared.iter().map(model).collect();
        let read = json!([
            kind,
            self.model.as_ref().map(model),
            compared,
            self.tokenizer.as_ref().map(model),
            rows(&self.dataset),
            rows(&self.eval_dataset),
        ]);
        Sha256::digest(read.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The jobs that must have succeeded before this one can start, each once.
    #[must_use]
    pub fn awaited(&self) -> Vec<JobId> {
        let mut jobs: Vec<_> = self
            .sources()
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
