//! Writes GGUF files: the header first, then tensor by tensor, so that no more than a part of one is held in memory.
//!
//! The file has a partial name until it is whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{DEFAULT_ALIGNMENT, MAGIC, Metadata, Value};
use crate::blocks::BlockKind;
use crate::ending::{Result, write_failed};

const VERSION: u32 = 3;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub name: String,
    /// Rows first, the width of a row last; rows are whole blocks of `kind`.
    pub shape: Vec<usize>,
    pub kind: BlockKind,
}

impl Planned {
    /// Bytes of the tensor.
    ///
    /// # Panics
    /// If a row is no whole number of blocks.
    pub fn bytes(&self) -> usize {
        let (width, rows) = (self.shape.last().copied().unwrap_or(1), self.shape.iter().rev().skip(1));
        let row = self.kind.row_bytes(width).expect("a tensor is planned in a form that its rows can take");
        rows.product::<usize>() * row
    }
}

/// A file while it is written.
pub struct GgufWriter {
    file: BufWriter<File>,
    partial: PathBuf,
    target: PathBuf,
    alignment: usize,
    /// Bytes of each tensor that is still to come, the next one last.
    to_come: Vec<usize>,
    /// Bytes of the current tensor so far.
    written: usize,
    finished: bool,
}

impl GgufWriter {
    /// Begins a file with its header. The tensors then come in the order of the plan.
    pub fn create(target: &Path, metadata: &Metadata, tensors: &[Planned]) -> Result<Self> {
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|error| write_failed(target, &error))?;
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, file),
            partial,
            target: target.to_owned(),
            alignment: metadata.count("general.alignment").unwrap_or(DEFAULT_ALIGNMENT),
            to_come: tensors.iter().rev().map(Planned::bytes).collect(),
            written: 0,
            finished: false,
        };
        let header = header(metadata, tensors, writer.alignment);
        writer.put(&header)?;
        Ok(writer)
    }

    /// More bytes of the current tensor.
    ///
    /// # Panics
    /// If they are more than the plan says.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = *self.to_come.last().expect("a tensor that was planned");
        self.written += bytes.len();
        assert!(self.written <= whole, "{} bytes of a tensor of {whole}", self.written);
        self.put(bytes)?;
        if self.written == whole {
            self.put(&vec![0; whole.next_multiple_of(self.alignment) - whole])?;
            self.to_come.pop();
            self.written = 0;
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Panics
    /// If a planned tensor is missing.
    pub fn finish(mut self) -> Result<()> {
        assert!(self.to_come.is_empty(), "{} tensors were planned and not written", self.to_come.len());
        let done = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        done.and_then(|()| fs::rename(&self.partial, &self.target)).map_err(|error| self.failure(&error))?;
        self.finished = true;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> crate::ending::Ending {
        write_failed(&self.target, error)
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What is left over would look like an artifact; that it cannot be removed changes nothing about the failure.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Everything before the first tensor's bytes.
fn header(metadata: &Metadata, tensors: &[Planned], alignment: usize) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.entries().len() as u64).to_le_bytes());
    for (key, value) in metadata.entries() {
        put_text(key, &mut header);
        header.extend(value.type_id().to_le_bytes());
        put_value(value, &mut header);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&tensor.name, &mut header);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(tensor.kind.ggml_id().to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(alignment);
    }
    header.resize(header.len().next_multiple_of(alignment), 0);
    header
}

fn put_text(text: &str, into: &mut Vec<u8>) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn put_value(value: &Value, into: &mut Vec<u8>) {
    match value {
        Value::U8(v) => into.extend(v.to_le_bytes()),
        Value::I8(v) => into.extend(v.to_le_bytes()),
        Value::U16(v) => into.extend(v.to_le_bytes()),
        Value::I16(v) => into.extend(v.to_le_bytes()),
        Value::U32(v) => into.extend(v.to_le_bytes()),
        Value::I32(v) => into.extend(v.to_le_bytes()),
        Value::F32(v) => into.extend(v.to_le_bytes()),
        Value::Bool(v) => into.push(u8::from(*v)),
        Value::Text(text) => put_text(text, into),
        Value::List(kind, items) => {
            into.extend(kind.to_le_bytes());
            into.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| put_value(item, into));
        }
        Value::U64(v) => into.extend(v.to_le_bytes()),
        Value::I64(v) => into.extend(v.to_le_bytes()),
        Value::F64(v) => into.extend(v.to_le_bytes()),
    }
}
