//! Whole model folders that were changed at random. Whatever they hold, they are read or refused.

use std::fs;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::ModelFiles;
use super::decoder::Decoder;
use super::lora::SavedAdapter;
use crate::ending::Result;

const HIDDEN: usize = 4;
const VOCABULARY: usize = 8;
/// Numbers that configurations have by mistake or by malice.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "3",
    "1e999",
    "1e38",
    "1e-300",
    "0.5",
    "4294967296",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999",
    "1000000000",
];
/// Values of other kinds.
const ODDITIES: [&str; 6] = ["null", "true", "\"\"", "[]", "{}", "[[[[[[1]]]]]]"];

fn config() -> Value {
    json!({"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 4, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32, "tie_word_embeddings": true, "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}})
}

fn tokenizer() -> Value {
    json!({"version": "1.0", "added_tokens": [{"id": 2, "content": "<s>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": [["a", "b"]]}})
}

/// A safetensors file of zeros.
fn tensors(entries: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in entries {
        let bytes = 4 * shape.iter().product::<usize>();
        header.insert(name.to_string(), json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    file
}

fn weights() -> Vec<u8> {
    tensors(&[
        ("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]),
        ("model.norm.weight", &[HIDDEN]),
        ("model.layers.0.input_layernorm.weight", &[HIDDEN]),
        ("model.layers.0.post_attention_layernorm.weight", &[HIDDEN]),
        ("model.layers.0.self_attn.q_proj.weight", &[4, HIDDEN]),
        ("model.layers.0.self_attn.k_proj.weight", &[2, HIDDEN]),
        ("model.layers.0.self_attn.v_proj.weight", &[2, HIDDEN]),
        ("model.layers.0.self_attn.o_proj.weight", &[HIDDEN, 4]),
        ("model.layers.0.mlp.gate_proj.weight", &[4, HIDDEN]),
        ("model.layers.0.mlp.up_proj.weight", &[4, HIDDEN]),
        ("model.layers.0.mlp.down_proj.weight", &[HIDDEN, 4]),
    ])
}

/// Every file of a model and of an adapter over it.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let adapter = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0,
        "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM", "fan_in_fan_out": false,
        "use_rslora": false, "use_dora": false, "modules_to_save": null, "inference_mode": true,
        "base_model_name_or_path": "tiny", "init_lora_weights": true, "peft_version": "0.21.2"});
    let projection = "base_model.model.model.layers.0.self_attn.q_proj";
    let [a, b] = ["lora_A", "lora_B"].map(|kind| format!("{projection}.{kind}.weight"));
    let text = |json: Value| json.to_string().into_bytes();
    vec![
        ("config.json", text(config())),
        ("tokenizer.json", text(tokenizer())),
        ("tokenizer_config.json", text(json!({"eos_token": "<s>", "chat_template": "{{ messages }}"}))),
        ("model.safetensors", weights()),
        ("adapter/adapter_config.json", text(adapter)),
        ("adapter/adapter_model.safetensors", tensors(&[(&a, &[2, HIDDEN]), (&b, &[4, 2])])),
    ]
}

/// Reads all that a job reads before it begins.
fn read(folder: &Path) -> Result<()> {
    let files = ModelFiles::open(folder)?;
    let text = files.text()?;
    let ids = text.encode("ab<s>a", true)?.ids;
    let mut decoder = Decoder::load(&files, 16, |_| Ok(()))?;
    SavedAdapter::open(&folder.join("adapter"))?.load(&mut decoder)?;
    if !ids.is_empty() && ids.len() <= 16 {
        decoder.logits(&ids)?;
    }
    Ok(())
}

/// Puts something else in the place of a number, of a word, or of a byte; or cuts the file.
fn change(file: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    let mut below = |end: usize| random.next_u32() as usize % end.max(1);
    let header = file.len().min(1200);
    let at = below(header);
    let number = |file: &[u8]| {
        let from = (at..header).find(|&index| file[index].is_ascii_digit())?;
        let to = (from..header).find(|&index| !matches!(file[index], b'0'..=b'9' | b'.' | b'e' | b'-'))?;
        Some(from..to)
    };
    let word = |file: &[u8]| {
        let from = (at..header).find(|&index| file[index] == b'"')?;
        let to = (from + 1..header).find(|&index| file[index] == b'"')?;
        Some(from..to + 1)
    };
    match below(6) {
        0..=2 => {
            if let Some(range) = number(file) {
                file.splice(range, NUMBERS[below(NUMBERS.len())].bytes());
            }
        }
        3 => {
            if let Some(range) = word(file) {
                file.splice(range, ODDITIES[below(ODDITIES.len())].bytes());
            }
        }
        4 => file[at] = below(256) as u8,
        _ => file.truncate(at),
    }
}

/// The header's length as it is after a change, so that what is in the header is looked at.
fn mend(file: &mut [u8], before: usize) {
    let Some(length) = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else { return };
    let mended = length.wrapping_add(file.len() as u64).wrapping_sub(before as u64);
    file[..8].copy_from_slice(&mended.to_le_bytes());
}

#[test]
fn a_model_folder_that_was_changed_anywhere_is_read_or_refused_but_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("adapter")).unwrap();
    let whole = files();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    whole.iter().for_each(|(name, bytes)| write(name, bytes));
    read(folder.path()).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut refused = 0;
    for round in 0..1_500 {
        let (name, bytes) = &whole[round % whole.len()];
        let mut file = bytes.clone();
        for _ in 0..1 + random.next_u32() % 2 {
            let before = file.len();
            if before > 0 {
                change(&mut file, &mut random);
            }
            if name.ends_with(".safetensors") {
                mend(&mut file, before);
            }
        }
        write(name, &file);
        let read = std::panic::catch_unwind(|| read(folder.path()));
        match read {
            Ok(Ok(())) => {}
            Ok(Err(_)) => refused += 1,
            Err(_) => panic!("{name} of round {round}: {}", String::from_utf8_lossy(&file)),
        }
        write(name, bytes);
    }
    assert!((500..1_500).contains(&refused), "{refused} were refused");
}

#[test]
fn a_text_with_a_token_that_the_model_has_no_row_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files().iter().filter(|(name, _)| !name.starts_with("adapter")) {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let mut larger = tokenizer();
    larger["added_tokens"][0]["id"] = VOCABULARY.into();
    larger["model"]["vocab"] = json!({"a": 0, "b": 1, "ab": 3, "<s>": VOCABULARY});
    fs::write(folder.path().join("tokenizer.json"), larger.to_string()).unwrap();
    let unending = format!("{:?}", ModelFiles::open(folder.path()).unwrap().text().map(|_| ()));
    assert!(unending.contains("texts end with the token 8; the model's vocabulary has 8"), "{unending}");
    fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let text = ModelFiles::open(folder.path()).unwrap().text().unwrap();
    assert_eq!(text.encode("ab", true).unwrap().ids, [3]);
    let refused = format!("{:?}", text.encode("ab<s>", true).map(|_| ()));
    assert!(refused.contains("makes token 8, `<s>`, of a text; the model's vocabulary has 8"), "{refused}");
}
