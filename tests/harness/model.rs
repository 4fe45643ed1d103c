//! A whole small Llama with random weights, as a Hugging Face folder: every byte is a token, so nothing is unknown.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCABULARY: usize = 260;

/// What models differ in.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub hidden: usize,
    pub layers: usize,
    pub seed: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { hidden: 64, layers: 2, seed: 7 }
    }
}

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                        '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                        {% endif %}";

/// Writes the model's files into `folder`.
pub fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, content) in files(Size::default()) {
        std::fs::write(folder.join(name), content).unwrap();
    }
}

/// The files of such a model, by name.
pub fn files(size: Size) -> BTreeMap<String, Vec<u8>> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": size.hidden,
        "num_hidden_layers": size.layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "intermediate_size": 2 * size.hidden, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        "bos_token_id": 258, "eos_token_id": 257
    });
    let tokenizer_config = json!({
        "chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast"
    });
    let texts = [("config.json", config), ("tokenizer.json", tokenizer()), ("tokenizer_config.json", tokenizer_config)];
    let texts = texts.map(|(name, content)| (name.to_owned(), content.to_string().into_bytes()));
    BTreeMap::from_iter(texts.into_iter().chain([("model.safetensors".to_owned(), weights(size))]))
}

/// Byte-level BPE without merges.
fn tokenizer() -> serde_json::Value {
    let special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>"];
    let mut vocabulary = serde_json::Map::new();
    for (id, sign) in byte_signs().into_iter().enumerate() {
        vocabulary.insert(sign.to_string(), id.into());
    }
    let mut added = Vec::new();
    for (id, content) in (256..).zip(special) {
        vocabulary.insert(content.into(), id.into());
        added.push(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": []}
    })
}

/// The printable sign that byte-level tokenizers write for each byte: itself where it is printable, otherwise the next
/// one from 256 on.
fn byte_signs() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}

fn weights(size: Size) -> Vec<u8> {
    let (hidden, ffn, head) = (size.hidden, 2 * size.hidden, size.hidden / HEADS);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, hidden])];
    for layer in 0..size.layers {
        for (part, shape) in [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![KV_HEADS * head, hidden]),
            ("self_attn.v_proj", vec![KV_HEADS * head, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    let mut random = StdRng::seed_from_u64(size.seed);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            let norm = shape.len() == 1;
            let value: f32 = if norm { 1.0 } else { random.random_range(-0.08..0.08) };
            data.extend(value.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}
