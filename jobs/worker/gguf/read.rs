//! Reads GGUF files that may be damaged or hostile: every length is held against what is left of the file before
//! anything of that size is made, and nothing is used before the whole header has been checked.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use memmap2::Mmap;

use super::{DEFAULT_ALIGNMENT, MAGIC, Metadata, Value};
use crate::blocks::BlockKind;
use crate::ending::{OrFail, Result, failed};

/// Far above what any model has, and far below what would harm.
mod limit {
    pub(super) const HEADER_BYTES: usize = 256 << 20;
    pub(super) const TENSORS: u64 = 1 << 16;
    pub(super) const ENTRIES: u64 = 1 << 16;
    pub(super) const KEY_BYTES: usize = (1 << 16) - 1;
    pub(super) const TEXT_BYTES: usize = 16 << 20;
    /// Of all lists together. A vocabulary has some hundred thousand tokens, and three or four lists about them.
    pub(super) const LIST_ITEMS: usize = 1 << 22;
    pub(super) const NESTED_LISTS: usize = 4;
    /// llama.cpp's own limits.
    pub(super) const NAME_BYTES: usize = 63;
    pub(super) const DIMENSIONS: u32 = 4;
    pub(super) const ALIGNMENT: usize = 1 << 16;
}

/// Where a tensor's bytes lie, and what they are.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlace {
    pub kind: BlockKind,
    /// Rows first, the width of a row last.
    pub shape: Vec<usize>,
    /// Of the file.
    pub bytes: Range<usize>,
    /// How many tensors stand before it in the header.
    pub index: usize,
}

/// What a file's header says.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    pub version: u32,
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, TensorPlace>,
}

/// A mapped file.
#[derive(Debug)]
pub struct GgufFile {
    map: Arc<Mmap>,
    contents: Contents,
}

impl GgufFile {
    /// Maps a file and reads its header. A file that shrinks while it is mapped would kill the process: a job's inputs
    /// are read-only, and its model lies in a store whose files never change.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file = File::open(path).or_fail(BadModel, format_args!("cannot read {name}"))?;
        // SAFETY: the file is not changed while it is mapped; see above.
        let map = unsafe { Mmap::map(&file) }.or_fail(BadModel, format_args!("cannot map {name}"))?;
        let contents = Contents::parse(&map)?;
        Ok(Self { map: Arc::new(map), contents })
    }

    pub fn metadata(&self) -> &Metadata {
        &self.contents.metadata
    }

    pub fn tensors(&self) -> &BTreeMap<String, TensorPlace> {
        &self.contents.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorPlace> {
        self.contents.tensors.get(name)
    }

    /// The bytes of one of the file's own tensors.
    pub fn bytes(&self, place: &TensorPlace) -> &[u8] {
        &self.map[place.bytes.clone()]
    }

    /// For those who keep parts of the file beyond its header.
    pub fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// All values of a tensor.
    pub fn values(&self, place: &TensorPlace) -> Vec<f32> {
        let mut values = vec![0.0; place.shape.iter().product()];
        place.kind.decode_all(self.bytes(place), &mut values);
        values
    }
}

impl Contents {
    /// Reads the header of a whole file.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let header = &file[..file.len().min(limit::HEADER_BYTES)];
        let mut cursor = Cursor { file: header, at: 0, list_items: 0 };
        if cursor.take(4, "the file's first letters")? != MAGIC {
            return failed(BadModel, "the file does not begin with `GGUF`");
        }
        let version = cursor.u32("the version")?;
        if !matches!(version, 2 | 3) {
            let message = format!("the GGUF file is of version {version}; known are 2 and 3 (little-endian)");
            return failed(UnsupportedModel, message);
        }
        let tensors = cursor.count("tensors", limit::TENSORS)?;
        let entries = cursor.count("metadata entries", limit::ENTRIES)?;
        let metadata = cursor.metadata(entries)?;
        let alignment = alignment(&metadata)?;
        let described: Vec<_> = (0..tensors).map(|_| cursor.described()).collect::<Result<_>>()?;
        let start = cursor.at.next_multiple_of(alignment);
        let tensors = placed(described, start, alignment, file.len())?;
        Ok(Self { version, metadata, tensors })
    }
}

/// A multiple of eight, so that numbers in the file are aligned too.
fn alignment(metadata: &Metadata) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => match value.as_whole().and_then(|alignment| usize::try_from(alignment).ok()) {
            Some(alignment) if alignment.is_power_of_two() && (8..=limit::ALIGNMENT).contains(&alignment) => {
                Ok(alignment)
            }
            _ => {
                failed(BadModel, format!("GGUF metadata `general.alignment` is {value:?}; a power of two is expected"))
            }
        },
    }
}

/// A tensor as its header entry describes it.
struct Described {
    name: String,
    shape: Vec<usize>,
    kind: BlockKind,
    offset: u64,
    bytes: usize,
}

/// Finds where the tensors lie, each in the file, aligned and without a byte in common.
fn placed(
    described: Vec<Described>,
    start: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<BTreeMap<String, TensorPlace>> {
    let mut tensors = BTreeMap::new();
    for (index, Described { name, shape, kind, offset, bytes }) in described.into_iter().enumerate() {
        let from = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let to = from.and_then(|from| from.checked_add(bytes)).filter(|to| *to <= file_bytes);
        let (Some(from), Some(to)) = (from, to) else {
            let message = format!("tensor `{name}`: {bytes} bytes at {offset} reach beyond the end of the file");
            return failed(BadModel, message);
        };
        if !offset.is_multiple_of(alignment as u64) {
            return failed(BadModel, format!("tensor `{name}` lies at {offset}, no multiple of {alignment}"));
        }
        let place = TensorPlace { kind, shape, bytes: from..to, index };
        if tensors.insert(name.clone(), place).is_some() {
            return failed(BadModel, format!("tensor `{name}` is in the GGUF file twice"));
        }
    }
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, place)| place.bytes.start);
    match in_order.windows(2).find(|pair| pair[1].1.bytes.start < pair[0].1.bytes.end) {
        Some(pair) => failed(BadModel, format!("tensors `{}` and `{}` overlap", pair[0].0, pair[1].0)),
        None => Ok(tensors),
    }
}

/// What is left of a header.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    /// Read so far, in all lists.
    list_items: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8]> {
        match self.at.checked_add(length).and_then(|end| self.file.get(self.at..end)) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => failed(BadModel, format!("the GGUF file ends within its header, before {what}")),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64> {
        match self.u64(what)? {
            count if count <= limit => Ok(count),
            count => failed(BadModel, format!("the GGUF file claims {count} {what}; at most {limit} are read")),
        }
    }

    fn text(&mut self, what: &str, limit: usize) -> Result<String> {
        let length = self.u64(what)?;
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= limit) else {
            return failed(BadModel, format!("the GGUF file has {what} of {length} bytes; at most {limit} are read"));
        };
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes.to_vec()).or_fail(BadModel, format_args!("the GGUF file has {what} that is no UTF-8"))
    }

    fn metadata(&mut self, entries: u64) -> Result<Metadata> {
        let mut metadata = Metadata::default();
        let mut seen = HashSet::new();
        for _ in 0..entries {
            let key = self.text("a key", limit::KEY_BYTES)?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key, 0)?;
            if !seen.insert(key.clone()) {
                return failed(BadModel, format!("GGUF metadata `{key}` is there twice"));
            }
            metadata.push(key, value);
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return failed(BadModel, format!("GGUF metadata `{key}`: {other} is neither true nor false"));
                }
            },
            8 => Value::Text(self.text(key, limit::TEXT_BYTES)?),
            Value::LIST => self.list(key, depth)?,
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => return failed(BadModel, format!("GGUF metadata `{key}` is of the unknown type {other}")),
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value> {
        let kind = self.u32(key)?;
        let length = self.u64(key)?;
        let left = limit::LIST_ITEMS - self.list_items;
        // Each item takes a byte at least.
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= left.min(self.file.len())) else {
            return failed(BadModel, format!("GGUF metadata `{key}` is a list of {length} items, too many"));
        };
        if depth == limit::NESTED_LISTS {
            return failed(BadModel, format!("GGUF metadata `{key}` has lists in lists, too deep"));
        }
        self.list_items += length;
        let items = (0..length).map(|_| self.value(kind, key, depth + 1)).collect::<Result<_>>()?;
        Ok(Value::List(kind, items))
    }

    fn described(&mut self) -> Result<Described> {
        let name = self.text("a tensor's name", limit::NAME_BYTES)?;
        let dimensions = self.u32(&name)?;
        if !(1..=limit::DIMENSIONS).contains(&dimensions) {
            return failed(BadModel, format!("tensor `{name}` has {dimensions} dimensions; 1 to 4 are expected"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            match usize::try_from(size) {
                Ok(size) if size > 0 => shape.insert(0, size),
                _ => return failed(BadModel, format!("tensor `{name}` has a dimension of {size}")),
            }
        }
        let id = self.u32(&name)?;
        let Some(kind) = BlockKind::from_ggml_id(id) else {
            let known = BlockKind::ALL.map(BlockKind::name).join(", ");
            let message = format!("tensor `{name}` is held in ggml's type {id}; known are {known}");
            return failed(UnsupportedModel, message);
        };
        let offset = self.u64(&name)?;
        let (width, rows) = (shape[shape.len() - 1], &shape[..shape.len() - 1]);
        let rows = rows.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let bytes = rows.and_then(|rows| kind.row_bytes(width)?.checked_mul(rows));
        // Room for the values in f32 must be countable too.
        let countable = rows.and_then(|rows| rows.checked_mul(width)?.checked_mul(size_of::<f32>()));
        match bytes.filter(|_| countable.is_some()) {
            Some(bytes) => Ok(Described { name, shape, kind, offset, bytes }),
            None => failed(BadModel, format!("tensor `{name}` of {shape:?} cannot be held in {kind}")),
        }
    }
}
