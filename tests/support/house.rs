//! A house on a temporary folder: its store, models, datasets and a folder of data.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "for tests, each of which uses its own part of it")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drydock::api::{AddModel, LoadDataset, LoadedDataset, ModelView};
use drydock::artifacts::ArtifactStore;
use drydock::blobs::Blobs;
use drydock::clock::Clock;
use drydock::config::Config;
use drydock::datasets::{DatasetError, Datasets};
use drydock::engine::EngineWatch;
use drydock::hub::{Hub, Patience};
use drydock::models::{ModelError, Models};
use drydock::plan::Planner;
use drydock::sandbox::gpus::{GpuAccess, KnownGpus};
use drydock::sandbox::{EngineInfo, Isolation};
use drydock::store::Store;
use tempfile::TempDir;

pub struct House {
    root: Arc<TempDir>,
    pub store: Store,
    pub blobs: Blobs,
    pub models: Models,
    pub datasets: Datasets,
    pub artifacts: ArtifactStore,
    pub config: Config,
}

impl House {
    pub async fn open() -> Self {
        Self::with(|_| {}).await
    }

    /// A house whose configuration is changed before it opens.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), change).await
    }

    /// The house after a restart, with another configuration.
    pub async fn reopen(self, change: impl FnOnce(&mut Config)) -> Self {
        self.store.close().await;
        Self::at(self.root, change).await
    }

    async fn at(root: Arc<TempDir>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            state_dir: root.path().join("state"),
            data_dirs: vec![root.path().join("data")],
            ..Config::default()
        };
        change(&mut config);
        for folder in [&config.state_dir, &root.path().join("data")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let store = Store::open(&config.state_dir.join("drydock.db"), Clock::manual(1_000)).await.unwrap();
        let blobs = Blobs::open(&config.state_dir).unwrap();
        // Tests that have a hub answer wrongly on purpose do not wait long for it.
        let patience = Patience { tries: 4, first: Duration::from_millis(5), longest: Duration::from_secs(5) };
        let hub = Hub::with_patience(&config.hub, blobs.clone(), patience).unwrap();
        let artifacts = ArtifactStore::new(config.state_dir.join("artifacts"));
        let models = Models::new(store.clone(), blobs.clone(), hub.clone(), artifacts.clone(), &config);
        let datasets = Datasets::new(store.clone(), blobs.clone(), hub, &config);
        Self { root, store, blobs, models, datasets, artifacts, config }
    }

    /// Plans for a host with this engine and these GPUs.
    pub fn planner(&self, engine: EngineWatch, gpus: KnownGpus) -> Planner {
        let (store, models, datasets) = (self.store.clone(), self.models.clone(), self.datasets.clone());
        Planner::new(store, models, datasets, engine, gpus, Arc::new(self.config.clone()))
    }

    /// A path below the folder of data.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.path().join("data").join(name)
    }

    pub async fn add(&self, source: &str) -> Result<ModelView, ModelError> {
        self.models.add(AddModel { name: None, source: Some(source.to_owned()), files: Vec::new() }).await
    }

    pub async fn load(&self, source: &str) -> Result<LoadedDataset, DatasetError> {
        self.datasets.load(LoadDataset { source: Some(source.to_owned()), ..LoadDataset::default() }).await
    }
}

/// What an engine in order says of itself.
pub fn engine_with(cpus: u32, memory_bytes: u64) -> EngineInfo {
    EngineInfo {
        engine: "scripted 1".into(),
        incarnation: "1".into(),
        cpus,
        memory_bytes,
        folder: None,
        image: Ok("sha256:1".into()),
        runtime: Ok("scripted".into()),
        isolation: Isolation::default(),
        gpus: GpuAccess::default(),
    }
}
