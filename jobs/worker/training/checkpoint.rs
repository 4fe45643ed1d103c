//! Checkpoints: `checkpoints/step-N/` in the output folder, from which another attempt goes on as if nothing had been.
//!
//! A checkpoint is two files. `checkpoint.safetensors` has every trained tensor (`values.<name>`), AdamW's moments
//! (`first.<name>`, `second.<name>`), the best values so far where they are to be kept (`best.<name>`), and what
//! preferences are compared with (`reference.train`, `reference.held_out`). `checkpoint.json` has the [`State`] and
//! says what the checkpoint is of. It is written under another name, brought to the disk and renamed; only then the one
//! before it goes. So at any moment there is a whole one, if there ever was, and never more than two.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use drydock_spec::FailureKind::{BadOption, ContractBroken};
use memmap2::Mmap;
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::state::State;
use crate::ending::{OrFail, Result, failed, write_failed};
use crate::kernels::{self, adamw::Moments};
use crate::model::parameter::Trainable;

/// The form of the files; another is refused.
const FORMAT: u32 = 2;
const FOLDER: &str = "checkpoints";
const STATE: &str = "checkpoint.json";
const TENSORS: &str = "checkpoint.safetensors";

/// What a checkpoint is of. One of something else cannot be gone on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What the model calls itself.
    pub model: String,
    /// Digests of the rows in tokens; see [`crate::data::lesson::digest`].
    pub rows: String,
    pub held_out_rows: String,
    /// The job's options.
    pub options: Map<String, Value>,
}

/// Options that may differ between a checkpoint and the attempt that goes on from it: names of inputs, whose content is
/// compared instead, and what bears on no step to come.
const FREE: [&str; 18] = [
    "model",
    "dataset",
    "eval_dataset",
    "adapter",
    "tokenizer",
    "columns",
    "keep",
    "sample_prompts",
    "max_new_tokens",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "early_stopping_patience",
    "early_stopping_threshold",
    "on_divergence",
    "gradient_checkpointing",
    // Their product is compared: so many rows make a step, in however many passes. (KTO compares the rows of a pass.)
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
];

impl Origin {
    /// What another origin has otherwise, in words; nothing if it is as good as the same.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.model != now.model {
            differences.push(format!("the model was `{}` and is `{}`", self.model, now.model));
        }
        for (what, before, after) in
            [("rows", &self.rows, &now.rows), ("held-out rows", &self.held_out_rows, &now.held_out_rows)]
        {
            if before != after {
                let short = |digest: &str| digest.chars().take(12).collect::<String>();
                differences.push(format!("the {what} had the digest {} and have {}", short(before), short(after)));
            }
        }
        let mut names: Vec<&String> = self.options.keys().chain(now.options.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let by_pass = now.options.get("objective").is_some_and(|objective| objective == "kto");
        let is_free = |name: &str| FREE.contains(&name) && !(by_pass && name == "per_device_train_batch_size");
        for name in names.into_iter().filter(|name| !is_free(name)) {
            let value = |origin: &Self| origin.options.get(name).map_or("unset".to_owned(), Value::to_string);
            let (before, after) = (value(self), value(now));
            if before != after {
                differences.push(format!("{name} was {before} and is {after}"));
            }
        }
        let rows_per_step = |origin: &Self| {
            let number = |name: &str| origin.options.get(name).and_then(Value::as_u64).unwrap_or(1);
            number("per_device_train_batch_size") * number("gradient_accumulation_steps")
        };
        let (before, after) = (rows_per_step(self), rows_per_step(now));
        if before != after {
            differences.push(format!("a step took {before} rows and takes {after}"));
        }
        differences
    }
}

/// All that a checkpoint holds, by group of trained tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub state: State,
    pub values: Vec<Vec<f32>>,
    pub moments: Vec<Moments>,
    pub best: Option<Vec<Vec<f32>>>,
    /// For training rows and held-out rows.
    pub reference: [Vec<[f64; 2]>; 2],
}

/// The same, lent to be written; the values are those of the groups themselves.
pub struct Lent<'a> {
    pub state: &'a State,
    pub moments: &'a [Moments],
    pub best: Option<&'a [Vec<f32>]>,
    pub reference: [&'a [[f64; 2]]; 2],
}

#[derive(Serialize, Deserialize)]
struct Described<O, S> {
    format: u32,
    worker: String,
    /// SHA-256 of the other file: what a disk has changed is not to be trained on.
    tensors: String,
    of: O,
    state: S,
}

/// Writes a checkpoint below the output folder and removes the one before. What comes back is its path there, and its
/// bytes.
pub fn write(output: &Path, origin: &Origin, trainables: &[Trainable], lent: &Lent<'_>) -> Result<(String, u64)> {
    let name = format!("{FOLDER}/step-{}", lent.state.steps);
    let (target, partial) = (output.join(&name), output.join(format!("{name}.partial")));
    let state = |tensors| {
        let worker = crate::NAME_AND_VERSION.to_owned();
        serde_json::to_vec_pretty(&Described { format: FORMAT, worker, tensors, of: origin, state: lent.state })
    };
    let written = write_folder(&partial, tensors(trainables, lent), state)
        .and_then(|bytes| put_in_place(&partial, &target).map(|()| bytes));
    let bytes = written.map_err(|error| {
        // What is left over would take the room that is lacking; that it cannot be removed changes nothing.
        let _ = fs::remove_dir_all(&partial);
        write_failed(&target, &error)
    })?;
    remove_all_but(output, Some(lent.state.steps)).map_err(|error| write_failed(&output.join(FOLDER), &error))?;
    Ok((name, bytes))
}

/// Writes both files; `state` makes the first of the second's digest.
fn write_folder(
    folder: &Path,
    tensors: Vec<(String, Bytes<'_>)>,
    state: impl FnOnce(String) -> serde_json::Result<Vec<u8>>,
) -> io::Result<u64> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let path = folder.join(TENSORS);
    safetensors::serialize_to_file(tensors, None, &path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    })?;
    // SAFETY: nobody knows of the file yet.
    let written = unsafe { Mmap::map(&File::open(&path)?) }?;
    fs::write(folder.join(STATE), state(digest(&written))?)?;
    let mut bytes = 0;
    for name in [STATE, TENSORS] {
        let file = File::open(folder.join(name))?;
        file.sync_all()?;
        bytes += file.metadata()?.len();
    }
    File::open(folder)?.sync_all()?;
    Ok(bytes)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put_in_place(partial: &Path, target: &Path) -> io::Result<()> {
    // The same step again: after going on from a checkpoint that lies in this very folder, or after a roll-back.
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    fs::rename(partial, target)?;
    target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Removes every checkpoint but that of one step, and whatever an attempt that was cut off has left half written.
pub fn remove_all_but(output: &Path, kept: Option<u64>) -> io::Result<()> {
    let folder = output.join(FOLDER);
    let kept = kept.map(|step| format!("step-{step}"));
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if kept.as_ref().is_none_or(|kept| entry.file_name() != kept.as_str()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    if kept.is_none() { fs::remove_dir(folder) } else { Ok(()) }
}

/// A tensor that is turned into bytes only when its turn comes.
struct Bytes<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    make: Box<dyn Fn() -> Vec<u8> + 'a>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.make)())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.dtype == Dtype::F64 { 8 } else { 4 }
    }
}

fn tensors<'a>(trainables: &'a [Trainable], lent: &'a Lent<'a>) -> Vec<(String, Bytes<'a>)> {
    let mut tensors = Vec::new();
    for (group, trainable) in trainables.iter().enumerate() {
        for tensor in &trainable.tensors {
            let mut add = |kind: &str, make: Box<dyn Fn() -> Vec<u8> + 'a>| {
                let bytes = Bytes { dtype: Dtype::F32, shape: tensor.shape.clone(), make };
                tensors.push((format!("{kind}.{}", tensor.name), bytes));
            };
            let range = || tensor.range.clone();
            let values = || {
                let range = range();
                let bytes = move || kernels::read(&trainable.var, |values| Ok(f32_bytes(&values[range.clone()])));
                move || bytes().expect("trained values lie in one piece in memory")
            };
            add("values", Box::new(values()));
            let moments = &lent.moments[group];
            add("first", Box::new(move || f32_bytes(&moments.first[range()])));
            add("second", Box::new(move || f32_bytes(&moments.second[range()])));
            if let Some(best) = lent.best {
                add("best", Box::new(move || f32_bytes(&best[group][range()])));
            }
        }
    }
    for (name, reference) in REFERENCES.into_iter().zip(lent.reference) {
        if !reference.is_empty() {
            let make = move || reference.as_flattened().iter().flat_map(|value| value.to_le_bytes()).collect();
            let bytes = Bytes { dtype: Dtype::F64, shape: vec![reference.len(), 2], make: Box::new(make) };
            tensors.push((name.to_owned(), bytes));
        }
    }
    tensors
}

const REFERENCES: [&str; 2] = ["reference.train", "reference.held_out"];

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 4];
    bytes.chunks_exact_mut(4).zip(values).for_each(|(bytes, value)| bytes.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// Reads a checkpoint of `origin`; one of anything else is refused, and what differs is named.
pub fn read(folder: &Path, origin: &Origin, trainables: &[Trainable]) -> Result<Checkpoint> {
    let what = |name: &str| format!("the checkpoint's {name}");
    let json = fs::read(folder.join(STATE)).or_fail(ContractBroken, what(STATE))?;
    let format: Map<String, Value> = serde_json::from_slice(&json).or_fail(ContractBroken, what(STATE))?;
    if format.get("format") != Some(&FORMAT.into()) {
        let found = format.get("format").map_or("none".to_owned(), Value::to_string);
        return failed(ContractBroken, format!("the checkpoint is of format {found}; this worker knows {FORMAT}"));
    }
    let Described { of, state, tensors: digest_then, .. }: Described<Origin, State> =
        serde_json::from_slice(&json).or_fail(ContractBroken, what(STATE))?;
    let differences = of.differences(origin);
    if !differences.is_empty() {
        let message =
            format!("the checkpoint at step {} is of something else: {}", state.steps, differences.join("; "));
        let failure = drydock_spec::Failure::new(BadOption, message);
        return Err(failure.with_hint("go on with the same job and inputs, or start without the checkpoint").into());
    }
    let file = File::open(folder.join(TENSORS)).or_fail(ContractBroken, what(TENSORS))?;
    // SAFETY: nobody changes the file while it is mapped: it is an input, or was renamed into place by this worker.
    let map = unsafe { Mmap::map(&file) }.or_fail(ContractBroken, what(TENSORS))?;
    if digest(&map) != digest_then {
        let message = format!("the checkpoint's {TENSORS} is not as it was written: its SHA-256 was {digest_then}");
        return failed(ContractBroken, message);
    }
    let tensors = SafeTensors::deserialize(&map).or_fail(ContractBroken, what(TENSORS))?;
    let found = Found { tensors: &tensors, trainables };
    let best = if state.patience.best().is_some() && tensors.names().iter().any(|name| name.starts_with("best.")) {
        Some(found.groups("best")?)
    } else {
        None
    };
    let moments = found.groups("first")?.into_iter().zip(found.groups("second")?);
    Ok(Checkpoint {
        values: found.groups("values")?,
        moments: moments.map(|(first, second)| Moments { first, second }).collect(),
        best,
        reference: [found.reference(REFERENCES[0])?, found.reference(REFERENCES[1])?],
        state,
    })
}

struct Found<'a> {
    tensors: &'a SafeTensors<'a>,
    trainables: &'a [Trainable],
}

impl Found<'_> {
    /// Every trained tensor's values of one kind, put together by group.
    fn groups(&self, kind: &str) -> Result<Vec<Vec<f32>>> {
        self.trainables
            .iter()
            .map(|trainable| {
                let mut group = vec![0.0; trainable.var.elem_count()];
                for tensor in &trainable.tensors {
                    let name = format!("{kind}.{}", tensor.name);
                    let found = self.tensors.tensor(&name).or_fail(ContractBroken, format_args!("tensor `{name}`"))?;
                    if found.dtype() != Dtype::F32 || found.shape() != tensor.shape {
                        let (shape, wanted) = (found.shape(), &tensor.shape);
                        let message = format!("the checkpoint's tensor `{name}` is {shape:?}; {wanted:?} is trained");
                        return failed(ContractBroken, message);
                    }
                    let values = found.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                    if let Some(value) = values.clone().find(|value| !value.is_finite()) {
                        let message =
                            format!("the checkpoint's tensor `{name}` holds {value}, with which nothing is learnt");
                        return failed(ContractBroken, message);
                    }
                    group[tensor.range.clone()].iter_mut().zip(values).for_each(|(to, value)| *to = value);
                }
                Ok(group)
            })
            .collect()
    }

    fn reference(&self, name: &str) -> Result<Vec<[f64; 2]>> {
        if !self.tensors.names().contains(&name) {
            return Ok(Vec::new());
        }
        let found = self.tensors.tensor(name).or_fail(ContractBroken, name)?;
        if found.dtype() != Dtype::F64 {
            return failed(ContractBroken, format!("the checkpoint's tensor `{name}` is {:?}, not F64", found.dtype()));
        }
        let numbers: Vec<f64> = found.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        Ok(numbers.as_chunks().0.to_vec())
    }
}
