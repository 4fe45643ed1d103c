//! From a heap of files to a model: which of them are needed, and whether they are whole and fit together.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use serde::Deserialize;
use serde_json::Value;

use super::config::Config;
use super::tensors::{self, HUGGING_FACE, Tensors};
use super::tokenizer::{self, Tokenizer};
use super::{Facts, ModelError, Unusable, WeightsFormat, gguf, safetensors};
use crate::data_dirs::OpenFile;

/// Files beside the weights that the worker reads, where they are there.
pub(super) const BESIDE: [&str; 5] =
    [TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION_CONFIG, "special_tokens_map.json"];
/// Longest text file; the largest tokenizers have some 35 MB.
const LONGEST_TEXT: u64 = 128 << 20;
pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// What a GGUF file is called in a model's folder, whatever it was called before: so the same file is the same model.
const GGUF_NAME: &str = "model.gguf";

/// A file that the model needs.
#[derive(Debug)]
pub(super) struct Needed {
    pub(super) file: OpenFile,
    /// What it is called in the model's folder.
    pub(super) path: String,
}

/// A model that may enter the store.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) format: WeightsFormat,
    pub(super) facts: Facts,
    pub(super) files: Vec<Needed>,
}

/// Which weights to take of the files with these names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    Gguf(String),
    /// One file, or the shards that an index names.
    Safetensors,
}

/// Chooses by names alone, so that it serves for a listing of the hub as well.
pub(super) fn choose(names: &[&str]) -> Result<Weights, Unusable> {
    let ending = |endings: &[&str]| -> Vec<&str> {
        names
            .iter()
            .copied()
            .filter(|name| endings.iter().any(|end| name.to_ascii_lowercase().ends_with(end)))
            .collect()
    };
    let safetensors = ending(&[".safetensors"]);
    if safetensors.iter().any(|name| !name.starts_with("adapter")) {
        return Ok(Weights::Safetensors);
    }
    if !safetensors.is_empty() || names.contains(&"adapter_config.json") {
        let problem = "this is an adapter, not a model";
        return Err(Unusable::unsupported(problem, "add the model that the adapter was trained on"));
    }
    let ggufs = ending(&[".gguf"]);
    match ggufs.as_slice() {
        [part, ..] if part.contains("-of-0") => Err(Unusable::unsupported(
            format!("`{part}` is a part of a split GGUF file"),
            "join the parts with `llama-gguf-split --merge`",
        )),
        [one] => Ok(Weights::Gguf((*one).to_owned())),
        [] => Err(without_weights(&ending(&[".bin", ".pt", ".pth", ".ckpt", ".pkl"]))),
        several => Err(Unusable::unsupported(
            format!("{} GGUF files: {}", several.len(), several.join(", ")),
            "name one of them",
        )),
    }
}

fn without_weights(pickles: &[&str]) -> Unusable {
    match pickles.first() {
        Some(pickle) => Unusable::unsupported(
            format!("`{pickle}` is a pickle, which may run any program when it is read, and is never opened"),
            "save as safetensors: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
        ),
        None => Unusable::damaged(
            "no weights: neither *.safetensors nor *.gguf is there",
            "give a GGUF file, or a folder with config.json, tokenizer.json and *.safetensors",
        ),
    }
}

/// Looks at the headers of all files; none of the weights is read. `source` is what the caller called them all.
/// Blocks.
pub(super) fn inspect(source: &str, files: Vec<OpenFile>) -> Result<Inspected, ModelError> {
    let mut heap = Heap(files.into_iter().map(|file| (file.name.clone(), file)).collect());
    let names: Vec<_> = heap.0.keys().map(String::as_str).collect();
    match choose(&names).map_err(|problem| problem.of(source))? {
        Weights::Gguf(name) => heap.gguf(&name),
        Weights::Safetensors => heap.hugging_face(),
    }
}

/// Files by name; what the model needs is taken out.
struct Heap(BTreeMap<String, OpenFile>);

impl Heap {
    fn gguf(&mut self, name: &str) -> Result<Inspected, ModelError> {
        let weights = self.take(name, name)?;
        let beside = self.0.contains_key(TOKENIZER);
        let mut facts = gguf::read(&weights.file, weights.bytes, beside).map_err(|problem| problem.of(name))?;
        let mut files = vec![Needed { file: weights, path: GGUF_NAME.into() }];
        // What ends texts is in the GGUF file as well, and goes before what the tokenizer's files say.
        self.beside(&mut files, &mut facts, None)?;
        Ok(Inspected { format: WeightsFormat::Gguf, facts, files })
    }

    fn hugging_face(&mut self) -> Result<Inspected, ModelError> {
        let mut config = self.take(CONFIG, "the model's shape is in it")?;
        let shape = Config::parse(&text(&mut config)?).map_err(|problem| problem.of(CONFIG))?;
        let (mut files, tensors) = self.shards()?;
        let decoder = shape.with(&tensors);
        tensors::check(&decoder, &shape.layout(), &HUGGING_FACE, &tensors)
            .map_err(|problem| problem.of("*.safetensors"))?;
        let mut facts = Facts {
            architecture: shape.architecture(),
            max_positions: shape.max_positions(),
            dtype: tensors::dtype(&tensors).to_owned(),
            has_chat_template: false,
            tokens_beyond: None,
            decoder,
        };
        files.push(Needed { path: CONFIG.into(), file: config });
        if !self.0.contains_key(TOKENIZER) {
            self.take(
                TOKENIZER,
                "save the fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
            )?;
        }
        self.beside(&mut files, &mut facts, Some(shape.ends()))?;
        Ok(Inspected { format: WeightsFormat::Safetensors, facts, files })
    }

    /// The files that the index names, or all weights where there is none; and their tensors.
    fn shards(&mut self) -> Result<(Vec<Needed>, Tensors), ModelError> {
        let mut files = Vec::new();
        let promised = match self.0.remove(INDEX) {
            None => None,
            Some(mut file) => {
                let index: Index = serde_json::from_slice(&text(&mut file)?).map_err(|error| {
                    Unusable::damaged(format!("not an index of shards: {error}"), "download the file again").of(INDEX)
                })?;
                files.push(Needed { path: INDEX.into(), file });
                Some(index.weight_map)
            }
        };
        let mut shards: Vec<String> = match &promised {
            Some(map) => map.values().cloned().collect(),
            None => self.0.keys().filter(|name| name.ends_with(".safetensors")).cloned().collect(),
        };
        shards.sort_unstable();
        shards.dedup();
        let mut tensors = Tensors::new();
        for shard in shards {
            let mut file = self.take(&shard, "the index names this shard: download it as well")?;
            not_a_pointer(&mut file)?;
            for (name, tensor) in safetensors::read(&file.file, file.bytes).map_err(|problem| problem.of(&shard))? {
                if tensors.insert(name.clone(), tensor).is_some() {
                    let problem = format!("tensor `{name}` is in another file of the folder as well");
                    return Err(Unusable::damaged(problem, "keep one set of weights in the folder").of(&shard));
                }
            }
            files.push(Needed { path: shard, file });
        }
        let lacking = promised.iter().flatten().find(|(tensor, _)| !tensors.contains_key(*tensor));
        match lacking {
            Some((tensor, shard)) => {
                let problem = format!("tensor `{tensor}`, which the index promises, is not there");
                Err(Unusable::damaged(problem, "download the shards again").of(shard))
            }
            None => Ok((files, tensors)),
        }
    }

    /// Takes the files that go with the weights. `ends` are the tokens that end texts by the model's configuration, if
    /// that is all that tells.
    fn beside(&mut self, files: &mut Vec<Needed>, facts: &mut Facts, ends: Option<Vec<u64>>) -> Result<(), ModelError> {
        let (mut tokenizer, mut ends, mut settings) = (None, ends, Value::Null);
        for name in BESIDE {
            let Some(mut file) = self.0.remove(name) else { continue };
            let text = text(&mut file)?;
            let parsed = || tokenizer::json(&text).map_err(|problem| problem.of(name));
            match name {
                TOKENIZER => tokenizer = Some(Tokenizer::parse(&text).map_err(|problem| problem.of(name))?),
                TOKENIZER_CONFIG => settings = parsed()?,
                GENERATION_CONFIG => {
                    let named = parsed()?.get("eos_token_id").map(tokenizer::ids).unwrap_or_default();
                    ends.iter_mut().for_each(|ends| ends.extend(&named));
                }
                TEMPLATE => facts.has_chat_template = true,
                _ => {}
            }
            files.push(Needed { path: name.to_owned(), file });
        }
        facts.has_chat_template |= tokenizer::has_chat_template(&settings);
        let Some(tokenizer) = tokenizer else { return Ok(()) };
        let rows = facts.decoder.vocabulary;
        facts.tokens_beyond = tokenizer.beyond(rows).map_err(|problem| problem.of(TOKENIZER))?;
        match ends {
            Some(ends) => tokenizer.check_ends(&settings, &ends, rows).map_err(|problem| problem.of(TOKENIZER)),
            None => Ok(()),
        }
    }

    fn take(&mut self, name: &str, why: &str) -> Result<OpenFile, ModelError> {
        let mut file = self.0.remove(name).ok_or_else(|| Unusable::damaged("the file is missing", why).of(name))?;
        not_a_pointer(&mut file)?;
        Ok(file)
    }
}

/// `model.safetensors.index.json`: shard by tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Git leaves a few lines of text where a large file should be if LFS is not set up.
fn not_a_pointer(file: &mut OpenFile) -> Result<(), ModelError> {
    const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
    let mut begin = [0; POINTER.len()];
    let read = file.file.read_exact(&mut begin).map(|()| begin == *POINTER);
    file.file.rewind().map_err(|error| unreadable(&error).of(&file.name))?;
    if read.unwrap_or(false) {
        let problem = format!("a Git LFS pointer of {} bytes, not the file itself", file.bytes);
        return Err(Unusable::damaged(problem, "run `git lfs pull` in the repository").of(&file.name));
    }
    Ok(())
}

/// A text file, all of it; it is left at its beginning.
fn text(file: &mut OpenFile) -> Result<Vec<u8>, ModelError> {
    not_a_pointer(file)?;
    if file.bytes > LONGEST_TEXT {
        let problem = format!("{} bytes, {LONGEST_TEXT} at most are read of a text file", file.bytes);
        return Err(Unusable::damaged(problem, "take the file from the model's own repository").of(&file.name));
    }
    let mut text = Vec::new();
    (&file.file)
        .take(LONGEST_TEXT)
        .read_to_end(&mut text)
        .and_then(|_| file.file.rewind())
        .map_err(|error| unreadable(&error).of(&file.name))?;
    Ok(text)
}

fn unreadable(error: &std::io::Error) -> Unusable {
    Unusable::damaged(format!("cannot be read: {error}"), "check the disk and the file's permissions")
}
