//! What an attempt reads: where it lies on the host, and where the inside finds it.

use std::path::{Path, PathBuf};

use drydock_spec::contract::{
    ADAPTER_PATH, CHECKPOINT_PATH, COMPARED_PATH, DATASET_PATH, EVAL_DATASET_PATH, MODEL_PATH, TOKENIZER_PATH,
};
use drydock_spec::{Inputs, ModelInput};

use crate::sandbox::{Access, Mount};

/// What an attempt reads, as folders of the host.
#[derive(Debug, Clone, Default)]
pub struct InputFolders {
    pub model: Option<ModelFolders>,
    pub compared: Vec<ModelFolders>,
    pub tokenizer: Option<PathBuf>,
    pub dataset: Option<PathBuf>,
    pub eval_dataset: Option<PathBuf>,
    /// The checkpoint to go on from.
    pub checkpoint: Option<PathBuf>,
}

/// A model's folder, and that of the adapter over it.
#[derive(Debug, Clone)]
pub struct ModelFolders {
    /// What the caller called it.
    pub name: String,
    pub model: PathBuf,
    pub adapter: Option<PathBuf>,
}

impl InputFolders {
    /// The same as the inside finds it.
    #[must_use]
    pub fn inside(&self) -> Inputs {
        let at = |folder: &Option<PathBuf>, path: &str| folder.as_ref().map(|_| path.into());
        Inputs {
            model: self.model.as_ref().map(|model| model.inside(MODEL_PATH, ADAPTER_PATH)),
            compared: (0..)
                .zip(&self.compared)
                .map(|(number, model)| {
                    let (path, adapter) = compared_paths(number);
                    model.inside(&path, &adapter)
                })
                .collect(),
            tokenizer: at(&self.tokenizer, TOKENIZER_PATH),
            dataset: at(&self.dataset, DATASET_PATH),
            eval_dataset: at(&self.eval_dataset, EVAL_DATASET_PATH),
            checkpoint: at(&self.checkpoint, CHECKPOINT_PATH),
        }
    }

    /// How the inside gets to see them.
    pub(super) fn mounts(&self) -> Vec<Mount> {
        let mut mounts = Vec::new();
        mounts.extend(self.model.iter().flat_map(|model| model.mounts(MODEL_PATH, ADAPTER_PATH)));
        for (number, model) in (0..).zip(&self.compared) {
            let (path, adapter) = compared_paths(number);
            mounts.extend(model.mounts(&path, &adapter));
        }
        for (folder, path) in [
            (&self.tokenizer, TOKENIZER_PATH),
            (&self.dataset, DATASET_PATH),
            (&self.eval_dataset, EVAL_DATASET_PATH),
            (&self.checkpoint, CHECKPOINT_PATH),
        ] {
            mounts.extend(folder.iter().map(|folder| read_only(folder, path)));
        }
        mounts
    }
}

impl ModelFolders {
    fn inside(&self, path: &str, adapter: &str) -> ModelInput {
        ModelInput {
            path: path.into(),
            name: self.name.clone(),
            adapter: self.adapter.as_ref().map(|_| adapter.into()),
        }
    }

    fn mounts(&self, path: &str, adapter: &str) -> impl Iterator<Item = Mount> {
        let over = self.adapter.as_ref().map(|folder| read_only(folder, adapter));
        std::iter::once(read_only(&self.model, path)).chain(over)
    }
}

fn compared_paths(number: usize) -> (String, String) {
    (format!("{COMPARED_PATH}/{number}/model"), format!("{COMPARED_PATH}/{number}/adapter"))
}

fn read_only(source: &Path, target: &str) -> Mount {
    Mount { source: source.into(), target: target.into(), access: Access::ReadOnly }
}
