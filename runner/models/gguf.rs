//! The header of a GGUF file: llama.cpp's one-file models. Weights are not read, and nothing is believed: every
//! count is capped, every length is held against the file's, before anything is allocated.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek};

use drydock_gpu::Decoder;
use drydock_spec::model::{Architecture, PRE_TOKENIZERS, TOKENIZERS};

use super::tensors::{self, Biases, Layout, Tensor, Tensors};
use super::{Facts, Unusable, architecture};

/// Keys, and tensors, at most; the largest published models have some 2,000 tensors.
const MOST_ENTRIES: u64 = 65_536;
/// Elements of a list at most; the largest vocabularies have 300,000.
const MOST_ELEMENTS: u64 = 16 << 20;
/// Longest text that is kept; longer ones, such as long chat templates, are passed over.
const LONGEST_KEPT: u64 = 64 << 10;
const LONGEST_NAME: u64 = 1 << 10;
/// Lists within lists.
const DEEPEST: u32 = 2;

/// A value of the metadata, as far as anybody asks for it.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Whole(u64),
    Text(String),
    /// So many elements.
    List(u64),
    /// There, but of no interest.
    Other,
}

struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: Tensors,
}

/// What a GGUF file of `length` bytes holds. Its own tokenizer matters only where no `tokenizer.json` lies beside it.
pub(super) fn read(file: impl Read + Seek, length: u64, tokenizer_beside: bool) -> Result<Facts, Unusable> {
    let header = Header::read(file, length)?;
    let architecture = header.text("general.architecture")?;
    let layout = header.layout(architecture::named(&architecture)?);
    let mut decoder = header.decoder(&architecture, layout.architecture)?;
    architecture::check_decoder(&decoder)?;
    decoder.layer_vectors = layout.layer_vectors(&decoder);
    decoder.norms_after = layout.architecture.norms_after();
    tensors::check(&decoder, &layout, &tensors::GGUF, &header.tensors)?;
    header.check_rope(&architecture)?;
    if !tokenizer_beside {
        header.check_tokenizer(&decoder)?;
    }
    Ok(Facts {
        max_positions: u32::try_from(header.whole(&format!("{architecture}.context_length"))?).unwrap_or(u32::MAX),
        dtype: tensors::dtype(&header.tensors).to_owned(),
        has_chat_template: header.metadata.contains_key("tokenizer.chat_template"),
        architecture,
        decoder,
        tokens_beyond: None,
    })
}

impl Header {
    fn read(file: impl Read + Seek, length: u64) -> Result<Self, Unusable> {
        let mut cursor = Cursor { reader: BufReader::with_capacity(1 << 20, file), position: 0, length };
        cursor.magic()?;
        let tensor_count = cursor.count("tensors", MOST_ENTRIES)?;
        let key_count = cursor.count("keys", MOST_ENTRIES)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..key_count {
            let key = cursor.text(LONGEST_NAME)?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Whole(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => *alignment,
            Some(_) => return Err(broken("`general.alignment` is no power of two".into())),
            None => 32,
        };
        let mut tensors = Tensors::new();
        let mut ends = Vec::new();
        for _ in 0..tensor_count {
            let (name, tensor, offset, bytes) = cursor.tensor()?;
            if offset % alignment != 0 {
                return Err(broken(format!("tensor `{name}` begins at {offset}, which is no multiple of {alignment}")));
            }
            ends.push((offset.saturating_add(bytes), name.clone()));
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(broken(format!("tensor `{name}` is there twice")));
            }
        }
        let data = cursor.position.next_multiple_of(alignment);
        if let Some((end, name)) = ends.into_iter().max() {
            let end = data.saturating_add(end);
            if end > length {
                return Err(truncated(&format!("tensor `{name}`"), end, length));
            }
        }
        Ok(Self { metadata, tensors })
    }

    fn whole(&self, key: &str) -> Result<u64, Unusable> {
        match self.metadata.get(key) {
            Some(Value::Whole(value)) => Ok(*value),
            Some(_) => Err(broken(format!("metadata `{key}` is not a whole number"))),
            None => Err(broken(format!("metadata `{key}` is missing"))),
        }
    }

    fn text(&self, key: &str) -> Result<String, Unusable> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text.clone()),
            Some(_) => Err(broken(format!("metadata `{key}` is not a text"))),
            None => Err(broken(format!("metadata `{key}` is missing"))),
        }
    }

    /// A GGUF's metadata does not speak of biases; its tensors do.
    fn layout(&self, architecture: Architecture) -> Layout {
        let has = |part: &str| self.tensors.contains_key(&format!("blk.0.{part}.bias"));
        let biases = Biases {
            query_key_value: has("attn_q") || has("attn_qkv"),
            output: has("attn_output"),
            mlp: has("ffn_up"),
        };
        Layout { architecture, biases }
    }

    fn check_rope(&self, architecture: &str) -> Result<(), Unusable> {
        match self.metadata.get(&format!("{architecture}.rope.scaling.type")) {
            Some(Value::Text(kind)) if !matches!(kind.as_str(), "none" | "linear" | "yarn" | "longrope") => {
                Err(Unusable::unsupported(
                    format!(
                        "the rope scaling is `{kind}`; none, linear, yarn and longrope are known, and llama3's factors as a tensor"
                    ),
                    "choose another model",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a tokenizer that the worker cannot rebuild from the metadata.
    fn check_tokenizer(&self, decoder: &Decoder) -> Result<(), Unusable> {
        const BESIDE: &str = "put the model's tokenizer.json beside the file and import the folder";
        let list = |key: &str| match self.metadata.get(key) {
            Some(Value::List(count)) => Ok(*count),
            _ => Err(Unusable::damaged(format!("no whole tokenizer inside: `{key}` is missing"), BESIDE)),
        };
        let tokens = list("tokenizer.ggml.tokens")?;
        if tokens != u64::from(decoder.vocabulary) {
            let problem = format!("the tokenizer has {tokens} tokens, the embedding {}", decoder.vocabulary);
            return Err(Unusable::damaged(problem, BESIDE));
        }
        let text = |key: &str| match self.metadata.get(key) {
            Some(Value::Text(text)) => text.as_str(),
            _ => "(none)",
        };
        list("tokenizer.ggml.token_type")?;
        match text("tokenizer.ggml.model") {
            "gpt2" => list("tokenizer.ggml.merges").map(drop)?,
            "llama" => return list("tokenizer.ggml.scores").map(drop),
            kind => {
                let problem = format!("the tokenizer is of the kind `{kind}`; known are {}", TOKENIZERS.join(", "));
                return Err(Unusable::unsupported(problem, BESIDE));
            }
        }
        let cut = text("tokenizer.ggml.pre");
        if cut != "(none)" && !PRE_TOKENIZERS.contains(&cut) {
            let problem = format!("the pre-tokenizer is `{cut}`; known are {}", PRE_TOKENIZERS.join(", "));
            return Err(Unusable::unsupported(problem, BESIDE));
        }
        Ok(())
    }

    fn decoder(&self, name: &str, architecture: Architecture) -> Result<Decoder, Unusable> {
        let number = |key: &str| {
            let key = format!("{name}.{key}");
            let value = self.whole(&key)?;
            u32::try_from(value).map_err(|_| broken(format!("metadata `{key}` is {value}, which no model has")))
        };
        let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
        let optional = |key: &str, default: u32| {
            if self.metadata.contains_key(&format!("{name}.{key}")) { number(key) } else { Ok(default) }
        };
        // Phi-3 may turn a part of each head only; elsewhere old files have no other trace of the heads' dimension.
        let turning = match architecture {
            Architecture::Phi3 => hidden / heads.max(1),
            _ => optional("rope.dimension_count", hidden / heads.max(1))?,
        };
        let embedding = tensors::GGUF.embedding();
        let vocabulary = self.tensors.get(&embedding).and_then(|tensor| tensor.shape.first());
        let vocabulary = vocabulary.ok_or_else(|| broken(format!("tensor `{embedding}` is missing")))?;
        Ok(Decoder {
            layers: number("block_count")?,
            hidden,
            heads,
            kv_heads: optional("attention.head_count_kv", heads)?,
            head_dim: optional("attention.key_length", turning)?,
            ffn: number("feed_forward_length")?,
            vocabulary: u32::try_from(*vocabulary).unwrap_or(u32::MAX),
            // A GGUF file leaves the head's weight out when it is the embedding's.
            tied: !self.tensors.contains_key(&tensors::GGUF.head()),
            layer_vectors: 0,
            norms_after: false,
        })
    }
}

struct Cursor<R> {
    reader: BufReader<R>,
    position: u64,
    length: u64,
}

impl<R: Read + Seek> Cursor<R> {
    fn magic(&mut self) -> Result<(), Unusable> {
        let magic = self.bytes(4)?;
        if magic != b"GGUF" {
            return Err(not_gguf(&magic));
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            big_endian if big_endian.swap_bytes() <= 3 => {
                Err(Unusable::unsupported("a big-endian GGUF file", "take the little-endian one"))
            }
            version => {
                let problem = format!("GGUF version {version}; versions 2 and 3 are known");
                Err(Unusable::unsupported(problem, "convert the model again with a current llama.cpp"))
            }
        }
    }

    /// Refuses to read beyond the end of the file.
    fn reserve(&self, bytes: u64) -> Result<(), Unusable> {
        let end = self.position.saturating_add(bytes);
        if end > self.length { Err(truncated("the header", end, self.length)) } else { Ok(()) }
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Unusable> {
        self.reserve(count)?;
        let mut bytes = vec![0; count as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| broken(format!("byte {}: {error}", self.position)))?;
        self.position += count;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), Unusable> {
        self.reserve(count)?;
        let offset = i64::try_from(count).map_err(|_| broken(format!("a value of {count} bytes")))?;
        self.reader.seek_relative(offset).map_err(|error| broken(format!("byte {}: {error}", self.position)))?;
        self.position += count;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Unusable> {
        Ok(self.little(4)? as u32)
    }

    fn u64(&mut self) -> Result<u64, Unusable> {
        self.little(8)
    }

    fn little(&mut self, width: u64) -> Result<u64, Unusable> {
        Ok(self.bytes(width)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, Unusable> {
        let count = self.u64()?;
        if count > most { Err(broken(format!("{count} {what}, {most} at most are read"))) } else { Ok(count) }
    }

    fn text(&mut self, longest: u64) -> Result<String, Unusable> {
        let length = self.count("bytes in a name", longest)?;
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|_| broken(format!("the name before byte {} is not UTF-8", self.position)))
    }

    /// A value of one of GGUF's 13 kinds.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, Unusable> {
        Ok(match kind {
            // Unsigned and signed, by their width; a negative number is nothing that anybody here asks for.
            0 | 2 | 4 | 10 => Value::Whole(self.little(width(kind))?),
            1 | 3 | 5 | 11 => {
                let bits = 8 * width(kind);
                let value = self.little(width(kind))?;
                if value >> (bits - 1) == 0 { Value::Whole(value) } else { Value::Other }
            }
            6 | 7 | 12 => {
                self.skip(width(kind))?;
                Value::Other
            }
            8 => {
                let length = self.u64()?;
                if length > LONGEST_KEPT {
                    self.skip(length)?;
                    Value::Other
                } else {
                    let bytes = self.bytes(length)?;
                    String::from_utf8(bytes).map_or(Value::Other, Value::Text)
                }
            }
            9 => self.list(depth)?,
            unknown => return Err(broken(format!("a value of kind {unknown}, which GGUF does not have"))),
        })
    }

    fn list(&mut self, depth: u32) -> Result<Value, Unusable> {
        let kind = self.u32()?;
        let count = self.count("elements in a list", MOST_ELEMENTS)?;
        match kind {
            8 => {
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
            }
            9 if depth >= DEEPEST => return Err(broken("lists nested too deep".into())),
            9 => {
                for _ in 0..count {
                    self.list(depth + 1)?;
                }
            }
            kind if width(kind) > 0 => self.skip(count * width(kind))?,
            unknown => return Err(broken(format!("a list of kind {unknown}, which GGUF does not have"))),
        }
        Ok(Value::List(count))
    }

    /// Name, tensor, offset into the data, and size in bytes.
    fn tensor(&mut self) -> Result<(String, Tensor, u64, u64), Unusable> {
        let name = self.text(LONGEST_NAME)?;
        let dimensions = self.u32()?;
        if dimensions > 4 {
            return Err(broken(format!("tensor `{name}` has {dimensions} dimensions, 4 at most are possible")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let Some((dtype, block, block_bytes)) = weight_type(kind) else {
            let what = UNREADABLE.iter().find(|(id, _)| *id == kind).map_or("of an unknown type", |(_, name)| *name);
            let problem = format!("tensor `{name}` is {what} (type {kind}), which the worker cannot read");
            return Err(Unusable::unsupported(problem, "take one of Q4_0 to Q8_0, Q2_K to Q6_K, F16, BF16 or F32"));
        };
        let numbers = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let bytes = numbers.and_then(|numbers| {
            let row = shape.first().copied().unwrap_or(1);
            (row % block == 0).then(|| (numbers / block).checked_mul(block_bytes)).flatten()
        });
        let Some(bytes) = bytes else {
            return Err(broken(format!("tensor `{name}` of type {dtype} cannot have shape {shape:?}")));
        };
        // GGUF writes the innermost dimension first.
        shape.reverse();
        Ok((name, Tensor { dtype, shape }, offset, bytes))
    }
}

/// Bytes of a value of this kind; 0 if they vary.
fn width(kind: u32) -> u64 {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => 0,
    }
}

/// Name, numbers a block, and bytes a block of the types that the worker reads.
fn weight_type(kind: u32) -> Option<(&'static str, u64, u64)> {
    Some(match kind {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        30 => ("BF16", 1, 2),
        _ => return None,
    })
}

/// Types that are known by name only.
const UNREADABLE: [(u32, &str); 12] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

fn truncated(what: &str, end: u64, length: u64) -> Unusable {
    let problem = format!("truncated: {what} ends at byte {end}, the file has {length}");
    Unusable::damaged(problem, "download or copy the file again")
}

fn broken(problem: String) -> Unusable {
    Unusable::damaged(problem, "download or copy the file again")
}

fn not_gguf(magic: &[u8]) -> Unusable {
    let shown = magic.escape_ascii();
    let (guess, next) = match magic {
        [b'P', b'K', ..] => {
            (" (a zip archive, such as a PyTorch checkpoint)", "save the model as safetensors, or convert it to GGUF")
        }
        [b'g', b'g', ..] | [.., b'g', b'g'] => {
            (" (a file of llama.cpp's time before GGUF)", "convert the model again with a current llama.cpp")
        }
        _ => ("", "check that the download is whole and the right file"),
    };
    Unusable::damaged(format!("not a GGUF file: it begins with `{shown}`{guess}, not with `GGUF`"), next)
}

#[cfg(test)]
mod tests;
