//! What would be done for a job, what it needs, and whether it can be accepted: known before anything is queued.

use std::sync::Arc;

use drydock_gpu::Capacity;
use drydock_gpu::assign::HostUnit;
use drydock_gpu::estimate::{shipped_disk, shipped_memory};
use drydock_spec::dataset::Columns;
use drydock_spec::finetune::Objective;
use drydock_spec::{
    EvaluateSpec, FinetuneArgs, FinetuneSpec, InvalidOptions, JobArgs, JobSpec, JobState, LimitArgs, Limits,
    QuantizeSpec, TrainSpec,
};

use crate::api::Estimate;
use crate::blobs::BlobError;
use crate::config::Config;
use crate::datasets::{DatasetError, Datasets};
use crate::diagnose::fingerprint::{Signature, Witness};
use crate::engine::EngineWatch;
use crate::models::{self, ModelError, Models};
use crate::sandbox::gpus::KnownGpus;
use crate::store::{Job, Store, StoreError};
use before::{Foreseen, Past};
use chain::{Link, Room};
use cut::CutRows;
use forecast::{Accuracy, Forecast, Quantity};
use lengths::Counting;
use margin::Margin;
use needs::{Needs, Terms};
use rows::Data;

mod auto;
pub mod before;
mod chain;
pub mod cut;
mod evaluate;
mod finetune;
pub mod forecast;
mod gpus;
mod inputs;
pub mod lengths;
mod limits;
pub mod margin;
mod needs;
mod quantize;
mod rows;
mod train;
mod training;

pub use inputs::{AdapterInput, DatasetInput, ModelInput, ModelSource, ResolvedInputs};

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
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What would be done, before it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub spec: JobSpec,
    pub inputs: ResolvedInputs,
    pub limits: Limits,
    pub estimate: Estimate,
    /// How well jobs of this kind and method were predicted before.
    pub forecasts: Vec<Accuracy>,
    /// How it will fail, if it ends as its like did.
    pub foreseen: Vec<Foreseen>,
    /// Rows that may be cut. No warning yet: whoever has the rows tokenized knows better.
    pub cut: Option<CutRows>,
    pub warnings: Vec<String>,
}

/// Plans jobs.
#[derive(Debug, Clone)]
pub struct Planner {
    store: Store,
    models: Models,
    datasets: Datasets,
    engine: EngineWatch,
    gpus: KnownGpus,
    config: Arc<Config>,
}

/// Jobs that are looked at of those that one waits for.
const LONGEST_CHAIN: usize = 100;

/// Jobs that are looked at for one that failed, the newest first.
const LOOKED_AT: u32 = 50;

/// What a kind of job comes to, before the host is looked at.
struct Draft {
    spec: JobSpec,
    inputs: ResolvedInputs,
    needs: Needs,
    cut: Option<CutRows>,
    warnings: Vec<String>,
}

impl Planner {
    pub fn new(
        store: Store,
        models: Models,
        datasets: Datasets,
        engine: EngineWatch,
        gpus: KnownGpus,
        config: Arc<Config>,
    ) -> Self {
        Self { store, models, datasets, engine, gpus, config }
    }

    /// Parses the options, fixes the inputs, estimates the needs, and refuses what cannot work.
    pub async fn plan(&self, job: JobArgs, limits: &LimitArgs) -> Result<Plan, PlanError> {
        let asked = if let JobArgs::Finetune(args) = &job { Some(args.clone()) } else { None };
        let spec = both(job.parse(), limits.check())?;
        let limits = &gpus::decided(limits, &spec, self.config.limits.gpus, self.host().gpus.as_ref());
        let method = forecast::method_of(&spec, limits.gpus.unwrap_or(0));
        let past = self.store.forecasts(spec.kind(), method.as_deref()).await?;
        let terms = self.terms(&spec, limits, &past).await?;
        // Boxed: each holds models and rows, and a request would hold the largest of them to its end.
        let draft = match spec {
            JobSpec::Finetune(spec) => Box::pin(self.finetune(spec, &asked.unwrap_or_default(), terms)).await?,
            JobSpec::Train(spec) => Box::pin(self.train(spec, terms)).await?,
            JobSpec::Quantize(spec) => Box::pin(self.quantize(spec, terms)).await?,
            JobSpec::Evaluate(spec) => Box::pin(self.evaluate(spec, terms)).await?,
        };
        let forecasts = forecast::judge(&past);
        let before = self.awaited(&draft.inputs).await?;
        let mut plan = self.fit(draft, limits, forecasts, &before)?;
        plan.foreseen = self.foresee(&plan).await?;
        plan.warnings.extend(plan.foreseen.iter().map(|foreseen| foreseen.text.clone()));
        Ok(plan)
    }

    /// The limits in force on this host, or why the job does not fit on it.
    fn fit(
        &self,
        draft: Draft,
        asked: &LimitArgs,
        forecasts: Vec<Accuracy>,
        before: &[Link],
    ) -> Result<Plan, PlanError> {
        let Draft { spec, inputs, needs, cut, mut warnings } = draft;
        let host = self.host();
        let limits = limits::in_force(asked, &self.config.limits, (&spec, &needs), &host)?;
        let estimate = needs.estimate.clone();
        self.models.check_room(estimate.download_bytes.saturating_add(estimate.disk_bytes))?;
        warnings.extend(limits::warnings(&limits, &estimate, &forecasts, &host));
        warnings.extend(gpus::unused(&spec, limits.gpus));
        let room = Room { free: self.models.free(), kept: self.config.disk.min_free_state.0 };
        warnings.extend(chain::warning(&spec, &needs, &limits, before, room));
        Ok(Plan { spec, inputs, limits, estimate, forecasts, foreseen: Vec::new(), cut, warnings })
    }

    /// The jobs that have not ended yet and that this one waits for, directly or by way of others.
    async fn awaited(&self, inputs: &ResolvedInputs) -> Result<Vec<Link>, StoreError> {
        let read = inputs.awaited();
        let mut open = read.clone();
        let mut found: Vec<Link> = Vec::new();
        while let Some(id) = open.pop().filter(|_| found.len() < LONGEST_CHAIN) {
            let job = self.store.job(id).await?;
            if !job.state.is_done() && found.iter().all(|link| link.job != id) {
                open.extend(job.inputs.awaited());
                found.push(Link::of(&job, read.contains(&id)));
            }
        }
        Ok(found)
    }

    /// What a job is planned under, by how well those of the same kind and method were predicted.
    async fn terms(&self, spec: &JobSpec, asked: &LimitArgs, past: &[Forecast]) -> Result<Terms, StoreError> {
        let of_kind = self.store.forecasts_of_kind(spec.kind()).await?;
        let method = forecast::method_of(spec, 0);
        let shipped = |of: fn(&str, Option<&str>) -> Vec<f64>| of(spec.kind(), method.as_deref());
        Ok(Terms {
            margin: Margin::learnt(Quantity::Memory, past, &of_kind, &shipped(shipped_memory)),
            disk: Margin::learnt(Quantity::Disk, past, &of_kind, &shipped(shipped_disk)),
            pace: Margin::learnt(Quantity::Time, past, &of_kind, &[]),
            gpu: Margin::learnt(Quantity::GpuMemory, past, &of_kind, &[]),
            cpu_millis: limits::cpu_millis(asked, &self.config.limits, &self.host()),
            gpus: asked.gpus.unwrap_or(0),
            memory_bytes: asked.memory_mib.map(|mib| mib << 20),
            gpu_memory_bytes: self.host().gpus.and_then(|offer| offer.memory_for(asked)),
        })
    }

    /// Whether a job has room in what it was given, or else in what jobs may use on this host.
    fn has_room(&self, needs: &Needs, terms: Terms) -> bool {
        let host = self.host().capacity.map_or(u64::MAX, |capacity| capacity.memory_bytes);
        let fits = match terms.memory_bytes {
            Some(given) => needs.estimate.memory_bytes <= given.min(host),
            None => needs.memory_limit() <= host,
        };
        let on_gpu = needs.estimate.needs.get(&Quantity::GpuMemory).map_or(0, |need| need.expected);
        fits && terms.gpu_memory_bytes.is_none_or(|given| on_gpu <= given)
    }

    /// How the job will fail, if it ends as the newest of those did that asked for no more.
    async fn foresee(&self, plan: &Plan) -> Result<Vec<Foreseen>, StoreError> {
        let like = self.store.like(plan.spec.kind(), &plan.inputs, LOOKED_AT).await?;
        let past: Vec<_> = like.into_iter().filter_map(past).collect();
        let Some(omen) = before::foresee(&plan.spec, &plan.limits, &past) else { return Ok(Vec::new()) };
        let kept = self.store.failure_of(omen.past.job, omen.past.attempt).await?;
        let fingerprint = match kept {
            Some(kept) => kept.fingerprint,
            // It is older than failures are kept; its message is there nevertheless.
            None => Signature::of(omen.failure, Witness::Message).fingerprint(),
        };
        Ok(vec![omen.foreseen(fingerprint.0)])
    }

    async fn finetune(&self, mut spec: FinetuneSpec, asked: &FinetuneArgs, terms: Terms) -> Result<Draft, PlanError> {
        let (model, doubt) = self.model(&spec.model, spec.adapter.as_deref()).await?;
        let data = self.data(&spec.dataset, spec.eval_dataset.as_deref(), &mut spec.columns).await?;
        let data = self.counted(data, &spec, &model.input.source).await?;
        let mut warnings = finetune::keep_adapters_shape(&mut spec, asked, &model);
        finetune::check(&spec, &model, &data)?;
        warnings.extend(doubt);
        warnings.extend(finetune::warnings(&model.facts, &data));
        let asked = spec.recipe.clone();
        let least_rows = if spec.objective == Objective::Kto { 2 } else { 1 };
        let chosen = auto::choose(auto::finetunes(&spec, least_rows), |spec| {
            self.has_room(&finetune::needs(spec, &model, &data, terms), terms)
        });
        let spec = chosen.unwrap_or(spec);
        warnings.extend(auto::said(&asked, &spec.recipe, Some(spec.method)));
        let needs = finetune::needs(&spec, &model, &data, terms);
        let limit = model.facts.max_positions;
        let cut = data.cut(spec.recipe.seq_length(limit), limit);
        let inputs = ResolvedInputs { model: Some(model.input), ..data.inputs() };
        Ok(Draft { spec: JobSpec::Finetune(spec), inputs, needs, cut, warnings })
    }

    async fn train(&self, mut spec: TrainSpec, terms: Terms) -> Result<Draft, PlanError> {
        let tokenizer = match &spec.tokenizer {
            Some(name) => Some(self.models.resolve(name).await?),
            None => None,
        };
        let data = self.data(&spec.dataset, spec.eval_dataset.as_deref(), &mut spec.columns).await?;
        train::check(&data)?;
        let candidates = auto::recipes(&spec.recipe, 1).into_iter();
        let candidates = candidates.map(|recipe| TrainSpec { recipe, ..spec.clone() }).collect();
        let chosen = auto::choose(candidates, |spec| {
            self.has_room(&train::needs(spec, tokenizer.as_ref(), &data, terms), terms)
        });
        let mut warnings = data.warnings();
        warnings.extend(chosen.as_ref().and_then(|chosen| auto::said(&spec.recipe, &chosen.recipe, None)));
        let spec = chosen.unwrap_or(spec);
        let needs = train::needs(&spec, tokenizer.as_ref(), &data, terms);
        let inputs = ResolvedInputs { tokenizer: tokenizer.map(|model| model.input), ..data.inputs() };
        Ok(Draft { spec: JobSpec::Train(spec), inputs, needs, cut: None, warnings })
    }

    async fn quantize(&self, mut spec: QuantizeSpec, terms: Terms) -> Result<Draft, PlanError> {
        let (model, doubt) = self.model(&spec.model, spec.adapter.as_deref()).await?;
        let data = match spec.imatrix_dataset.clone() {
            Some(name) => Some(self.data(&name, None, &mut spec.columns).await?),
            None => None,
        };
        quantize::check(&spec, data.as_ref())?;
        let mut warnings = quantize::warnings(&spec, &model.facts, data.as_ref());
        warnings.extend(doubt);
        let needs = quantize::needs(&spec, &model, data.as_ref(), terms);
        let read = data.map(|data| data.inputs()).unwrap_or_default();
        let inputs = ResolvedInputs { model: Some(model.input), ..read };
        Ok(Draft { spec: JobSpec::Quantize(spec), inputs, needs, cut: None, warnings })
    }

    async fn evaluate(&self, mut spec: EvaluateSpec, terms: Terms) -> Result<Draft, PlanError> {
        let (first, doubt) = self.model(&spec.model, spec.adapter.as_deref()).await?;
        let mut warnings = Vec::from_iter(doubt);
        let mut models = vec![first];
        for compared in &spec.compare_with {
            let (model, doubt) = self.model(&compared.model, compared.adapter.as_deref()).await?;
            models.push(model);
            warnings.extend(doubt);
        }
        let data = self.data(&spec.dataset, None, &mut spec.columns).await?;
        evaluate::check(&spec, &models, &data)?;
        warnings.extend(evaluate::warnings(&spec, &models, &data));
        let needs = evaluate::needs(&spec, &models, &data, terms);
        let mut models = models.into_iter().map(|model| model.input);
        let inputs = ResolvedInputs { model: models.next(), compared: models.collect(), ..data.inputs() };
        Ok(Draft { spec: JobSpec::Evaluate(spec), inputs, needs, cut: None, warnings })
    }

    /// A model with the adapter over it, and what is doubtful about the two.
    async fn model(&self, name: &str, adapter: Option<&str>) -> Result<(models::Resolved, Option<String>), PlanError> {
        let model = self.models.resolve(name).await?;
        Ok(match adapter {
            Some(adapter) => self.models.with_adapter(model, adapter).await?,
            None => (model, None),
        })
    }

    /// The rows of the job, read with its columns. Where it names none, it uses those that the dataset was loaded
    /// with.
    async fn data(&self, rows: &str, eval: Option<&str>, columns: &mut Option<Columns>) -> Result<Data, PlanError> {
        let rows = self.datasets.resolve(rows).await?;
        let named = columns.clone().unwrap_or_else(|| rows.manifest.columns.clone());
        let rows = self.datasets.with_columns(rows, &named).await?;
        let eval = match eval {
            Some(name) => {
                let eval = self.datasets.resolve(name).await?;
                Some(self.datasets.with_columns(eval, &named).await?)
            }
            None => None,
        };
        *columns = (named != Columns::default()).then_some(named);
        Ok(Data { rows, eval, lengths: None })
    }

    /// The same with what a tokenizer has counted of the rows before.
    async fn counted(&self, data: Data, spec: &FinetuneSpec, model: &ModelSource) -> Result<Data, StoreError> {
        let lengths = match Counting::by(spec, model, &data.rows.input.digest) {
            Some(of) => self.store.row_lengths(&of).await?,
            None => None,
        };
        Ok(Data { lengths, ..data })
    }

    fn host(&self) -> Host {
        let engine = self.engine.now();
        Host {
            capacity: engine.as_ref().map(|info| self.config.capacity.of(info)).map_err(ToString::to_string),
            gpus: engine.as_ref().ok().map(|info| gpus::Offer {
                units: HostUnit::all(&self.gpus.now()),
                most: info.gpus.most_gpus,
                barrier: info.gpus.barrier(),
            }),
            image: engine.and_then(|info| info.image).map(drop).map_err(|error| error.to_string()),
        }
    }
}

impl Data {
    /// Where the rows are, for a job that reads nothing else.
    fn inputs(self) -> ResolvedInputs {
        ResolvedInputs {
            dataset: Some(self.rows.input),
            eval_dataset: self.eval.map(|eval| eval.input),
            ..ResolvedInputs::default()
        }
    }
}

/// How a job has ended; nothing of one that has not.
fn past(job: Job) -> Option<Past> {
    let Job { id, attempt, spec, limits, state: JobState::Done(outcome), .. } = job else { return None };
    Some(Past { job: id, attempt, spec, limits, outcome })
}

/// What jobs may use, or why that is not known.
struct Host {
    capacity: Result<Capacity, String>,
    /// Nothing where no engine says what its containers can have.
    gpus: Option<gpus::Offer>,
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
