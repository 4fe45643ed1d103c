//! Tiny models, made byte by byte: the smallest files that are whole.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "for tests, each of which uses its own part of it")]

use std::path::Path;

use serde_json::{Value, json};

pub const VOCABULARY: u64 = 32;
pub const HIDDEN: u64 = 8;

/// A GGUF file in the making.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub keys: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Weights>,
}

/// A tensor of a GGUF file; its shape has the innermost dimension first.
#[derive(Clone)]
pub struct Weights {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A metadata value of kind u32.
pub fn number(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

/// A metadata value of kind string.
pub fn string(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(value)].concat()
}

/// A metadata value of kind list of strings.
pub fn strings(count: u64) -> Vec<u8> {
    let mut bytes = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &count.to_le_bytes()].concat();
    (0..count).for_each(|i| bytes.extend(text(&format!("t{i}"))));
    bytes
}

/// A metadata value of kind list of numbers.
pub fn numbers(count: u64) -> Vec<u8> {
    let mut bytes = [&9u32.to_le_bytes()[..], &5u32.to_le_bytes(), &count.to_le_bytes()].concat();
    (0..count).for_each(|_| bytes.extend(1i32.to_le_bytes()));
    bytes
}

impl Gguf {
    /// A llama of two layers.
    pub fn tiny() -> Self {
        let keys = [
            ("general.architecture", string("llama")),
            ("llama.block_count", number(2)),
            ("llama.context_length", number(128)),
            ("llama.embedding_length", number(HIDDEN as u32)),
            ("llama.feed_forward_length", number(16)),
            ("llama.attention.head_count", number(2)),
            ("llama.attention.head_count_kv", number(1)),
            ("tokenizer.ggml.model", string("gpt2")),
            ("tokenizer.ggml.pre", string("smollm")),
            ("tokenizer.ggml.tokens", strings(VOCABULARY)),
            ("tokenizer.ggml.token_type", numbers(VOCABULARY)),
            ("tokenizer.ggml.merges", strings(3)),
            ("tokenizer.chat_template", string("{{ messages }}")),
        ];
        let mut tensors = vec![weights("token_embd.weight", &[HIDDEN, VOCABULARY])];
        for layer in 0..2 {
            for (part, shape) in [
                ("attn_norm", &[8][..]),
                ("attn_q", &[8, 8]),
                ("attn_k", &[8, 4]),
                ("attn_v", &[8, 4]),
                ("attn_output", &[8, 8]),
                ("ffn_norm", &[8]),
                ("ffn_gate", &[8, 16]),
                ("ffn_up", &[8, 16]),
                ("ffn_down", &[16, 8]),
            ] {
                tensors.push(weights(&format!("blk.{layer}.{part}.weight"), shape));
            }
        }
        tensors.push(weights("output_norm.weight", &[8]));
        let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { magic: *b"GGUF", version: 3, keys, tensors }
    }

    pub fn with(mut self, key: &str, value: Vec<u8>) -> Self {
        self.keys.retain(|(known, _)| known != key);
        self.keys.push((key.to_owned(), value));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.keys.retain(|(known, _)| known != name);
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset += (4 * tensor.shape.iter().product::<u64>()).next_multiple_of(32);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.resize(bytes.len() + offset as usize, 0);
        bytes
    }
}

pub fn weights(name: &str, shape: &[u64]) -> Weights {
    Weights { name: name.to_owned(), shape: shape.to_vec(), kind: 0 }
}

/// Tensors by name, with the outermost dimension first.
pub type Shapes = Vec<(String, Vec<u64>)>;

/// The tensors of the same llama as Hugging Face names them.
pub fn shapes() -> Shapes {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..2 {
        for (part, shape) in [
            ("input_layernorm", &[8][..]),
            ("self_attn.q_proj", &[8, 8]),
            ("self_attn.k_proj", &[4, 8]),
            ("self_attn.v_proj", &[4, 8]),
            ("self_attn.o_proj", &[8, 8]),
            ("post_attention_layernorm", &[8]),
            ("mlp.gate_proj", &[16, 8]),
            ("mlp.up_proj", &[16, 8]),
            ("mlp.down_proj", &[8, 16]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape.to_vec()));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    shapes
}

/// A safetensors file of zeros.
pub fn safetensors(shapes: &[(String, Vec<u64>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let begin = end;
        end += 4 * shape.iter().product::<u64>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end as usize, 0);
    file
}

pub fn config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true
    })
}

pub fn tokenizer_json() -> Value {
    let vocabulary: serde_json::Map<_, _> = (0..VOCABULARY).map(|id| (format!("t{id}"), id.into())).collect();
    json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
}

/// The files of a Hugging Face folder, by name.
pub fn hugging_face() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", config_json().to_string().into_bytes()),
        ("tokenizer.json", tokenizer_json().to_string().into_bytes()),
        ("tokenizer_config.json", json!({"chat_template": "{{ messages }}"}).to_string().into_bytes()),
        ("model.safetensors", safetensors(&shapes())),
    ]
}

/// Writes these files into a folder, which is made.
pub fn write<N: AsRef<str>>(folder: &Path, files: impl IntoIterator<Item = (N, Vec<u8>)>) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.join(name.as_ref()), bytes).unwrap();
    }
}
