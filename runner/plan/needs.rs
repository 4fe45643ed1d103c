//! What a job needs, and what to say when that is too much.

use std::collections::BTreeMap;
use std::fmt;

use drydock_gpu::estimate::{self, Base, Phase, Work};
use drydock_spec::InvalidOption;
use drydock_spec::quantize::{QuantType, TensorType};

use super::forecast::Quantity;
use super::margin::Margin;
use crate::api::{Estimate, Need};
use crate::models::{Facts, Resolved};

/// What a job needs, and how it could need less.
pub(super) struct Needs {
    pub(super) estimate: Estimate,
    /// What would write less.
    pub(super) saving: Option<Saving>,
    /// The model that it reads as a whole model in f32, in bytes; 0 where it reads none.
    pub(super) model_bytes: u64,
    margin: Margin,
    /// From what jobs may use and what this one needs with its margin, both in bytes, to the refusal.
    refuse: Box<dyn Fn(u64, u64) -> InvalidOption + Send>,
    /// The same of the memory of a GPU, where it computes on one.
    refuse_on_gpu: Option<Box<dyn Fn(u64, u64) -> InvalidOption + Send>>,
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
        [memory, disk]: [estimate::Needs; 2],
        work: &Work,
        terms: Terms,
        [disk_bytes, download_bytes, trainable_parameters]: [u64; 3],
        refuse: impl Fn(u64, u64) -> InvalidOption + Send + 'static,
    ) -> Self {
        let (memory_bytes, margin) = (memory.total(), terms.margin);
        let phases = work.milliseconds(f64::from(terms.cpu_millis) / 1e3);
        let work_ms = phases.iter().map(|(_, ms)| *ms).fold(0, u64::saturating_add);
        let (memory, disk) = (need(&memory, margin), need(&disk, terms.disk));
        let mut needs = BTreeMap::from([(Quantity::Memory, memory), (Quantity::Disk, disk)]);
        needs.extend(time(&phases, work_ms, terms.pace).map(|time| (Quantity::Time, time)));
        let estimate = Estimate { memory_bytes, disk_bytes, download_bytes, trainable_parameters, work_ms, needs };
        Self { estimate, saving: None, model_bytes: 0, margin, refuse: Box::new(refuse), refuse_on_gpu: None }
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

    /// The same of a job that computes on a GPU, of which it needs so much, with its refusal by what a GPU has and what
    /// it needs.
    #[must_use]
    pub(super) fn on_gpu(
        mut self,
        memory: &estimate::Needs,
        margin: Margin,
        refuse: impl Fn(u64, u64) -> InvalidOption + Send + 'static,
    ) -> Self {
        self.estimate.needs.insert(Quantity::GpuMemory, need(memory, margin));
        self.refuse_on_gpu = Some(Box::new(refuse));
        self
    }

    /// The memory limit of the job where none is asked for.
    pub(super) fn memory_limit(&self) -> u64 {
        self.margin.limit(self.estimate.memory_bytes)
    }

    /// The refusal of a job that does not fit into `budget` bytes, with the change that would be accepted.
    pub(super) fn too_large(&self, budget: u64) -> InvalidOption {
        (self.refuse)(budget, self.memory_limit())
    }

    /// The refusal of a job that does not fit into so much of a GPU's memory, with the change that would be accepted.
    /// One that may fit after all is not refused: the formula alone says up to [`FORMULA_OVER`] times too much.
    pub(super) fn too_large_for_gpu(&self, budget: u64) -> Option<InvalidOption> {
        let need = self.estimate.needs.get(&Quantity::GpuMemory)?;
        let least = need.range.map_or((need.expected as f64 / FORMULA_OVER) as u64, |range| range.low);
        let refuse = self.refuse_on_gpu.as_ref().filter(|_| least > budget)?;
        Some(refuse(budget, need.expected))
    }
}

/// By how much the formula of a GPU's memory may exceed what the worker asks for; its own tests hold it to that.
const FORMULA_OVER: f64 = 1.25;

/// What a job is planned under: how far estimates are believed, and what the worker will compute with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Terms {
    /// Of memory.
    pub(super) margin: Margin,
    /// Of the disk.
    pub(super) disk: Margin,
    /// What work takes here.
    pub(super) pace: Margin,
    /// Of a GPU's memory.
    pub(super) gpu: Margin,
    pub(super) cpu_millis: u32,
    pub(super) gpus: u32,
    /// What was asked for of memory.
    pub(super) memory_bytes: Option<u64>,
    /// What there is of a GPU's, or was asked for of it.
    pub(super) gpu_memory_bytes: Option<u64>,
}

impl Terms {
    /// Threads that the worker computes with.
    pub(super) fn threads(&self) -> u32 {
        self.cpu_millis.div_ceil(1000)
    }
}

/// An estimate by part, with its range.
pub(super) fn need(parts: &estimate::Needs, margin: Margin) -> Need {
    let parts_by_name = parts.iter().map(|(part, bytes)| (part.name().to_owned(), bytes)).collect();
    Need { expected: parts.total(), range: margin.range(parts.total()), parts: parts_by_name }
}

/// The time that so much work will take; nothing before anything was measured.
fn time(phases: &[(Phase, u64)], work_ms: u64, pace: Margin) -> Option<Need> {
    let range = Some(pace.range(work_ms)?);
    let parts = phases.iter().map(|(phase, ms)| Some((phase.name().to_owned(), pace.middle(*ms)?)));
    Some(Need { expected: pace.middle(work_ms)?, range, parts: parts.collect::<Option<_>>()? })
}

/// The type that a quantized model's matrices are in, where they are in one that the worker computes with as it is.
pub(super) fn stored_as(facts: &Facts) -> Option<TensorType> {
    tensor_type(facts).filter(|kind| kind.is_quantized())
}

/// What most of a model's values are in, where that is known.
fn tensor_type(facts: &Facts) -> Option<TensorType> {
    let named = serde_json::Value::String(facts.dtype.clone());
    let kind = serde_json::from_value::<TensorType>(named.clone())
        .or_else(|_| serde_json::from_value::<QuantType>(named).map(QuantType::main_type));
    kind.ok()
}

/// The model's weights as its files hold them. Of one that is not fetched yet only the size of its files is known, which
/// are floats then.
pub(super) fn base(model: &Resolved) -> Base {
    let facts = &model.facts;
    let base = match (tensor_type(facts), model.download_bytes) {
        (Some(kind), _) => Base::of(&facts.decoder, kind),
        (None, 0) => Base::of(&facts.decoder, TensorType::F32),
        (None, bytes) => Base::floats_of(bytes),
    };
    if has_heads_side_by_side(facts) { base.with_heads_side_by_side(&facts.decoder) } else { base }
}

/// Whether the rows of queries and keys lie in the order that llama.cpp has for these architectures. The names of types are
/// in capitals in GGUF files only.
fn has_heads_side_by_side(facts: &Facts) -> bool {
    let is_gguf = facts.dtype.starts_with(|first: char| first.is_ascii_uppercase());
    is_gguf && matches!(facts.architecture.as_str(), "llama" | "mistral")
}
