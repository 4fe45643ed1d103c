//! What would be done for a job, what it needs, and whether it can be accepted: known before anything is queued.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A job's inputs, fixed to what they were when the job was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedInputs {
    pub model: ModelInput,
    pub dataset: DatasetInput,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<DatasetInput>,
}

/// The model that a job starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInput {
    /// As the caller named it.
    pub name: String,
    pub source: ModelSource,
}

/// Where the model's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// In the model store, under this digest.
    Stored { digest: String },
    /// On the hub, at this commit; fetched before the attempt starts.
    Hub { repo: String, commit: String },
}

/// A dataset that a job reads; always in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetInput {
    /// As the caller named it.
    pub name: String,
    pub digest: String,
}

/// A submission that cannot be accepted.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Options(#[from] drydock_spec::InvalidOptions),
    #[error(transparent)]
    Model(#[from] crate::models::ModelError),
    #[error(transparent)]
    Dataset(#[from] crate::datasets::DatasetError),
}

/// What would be done, before it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub spec: drydock_spec::JobSpec,
    pub inputs: ResolvedInputs,
    pub limits: drydock_spec::Limits,
    pub estimate: crate::api::Estimate,
    pub warnings: Vec<String>,
}

/// Plans jobs.
#[derive(Debug, Clone)]
pub struct Planner {
    _models: crate::models::Models,
    _datasets: crate::datasets::Datasets,
}

impl Planner {
    pub fn new(models: crate::models::Models, datasets: crate::datasets::Datasets) -> Self {
        Self { _models: models, _datasets: datasets }
    }

    /// Parses the options, fixes the inputs, estimates the needs, and refuses what cannot work.
    pub async fn plan(&self, job: drydock_spec::JobArgs, _limits: &drydock_spec::LimitArgs) -> Result<Plan, PlanError> {
        job.parse()?;
        Err(crate::datasets::DatasetError::Unknown { name: String::new(), next: "not built yet".into() }.into())
    }
}
