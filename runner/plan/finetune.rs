//! Whether a finetune can work with its model and rows, and what it needs: pure rules.

use drydock_gpu::Decoder;
use drydock_gpu::estimate::{self, Batch, Fit};
use drydock_spec::dataset::Format;
use drydock_spec::option::Complaints;
use drydock_spec::{FinetuneSpec, InvalidOption, InvalidOptions};

use super::Data;
use crate::api::Estimate;
use crate::blobs::size;
use crate::models::{self, Facts};

/// What a finetune needs, and how it could need less.
#[derive(Debug)]
pub(super) struct Needs {
    /// Peak of the worker.
    pub(super) memory_bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) download_bytes: u64,
    trainable: u64,
    decoder: Decoder,
    spec: FinetuneSpec,
    /// What the rows take of the memory, however small the batch is.
    rows_bytes: u64,
    /// Tokens of a row at most: what rows are cut to, or less where none is as long.
    length: u32,
}

/// Refuses options that do not go with this model and these rows; all complaints come at once.
pub(super) fn check(spec: &FinetuneSpec, facts: &Facts, data: &Data) -> Result<(), InvalidOptions> {
    let mut wrong = Complaints::default();
    if let Some(length) = spec.max_seq_length {
        let limit = facts.max_positions;
        wrong.require(length <= limit, || {
            let next = format!("choose at most {limit}, or leave it out");
            InvalidOption::new("max_seq_length", length, format!("the model takes {limit} tokens at most"), next)
        });
    }
    let largest = facts.decoder.largest_rank(&spec.target_modules);
    wrong.require(spec.lora_r <= largest, || {
        let problem = format!("the narrowest of the target modules has {largest} inputs or outputs");
        InvalidOption::new("lora_r", spec.lora_r, problem, format!("choose at most {largest}; 8 to 64 is usual"))
    });
    let rows = data.train.manifest.rows;
    wrong.require(rows > 1 || spec.test_size == 0.0, || {
        let problem = "the dataset has a single row, which cannot be trained on and held out at once";
        InvalidOption::new("test_size", spec.test_size, problem, "set test_size to 0, or load more rows")
    });
    wrong.into_result(())
}

/// What the job needs in memory, on the disk and from the hub.
pub(super) fn needs(spec: &FinetuneSpec, model: &models::Resolved, data: &Data) -> Needs {
    let decoder = model.facts.decoder;
    let all = || std::iter::once(&data.train).chain(&data.eval).map(|rows| &rows.manifest);
    let longest = all().map(|rows| rows.longest_row_tokens).max().unwrap_or(u64::MAX);
    let length = spec.seq_length(model.facts.max_positions).min(u32::try_from(longest).unwrap_or(u32::MAX));
    let file_bytes = all().flat_map(|rows| &rows.files).map(|file| file.bytes).sum();
    let rows_bytes = estimate::rows_memory(file_bytes, all().map(|rows| rows.text_bytes).sum());
    let batch = Batch::new(spec.per_device_train_batch_size, length);
    Needs {
        memory_bytes: estimate::finetune_memory(&decoder, spec, batch).saturating_add(rows_bytes),
        disk_bytes: estimate::finetune_disk(&decoder, spec),
        download_bytes: model.download_bytes,
        trainable: decoder.trainable(&spec.target_modules, spec.lora_r),
        decoder,
        spec: spec.clone(),
        rows_bytes,
        length,
    }
}

/// What somebody should know who submits this.
pub(super) fn warnings(facts: &Facts, data: &Data) -> Vec<String> {
    let mut warnings = Vec::new();
    for rows in std::iter::once(&data.train).chain(&data.eval) {
        let blank = rows.manifest.blank_rows;
        if blank > 0 {
            warnings
                .push(format!("{blank} rows of `{}` have a blank answer or text and are passed over", rows.input.name));
        }
    }
    let chats = matches!(data.train.manifest.format, Format::Messages | Format::Alpaca | Format::Squad);
    if chats && !facts.has_chat_template {
        warnings.push("the model has no chat template; turns are written as plain text with the speaker's name".into());
    }
    warnings
}

impl Needs {
    pub(super) fn estimate(&self) -> Estimate {
        Estimate {
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            download_bytes: self.download_bytes,
            trainable_parameters: self.trainable,
        }
    }

    /// The refusal of a job that does not fit into `budget` bytes, with the change that would be accepted.
    pub(super) fn too_large(&self, budget: u64) -> InvalidOption {
        let needed = estimate::with_margin(self.memory_bytes);
        let problem = format!("the job needs about {}, jobs may use {} on this host", size(needed), size(budget));
        let rows = self.spec.per_device_train_batch_size;
        let fits = |batch| {
            let peak = estimate::finetune_memory(&self.decoder, &self.spec, batch).saturating_add(self.rows_bytes);
            estimate::with_margin(peak) <= budget
        };
        let next = match estimate::shrink(&self.spec, self.length, fits) {
            None => format!(
                "choose a smaller model (the weights take {}) or dataset (the rows take {}), or raise capacity.memory",
                size(4 * self.decoder.parameters()),
                size(self.rows_bytes)
            ),
            Some(fit) => match self.shorter(rows, fits) {
                Some(length) if fit.max_seq_length == self.length => {
                    format!("{}, or lower max_seq_length to {length}", self.changes(&fit))
                }
                _ => self.changes(&fit),
            },
        };
        InvalidOption::new("per_device_train_batch_size", rows, problem, next)
    }

    /// The options to change, in words.
    fn changes(&self, fit: &Fit) -> String {
        let mut changes = Vec::new();
        if fit.per_device_train_batch_size < self.spec.per_device_train_batch_size {
            changes.push(format!("lower per_device_train_batch_size to {}", fit.per_device_train_batch_size));
        }
        if fit.gradient_accumulation_steps > self.spec.gradient_accumulation_steps {
            changes.push(format!("raise gradient_accumulation_steps to {}", fit.gradient_accumulation_steps));
        }
        if fit.max_seq_length < self.length {
            changes.push(format!("lower max_seq_length to {}", fit.max_seq_length));
        }
        changes.join(" and ")
    }

    /// The longest rows that fit with the batch as it is, if that leaves anything to learn from.
    fn shorter(&self, rows: u32, fits: impl Fn(Batch) -> bool) -> Option<u32> {
        let single = FinetuneSpec { per_device_train_batch_size: 1, ..self.spec.clone() };
        let fits = |batch: Batch| fits(Batch::new(rows, batch.length));
        estimate::shrink(&single, self.length, fits).map(|fit| fit.max_seq_length)
    }
}

#[cfg(test)]
mod tests;
