//! What would be done for a job, what it needs, and whether it can be accepted: known before anything is queued.

use std::sync::Arc;

use drydock_gpu::Capacity;
use drydock_spec::dataset::Columns;
use drydock_spec::{FinetuneSpec, InvalidOptions, JobArgs, JobSpec, LimitArgs, Limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Estimate;
use crate::blobs::BlobError;
use crate::config::Config;
use crate::datasets::{self, DatasetError, Datasets};
use crate::engine::EngineWatch;
use crate::models::{ModelError, Models};

mod finetune;
mod limits;

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
    Options(#[from] InvalidOptions),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The host has no room for what the job brings and makes.
    #[error(transparent)]
    Room(#[from] BlobError),
}

/// What would be done, before it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub spec: JobSpec,
    pub inputs: ResolvedInputs,
    pub limits: Limits,
    pub estimate: Estimate,
    pub warnings: Vec<String>,
}

/// Plans jobs.
#[derive(Debug, Clone)]
pub struct Planner {
    models: Models,
    datasets: Datasets,
    engine: EngineWatch,
    config: Arc<Config>,
}

impl Planner {
    pub fn new(models: Models, datasets: Datasets, engine: EngineWatch, config: Arc<Config>) -> Self {
        Self { models, datasets, engine, config }
    }

    /// Parses the options, fixes the inputs, estimates the needs, and refuses what cannot work.
    pub async fn plan(&self, job: JobArgs, limits: &LimitArgs) -> Result<Plan, PlanError> {
        let JobSpec::Finetune(spec) = both(job.parse(), limits.check())?;
        self.finetune(spec, limits).await
    }

    async fn finetune(&self, mut spec: FinetuneSpec, asked: &LimitArgs) -> Result<Plan, PlanError> {
        let model = self.models.resolve(&spec.model).await?;
        let data = self.data(&mut spec).await?;
        let host = self.host();
        finetune::check(&spec, &model.facts, &data)?;
        let needs = finetune::needs(&spec, &model, &data);
        let limits = limits::in_force(asked, &self.config.limits, &needs, &host)?;
        self.models.check_room(needs.download_bytes.saturating_add(needs.disk_bytes))?;
        let mut warnings = finetune::warnings(&model.facts, &data);
        warnings.extend(limits::warnings(&limits, &needs, &host));
        Ok(Plan {
            inputs: ResolvedInputs {
                model: model.input,
                dataset: data.train.input,
                eval_dataset: data.eval.map(|eval| eval.input),
            },
            limits,
            estimate: needs.estimate(),
            spec: JobSpec::Finetune(spec),
            warnings,
        })
    }

    /// The rows of the job, read with its columns. Where it names none, it uses those that the dataset was loaded
    /// with.
    async fn data(&self, spec: &mut FinetuneSpec) -> Result<Data, PlanError> {
        let train = self.datasets.resolve(&spec.dataset).await?;
        let columns = spec.columns.clone().unwrap_or_else(|| train.manifest.columns.clone());
        let train = self.datasets.with_columns(train, &columns).await?;
        let eval = match &spec.eval_dataset {
            Some(name) => {
                let eval = self.datasets.resolve(name).await?;
                Some(self.datasets.with_columns(eval, &columns).await?)
            }
            None => None,
        };
        spec.columns = (columns != Columns::default()).then_some(columns);
        Ok(Data { train, eval })
    }

    fn host(&self) -> Host {
        let engine = self.engine.now();
        Host {
            capacity: engine.as_ref().map(|info| self.config.capacity.of(info)).map_err(ToString::to_string),
            image: engine.and_then(|info| info.image).map(drop).map_err(|error| error.to_string()),
        }
    }
}

/// What a job learns from.
struct Data {
    train: datasets::Resolved,
    eval: Option<datasets::Resolved>,
}

/// What jobs may use, or why that is not known.
struct Host {
    capacity: Result<Capacity, String>,
    /// Why no attempt can start now.
    image: Result<(), String>,
}

/// The spec, or every complaint about options and limits at once.
fn both(spec: Result<JobSpec, InvalidOptions>, limits: Result<(), InvalidOptions>) -> Result<JobSpec, InvalidOptions> {
    match (spec, limits) {
        (Ok(spec), Ok(())) => Ok(spec),
        (Err(mut wrong), Err(more)) => {
            wrong.0.extend(more.0);
            Err(wrong)
        }
        (Err(wrong), Ok(())) | (Ok(_), Err(wrong)) => Err(wrong),
    }
}
