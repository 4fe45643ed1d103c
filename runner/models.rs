//! The model store: what jobs may start from.
//!
//! A model is looked at before it enters, by its headers alone: whether it is whole, whether configuration, weights and
//! tokenizer fit together, and whether the worker knows its architecture. What is in the store can be loaded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drydock_gpu::Decoder;
use drydock_spec::{Failure, FailureKind, Stage};
use serde::{Deserialize, Serialize};

use crate::api::{AddModel, FileRef, ModelView};
use crate::artifacts::ArtifactStore;
use crate::blobs::{self, BlobError, Blobs, StoredFile, digest_of};
use crate::config::Config;
use crate::data_dirs::{DataDirs, Found, OpenFile, PathError};
use crate::hub::{Hub, HubError, Reference, Turns};
use crate::names::{self, BadName};
use crate::plan::{AdapterInput, ModelInput, ModelSource};
use crate::store::{CatalogEntry, Store, StoreError};

mod architecture;
mod config;
mod from_hub;
mod from_job;
mod gguf;
mod inspect;
mod outputs;
mod safetensors;
mod tensors;
mod tokenizer;

pub use from_job::AdapterFacts;
use from_job::JobReference;
pub(crate) use from_job::decoder_of;
pub use tokenizer::TokensBeyond;

/// A model cannot be found, read or added.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("no model `{name}`; {next}")]
    Unknown { name: String, next: String },
    #[error("{0}")]
    Request(&'static str),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{file}: {problem}")]
    Unusable { file: String, problem: Unusable },
    #[error("`{name}`: {problem}; {next}")]
    FromJob { name: String, problem: String, next: String },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a model's file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {next}")]
pub struct Unusable {
    /// Whole and in order, but nothing that the worker can do.
    pub unsupported: bool,
    pub problem: String,
    pub next: String,
}

impl Unusable {
    fn damaged(problem: impl Into<String>, next: impl Into<String>) -> Self {
        Self { unsupported: false, problem: problem.into(), next: next.into() }
    }

    fn unsupported(problem: impl Into<String>, next: impl Into<String>) -> Self {
        Self { unsupported: true, problem: problem.into(), next: next.into() }
    }

    fn of(self, file: &str) -> ModelError {
        ModelError::Unusable { file: file.to_owned(), problem: self }
    }
}

/// How a model's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsFormat {
    Gguf,
    Safetensors,
}

/// What a model's headers say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Such as `llama`.
    pub architecture: String,
    pub decoder: Decoder,
    /// Longest sequence in tokens.
    pub max_positions: u32,
    /// What most of the weights are stored as, such as `Q4_1` or `bf16`.
    pub dtype: String,
    pub has_chat_template: bool,
    /// Tokens that its tokenizer has and it has no embedding for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_beyond: Option<TokensBeyond>,
}

/// What is kept of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: WeightsFormat,
    pub facts: Facts,
    pub files: Vec<StoredFile>,
    /// Where it came from: a file's name, or `hf:owner/name@commit`.
    pub origin: String,
}

/// A model that a job may start from, as the planner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub input: ModelInput,
    pub facts: Facts,
    /// What must be fetched first, in bytes.
    pub download_bytes: u64,
    /// How the adapter over it was made, where there is one.
    pub adapter: Option<AdapterFacts>,
}

/// The models on this host. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Models {
    store: Store,
    blobs: Blobs,
    hub: Hub,
    /// Attempts that need the same model from the hub share one download.
    turns: Turns,
    /// What jobs have left.
    artifacts: ArtifactStore,
    dirs: DataDirs,
    /// One folder a model, by digest.
    root: Arc<Path>,
}

/// Files on their way into the store.
struct Incoming {
    /// What the caller called them.
    source: String,
    /// What the model is called if the caller does not say.
    name: String,
    files: Vec<OpenFile>,
    /// Digests of those that are blobs already.
    known: HashMap<String, String>,
}

impl Models {
    pub fn new(store: Store, blobs: Blobs, hub: Hub, artifacts: ArtifactStore, config: &Config) -> Self {
        let dirs = DataDirs::new(config.data_dirs.clone());
        let root = config.state_dir.join("models").into();
        Self { store, blobs, hub, turns: Turns::default(), artifacts, dirs, root }
    }

    /// All models, by name.
    pub async fn list(&self) -> Result<Vec<ModelView>, ModelError> {
        Ok(self.store.models().await?.into_iter().map(view).collect())
    }

    /// Adds a model from the hub, the host's files or blobs. What had its name before loses it.
    pub async fn add(&self, request: AddModel) -> Result<ModelView, ModelError> {
        if let Some(name) = &request.name {
            names::check(name)?;
        }
        let AddModel { name, source, files } = request;
        let incoming = match source {
            Some(source) if files.is_empty() && Reference::is_meant(&source) => {
                let reference = source.parse().map_err(HubError::from)?;
                self.download(&reference).await?
            }
            Some(source) if files.is_empty() && JobReference::is_meant(&source) => self.open_from_job(&source).await?,
            Some(source) if files.is_empty() => self.blocking(move |models| models.open_path(&source)).await?,
            None if !files.is_empty() => self.blocking(move |models| models.open_blobs(&files)).await?,
            _ => return Err(ModelError::Request("give either `source` or `files`")),
        };
        let name = name.unwrap_or_else(|| names::usual(&incoming.name));
        let manifest = self.blocking(move |models| models.take_in(incoming)).await?;
        self.enter(name, manifest).await
    }

    /// Forgets a model's name; says whether it was known. Its files stay for the jobs that were accepted with it.
    pub async fn remove(&self, name: &str) -> Result<bool, ModelError> {
        Ok(self.store.remove_model(name).await?)
    }

    /// What a caller means by `name`: a model of the store by its name, or by the beginning of its digest, or a model
    /// on the hub, which is pinned to the commit that it has now, or what a job has left or will leave.
    pub async fn resolve(&self, name: &str) -> Result<Resolved, ModelError> {
        if Reference::is_meant(name) {
            let reference = name.parse().map_err(HubError::from)?;
            return self.resolve_on_hub(name, &reference).await;
        }
        if JobReference::is_meant(name) {
            return self.resolve_from_job(name, &name.parse()?).await;
        }
        Ok(stored(name, self.find(name).await?))
    }

    /// Refuses what would not fit on the state folder's disk.
    pub fn check_room(&self, bytes: u64) -> Result<(), BlobError> {
        self.blobs.check_room(bytes)
    }

    /// Bytes that are free on the state folder's disk.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.blobs.free()
    }

    /// The folder with the model's files, fetched from the hub first if need be.
    pub async fn ensure(&self, input: &ModelInput) -> Result<PathBuf, Failure> {
        let ready = match &input.source {
            ModelSource::Stored { digest } => self.folder(&input.name, digest).await,
            ModelSource::Hub { repo, commit } => self.ensure_from_hub(repo, commit).await,
            ModelSource::Awaited { job } => self.ensure_from_job(*job, false).await,
        };
        ready.map_err(|error| failure(&error))
    }

    /// The folder with an adapter's files.
    pub async fn ensure_adapter(&self, input: &AdapterInput) -> Result<PathBuf, Failure> {
        let ready = match &input.source {
            ModelSource::Awaited { job } => self.ensure_from_job(*job, true).await,
            ModelSource::Stored { digest } => self.folder(&input.name, digest).await,
            ModelSource::Hub { repo, .. } => {
                let next = "name the job that made the adapter: job:<id>".to_owned();
                Err(ModelError::Unknown { name: repo.clone(), next })
            }
        };
        ready.map_err(|error| failure(&error))
    }

    /// What the headers of a stored model say, whether or not it still has a name.
    async fn facts_of_stored(&self, name: &str, digest: &str) -> Result<Facts, ModelError> {
        let entries = self.store.models::<Manifest>().await?;
        if let Some(entry) = entries.into_iter().find(|entry| entry.digest == digest) {
            return Ok(entry.manifest.facts);
        }
        let folder = self.folder(name, digest).await?;
        let source = name.to_owned();
        self.blocking(move |_| Ok(inspect::inspect(&source, open_folder(&folder)?)?.facts)).await
    }

    async fn folder(&self, name: &str, digest: &str) -> Result<PathBuf, ModelError> {
        let folder = self.root.join(digest);
        if tokio::fs::try_exists(&folder).await.unwrap_or(false) {
            return Ok(folder);
        }
        // Somebody cleared the folder; the blobs may still be there.
        let entries = self.store.models::<Manifest>().await?;
        let Some(entry) = entries.into_iter().find(|entry| entry.digest == digest) else {
            let next = format!("its files (digest {digest}) are gone; add it again");
            return Err(ModelError::Unknown { name: name.to_owned(), next });
        };
        self.blocking(move |models| Ok(models.blobs.assemble(&models.root, &entry.manifest.files)?)).await
    }

    async fn find(&self, name: &str) -> Result<CatalogEntry<Manifest>, ModelError> {
        let entries = self.store.models().await?;
        names::pick(name, entries, EMPTY).map_err(|next| {
            let next = if name.contains('/') { A_PATH.to_owned() } else { next };
            ModelError::Unknown { name: name.chars().take(200).collect(), next }
        })
    }

    async fn enter(&self, name: String, manifest: Manifest) -> Result<ModelView, ModelError> {
        let digest = digest_of(&manifest.files);
        self.store.put_model(&name, &digest, &manifest).await?;
        tracing::info!(model = name, digest, origin = manifest.origin, "model added");
        let added_ms = self.store.clock().now_ms();
        Ok(view(CatalogEntry { name, digest, manifest, added_ms }))
    }

    fn open_path(&self, path: &str) -> Result<Incoming, ModelError> {
        let (name, files) = match self.dirs.open(path)? {
            Found::File(file) => {
                if file.name.ends_with(".safetensors") {
                    let problem = "weights without config.json and tokenizer.json";
                    return Err(Unusable::damaged(problem, "give the folder that holds all three").of(path));
                }
                (file.name.trim_end_matches(".gguf").to_owned(), vec![file])
            }
            Found::Folder { name, files } => (name, files),
        };
        Ok(Incoming { source: path.to_owned(), name, files, known: HashMap::new() })
    }

    fn open_blobs(&self, files: &[FileRef]) -> Result<Incoming, ModelError> {
        let mut opened = Vec::new();
        let mut known = HashMap::new();
        for FileRef { path, sha256 } in files {
            blobs::check_name(path)?;
            let file = self.blobs.read(sha256)?;
            let bytes = file.metadata().map_err(|error| BlobError::Io { path: path.into(), error })?.len();
            opened.push(OpenFile { name: path.clone(), file, bytes });
            known.insert(path.clone(), sha256.clone());
        }
        let name = files.iter().find_map(|file| file.path.strip_suffix(".gguf")).unwrap_or("uploaded").to_owned();
        Ok(Incoming { source: "uploaded files".into(), name, files: opened, known })
    }

    /// Does what takes long or waits for the disk, on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ModelError> + Send + 'static,
    ) -> Result<T, ModelError> {
        let models = self.clone();
        tokio::task::spawn_blocking(move || work(&models)).await.unwrap_or_else(|error| {
            Err(BlobError::Io { path: self.root.to_path_buf(), error: std::io::Error::other(error) }.into())
        })
    }

    /// Looks at the files, and brings those that are needed into the store. Blocks.
    fn take_in(&self, incoming: Incoming) -> Result<Manifest, ModelError> {
        let Incoming { source, files, known, .. } = incoming;
        let inspected = inspect::inspect(&source, files)?;
        let mut stored = Vec::new();
        for mut needed in inspected.files {
            let (sha256, bytes) = match known.get(&needed.file.name) {
                Some(sha256) => (sha256.clone(), needed.file.bytes),
                None => {
                    let blob = self.blobs.put_file(&mut needed.file.file)?;
                    (blob.sha256, blob.bytes)
                }
            };
            stored.push(StoredFile { path: needed.path, sha256, bytes });
        }
        self.blobs.assemble(&self.root, &stored)?;
        Ok(Manifest { format: inspected.format, facts: inspected.facts, files: stored, origin: source })
    }
}

fn stored(name: &str, entry: CatalogEntry<Manifest>) -> Resolved {
    let source = ModelSource::Stored { digest: entry.digest };
    let input = ModelInput { name: name.to_owned(), source, adapter: None };
    Resolved { input, facts: entry.manifest.facts, download_bytes: 0, adapter: None }
}

/// The files of a folder of ours.
fn open_folder(folder: &Path) -> Result<Vec<OpenFile>, BlobError> {
    let open = || {
        std::fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                let file = std::fs::File::open(entry.path())?;
                let bytes = file.metadata()?.len();
                Ok(OpenFile { name: entry.file_name().to_string_lossy().into_owned(), file, bytes })
            })
            .collect::<std::io::Result<Vec<_>>>()
    };
    open().map_err(|error| BlobError::Io { path: folder.to_owned(), error })
}

const EMPTY: &str = "the store is empty: add one with `drydock models add`, or name hf:owner/name";
const A_PATH: &str =
    "a file or folder must be added first (`drydock models add <path>`), then named as list_models shows it";

fn view(entry: CatalogEntry<Manifest>) -> ModelView {
    let CatalogEntry { name, digest, manifest, added_ms } = entry;
    ModelView {
        name,
        digest,
        architecture: manifest.facts.architecture,
        parameters: manifest.facts.decoder.parameters(),
        max_positions: manifest.facts.max_positions,
        format: match manifest.format {
            WeightsFormat::Gguf => "gguf".into(),
            WeightsFormat::Safetensors => "safetensors".into(),
        },
        dtype: manifest.facts.dtype,
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        origin: manifest.origin,
        has_chat_template: manifest.facts.has_chat_template,
        added_ms,
    }
}

/// Why an attempt cannot start.
fn failure(error: &ModelError) -> Failure {
    let kind = match error {
        ModelError::Unknown { .. } | ModelError::FromJob { .. } => FailureKind::NotFound,
        ModelError::Unusable { problem, .. } if problem.unsupported => FailureKind::UnsupportedModel,
        ModelError::Unusable { .. } => FailureKind::BadModel,
        ModelError::Hub(HubError::NotFound { .. } | HubError::Offline(_) | HubError::Reference(_)) => {
            FailureKind::NotFound
        }
        ModelError::Hub(HubError::Denied { .. }) => FailureKind::AccessDenied,
        ModelError::Hub(HubError::Unavailable { .. } | HubError::Corrupt { .. }) => FailureKind::HubUnavailable,
        ModelError::Blob(BlobError::Full { .. }) | ModelError::Hub(HubError::Blob(BlobError::Full { .. })) => {
            FailureKind::NoRoom
        }
        ModelError::Request(_)
        | ModelError::Name(_)
        | ModelError::Path(_)
        | ModelError::Hub(HubError::Setup(_) | HubError::Blob(_))
        | ModelError::Blob(_)
        | ModelError::Store(_) => FailureKind::Internal,
    };
    Failure::new(kind, error.to_string()).at(Stage::Prepare)
}
