//! How a training could be made to fit, found by trying.

use drydock_gpu::Decoder;
use drydock_gpu::estimate::{self, Batch, Fit, Rows, Training, beside_gpus, of_each_gpu, shrink};
use drydock_spec::InvalidOption;
use drydock_spec::recipe::Recipe;

use super::lengths::Supply;
use super::needs::Terms;
use crate::blobs::size;

/// A training that may not fit, and what it could be changed to.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) recipe: Recipe,
    pub(super) training: Training,
    /// The same with its base held quantized, where that is a change.
    pub(super) smaller: Option<Training>,
    pub(super) decoder: Decoder,
    pub(super) weights_bytes: u64,
    pub(super) rows: Rows,
    /// What batches are filled from.
    pub(super) supply: Supply,
    /// Whether a tokenizer is learnt from the rows.
    pub(super) learns_tokenizer: bool,
    pub(super) terms: Terms,
    /// Tokens of a row at most: what rows are cut to, or less where none is as long.
    pub(super) length: u32,
}

/// What a training has to fit into, in bytes.
#[derive(Debug, Clone, Copy)]
enum Budget {
    /// What jobs may use of the host's memory.
    Host(u64),
    /// What a GPU has for it.
    Gpu(u64),
}

/// What the layers keep, and what the base is held in.
const CHECKPOINTING: &str = "set gradient_checkpointing to true";
const QUANTIZED: &str = "set method to \"qlora\"";

impl Room {
    /// The refusal of a job that needs `needed` bytes where jobs may use `budget`, with the changes that would be
    /// accepted, each for itself.
    pub(super) fn refusal(&self, budget: u64, needed: u64) -> InvalidOption {
        let problem = format!("the job needs about {}, jobs may use {} on this host", size(needed), size(budget));
        let ways = self.ways(Budget::Host(budget));
        let next = match ways.is_empty() {
            true => format!(
                "choose a smaller model (the weights take {}) or dataset (the rows take {}), or raise capacity.memory",
                size(self.weights_bytes),
                size(self.rows.held())
            ),
            false => ways.join(", or "),
        };
        InvalidOption::new("per_device_train_batch_size", self.recipe.per_device_train_batch_size, problem, next)
    }

    /// The refusal of a job that needs `needed` bytes of a GPU that has `has`, with the changes that would be accepted,
    /// each for itself. The CPU is always one of them.
    pub(super) fn refusal_on_gpu(&self, has: u64, needed: u64) -> InvalidOption {
        let problem = format!("the job needs about {} of a GPU's memory and can have {}", size(needed), size(has));
        let mut ways = self.ways(Budget::Gpu(has));
        ways.push("set limits.gpus to 0 to compute on the CPU".to_owned());
        let rows = self.recipe.per_device_train_batch_size;
        InvalidOption::new("per_device_train_batch_size", rows, problem, ways.join(", or "))
    }

    /// What could be done: first what changes nothing that is learnt, then a smaller batch, shorter rows, and a base
    /// that is held in fewer bits. Two changes together are offered only where none does it alone.
    fn ways(&self, budget: Budget) -> Vec<String> {
        let checkpointed = self.training.with_gradient_checkpointing();
        let as_it_is = Batch::new(self.recipe.per_device_train_batch_size, self.length);
        let mut ways = Vec::new();
        if !self.recipe.gradient_checkpointing && self.fits(&checkpointed, budget, as_it_is) {
            ways.push(CHECKPOINTING.to_owned());
        }
        ways.extend(self.smaller_batch(&self.training, budget));
        if let Some(smaller) = &self.smaller
            && self.fits(smaller, budget, as_it_is)
        {
            ways.push(QUANTIZED.to_owned());
        }
        if ways.is_empty() {
            ways.extend(self.together(&checkpointed, CHECKPOINTING, budget));
        }
        if let (true, Some(smaller)) = (ways.is_empty(), &self.smaller) {
            let both = format!("{QUANTIZED} and {}", CHECKPOINTING);
            ways.extend(self.together(&smaller.with_gradient_checkpointing(), &both, budget));
        }
        ways
    }

    fn fits(&self, training: &Training, budget: Budget, batch: Batch) -> bool {
        match budget {
            Budget::Host(bytes) => self.terms.margin.limit(self.memory(training, batch).total()) <= bytes,
            Budget::Gpu(bytes) => {
                of_each_gpu(training.gpu_memory(self.supply.fullest(batch)), self.terms.gpus).total() <= bytes
            }
        }
    }

    /// What the job needs with this batch, rows included.
    pub(super) fn memory(&self, training: &Training, batch: Batch) -> estimate::Needs {
        let threads = self.terms.threads();
        let needs = match self.terms.gpus {
            0 => training.memory(self.supply.fullest(batch), threads),
            gpus => beside_gpus(training.memory_beside_gpu(threads), gpus),
        };
        match self.learns_tokenizer {
            true => self.rows.learnt_then(needs, &self.decoder, threads),
            false => self.rows.then(needs, &self.decoder, threads),
        }
    }

    /// A smaller batch, and where shorter rows alone would do, those as well.
    fn smaller_batch(&self, training: &Training, budget: Budget) -> Option<String> {
        let fit = shrink(&self.recipe, training.least_rows(), self.length, |batch| self.fits(training, budget, batch))?;
        Some(match self.shorter(training, budget) {
            Some(length) if fit.max_seq_length == self.length => {
                format!("{}, or lower max_seq_length to {length}", self.changes(&fit))
            }
            _ => self.changes(&fit),
        })
    }

    /// The first change with whatever else it takes.
    fn together(&self, training: &Training, change: &str, budget: Budget) -> Option<String> {
        let fit = shrink(&self.recipe, training.least_rows(), self.length, |batch| self.fits(training, budget, batch))?;
        let more = self.changes(&fit);
        Some(if more.is_empty() { change.to_owned() } else { format!("{change} and {more}") })
    }

    /// The options to change, in words.
    fn changes(&self, fit: &Fit) -> String {
        let mut changes = Vec::new();
        if fit.per_device_train_batch_size < self.recipe.per_device_train_batch_size {
            changes.push(format!("lower per_device_train_batch_size to {}", fit.per_device_train_batch_size));
        }
        if fit.gradient_accumulation_steps > self.recipe.gradient_accumulation_steps {
            changes.push(format!("raise gradient_accumulation_steps to {}", fit.gradient_accumulation_steps));
        }
        if fit.max_seq_length < self.length {
            changes.push(format!("lower max_seq_length to {}", fit.max_seq_length));
        }
        changes.join(" and ")
    }

    /// The longest rows that fit with the batch as it is, if that leaves anything to learn from.
    fn shorter(&self, training: &Training, budget: Budget) -> Option<u32> {
        let rows = self.recipe.per_device_train_batch_size;
        let single = Recipe { per_device_train_batch_size: 1, ..self.recipe.clone() };
        let fits = |batch: Batch| self.fits(training, budget, Batch::new(rows, batch.length));
        shrink(&single, single.per_device_train_batch_size, self.length, fits).map(|fit| fit.max_seq_length)
    }
}
