//! Hugging Face model folders: `config.json` and one or several `*.safetensors`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use drydock_spec::FailureKind::BadModel;
use memmap2::Mmap;
use serde_json::Value;

use super::stored::Stored;
use crate::blocks::BlockKind;
use crate::ending::{OrFail, Result, failed};
use crate::shard::{self, Place};

/// Far above what the largest tokenizer takes, and far below what would harm.
const MAX_TEXT_BYTES: u64 = 256 << 20;

pub(super) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).or_fail(BadModel, name(path))
}

/// A file of text, unless it is longer than any that belongs to a model.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let file = File::open(path).or_fail(BadModel, format_args!("cannot read {}", name(path)))?;
    let mut text = String::new();
    let read = file.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text);
    read.or_fail(BadModel, format_args!("cannot read {}", name(path)))?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        let most = MAX_TEXT_BYTES >> 20;
        return failed(BadModel, format!("{} is longer than {most} MiB, which no model's is", name(path)));
    }
    Ok(text)
}

/// A file's name: the folders above it are the container's business, not the reader's.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The tensors of a folder, wherever they lie.
#[derive(Debug)]
pub(super) struct Shards {
    /// The file of each tensor, and its place there.
    tensors: BTreeMap<String, (usize, Place)>,
    files: Vec<(PathBuf, Arc<Mmap>)>,
}

impl Shards {
    /// Maps every `*.safetensors` in the folder and reads the headers. What a mapping costs: a file that shrinks under
    /// it kills the process. A job's inputs are read-only, and its model lies in a store whose files never change.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .or_fail(BadModel, "cannot read the model folder")?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        paths.sort();
        if paths.is_empty() {
            return failed(BadModel, "the model folder holds neither a .gguf nor any .safetensors file");
        }
        let mut shards = Self { tensors: BTreeMap::new(), files: Vec::new() };
        for path in paths {
            shards.add(path)?;
        }
        shards.check_index(folder)?;
        Ok(shards)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).or_fail(BadModel, format_args!("cannot read {}", name(&path)))?;
        // SAFETY: the file is not changed while it is mapped; see `open`.
        let map = unsafe { Mmap::map(&file) }.or_fail(BadModel, format_args!("cannot map {}", name(&path)))?;
        for (tensor, place) in shard::places(&map).or_fail(BadModel, name(&path))? {
            let what = format!("{}: tensor `{tensor}`", name(&path));
            // The format knows such tensors, but no model has a use for one.
            if place.shape.contains(&0) {
                return failed(BadModel, format!("{what} is {:?}, and holds nothing", place.shape));
            }
            if self.tensors.insert(tensor, (self.files.len(), place)).is_some() {
                return failed(BadModel, format!("{what} is in another file of the folder as well"));
            }
        }
        self.files.push((path, Arc::new(map)));
        Ok(())
    }

    /// Every tensor that the index promises must be there: a shard may be missing.
    fn check_index(&self, folder: &Path) -> Result<()> {
        let path = folder.join("model.safetensors.index.json");
        if !path.exists() {
            return Ok(());
        }
        let index = read_json(&path)?;
        let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
            return failed(BadModel, format!("{} has no `weight_map`", name(&path)));
        };
        match map.iter().find(|(tensor, _)| !self.tensors.contains_key(*tensor)) {
            None => Ok(()),
            Some((tensor, shard)) => failed(BadModel, format!("tensor `{tensor}` of shard {shard} is missing")),
        }
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// Tensors in all.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor in f32.
    pub(super) fn tensor(&self, tensor: &str) -> Result<Tensor> {
        let (place, map) = self.place(tensor)?;
        let values = widened(place.kind, &map[place.bytes.clone()]);
        Ok(Tensor::from_vec(values, &place.shape[..], &Device::Cpu)?)
    }

    /// The tensor as it is held while it is frozen, and its shape. A matrix stays where it is, and so do all f32.
    pub(super) fn stored(&self, tensor: &str) -> Result<(Stored, Vec<usize>)> {
        let (place, map) = self.place(tensor)?;
        let width = place.shape.last().copied().unwrap_or(1);
        let stored = match place.kind {
            BlockKind::F32 => Stored::mapped_f32(map, place.bytes.clone(), width),
            kind if place.shape.len() == 2 => Stored::mapped_blocks(kind, map, place.bytes.clone(), width),
            kind => Stored::f32(widened(kind, &map[place.bytes.clone()]), width),
        };
        Ok((stored, place.shape.clone()))
    }

    /// Where the tensor lies, and the file.
    pub(super) fn place(&self, tensor: &str) -> Result<(&Place, &Arc<Mmap>)> {
        match self.tensors.get(tensor) {
            Some((file, place)) => Ok((place, &self.files[*file].1)),
            None => failed(BadModel, format!("tensor `{tensor}` is missing from the model's files")),
        }
    }
}

fn widened(kind: BlockKind, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / kind.block_bytes()];
    kind.decode_all(bytes, &mut values);
    values
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::DType;

    use super::*;
    use crate::ending::Ending;

    fn message(result: Result<Shards>) -> String {
        match result {
            Err(Ending::Failed(failure)) if failure.kind == BadModel => failure.message,
            other => panic!("{other:?}"),
        }
    }

    fn save(path: &Path, names: &[&str]) {
        let tensor = |name: &&str| (name.to_string(), Tensor::new(&[[1.5f32, -2.0]], &Device::Cpu).unwrap());
        let tensors: HashMap<String, Tensor> = names.iter().map(tensor).collect();
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    #[test]
    fn tensors_are_found_in_any_shard_and_widened() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder.path().join("a.safetensors"), &["x"]);
        let half = Tensor::new(&[0.5f32, 3.0], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        let other = HashMap::from([("y".to_string(), half)]);
        candle_core::safetensors::save(&other, folder.path().join("b.safetensors")).unwrap();
        let shards = Shards::open(folder.path()).unwrap();
        let read = |name: &str| {
            let (stored, shape) = shards.stored(name).unwrap();
            let mut values = Vec::new();
            stored.append_to(&mut values);
            (values, shape)
        };
        assert_eq!(read("x"), (vec![1.5, -2.0], vec![1, 2]));
        assert_eq!(read("y"), (vec![0.5, 3.0], vec![2]));
        assert!(!shards.has("z"));
    }

    #[test]
    fn damaged_files_are_named_and_never_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save(&path, &["x"]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let cut = message(Shards::open(folder.path()));
        assert!(cut.starts_with("model.safetensors: tensor `x`: bytes 0..8 do not hold"), "{cut}");
        std::fs::write(&path, [255; 64]).unwrap();
        assert!(message(Shards::open(folder.path())).contains("a header of 18446744073709551615 bytes"));
        std::fs::remove_file(&path).unwrap();
        assert!(message(Shards::open(folder.path())).contains("neither a .gguf nor any .safetensors"));
    }

    #[test]
    fn a_tensor_without_values_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for shape in [(0, 2), (2, 0)] {
            let nothing = Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap();
            let path = folder.path().join("model.safetensors");
            candle_core::safetensors::save(&HashMap::from([("x".to_string(), nothing)]), path).unwrap();
            let refused = message(Shards::open(folder.path()));
            assert!(refused.starts_with("model.safetensors: tensor `x` is [") && refused.ends_with("holds nothing"));
        }
    }

    #[test]
    fn a_missing_shard_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder.path().join("model-00001-of-00002.safetensors"), &["x"]);
        let index =
            r#"{"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}"#;
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let missing = message(Shards::open(folder.path()));
        assert_eq!(missing, "tensor `y` of shard \"model-00002-of-00002.safetensors\" is missing");
    }
}
