//! Safetensors files written tensor by tensor: only one tensor's values are in memory at a time.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::atomic::write_whole_by;
use crate::ending::Ending;

/// Why a file could not be written.
#[derive(Debug)]
pub enum ShardError {
    Io(std::io::Error),
    /// A tensor could not be made.
    Values(Ending),
}

impl From<std::io::Error> for ShardError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a tensor's values are written in, rounded to the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedAs {
    F32,
    F16,
    Bf16,
}

impl SavedAs {
    /// As a safetensors header names it.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// As `config.json` names it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn write(self, values: &[f32], out: &mut impl Write) -> std::io::Result<()> {
        for values in values.chunks(4096) {
            let bytes: Vec<u8> = match self {
                Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Self::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
                Self::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            };
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    pub name: String,
    pub shape: Vec<usize>,
}

impl Outline {
    fn bytes(&self, dtype: SavedAs) -> u64 {
        self.shape.iter().product::<usize>() as u64 * dtype.bytes() as u64
    }
}

/// Which tensors go into which file: as many as fit each time, in their order.
#[derive(Debug, PartialEq)]
pub struct Layout {
    /// A file's name, and the indices of its tensors.
    pub files: Vec<(String, Vec<usize>)>,
    pub total_bytes: u64,
}

impl Layout {
    /// Files of at most so many bytes, but for a tensor that is larger by itself. The names are Transformers'.
    pub fn new(tensors: &[Outline], dtype: SavedAs, most: u64) -> Self {
        let mut shards: Vec<Vec<usize>> = Vec::new();
        let (mut total_bytes, mut room) = (0, 0);
        for (index, tensor) in tensors.iter().enumerate() {
            let bytes = tensor.bytes(dtype);
            total_bytes += bytes;
            match shards.last_mut().filter(|_| bytes <= room) {
                Some(shard) => shard.push(index),
                None => {
                    shards.push(vec![index]);
                    room = most;
                }
            }
            room = room.saturating_sub(bytes);
        }
        let count = shards.len();
        let name = |number: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        let files = shards.into_iter().enumerate().map(|(index, shard)| (name(index + 1), shard)).collect();
        Self { files, total_bytes }
    }

    /// `model.safetensors.index.json`, where there is more than one file.
    pub fn index(&self, tensors: &[Outline]) -> Option<Value> {
        if self.files.len() < 2 {
            return None;
        }
        let places = self.files.iter().flat_map(|(file, shard)| shard.iter().map(move |&index| (index, file)));
        let map: BTreeMap<&str, &String> = places.map(|(index, file)| (tensors[index].name.as_str(), file)).collect();
        Some(json!({"metadata": {"total_size": self.total_bytes}, "weight_map": map}))
    }
}

/// Writes one file; `values` makes those of the tensor at an index.
pub fn write_shard(
    target: &Path,
    tensors: &[Outline],
    shard: &[usize],
    dtype: SavedAs,
    mut values: impl FnMut(usize) -> Result<Vec<f32>, Ending>,
) -> Result<(), ShardError> {
    let header = header(tensors, shard, dtype);
    write_whole_by(target, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for &index in shard {
            dtype.write(&values(index).map_err(ShardError::Values)?, &mut file)?;
        }
        file.flush()?;
        Ok(())
    })
}

/// Where each tensor lies; padded, so that the values begin at a multiple of eight bytes and can be used in place.
fn header(tensors: &[Outline], shard: &[usize], dtype: SavedAs) -> String {
    let mut entries = Map::new();
    // The library that wrote a file is what Transformers looks for first.
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut from = 0;
    for tensor in shard.iter().map(|&index| &tensors[index]) {
        let to = from + tensor.bytes(dtype);
        let entry = json!({"dtype": dtype.name(), "shape": tensor.shape, "data_offsets": [from, to]});
        entries.insert(tensor.name.clone(), entry);
        from = to;
    }
    let mut header = Value::Object(entries).to_string();
    let padding = header.len().next_multiple_of(8) - header.len();
    header.push_str(&" ".repeat(padding));
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlines() -> Vec<Outline> {
        [("a", vec![2, 3]), ("b", vec![4]), ("c", vec![100]), ("d", vec![1])]
            .map(|(name, shape)| Outline { name: name.into(), shape })
            .to_vec()
    }

    #[test]
    fn files_are_filled_in_order_and_named_as_transformers_names_them() {
        let tensors = outlines();
        let whole = Layout::new(&tensors, SavedAs::F32, 1000);
        assert_eq!(whole.files, [("model.safetensors".to_owned(), vec![0, 1, 2, 3])]);
        assert_eq!((whole.total_bytes, whole.index(&tensors)), (444, None));
        let shards = Layout::new(&tensors, SavedAs::Bf16, 20);
        let name = |number| format!("model-0000{number}-of-00003.safetensors");
        assert_eq!(shards.files, [(name(1), vec![0, 1]), (name(2), vec![2]), (name(3), vec![3])]);
        let index = shards.index(&tensors).unwrap();
        assert_eq!((&index["metadata"]["total_size"], &index["weight_map"]["c"]), (&json!(222), &json!(name(2))));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for (dtype, rounded) in [(SavedAs::F32, 1.1), (SavedAs::F16, 1.099_609_4), (SavedAs::Bf16, 1.101_562_5)] {
            let values = |index: usize| match index {
                0 => Ok(vec![1.0, -2.0, 0.5, 1.1, 0.0, 7.0]),
                _ => Ok(vec![index as f32]),
            };
            write_shard(&path, &outlines(), &[0, 3], dtype, values).unwrap();
            let read = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
            let read = |name: &str| read[name].to_dtype(candle_core::DType::F32).unwrap();
            assert_eq!(read("a").to_vec2::<f32>().unwrap(), [[1.0, -2.0, 0.5], [rounded, 0.0, 7.0]]);
            assert_eq!(read("d").to_vec1::<f32>().unwrap(), [3.0]);
        }
    }
}
