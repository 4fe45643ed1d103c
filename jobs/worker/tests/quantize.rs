//! Whole quantizations of a tiny model.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use drydock_spec::contract::{EXIT_FAILED, EXIT_FINISHED};
use drydock_spec::{FailureKind, Report, ReportLine};
use drydock_worker::blocks::BlockKind;
use drydock_worker::gguf::{GgufFile, Value};
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;
use serde_json::{Value as Json, json};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/llama_lora/tied")
}

/// The fixture with a tokenizer of one character a token.
fn checkpoint(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture().join(name), folder.join(name)).unwrap();
    }
    let vocabulary: BTreeMap<String, u32> =
        ('a'..='z').enumerate().map(|(id, letter)| (letter.to_string(), id as u32)).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{"id": 26, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "<end>", "chat_template": "{{ messages[0].content }}"});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Runs an attempt; its exit code, reports and output folder.
fn run(folder: &Path, model: &Path, options: Json, dataset: Option<&Path>) -> (i32, Vec<Report>, PathBuf) {
    let out = folder.join("out");
    fs::create_dir_all(&out).unwrap();
    let mut quantize = json!({"model": "tiny"});
    quantize.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let events = folder.join("events.jsonl");
    let spec = json!({
        "contract": 1, "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C", "attempt": 1,
        "trace_id": "0123456789abcdef0123456789abcdef", "threads": 1,
        "spec": {"quantize": quantize},
        "inputs": {"model": {"path": model, "name": "tiny"}, "dataset": dataset},
        "output": out, "events": events,
    });
    fs::write(folder.join("spec.json"), spec.to_string()).unwrap();
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_drydock-worker"))
        .arg("run")
        .arg(folder.join("spec.json"))
        .output()
        .unwrap();
    let reports = fs::read_to_string(events).unwrap();
    let reports = reports.lines().map(|line| serde_json::from_str::<ReportLine>(line).unwrap().report).collect();
    (done.status.code().unwrap(), reports, out)
}

/// A quantization that succeeds; the folder of the file that came out.
fn quantized(folder: &Path, model: &Path, options: Json) -> PathBuf {
    let (code, reports, out) = run(folder, model, options, None);
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
    out.join("model")
}

fn logits(folder: &Path) -> Vec<f32> {
    let files = ModelFiles::open(folder).unwrap();
    let decoder = Decoder::load(&files, IDS.len(), |_| Ok(())).unwrap();
    decoder.logits(&IDS).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn gguf(folder: &Path) -> GgufFile {
    let file = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    GgufFile::open(&file.into_iter().find(|path| path.extension().is_some_and(|end| end == "gguf")).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_becomes_a_gguf_with_the_same_logits_and_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    checkpoint(&model);
    let made = quantized(folder.path(), &model, json!({"quant_type": "F32"}));
    assert_eq!(logits(&made), logits(&fixture()));
    // The tokenizer in the file itself, without the one beside it.
    fs::remove_file(made.join("tokenizer.json")).unwrap();
    let text = ModelFiles::open(&made).unwrap().text().unwrap();
    assert_eq!(text.encode("cab<end>", false).unwrap().ids, [2, 0, 1, 26]);
    assert_eq!(text.chat_template.as_deref(), Some("{{ messages[0].content }}"));
    // The configuration's own end of text, and the tokenizer's.
    assert_eq!(text.stops, [2, 26]);
}

#[test]
fn smaller_types_come_close_and_say_how_close() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    checkpoint(&model);
    let want = logits(&fixture());
    let mut last = 0.0;
    for (kind, most) in [("F16", 1e-3), ("Q8_0", 0.03), ("Q5_1", 0.2), ("Q4_K_M", 0.4)] {
        let scene = folder.path().join(kind);
        fs::create_dir(&scene).unwrap();
        let made = quantized(&scene, &model, json!({"quant_type": kind}));
        let error = distance(&logits(&made), &want);
        assert!(error <= most, "{kind}: {error}");
        let summary: Json = serde_json::from_slice(&fs::read(scene.join("out/quantize.json")).unwrap()).unwrap();
        assert_eq!(summary["quant_type"], kind);
        let tensors = summary["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), gguf(&made).tensors().len());
        if kind.starts_with('Q') {
            let relative = summary["relative_error"].as_f64().unwrap();
            assert!(relative > last, "{kind}: {relative}");
            last = relative;
        }
    }
}

#[test]
fn a_gguf_keeps_its_metadata_and_what_is_in_its_form_already() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    checkpoint(&model);
    let first = quantized(folder.path(), &model, json!({"quant_type": "Q8_0"}));
    let again = folder.path().join("again");
    fs::create_dir(&again).unwrap();
    let second = quantized(&again, &first, json!({"quant_type": "Q8_0"}));
    assert_eq!(fs::read(first.join("model-Q8_0.gguf")).unwrap(), fs::read(second.join("model-Q8_0.gguf")).unwrap());
    let file = gguf(&second);
    assert_eq!(file.metadata().get("general.file_type"), Some(&Value::U32(7)));
    assert_eq!(file.tensor("blk.0.attn_norm.weight").unwrap().kind, BlockKind::F32);
}

#[test]
fn an_importance_matrix_is_measured_saved_and_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let (model, dataset) = (folder.path().join("model"), folder.path().join("dataset"));
    checkpoint(&model);
    fs::create_dir(&dataset).unwrap();
    let rows: Vec<String> = (0..40).map(|i| json!({"text": "abcdefghij".repeat(1 + i % 7)}).to_string()).collect();
    fs::write(dataset.join("rows.jsonl"), rows.join("\n")).unwrap();
    let options = json!({"quant_type": "Q4_0", "pure": true, "imatrix_dataset": "letters", "imatrix_tokens": 600});
    let (code, reports, out) = run(folder.path(), &model, options, Some(&dataset));
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
    let matrix = GgufFile::open(&out.join("imatrix.gguf")).unwrap();
    assert_eq!(matrix.tensors().len(), 2 * 7 * 2);
    let counts = matrix.values(matrix.tensor("blk.1.ffn_down.weight.counts").unwrap());
    assert!((600.0..1200.0).contains(&counts[0]), "{counts:?}");
    let sums = matrix.values(matrix.tensor("blk.0.attn_q.weight.in_sum2").unwrap());
    assert!(sums.len() == 64 && sums.iter().all(|sum| *sum > 0.0));
    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let without = quantized(&plain, &model, json!({"quant_type": "Q4_0", "pure": true}));
    assert_ne!(
        fs::read(out.join("model/model-Q4_0.gguf")).unwrap(),
        fs::read(without.join("model-Q4_0.gguf")).unwrap()
    );
}

#[test]
fn a_type_that_a_tensor_cannot_take_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    checkpoint(&model);
    for (types, message) in [
        (json!({"*.attn_q.weight": "Q6_K"}), "tensor `blk.0.attn_q.weight` of [64, 64] cannot be held in Q6_K"),
        (json!({"blk.9.*": "Q8_0"}), "tensor_types: no tensor fits `blk.9.*`; there are "),
    ] {
        let options = json!({"quant_type": "Q4_0", "tensor_types": types});
        let scene = tempfile::tempdir().unwrap();
        let (code, reports, out) = run(scene.path(), &model, options, None);
        assert_eq!(code, EXIT_FAILED);
        let Some(Report::Failed(failure)) = reports.last() else { panic!("{reports:?}") };
        assert_eq!(failure.kind, FailureKind::BadOption);
        assert!(failure.message.starts_with(message), "{failure}");
        assert_eq!(fs::read_dir(out).unwrap().count(), 0);
    }
}

#[test]
fn weights_that_are_no_numbers_are_named_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    checkpoint(&model);
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let length = bytes.len();
    // Every type of float has NaN at bits of one.
    bytes[header..length].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let (code, reports, out) = run(folder.path(), &model, json!({"quant_type": "Q4_0"}), None);
    assert_eq!(code, EXIT_FAILED);
    let Some(Report::Failed(failure)) = reports.last() else { panic!("{reports:?}") };
    assert_eq!(failure.kind, FailureKind::BadModel);
    assert!(failure.message.ends_with("holds values that are no finite numbers"), "{failure}");
    assert_eq!(fs::read_dir(out.join("model")).unwrap().count(), 0);
}
