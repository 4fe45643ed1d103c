//! The dataset store: what jobs may learn from.
//!
//! Every row is read before a dataset enters, by the same rules that the worker will read it by; so a job does not
//! find out after an hour that line 7,000 is broken.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drydock_spec::dataset::{Columns, Format};
use drydock_spec::lengths::Lengths;
use drydock_spec::{Failure, FailureKind, Stage};
use serde::{Deserialize, Serialize};

use crate::api::{DatasetView, FileRef, LoadDataset, LoadedDataset, RowsPreview};
use crate::blobs::{self, BlobError, Blobs, StoredFile, digest_of};
use crate::config::Config;
use crate::data_dirs::{DataDirs, Found, OpenFile, PathError};
use crate::hub::{Hub, HubError, HubFile, Kind, Reference};
use crate::names::{self, BadName};
use crate::plan::DatasetInput;
use crate::store::{CatalogEntry, Store, StoreError};

mod preview;
mod read;
mod sniff;
mod text;

pub use read::Place;
use read::Tally;

/// A dataset cannot be found, read or registered.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("no dataset `{name}`; {next}")]
    Unknown { name: String, next: String },
    #[error("{0}")]
    Request(&'static str),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Row(Box<BadRow>),
    #[error("{file}: {problem}; {next}")]
    File { file: String, problem: String, next: String },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, {place}: {problem}; the text there: `{excerpt}`{}", then(.next))]
pub struct BadRow {
    pub file: String,
    pub place: Place,
    pub problem: String,
    /// At most 80 characters, escaped.
    pub excerpt: String,
    /// Empty where the problem says it already.
    pub next: String,
}

fn then(next: &str) -> String {
    if next.is_empty() { String::new() } else { format!("; {next}") }
}

/// What is kept of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: Format,
    /// Rows that something can be learnt from.
    pub rows: u64,
    /// Rows whose answer or text is blank; they are passed over.
    pub blank_rows: u64,
    /// Bytes of all rows' text; more than the files have where rows share a text, as SQuAD's questions do.
    pub text_bytes: u64,
    /// Tokens of the longest row, generously counted: no tokenizer has seen it yet.
    pub longest_row_tokens: u64,
    /// All rows by their length, counted in the same way; empty where the dataset was loaded before that was kept.
    #[serde(default)]
    pub lengths: Lengths,
    pub files: Vec<StoredFile>,
    /// The columns that were named when it was loaded; jobs that name none use them.
    pub columns: Columns,
    /// Where it came from.
    pub origin: String,
}

/// A dataset that a job may learn from, as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub input: DatasetInput,
    pub manifest: Manifest,
}

/// The datasets on this host. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Datasets {
    store: Store,
    blobs: Blobs,
    hub: Hub,
    dirs: DataDirs,
    /// One folder a dataset, by digest.
    root: Arc<Path>,
}

/// Files on their way into the store.
struct Incoming {
    origin: String,
    /// What the dataset is called if the caller does not say.
    name: Option<String>,
    files: Vec<(String, Content)>,
}

/// Where a file's rows are.
enum Content {
    /// A file of the host; not in the store yet.
    Host(OpenFile),
    /// In the store, under this digest.
    Blob(String, File),
    /// Given in the request.
    Rows(Vec<u8>),
}

impl Datasets {
    pub fn new(store: Store, blobs: Blobs, hub: Hub, config: &Config) -> Self {
        let dirs = DataDirs::new(config.data_dirs.clone());
        Self { store, blobs, hub, dirs, root: config.state_dir.join("datasets").into() }
    }

    /// All datasets, by name.
    pub async fn list(&self) -> Result<Vec<DatasetView>, DatasetError> {
        Ok(self.store.datasets().await?.into_iter().map(view).collect())
    }

    /// Registers a dataset, every row of it checked, and shows its first rows. What had its name before loses it.
    pub async fn load(&self, request: LoadDataset) -> Result<LoadedDataset, DatasetError> {
        if let Some(name) = &request.name {
            names::check(name)?;
        }
        let LoadDataset { name, source, rows, files, columns, model: _ } = request;
        let incoming = match (source, rows.is_empty(), files.is_empty()) {
            (Some(source), true, true) if Reference::is_meant(&source) => self.download(&source).await?,
            (Some(source), true, true) => self.blocking(move |datasets| datasets.open_path(&source)).await?,
            (None, false, true) => given_rows(&rows),
            (None, true, false) => self.blocking(move |datasets| datasets.open_blobs(&files)).await?,
            _ => return Err(DatasetError::Request("give exactly one of `source`, `rows` and `files`")),
        };
        let given = incoming.name.clone();
        let columns = columns.unwrap_or_default();
        let (manifest, preview) = self.blocking(move |datasets| datasets.take_in(incoming, columns)).await?;
        let digest = digest_of(&manifest.files);
        let name = name.or(given).unwrap_or_else(|| format!("rows-{}", &digest[..8]));
        self.store.put_dataset(&name, &digest, &manifest).await?;
        tracing::info!(dataset = name, digest, rows = manifest.rows, "dataset loaded");
        let added_ms = self.store.clock().now_ms();
        let dataset = view(CatalogEntry { name, digest, manifest, added_ms });
        Ok(LoadedDataset { dataset, preview, warnings: Vec::new() })
    }

    /// Forgets a dataset's name; says whether it was known. Its files stay for the jobs that were accepted with it.
    pub async fn remove(&self, name: &str) -> Result<bool, DatasetError> {
        Ok(self.store.remove_dataset(name).await?)
    }

    /// What a caller means by `name`: a dataset by its name, or by the beginning of its digest.
    pub async fn resolve(&self, name: &str) -> Result<Resolved, DatasetError> {
        let entries = self.store.datasets().await?;
        let entry = names::pick(name, entries, "none is loaded yet: call load_dataset first").map_err(|next| {
            let shown: String = name.chars().take(200).collect();
            let next = match name.contains(['/', ':']) || stem(name) != name {
                true => format!("call load_dataset with source `{shown}` first and give the name that it returns"),
                false => next,
            };
            DatasetError::Unknown { name: shown, next }
        })?;
        let input = DatasetInput { name: name.to_owned(), digest: entry.digest };
        Ok(Resolved { input, manifest: entry.manifest })
    }

    /// The dataset as it is with other columns than those that it was loaded with: every row is read again.
    pub async fn with_columns(&self, dataset: Resolved, columns: &Columns) -> Result<Resolved, DatasetError> {
        if dataset.manifest.columns == *columns {
            return Ok(dataset);
        }
        let columns = columns.clone();
        self.blocking(move |datasets| {
            let Resolved { input, mut manifest } = dataset;
            let mut tally = Tally::new(&columns);
            for file in &manifest.files {
                tally.read(&file.path, &mut datasets.blobs.read(&file.sha256)?)?;
            }
            manifest.format = tally.usable_format(&input.name)?;
            (manifest.rows, manifest.blank_rows) = (tally.rows, tally.blank);
            (manifest.text_bytes, manifest.longest_row_tokens) = (tally.text_bytes, tally.most_tokens);
            manifest.lengths = tally.lengths;
            manifest.columns = columns.clone();
            Ok(Resolved { input, manifest })
        })
        .await
    }

    /// The folder with the dataset's files.
    pub fn folder(&self, input: &DatasetInput) -> Result<PathBuf, Failure> {
        let folder = self.root.join(&input.digest);
        if folder.is_dir() {
            return Ok(folder);
        }
        let message = format!("the files of dataset `{}` (digest {}) are gone", input.name, input.digest);
        Err(Failure::new(FailureKind::NotFound, message).with_hint("load the dataset again").at(Stage::Prepare))
    }

    fn open_path(&self, path: &str) -> Result<Incoming, DatasetError> {
        let (name, mut files) = match self.dirs.open(path)? {
            Found::File(file) => (stem(&file.name).to_owned(), vec![file]),
            Found::Folder { name, files } => (name, files),
        };
        // In a folder other files may lie beside the rows; a single file was meant. Text beside rows is about them.
        if files.len() != 1 {
            let is_rows = |file: &OpenFile| file.name.ends_with(".jsonl") || file.name.ends_with(".json");
            let any_rows = files.iter().any(is_rows);
            files.retain(|file| if any_rows { is_rows(file) } else { file.name.ends_with(".txt") });
        }
        let files = files.into_iter().map(|file| (file.name.clone(), Content::Host(file))).collect();
        Ok(Incoming { origin: path.to_owned(), name: Some(names::usual(&name)), files })
    }

    fn open_blobs(&self, files: &[FileRef]) -> Result<Incoming, DatasetError> {
        let mut opened = Vec::new();
        for FileRef { path, sha256 } in files {
            blobs::check_name(path)?;
            opened.push((path.clone(), Content::Blob(sha256.clone(), self.blobs.read(sha256)?)));
        }
        let name = files.first().map(|file| names::usual(stem(&file.path)));
        Ok(Incoming { origin: "uploaded files".into(), name, files: opened })
    }

    /// Fetches a file of rows as it is on the hub now.
    async fn download(&self, source: &str) -> Result<Incoming, DatasetError> {
        let reference: Reference = source.parse().map_err(HubError::from)?;
        let pinned = self.hub.pin(Kind::Dataset, &reference.repo, reference.revision.as_deref()).await?;
        let path = reference.path.as_deref().unwrap_or_default();
        let (folder, name) = path.rsplit_once('/').map_or((None, path), |(folder, name)| (Some(folder), name));
        let files = self.hub.files(&pinned, folder).await?;
        let Some(file) = files.iter().find(|file| file.path == path) else {
            let what = match path {
                "" => format!("single file called `{source}`"),
                path => format!("file `{path}` in `{}`", reference.repo),
            };
            return Err(HubError::NotFound { what, next: rows_among(&files) }.into());
        };
        blobs::check_name(name)?;
        let blob = self.hub.fetch(&pinned, file).await?;
        let opened = self.blobs.read(&blob.sha256)?;
        Ok(Incoming {
            origin: format!("{}/{path}", pinned.origin()),
            name: Some(names::usual(reference.name())),
            files: vec![(name.to_owned(), Content::Blob(blob.sha256, opened))],
        })
    }

    /// Does what takes long or waits for the disk, on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, DatasetError> + Send + 'static,
    ) -> Result<T, DatasetError> {
        let datasets = self.clone();
        tokio::task::spawn_blocking(move || work(&datasets)).await.unwrap_or_else(|error| {
            Err(BlobError::Io { path: self.root.to_path_buf(), error: std::io::Error::other(error) }.into())
        })
    }

    /// Reads every row, and brings the files into the store. Blocks.
    fn take_in(&self, incoming: Incoming, columns: Columns) -> Result<(Manifest, RowsPreview), DatasetError> {
        let Incoming { origin, mut files, .. } = incoming;
        let mut tally = Tally::new(&columns);
        for (name, content) in &mut files {
            match content {
                Content::Host(OpenFile { file, .. }) | Content::Blob(_, file) => tally.read(name, file)?,
                Content::Rows(rows) => tally.read(name, &mut Cursor::new(rows.as_slice()))?,
            }
        }
        let format = tally.usable_format(&origin)?;
        let preview = preview::of(format, &tally.first);
        let (rows, blank_rows) = (tally.rows, tally.blank);
        let (text_bytes, longest_row_tokens, lengths) = (tally.text_bytes, tally.most_tokens, tally.lengths);
        let files = files.into_iter().map(|(name, content)| self.keep(name, content)).collect::<Result<Vec<_>, _>>()?;
        self.blobs.assemble(&self.root, &files)?;
        let manifest =
            Manifest { format, rows, blank_rows, text_bytes, longest_row_tokens, lengths, files, columns, origin };
        Ok((manifest, preview))
    }

    fn keep(&self, path: String, content: Content) -> Result<StoredFile, DatasetError> {
        let stored = match content {
            Content::Host(mut file) => self.blobs.put_file(&mut file.file)?,
            Content::Rows(rows) => self.blobs.put_bytes(&rows)?,
            Content::Blob(sha256, file) => {
                let bytes = file.metadata().map_err(|error| BlobError::Io { path: path.clone().into(), error })?.len();
                return Ok(StoredFile { path, sha256, bytes });
            }
        };
        Ok(StoredFile { path, sha256: stored.sha256, bytes: stored.bytes })
    }
}

fn given_rows(rows: &[serde_json::Map<String, serde_json::Value>]) -> Incoming {
    let mut lines = Vec::new();
    for row in rows {
        // A map of JSON values always serializes.
        lines.extend(serde_json::to_vec(row).unwrap_or_default());
        lines.push(b'\n');
    }
    Incoming { origin: "rows".into(), name: None, files: vec![("rows.jsonl".into(), Content::Rows(lines))] }
}

/// Which files could be meant.
fn rows_among(files: &[HubFile]) -> String {
    let rows: Vec<_> = files
        .iter()
        .filter(|file| stem(&file.path) != file.path)
        .map(|file| format!("`{}`", file.path))
        .take(10)
        .collect();
    match rows.is_empty() {
        true => "there is no .jsonl, .json or .txt file in that folder; convert the rows to JSON lines first".into(),
        false => format!("put one of these behind the name: {}", rows.join(", ")),
    }
}

/// A file's name without what says its kind.
fn stem(name: &str) -> &str {
    [".jsonl", ".json", ".txt"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

fn view(entry: CatalogEntry<Manifest>) -> DatasetView {
    let CatalogEntry { name, digest, manifest, added_ms } = entry;
    DatasetView {
        name,
        digest,
        format: manifest.format,
        rows: manifest.rows,
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        origin: manifest.origin,
        columns: manifest.columns,
        added_ms,
    }
}
