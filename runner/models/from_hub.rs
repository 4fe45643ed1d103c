//! Models on the hub: looked at before anything large is fetched, fetched once.

use std::collections::HashMap;
use std::path::PathBuf;

use super::config::Config;
use super::inspect::{self, BESIDE, CONFIG, INDEX, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, Weights};
use super::{Facts, Incoming, Manifest, ModelError, Models, Resolved, Unusable, stored, tokenizer};
use crate::blobs::BlobError;
use crate::data_dirs::OpenFile;
use crate::hub::{HubError, HubFile, Kind, Pinned, Reference};
use crate::names;
use crate::plan::{ModelInput, ModelSource};
use crate::store::CatalogEntry;

impl Models {
    /// What `name` stands for on the hub now, with what its small files say.
    pub(super) async fn resolve_on_hub(&self, name: &str, reference: &Reference) -> Result<Resolved, ModelError> {
        if self.hub.is_offline() {
            let entry = self.fetched_before(reference).await?;
            return entry.map(|entry| stored(name, entry)).ok_or_else(|| HubError::Offline(name.to_owned()).into());
        }
        // What a commit stands for never changes, so there is nothing to ask if it is here.
        if reference.commit().is_some()
            && let Some(entry) = self.fetched_before(reference).await?
        {
            return Ok(stored(name, entry));
        }
        let pinned = self.hub.pin(Kind::Model, &reference.repo, reference.revision.as_deref()).await?;
        if let Some(entry) = self.with_origin(&origin(&pinned, reference)).await? {
            return Ok(stored(name, entry));
        }
        let files = self.hub.files(&pinned, folder(reference)).await?;
        let needed = needed(&files, reference, name)?;
        if needed.iter().any(|file| file.path.ends_with(".gguf")) {
            let next = format!("fetch it first: `drydock models add {name}`");
            let problem = "a GGUF file on the hub, whose shape is not known before it is fetched";
            return Err(Unusable::unsupported(problem, next).of(name));
        }
        let facts = self.facts_on_hub(&pinned, &needed).await?;
        let source = ModelSource::Hub { repo: pinned.repo, commit: pinned.commit };
        let input = ModelInput { name: name.to_owned(), source, adapter: None };
        Ok(Resolved { input, facts, download_bytes: needed.iter().map(|file| file.bytes).sum(), adapter: None })
    }

    /// A model that a job was pinned to, as it is now: perhaps it has been fetched since.
    pub(super) async fn resolve_pinned(&self, name: &str, repo: &str, commit: &str) -> Result<Resolved, ModelError> {
        let reference = Reference { repo: repo.to_owned(), revision: Some(commit.to_owned()), path: None };
        self.resolve_on_hub(name, &reference).await
    }

    /// Fetches a pinned model, unless it is here.
    pub(super) async fn ensure_from_hub(&self, repo: &str, commit: &str) -> Result<PathBuf, ModelError> {
        let pinned = Pinned { kind: Kind::Model, repo: repo.to_owned(), commit: commit.to_owned() };
        let origin = pinned.origin();
        let _turn = self.turns.take(&origin).await;
        let entry = match self.with_origin(&origin).await? {
            Some(entry) => entry,
            None => {
                let reference = Reference { repo: pinned.repo.clone(), revision: None, path: None };
                let incoming = self.fetch_all(&pinned, &reference, &origin).await?;
                let manifest = self.blocking(move |models| models.take_in(incoming)).await?;
                // A name that says which commit it is takes no other model's place.
                let name = names::usual(&format!("{}-{}", reference.name(), &commit[..commit.len().min(8)]));
                let view = self.enter(name, manifest.clone()).await?;
                CatalogEntry { name: view.name, digest: view.digest, manifest, added_ms: view.added_ms }
            }
        };
        self.folder(&entry.name, &entry.digest).await
    }

    /// Fetches what `reference` names, as it is now.
    pub(super) async fn download(&self, reference: &Reference) -> Result<Incoming, ModelError> {
        let pinned = self.hub.pin(Kind::Model, &reference.repo, reference.revision.as_deref()).await?;
        let origin = origin(&pinned, reference);
        let _turn = self.turns.take(&origin).await;
        self.fetch_all(&pinned, reference, &origin).await
    }

    async fn fetch_all(&self, pinned: &Pinned, reference: &Reference, origin: &str) -> Result<Incoming, ModelError> {
        let files = self.hub.files(pinned, folder(reference)).await?;
        let needed = needed(&files, reference, origin)?;
        // The small ones first: if something is wrong with the model, they usually show it.
        if needed.iter().any(|file| file.path == CONFIG) {
            self.facts_on_hub(pinned, &needed).await?;
        }
        self.check_room(needed.iter().map(|file| file.bytes).sum())?;
        let mut incoming = Incoming {
            source: origin.to_owned(),
            name: reference.path.as_deref().map_or(reference.name(), stem).to_owned(),
            files: Vec::new(),
            known: HashMap::new(),
        };
        for file in needed {
            let blob = self.hub.fetch(pinned, file).await?;
            let opened = self.blobs.read(&blob.sha256)?;
            incoming.files.push(OpenFile { name: file.path.clone(), file: opened, bytes: blob.bytes });
            incoming.known.insert(file.path.clone(), blob.sha256);
        }
        tracing::info!(origin, files = incoming.files.len(), "model fetched from the hub");
        Ok(incoming)
    }

    /// What the small files say; the tokenizer need only be there.
    async fn facts_on_hub(&self, pinned: &Pinned, needed: &[&HubFile]) -> Result<Facts, ModelError> {
        let find = |name: &str| {
            needed.iter().find(|file| file.path == name).copied().ok_or_else(|| {
                let next = "choose a repository with config.json, tokenizer.json and *.safetensors";
                Unusable::damaged("not in the repository", next).of(name)
            })
        };
        find(TOKENIZER)?;
        let text = self.small(pinned, find(CONFIG)?).await?;
        let config = Config::parse(&text).map_err(|problem| problem.of(CONFIG))?;
        let mut has_chat_template = find(TEMPLATE).is_ok();
        if let Ok(file) = find(TOKENIZER_CONFIG) {
            let text = self.small(pinned, file).await?;
            let config = tokenizer::json(&text).map_err(|problem| problem.of(TOKENIZER_CONFIG))?;
            has_chat_template |= tokenizer::has_chat_template(&config);
        }
        Ok(Facts {
            architecture: config.architecture(),
            decoder: config.announced(),
            max_positions: config.max_positions(),
            dtype: "not fetched yet".into(),
            has_chat_template,
            tokens_beyond: None,
        })
    }

    /// A small file of the repository.
    async fn small(&self, pinned: &Pinned, file: &HubFile) -> Result<Vec<u8>, ModelError> {
        const SMALL: u64 = 16 << 20;
        if file.bytes > SMALL {
            let problem = format!("{} bytes, {SMALL} at most are read of such a file", file.bytes);
            return Err(Unusable::damaged(problem, "choose another repository").of(&file.path));
        }
        let blob = self.hub.fetch(pinned, file).await?;
        let path = self.blobs.path(&blob.sha256)?;
        self.blocking(move |_| std::fs::read(&path).map_err(|error| BlobError::Io { path, error }.into())).await
    }

    async fn with_origin(&self, origin: &str) -> Result<Option<CatalogEntry<Manifest>>, ModelError> {
        let entries = self.store.models::<Manifest>().await?;
        Ok(entries.into_iter().find(|entry| entry.manifest.origin == origin))
    }

    /// The newest model that came from there, at the commit if one is named. A branch cannot be looked up offline.
    async fn fetched_before(&self, reference: &Reference) -> Result<Option<CatalogEntry<Manifest>>, ModelError> {
        let entries = self.store.models::<Manifest>().await?;
        let from_there = |entry: &CatalogEntry<Manifest>| {
            let commit = entry.manifest.origin.strip_prefix(&format!("hf:{}@", reference.repo));
            commit.is_some_and(|rest| {
                let (commit, path) = rest.split_once('/').map_or((rest, None), |(commit, path)| (commit, Some(path)));
                reference.revision.as_deref().is_none_or(|revision| revision == commit)
                    && path == reference.path.as_deref()
            })
        };
        Ok(entries.into_iter().filter(from_there).max_by_key(|entry| entry.added_ms))
    }
}

fn origin(pinned: &Pinned, reference: &Reference) -> String {
    match &reference.path {
        Some(path) => format!("{}/{path}", pinned.origin()),
        None => pinned.origin(),
    }
}

/// The folder of the repository that the reference leads into.
fn folder(reference: &Reference) -> Option<&str> {
    Some(reference.path.as_deref()?.rsplit_once('/')?.0)
}

fn stem(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path).trim_end_matches(".gguf")
}

/// The files of the repository that make the model.
fn needed<'a>(files: &'a [HubFile], reference: &Reference, name: &str) -> Result<Vec<&'a HubFile>, ModelError> {
    let weights = match &reference.path {
        Some(path) if path.ends_with(".gguf") => Weights::Gguf(path.clone()),
        Some(path) => {
            let next = "name the repository, or a .gguf file in it";
            return Err(Unusable::unsupported(format!("`{path}` alone is no model"), next).of(name));
        }
        None => {
            let names: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
            inspect::choose(&names).map_err(|problem| problem.of(name))?
        }
    };
    let is_needed = |file: &&HubFile| match &weights {
        Weights::Gguf(gguf) => file.path == *gguf,
        Weights::Safetensors => {
            let path = file.path.as_str();
            // Mistral's own form of the weights lies beside Hugging Face's in some repositories.
            let weights = path.ends_with(".safetensors") && !path.starts_with("consolidated");
            weights || path == CONFIG || path == INDEX || BESIDE.contains(&path)
        }
    };
    let needed: Vec<_> = files.iter().filter(is_needed).collect();
    if needed.is_empty() {
        let what = format!("file `{}` in `{}`", reference.path.as_deref().unwrap_or(CONFIG), reference.repo);
        let ggufs: Vec<_> = files.iter().filter(|file| file.path.ends_with(".gguf")).map(|file| &*file.path).collect();
        let next = if ggufs.is_empty() { "check the path".into() } else { format!("there is {}", ggufs.join(", ")) };
        return Err(HubError::NotFound { what, next }.into());
    }
    Ok(needed)
}
