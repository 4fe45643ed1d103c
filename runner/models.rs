//! The model store.

use std::path::PathBuf;

use drydock_spec::Failure;

use crate::api::{AddModel, ModelView};
use crate::plan::ModelInput;
use crate::store::{Store, StoreError};

/// A model cannot be found, read or added.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("no model `{name}`; {next}")]
    Unknown { name: String, next: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The models on this host. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Models {
    _store: Store,
}

impl Models {
    pub fn new(store: Store) -> Self {
        Self { _store: store }
    }

    /// All models, by name.
    pub async fn list(&self) -> Result<Vec<ModelView>, ModelError> {
        Ok(Vec::new())
    }

    /// Adds a model from the hub, the host's files or blobs.
    pub async fn add(&self, request: AddModel) -> Result<ModelView, ModelError> {
        Err(ModelError::Unknown { name: request.source.unwrap_or_default(), next: "not built yet".into() })
    }

    /// Forgets a model; says whether it was known.
    pub async fn remove(&self, _name: &str) -> Result<bool, ModelError> {
        Ok(false)
    }

    /// The folder with the model's files, fetched from the hub first if need be.
    pub async fn ensure(&self, input: &ModelInput) -> Result<PathBuf, Failure> {
        Err(Failure::new(drydock_spec::FailureKind::NotFound, input.name.clone()))
    }
}
