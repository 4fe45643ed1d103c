//! The dataset store.

use std::path::PathBuf;

use drydock_spec::Failure;

use crate::api::{DatasetView, LoadDataset, LoadedDataset};
use crate::plan::DatasetInput;
use crate::store::{Store, StoreError};

/// A dataset cannot be found, read or registered.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("no dataset `{name}`; {next}")]
    Unknown { name: String, next: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The datasets on this host. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Datasets {
    _store: Store,
}

impl Datasets {
    pub fn new(store: Store) -> Self {
        Self { _store: store }
    }

    /// All datasets, by name.
    pub async fn list(&self) -> Result<Vec<DatasetView>, DatasetError> {
        Ok(Vec::new())
    }

    /// Registers a dataset, every row of it checked, and shows its first rows.
    pub async fn load(&self, request: LoadDataset) -> Result<LoadedDataset, DatasetError> {
        Err(DatasetError::Unknown { name: request.source.unwrap_or_default(), next: "not built yet".into() })
    }

    /// Forgets a dataset; says whether it was known.
    pub async fn remove(&self, _name: &str) -> Result<bool, DatasetError> {
        Ok(false)
    }

    /// The folder with the dataset's files.
    pub fn folder(&self, input: &DatasetInput) -> Result<PathBuf, Failure> {
        Err(Failure::new(drydock_spec::FailureKind::NotFound, input.name.clone()))
    }
}
