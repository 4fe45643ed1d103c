//! A GGUF file against the Hugging Face folder that it was made of.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use drydock_spec::FailureKind;
use drydock_worker::ending::Ending;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;

type Metadata = Vec<(&'static str, Value)>;

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/llama_lora/tied")
}

/// The order of rows that llama.cpp's converter writes: values that turn together side by side.
fn side_by_side(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, width) = weight.dims2().unwrap();
    let halves = weight.reshape((heads, 2, rows / heads / 2, width)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, width)).unwrap()
}

/// The fixture's tensors under GGUF's names.
fn tensors(dtype: GgmlDType) -> Vec<(String, QTensor)> {
    let tensors = candle_core::safetensors::load(fixture().join("model.safetensors"), &Device::Cpu).unwrap();
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            let tensor = tensor.to_dtype(DType::F32).unwrap();
            let tensor = match name.rsplit('.').nth(1).unwrap() {
                "q_proj" => side_by_side(&tensor, 4),
                "k_proj" => side_by_side(&tensor, 2),
                _ => tensor,
            };
            let name = names.iter().fold(name, |name, (theirs, ours)| name.replace(theirs, ours));
            let dtype = if tensor.dims().len() == 2 { dtype } else { GgmlDType::F32 };
            (name, QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect()
}

fn metadata() -> Metadata {
    let strings = |items: &[&str]| Value::Array(items.iter().map(|item| Value::String(item.to_string())).collect());
    vec![
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(64)),
        ("llama.feed_forward_length", Value::U32(128)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("smollm".into())),
        ("tokenizer.ggml.tokens", strings(&["<end>", "a", "b", "ab"])),
        ("tokenizer.ggml.token_type", Value::Array([3, 1, 1, 1].map(Value::I32).to_vec())),
        ("tokenizer.ggml.merges", strings(&["a b"])),
        ("tokenizer.ggml.eos_token_id", Value::U32(0)),
        ("tokenizer.chat_template", Value::String("{{ messages[0].content }}".into())),
    ]
}

fn write_gguf(folder: &Path, dtype: GgmlDType, change: impl FnOnce(&mut Metadata)) {
    let (tensors, mut metadata) = (tensors(dtype), metadata());
    change(&mut metadata);
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    write(&mut File::create(folder.join("model.gguf")).unwrap(), &metadata, &tensors).unwrap();
}

fn logits(folder: &Path) -> Vec<f32> {
    let files = ModelFiles::open(folder).unwrap();
    let decoder = Decoder::load(&files, IDS.len(), |_| Ok(())).unwrap();
    decoder.logits(&IDS).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_gguf_has_the_logits_of_the_folder_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    write_gguf(folder.path(), GgmlDType::F32, |_| {});
    assert_eq!(logits(folder.path()), logits(&fixture()));
}

#[test]
fn a_quantized_gguf_comes_close() {
    let folder = tempfile::tempdir().unwrap();
    write_gguf(folder.path(), GgmlDType::Q8_0, |_| {});
    let (got, want) = (logits(folder.path()), logits(&fixture()));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
    assert!(error > 0.0 && error < 0.03, "{error}");
}

#[test]
fn the_tokenizer_comes_from_the_metadata_unless_its_file_lies_beside() {
    let folder = tempfile::tempdir().unwrap();
    write_gguf(folder.path(), GgmlDType::F32, |_| {});
    let text = ModelFiles::open(folder.path()).unwrap().text().unwrap();
    assert_eq!(text.encode("abb<end>", false).unwrap().ids, [3, 2, 0]);
    assert_eq!((text.stops.as_slice(), text.chat_template.as_deref()), (&[0][..], Some("{{ messages[0].content }}")));
    // A tokenizer that does not merge.
    let mut json: serde_json::Value = serde_json::from_str(&text.tokenizer_json).unwrap();
    json["model"]["merges"] = serde_json::json!([]);
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let text = ModelFiles::open(folder.path()).unwrap().text().unwrap();
    assert_eq!(text.encode("abb", false).unwrap().ids, [1, 2, 2]);
    assert!(text.chat_template.is_some(), "the template is still the GGUF's");
    assert_eq!((text.stops.as_slice(), text.eos.as_deref()), (&[0][..], Some("<end>")), "and so is the end");
}

#[test]
fn what_is_wrong_with_a_gguf_is_told() {
    let failure = |change: &dyn Fn(&mut Metadata)| {
        let folder = tempfile::tempdir().unwrap();
        write_gguf(folder.path(), GgmlDType::F32, change);
        match ModelFiles::open(folder.path()) {
            Err(Ending::Failed(failure)) => failure,
            _ => panic!("it is accepted"),
        }
    };
    let unknown = failure(&|metadata| metadata[0].1 = Value::String("qwen3moe".into()));
    assert_eq!(unknown.kind, FailureKind::UnsupportedModel);
    assert_eq!(
        unknown.message,
        "the model's architecture is `qwen3moe`; known are: llama, mistral, qwen2, qwen3, gemma2, gemma3, gemma3_text, phi3"
    );
    let missing = failure(&|metadata| metadata.retain(|(key, _)| *key != "llama.block_count"));
    assert_eq!(missing.kind, FailureKind::BadModel);
    assert!(missing.message.starts_with("GGUF metadata `llama.block_count`: missing"), "{missing}");
}

#[test]
fn a_gguf_that_was_cut_off_is_told_by_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    write_gguf(folder.path(), GgmlDType::F32, |_| {});
    let path = folder.path().join("model.gguf");
    let whole = std::fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(whole / 2).unwrap();
    let Err(Ending::Failed(failure)) = ModelFiles::open(folder.path()) else { panic!("it is accepted") };
    assert_eq!(failure.kind, FailureKind::BadModel);
    assert!(failure.message.starts_with("tensor `"), "{failure}");
    assert!(failure.message.ends_with("reach beyond the end of the file"), "{failure}");
}

#[derive(serde::Deserialize)]
struct Pieces {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
    texts: Vec<Tokenized>,
}

#[derive(serde::Deserialize)]
struct Tokenized {
    text: String,
    ids: Vec<u32>,
}

/// The pieces are those of `tests/reference/make_pieces.py`.
#[test]
fn a_sentencepiece_tokenizer_is_rebuilt_from_pieces_and_scores() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/pieces.json");
    let cases: HashMap<String, Pieces> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (name, pieces) in cases {
        let folder = tempfile::tempdir().unwrap();
        let text = |text: &String| Value::String(text.clone());
        write_gguf(folder.path(), GgmlDType::F32, |metadata| {
            metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
            metadata.extend([
                ("tokenizer.ggml.model", Value::String("llama".into())),
                ("tokenizer.ggml.tokens", Value::Array(pieces.tokens.iter().map(text).collect())),
                ("tokenizer.ggml.scores", Value::Array(pieces.scores.iter().copied().map(Value::F32).collect())),
                ("tokenizer.ggml.token_type", Value::Array(pieces.kinds.iter().copied().map(Value::I32).collect())),
                ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
                ("tokenizer.ggml.bos_token_id", Value::U32(1)),
                ("tokenizer.ggml.eos_token_id", Value::U32(2)),
                ("tokenizer.ggml.add_space_prefix", Value::Bool(name == "like_llama")),
            ]);
        });
        let text = ModelFiles::open(folder.path()).unwrap().text().unwrap();
        assert_eq!(pieces.texts.len(), 8);
        for Tokenized { text: given, ids } in &pieces.texts {
            assert_eq!(&text.encode(given, false).unwrap().ids, ids, "{name}: {given:?}");
            assert_eq!(text.encode(given, true).unwrap().ids, [&[1], &ids[..]].concat(), "{name}: {given:?} begins");
            assert_eq!(&text.decode(ids, true).unwrap(), given, "{name}: {ids:?}");
        }
        assert_eq!((text.stops.as_slice(), text.bos.as_deref()), (&[2][..], Some("<s>")));
    }
}
