//! Models out of jobs: what `job:<id>` stands for, now or when the job has ended.
//!
//! What a job has left cannot change any more, so it enters the model store under its digest like every other model:
//! by a second name for the same files, which costs no room and stays when the job's artifacts go.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use drydock_gpu::Decoder;
use drydock_spec::finetune::{FinetuneSpec, Method, TargetModule};
use drydock_spec::id::NotAJobId;
use drydock_spec::train::TrainSpec;
use drydock_spec::{JobId, JobSpec, JobState, Outcome};

use super::outputs::{self, Output};
use super::{Facts, Incoming, ModelError, Models, Resolved};
use crate::blobs::{BlobError, StoredFile, check_name, digest_of};
use crate::data_dirs::OpenFile;
use crate::plan::{AdapterInput, ModelInput, ModelSource};
use crate::store::{Job, StoreError};

/// What a job's name begins with where a model's is expected.
const PREFIX: &str = "job:";

/// `job:<id>`, or `job:<id>/<path>` for one of several things that a job has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobReference {
    pub(super) job: JobId,
    path: Option<String>,
}

/// How an adapter was made, which whoever uses it has to know.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFacts {
    pub lora_r: u32,
    pub lora_alpha: f64,
    pub target_modules: Vec<TargetModule>,
    /// Whether it holds DoRA's magnitudes.
    pub is_dora: bool,
}

/// What a job leaves behind, when it has.
enum Promise {
    Model(Facts),
    /// An adapter over this model.
    Adapter(Box<Resolved>, AdapterFacts),
}

impl JobReference {
    /// Whether the caller means a job, rightly written or not.
    pub(super) fn is_meant(name: &str) -> bool {
        name.starts_with(PREFIX)
    }
}

impl FromStr for JobReference {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let rest = name.strip_prefix(PREFIX).unwrap_or(name);
        let (job, path) = rest.split_once('/').map_or((rest, None), |(job, path)| (job, Some(path)));
        // Whoever types an id may well do it in small letters.
        match job.to_ascii_uppercase().parse() {
            Ok(job) => Ok(Self { job, path: path.map(|path| path.trim_end_matches('/').to_owned()) }),
            Err(_) => {
                let problem = NotAJobId(job.chars().take(80).collect()).to_string();
                Err(unusable(name, problem, "write job:<id> as list_jobs shows it"))
            }
        }
    }
}

impl fmt::Display for JobReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.job)
    }
}

fn unusable(name: &str, problem: String, next: impl Into<String>) -> ModelError {
    ModelError::FromJob { name: name.chars().take(200).collect(), problem, next: next.into() }
}

impl Models {
    /// The model that `reference` stands for: whole, or as the adapter that the job left over the model that it began
    /// with. Of a job that has not ended yet, what it will leave.
    pub(super) async fn resolve_from_job(&self, name: &str, reference: &JobReference) -> Result<Resolved, ModelError> {
        let job = self.ended_well_or_under_way(name, reference).await?;
        if !job.state.is_done() {
            return self.awaited(name, reference, &job).await;
        }
        let left = self.left_by(&job).await?;
        match outputs::whole(&left, reference.path.as_deref()) {
            Ok(output) => {
                let (digest, facts) = self.take_in_output(name, &job, output).await?;
                let source = ModelSource::Stored { digest };
                let input = ModelInput { name: name.to_owned(), source, adapter: None };
                Ok(Resolved { input, facts, download_bytes: 0, adapter: None })
            }
            // An adapter alone stands for the model that it was trained on, with it.
            Err(error) => match (&job.spec, outputs::adapter(&left, reference.path.as_deref())) {
                (JobSpec::Finetune(spec), Ok(output)) => {
                    let base = self.base_of(&job).await?;
                    let source = ModelSource::Stored { digest: self.take_in_adapter(name, &job, output).await? };
                    Ok(over(name, base, source, adapter_facts(spec)))
                }
                _ => Err(unusable(name, error.problem, error.next)),
            },
        }
    }

    /// `base` with the adapter that `name` stands for. An adapter that was trained on another model of the same shape
    /// is taken with a warning; on one of another shape it cannot be put.
    pub async fn with_adapter(&self, base: Resolved, name: &str) -> Result<(Resolved, Option<String>), ModelError> {
        if let Some(own) = &base.input.adapter {
            let problem = format!("`{}` is an adapter over its model already", own.name);
            return Err(unusable(name, problem, "give one of the two, or merge the first one (keep \"merged\")"));
        }
        if !JobReference::is_meant(name) {
            let problem = "not the name of a job's adapter".to_owned();
            return Err(unusable(name, problem, "give job:<id> of a finetune with method lora, qlora or dora"));
        }
        let reference: JobReference = name.parse()?;
        let job = self.ended_well_or_under_way(name, &reference).await?;
        let JobSpec::Finetune(spec) = &job.spec else {
            let problem = format!("job {} is of the kind {} and leaves no adapter", job.id, job.spec.kind());
            return Err(unusable(name, problem, "give job:<id> of a finetune with method lora, qlora or dora"));
        };
        let source = match job.state.is_done() {
            true => {
                let left = self.left_by(&job).await?;
                let output = outputs::adapter(&left, reference.path.as_deref())
                    .map_err(|error| unusable(name, error.problem, error.next))?;
                ModelSource::Stored { digest: self.take_in_adapter(name, &job, output).await? }
            }
            false if spec.method.has_adapter() && spec.keep.adapter() => ModelSource::Awaited { job: job.id },
            false => {
                let problem = format!("job {} will leave a whole model and no adapter", job.id);
                return Err(unusable(name, problem, "give it as `model`"));
            }
        };
        let trained_on = self.base_of(&job).await?;
        let warning = check_fit(name, &base, &trained_on)?;
        Ok((over(name, base, source, adapter_facts(spec)), warning))
    }

    /// The files of what a job has left, to be added to the store under a name.
    pub(super) async fn open_from_job(&self, name: &str) -> Result<Incoming, ModelError> {
        let reference: JobReference = name.parse()?;
        let job = self.ended_well_or_under_way(name, &reference).await?;
        if !job.state.is_done() {
            let problem = format!("job {} is {}", job.id, job.state.word());
            return Err(unusable(name, problem, "add it when the job has succeeded"));
        }
        let left = self.left_by(&job).await?;
        let output = outputs::whole(&left, reference.path.as_deref())
            .map_err(|error| unusable(name, error.problem, error.next))?;
        let (folder, output, source) = (self.artifacts.folder(job.id), output.clone(), name.to_owned());
        self.blocking(move |models| models.adopt(&folder, &output, &source)).await
    }

    /// The folder of what an awaited job has left, which has succeeded by now.
    pub(super) async fn ensure_from_job(&self, job: JobId, adapter: bool) -> Result<PathBuf, ModelError> {
        let name = format!("{PREFIX}{job}");
        let reference = JobReference { job, path: None };
        let job = self.ended_well_or_under_way(&name, &reference).await?;
        let left = self.left_by(&job).await?;
        let chosen = if adapter { outputs::adapter(&left, None) } else { outputs::whole(&left, None) };
        let output = chosen.map_err(|error| unusable(&name, error.problem, error.next))?;
        let digest = match adapter {
            true => self.take_in_adapter(&name, &job, output).await?,
            false => self.take_in_output(&name, &job, output).await?.0,
        };
        Ok(self.root.join(digest))
    }

    /// The job, unless it has ended without leaving anything.
    async fn ended_well_or_under_way(&self, name: &str, reference: &JobReference) -> Result<Job, ModelError> {
        let job = match self.store.job(reference.job).await {
            Err(StoreError::NoSuchJob(id)) => {
                return Err(unusable(name, format!("no job `{id}`"), "list_jobs shows the jobs there are"));
            }
            job => job?,
        };
        let (problem, next) = match &job.state {
            JobState::Done(Outcome::Failed(failure)) => (format!("job {} failed: {failure}", job.id), "mend that job"),
            JobState::Done(Outcome::Cancelled) => (format!("job {} was cancelled", job.id), "submit that job again"),
            _ => return Ok(job),
        };
        Err(unusable(name, format!("{problem}, so it left nothing"), format!("{next}, or name another one")))
    }

    /// What a job under way will leave, as the model of another job.
    async fn awaited(&self, name: &str, reference: &JobReference, job: &Job) -> Result<Resolved, ModelError> {
        if reference.path.is_some() {
            let problem = format!("job {} is {}, so its files are not known yet", job.id, job.state.word());
            return Err(unusable(name, problem, format!("name {reference} without a path, or wait for its end")));
        }
        let source = ModelSource::Awaited { job: job.id };
        match self.promise(job).await? {
            Promise::Model(facts) => {
                let input = ModelInput { name: name.to_owned(), source, adapter: None };
                Ok(Resolved { input, facts, download_bytes: 0, adapter: None })
            }
            Promise::Adapter(base, facts) => Ok(over(name, *base, source, facts)),
        }
    }

    /// What a job leaves if it succeeds, as its options and its own inputs tell.
    async fn promise(&self, job: &Job) -> Result<Promise, ModelError> {
        Ok(match &job.spec {
            JobSpec::Finetune(spec) if spec.keep.merged() => {
                Promise::Model(Facts { dtype: "f32".into(), ..self.base_of(job).await?.facts })
            }
            JobSpec::Finetune(spec) => Promise::Adapter(Box::new(self.base_of(job).await?), adapter_facts(spec)),
            JobSpec::Train(spec) => Promise::Model(self.facts_of_training(job, spec).await?),
            JobSpec::Quantize(spec) => {
                Promise::Model(Facts { dtype: spec.quant_type.name().into(), ..self.base_of(job).await?.facts })
            }
            JobSpec::Evaluate(_) => {
                let problem = format!("job {} is an evaluation and leaves no model", job.id);
                let next = "name a finetune, a training or a quantization";
                return Err(unusable(&format!("{PREFIX}{}", job.id), problem, next));
            }
        })
    }

    /// The model that a job begins with, without the adapter that it goes on from: what the job makes replaces it.
    async fn base_of(&self, job: &Job) -> Result<Resolved, ModelError> {
        let Some(input) = &job.inputs.model else {
            let name = format!("{PREFIX}{}", job.id);
            return Err(unusable(&name, "the job began with no model".into(), "name another one"));
        };
        // Boxed, because a job may have begun with another job's model, and that one with another's.
        Box::pin(self.settled(ModelInput { adapter: None, ..input.clone() })).await
    }

    /// What is known now of a model that a job was accepted with.
    async fn settled(&self, input: ModelInput) -> Result<Resolved, ModelError> {
        match &input.source {
            ModelSource::Stored { digest } => {
                let facts = self.facts_of_stored(&input.name, digest).await?;
                Ok(Resolved { input, facts, download_bytes: 0, adapter: None })
            }
            ModelSource::Hub { repo, commit } => self.resolve_pinned(&input.name, repo, commit).await,
            ModelSource::Awaited { job } => {
                self.resolve_from_job(&input.name, &JobReference { job: *job, path: None }).await
            }
        }
    }

    async fn facts_of_training(&self, job: &Job, spec: &TrainSpec) -> Result<Facts, ModelError> {
        let vocabulary = match &job.inputs.tokenizer {
            Some(input) => Box::pin(self.settled(input.clone())).await?.facts.decoder.vocabulary,
            None => spec.vocab_size,
        };
        Ok(Facts {
            architecture: "llama".into(),
            decoder: decoder_of(spec, vocabulary),
            max_positions: spec.config.max_position_embeddings,
            dtype: "f32".into(),
            has_chat_template: false,
            tokens_beyond: None,
        })
    }

    async fn left_by(&self, job: &Job) -> Result<Vec<Output>, ModelError> {
        if job.artifacts_removed_ms.is_some() {
            let problem = format!("what job {} left was removed, as [retention] of the configuration says", job.id);
            return Err(unusable(&format!("{PREFIX}{}", job.id), problem, "submit that job again"));
        }
        Ok(outputs::among(&self.store.artifacts(job.id).await?))
    }

    /// The digest and the facts of a whole model that a job has left, which is in the store from now on.
    async fn take_in_output(&self, name: &str, job: &Job, output: &Output) -> Result<(String, Facts), ModelError> {
        let (folder, output, source) = (self.artifacts.folder(job.id), output.clone(), name.to_owned());
        self.blocking(move |models| {
            let incoming = models.adopt(&folder, &output, &source)?;
            let manifest = models.take_in(incoming)?;
            Ok((digest_of(&manifest.files), manifest.facts))
        })
        .await
    }

    /// The digest of an adapter's folder, which is in the store from now on.
    async fn take_in_adapter(&self, name: &str, job: &Job, output: &Output) -> Result<String, ModelError> {
        let (folder, output, source) = (self.artifacts.folder(job.id), output.clone(), name.to_owned());
        self.blocking(move |models| {
            models.adopt(&folder, &output, &source)?;
            let files: Vec<_> = output
                .files
                .iter()
                // What hides in the folder is no part of an adapter.
                .filter(|file| check_name(outputs::file_name(&file.path)).is_ok())
                .map(|file| StoredFile {
                    path: outputs::file_name(&file.path).to_owned(),
                    sha256: file.sha256.clone(),
                    bytes: file.bytes,
                })
                .collect();
            models.blobs.assemble(&models.root, &files)?;
            Ok(digest_of(&files))
        })
        .await
    }

    /// Makes blobs of a job's files, and opens them. Blocks.
    fn adopt(&self, folder: &Path, output: &Output, source: &str) -> Result<Incoming, ModelError> {
        let mut incoming = Incoming {
            source: source.to_owned(),
            name: source.trim_start_matches(PREFIX).to_owned(),
            files: Vec::new(),
            known: HashMap::new(),
        };
        for artifact in &output.files {
            let path = folder.join(&artifact.path);
            self.blobs.link(&path, &artifact.sha256)?;
            let file = File::open(&path).map_err(|error| BlobError::Io { path, error })?;
            let name = outputs::file_name(&artifact.path).to_owned();
            incoming.known.insert(name.clone(), artifact.sha256.clone());
            incoming.files.push(OpenFile { name, file, bytes: artifact.bytes });
        }
        Ok(incoming)
    }
}

/// The decoder of a training's shape.
pub(crate) fn decoder_of(spec: &TrainSpec, vocabulary: u32) -> Decoder {
    let shape = &spec.config;
    Decoder {
        layers: shape.num_hidden_layers,
        hidden: shape.hidden_size,
        heads: shape.num_attention_heads,
        kv_heads: shape.num_key_value_heads,
        head_dim: shape.hidden_size / shape.num_attention_heads.max(1),
        ffn: shape.intermediate_size,
        vocabulary,
        tied: shape.tie_word_embeddings,
        layer_vectors: 0,
        norms_after: false,
    }
}

fn over(name: &str, base: Resolved, source: ModelSource, facts: AdapterFacts) -> Resolved {
    let adapter = AdapterInput { name: name.to_owned(), source };
    let input = ModelInput { adapter: Some(adapter), ..base.input };
    Resolved { input, facts: base.facts, download_bytes: base.download_bytes, adapter: Some(facts) }
}

fn adapter_facts(spec: &FinetuneSpec) -> AdapterFacts {
    AdapterFacts {
        lora_r: spec.lora_r,
        lora_alpha: spec.lora_alpha,
        target_modules: spec.target_modules.clone(),
        is_dora: spec.method == Method::Dora,
    }
}

/// Whether an adapter goes over `base`, and what is doubtful about it.
fn check_fit(name: &str, base: &Resolved, trained_on: &Resolved) -> Result<Option<String>, ModelError> {
    if base.input.source == trained_on.input.source {
        return Ok(None);
    }
    let shape = |resolved: &Resolved| Decoder { tied: false, ..resolved.facts.decoder };
    let (wanted, given) = (&trained_on.input.name, &base.input.name);
    if shape(base) == shape(trained_on) {
        let warning = format!("the adapter `{name}` was trained on `{wanted}`, and is put on `{given}`");
        return Ok(Some(warning));
    }
    let problem = format!("the adapter was trained on `{wanted}`, whose shape is not that of `{given}`");
    Err(unusable(name, problem, format!("use it with `{wanted}`")))
}
