//! A model as a GGUF file has it, whichever form it comes in: a GGUF file, a Hugging Face folder, either of them with an
//! adapter worked in.

use std::ops::Range;

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};

use super::{convert, vocabulary};
use crate::blocks::BlockKind;
use crate::ending::{Result, failed};
use crate::forget;
use crate::gguf::{GgufFile, Metadata, TensorPlace};
use crate::model::ModelFiles;
use crate::model::gguf::names::{Change, change, gguf_name};
use crate::model::merge::Merged;
use crate::model::stored::Stored;

/// Metadata and tensors, of which nothing is read yet.
pub struct Source<'m> {
    pub metadata: Metadata,
    pub tensors: Vec<SourceTensor<'m>>,
}

pub struct SourceTensor<'m> {
    /// GGUF's name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// What it is held in now.
    pub kind: BlockKind,
    origin: Origin<'m>,
}

/// Where a tensor's values come from, and what the way into a GGUF file does to them.
enum Origin<'m> {
    Gguf(&'m GgufFile, TensorPlace),
    Checkpoint(&'m ModelFiles, String, Change),
    Merged(Merged<'m>, Change),
    /// A list that was computed from the configuration.
    Computed(Vec<f32>),
}

impl<'m> Source<'m> {
    pub fn open(files: &'m ModelFiles) -> Result<Self> {
        match files.gguf() {
            Some(file) => Ok(Self::of_gguf(file)),
            None => Self::of_checkpoint(files),
        }
    }

    fn of_gguf(file: &'m GgufFile) -> Self {
        let mut places: Vec<_> = file.tensors().iter().collect();
        places.sort_by_key(|(_, place)| place.index);
        let tensors = places.into_iter().map(|(name, place)| SourceTensor {
            name: name.clone(),
            shape: place.shape.clone(),
            kind: place.kind,
            origin: Origin::Gguf(file, place.clone()),
        });
        Self { metadata: file.metadata().clone(), tensors: tensors.collect() }
    }

    fn of_checkpoint(files: &'m ModelFiles) -> Result<Self> {
        let config = &files.config;
        let mut metadata = convert::metadata(config)?;
        vocabulary::describe(&files.text()?, config, &mut metadata)?;
        let mut tensors = Vec::new();
        for (factors, values) in convert::rope_factors(config) {
            let shape = vec![values.len()];
            tensors.push(SourceTensor {
                name: factors.to_owned(),
                shape,
                kind: BlockKind::F32,
                origin: Origin::Computed(values),
            });
        }
        for name in files.names() {
            // The first are tables that are computed anew; a tied head is the embedding once more.
            if name.ends_with("rotary_emb.inv_freq") || config.tied && name == "lm_head.weight" {
                continue;
            }
            let Some(gguf) = gguf_name(name, &config.features) else {
                return failed(UnsupportedModel, format!("tensor `{name}` is none that GGUF has a name for here"));
            };
            let (kind, shape) = files.held(name)?;
            // What is computed with in f32 is held in it, as llama.cpp's converter does it.
            let kind = if shape.len() < 2 { BlockKind::F32 } else { kind };
            let origin = Origin::Checkpoint(files, name.to_owned(), change(name, config));
            tensors.push(SourceTensor { name: gguf, shape, kind, origin });
        }
        Ok(Self { metadata, tensors })
    }

    /// Takes tensors of a decoder instead of those of the same names.
    pub fn replace(&mut self, merged: Vec<Merged<'m>>, files: &ModelFiles) {
        for tensor in merged {
            let change = change(&tensor.name, &files.config);
            let Some(gguf) = gguf_name(&tensor.name, &files.config.features) else { continue };
            if let Some(place) = self.tensors.iter_mut().find(|place| place.name == gguf) {
                place.kind = BlockKind::F32;
                place.origin = Origin::Merged(tensor, change);
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == name)
    }
}

impl SourceTensor<'_> {
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The bytes as they are in a GGUF file, where it comes from one.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.origin {
            Origin::Gguf(file, place) => Some(file.bytes(place)),
            _ => None,
        }
    }

    /// To be called when the tensor has been written.
    pub fn forget(&self) -> Result<()> {
        match &self.origin {
            Origin::Gguf(file, place) => forget::pages(file.map(), place.bytes.clone()),
            Origin::Checkpoint(files, name, _) => files.checkpoint(name)?.forget(),
            Origin::Merged(..) | Origin::Computed(_) => {}
        }
        Ok(())
    }

    /// Makes the values readable; those of one tensor only are held in memory at a time.
    pub fn open(&self) -> Result<Opened<'_>> {
        let (held, change) = match &self.origin {
            Origin::Gguf(file, place) => (Held::Blocks(place.kind, file.bytes(place)), Change::Nothing),
            Origin::Checkpoint(files, name, change) => (Held::Stored(files.checkpoint(name)?), *change),
            Origin::Merged(merged, change) => (Held::Values(merged.values()?), *change),
            Origin::Computed(values) => (Held::Values(values.clone()), Change::Nothing),
        };
        let Change::SideBySide(heads) = change else { return Ok(Opened { held, width: self.width(), change }) };
        if !self.shape[0].is_multiple_of(2 * heads) {
            let message = format!("tensor `{}` of {:?} does not fit {heads} heads", self.name, self.shape);
            return failed(BadModel, message);
        }
        if self.shape.len() > 1 {
            return Ok(Opened { held, width: self.width(), change });
        }
        // A bias is one row, but what moves in it are its values.
        let mut values = vec![0.0; self.width()];
        Opened { held, width: self.width(), change: Change::Nothing }.rows(0..1, &mut values);
        let opened = Opened { held: Held::Values(values.clone()), width: 1, change };
        opened.rows(0..self.width(), &mut values);
        Ok(Opened { held: Held::Values(values), width: self.width(), change: Change::Nothing })
    }
}

/// A tensor that can be read.
pub struct Opened<'a> {
    held: Held<'a>,
    width: usize,
    change: Change,
}

enum Held<'a> {
    Blocks(BlockKind, &'a [u8]),
    Stored(Stored),
    Values(Vec<f32>),
}

impl Opened<'_> {
    /// Rows as GGUF has them.
    pub fn rows(&self, rows: Range<usize>, into: &mut [f32]) {
        for (index, row) in rows.zip(into.chunks_exact_mut(self.width)) {
            self.row(self.origin(index), row);
        }
        if let Change::Offset(offset) = self.change {
            into.iter_mut().for_each(|value| *value += offset);
        }
    }

    /// Where a row of GGUF's order is in Hugging Face's: two values that turn together lie side by side there, half a
    /// head apart here.
    fn origin(&self, index: usize) -> usize {
        let Change::SideBySide(heads) = self.change else { return index };
        let half = self.len() / heads / 2;
        let (head, place) = (index / (2 * half), index % (2 * half));
        2 * half * head + half * (place % 2) + place / 2
    }

    /// Rows in all.
    fn len(&self) -> usize {
        match &self.held {
            Held::Blocks(kind, bytes) => bytes.len() / kind.block_bytes() * kind.block_len() / self.width,
            Held::Stored(stored) => stored.as_weight().out * stored.as_weight().width / self.width,
            Held::Values(values) => values.len() / self.width,
        }
    }

    fn row(&self, index: usize, into: &mut [f32]) {
        match &self.held {
            Held::Blocks(kind, bytes) => {
                let row = bytes.len() / self.len();
                kind.decode(&bytes[index * row..(index + 1) * row], into);
            }
            Held::Stored(stored) => stored.as_weight().row(index, into),
            Held::Values(values) => into.copy_from_slice(&values[index * self.width..(index + 1) * self.width]),
        }
    }
}
