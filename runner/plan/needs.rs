//! What a job needs, and what to say when that is too much.

use std::fmt;

use drydock_gpu::estimate;
use drydock_spec::InvalidOption;
use drydock_spec::quantize::{QuantType, TensorType};

use crate::api::Estimate;
use crate::models::Facts;

/// What a job needs, and how it could need less.
pub(super) struct Needs {
    pub(super) estimate: Estimate,
    /// What would write less.
    pub(super) saving: Option<Saving>,
    /// The model that it reads as a whole model in f32, in bytes; 0 where it reads none.
    pub(super) model_bytes: u64,
    /// From what jobs may use and what this one needs with its margin, both in bytes, to the refusal.
    refuse: Box<dyn Fn(u64, u64) -> InvalidOption + Send>,
}

/// A change with which a job writes less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saving {
    /// Such as `set keep to "adapter"`.
    pub(super) change: String,
    /// What it would write then.
    pub(super) disk_bytes: u64,
}

impl fmt::Debug for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Needs").field(&self.estimate).finish()
    }
}

impl Needs {
    pub(super) fn new(
        memory_bytes: u64,
        disk_bytes: u64,
        download_bytes: u64,
        trainable_parameters: u64,
        refuse: impl Fn(u64, u64) -> InvalidOption + Send + 'static,
    ) -> Self {
        let estimate = Estimate { memory_bytes, disk_bytes, download_bytes, trainable_parameters };
        Self { estimate, saving: None, model_bytes: 0, refuse: Box::new(refuse) }
    }

    /// The same of a job that could write less.
    #[must_use]
    pub(super) fn or_less(self, saving: Option<Saving>) -> Self {
        Self { saving, ..self }
    }

    /// The same of a job that reads a model which takes so many bytes as a whole one in f32.
    #[must_use]
    pub(super) fn reading(self, model_bytes: u64) -> Self {
        Self { model_bytes, ..self }
    }

    /// The memory limit of the job where none is asked for.
    pub(super) fn memory_limit(&self) -> u64 {
        estimate::with_margin(self.estimate.memory_bytes)
    }

    /// The refusal of a job that does not fit into `budget` bytes, with the change that would be accepted.
    pub(super) fn too_large(&self, budget: u64) -> InvalidOption {
        (self.refuse)(budget, self.memory_limit())
    }
}

/// The type that a quantized model's matrices are in, where they are in one that the worker computes with as it is.
pub(super) fn stored_as(facts: &Facts) -> Option<TensorType> {
    let named = serde_json::Value::String(facts.dtype.clone());
    let kind = serde_json::from_value::<TensorType>(named.clone())
        .or_else(|_| serde_json::from_value::<QuantType>(named).map(QuantType::main_type))
        .ok()?;
    kind.is_quantized().then_some(kind)
}
