//! What becomes of files that were whole when the job was planned.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::order::Files;

/// Of which input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Model,
    Dataset,
}

type Change = Box<dyn Fn(Vec<u8>) -> Option<Vec<u8>> + Send>;

/// A file of a stored input changes, or goes. The store's own copy of its content stays as it is.
pub(crate) struct Damage {
    pub(crate) input: Input,
    /// All files, where it is `None`.
    file: Option<&'static str>,
    change: Change,
}

impl Damage {
    /// The file has another content.
    pub(crate) fn model(file: &'static str, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> Self {
        Self { input: Input::Model, file: Some(file), change: Box::new(move |bytes| Some(change(bytes))) }
    }

    /// The file of JSON has other values.
    pub(crate) fn json(file: &'static str, change: impl Fn(&mut Value) + Send + 'static) -> Self {
        Self::model(file, move |bytes| {
            let mut value = serde_json::from_slice(&bytes).unwrap();
            change(&mut value);
            value.to_string().into_bytes()
        })
    }

    /// The file is gone.
    pub(crate) fn lost(file: &'static str) -> Self {
        Self { input: Input::Model, file: Some(file), change: Box::new(|_| None) }
    }

    /// Another model's files are in the place of the model's.
    pub(crate) fn other_model(files: Files) -> Vec<Self> {
        let swap = |name: &'static str| {
            let content = files[name].clone();
            Self::model(name, move |_| content.clone())
        };
        ["config.json", "model.safetensors"].map(swap).into()
    }

    /// The whole folder is gone.
    pub(crate) fn whole(input: Input) -> Self {
        Self { input, file: None, change: Box::new(|_| None) }
    }

    /// The rows are these.
    pub(crate) fn rows(change: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> Self {
        Self { input: Input::Dataset, file: None, change: Box::new(move |bytes| Some(change(bytes))) }
    }

    /// Does it to the input's folder.
    pub(crate) fn strike(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if self.file.is_some_and(|file| path.file_name().is_none_or(|name| name != file)) {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            // Files of a folder are links to the store's own, which other folders share.
            fs::remove_file(&path).unwrap();
            if let Some(changed) = (self.change)(bytes) {
                fs::write(&path, changed).unwrap();
            }
        }
        if self.file.is_none() && fs::read_dir(folder).unwrap().next().is_none() {
            fs::remove_dir(folder).unwrap();
        }
    }
}
