//! Models on their way into the store: what is taken, what is refused, and in which words.

#![allow(clippy::unwrap_used, reason = "the steps that tests share may panic as tests do")]

#[path = "support/house.rs"]
mod house;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;

use drydock::api::{AddModel, FileRef};
use drydock::plan::{ModelInput, ModelSource};
use drydock_spec::FailureKind;
use house::House;
use serde_json::json;
use tiny::{Gguf, hugging_face, shapes};

/// The files of a whole folder, with one of them changed, or taken away.
fn folder_with(name: &'static str, bytes: Option<Vec<u8>>) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = hugging_face();
    files.retain(|(known, _)| *known != name);
    files.extend(bytes.map(|bytes| (name, bytes)));
    files
}

/// What is said about a folder of these files.
async fn refusal(files: Vec<(&'static str, Vec<u8>)>) -> String {
    let house = House::open().await;
    tiny::write(&house.data("model"), files);
    let error = house.add("model").await.unwrap_err().to_string();
    assert!(house.models.list().await.unwrap().is_empty());
    error
}

#[tokio::test]
async fn a_gguf_file_becomes_a_folder_of_one_file() {
    let house = House::open().await;
    fs::write(house.data("Tiny.F32.gguf"), Gguf::tiny().bytes()).unwrap();
    let model = house.add("Tiny.F32.gguf").await.unwrap();
    assert_eq!((model.name.as_str(), model.format.as_str(), model.dtype.as_str()), ("tiny.f32", "gguf", "F32"));
    assert_eq!((model.architecture.as_str(), model.max_positions, model.has_chat_template), ("llama", 128, true));
    assert_eq!(model.parameters, 1_448);
    let input = house.models.resolve("tiny.f32").await.unwrap().input;
    let folder = house.models.ensure(&input).await.unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(fs::read(folder.join("model.gguf")).unwrap(), Gguf::tiny().bytes());
}

#[tokio::test]
async fn of_a_hugging_face_folder_only_what_is_needed_is_kept() {
    let house = House::open().await;
    let mut files = hugging_face();
    files.push(("README.md", b"# a model".to_vec()));
    files.push(("pytorch_model.bin", b"PK".to_vec()));
    tiny::write(&house.data("Tiny-Chat"), files);
    let model = house.add("Tiny-Chat").await.unwrap();
    assert_eq!((model.name.as_str(), model.format.as_str(), model.dtype.as_str()), ("tiny-chat", "safetensors", "f32"));
    assert!(model.has_chat_template);
    let input = house.models.resolve("tiny-chat").await.unwrap().input;
    let folder = house.models.ensure(&input).await.unwrap();
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
}

#[tokio::test]
async fn the_same_model_under_two_names_lies_there_once() {
    let house = House::open().await;
    fs::write(house.data("a.gguf"), Gguf::tiny().bytes()).unwrap();
    fs::write(house.data("b.gguf"), Gguf::tiny().bytes()).unwrap();
    let (a, b) = (house.add("a.gguf").await.unwrap(), house.add("b.gguf").await.unwrap());
    assert_eq!(a.digest, b.digest);
    assert_eq!(fs::read_dir(house.config.state_dir.join("models")).unwrap().count(), 1);
    let by_digest = house.models.resolve(&a.digest[..12]).await.unwrap();
    assert_eq!(by_digest.input.source, ModelSource::Stored { digest: a.digest });
}

#[tokio::test]
async fn a_model_is_put_together_from_blobs() {
    let house = House::open().await;
    let files: Vec<_> = hugging_face()
        .into_iter()
        .map(|(name, bytes)| FileRef { path: name.into(), sha256: house.blobs.put_bytes(&bytes).unwrap().sha256 })
        .collect();
    let request = AddModel { name: Some("uploaded-1".into()), source: None, files: files.clone() };
    let model = house.models.add(request).await.unwrap();
    assert_eq!(model.name, "uploaded-1");
    tiny::write(&house.data("same"), hugging_face());
    assert_eq!(house.add("same").await.unwrap().digest, model.digest);

    let gone = FileRef { path: "config.json".into(), sha256: "0".repeat(64) };
    let error = house.models.add(AddModel { name: None, source: None, files: vec![gone] }).await.unwrap_err();
    assert!(error.to_string().contains("upload it first with PUT /v1/blobs/000"), "{error}");
}

#[tokio::test]
async fn no_name_leads_out_of_the_models_folder() {
    let house = House::open().await;
    let sha256 = house.blobs.put_bytes(&Gguf::tiny().bytes()).unwrap().sha256;
    for path in ["../evil.gguf", "/evil.gguf", "a/b.gguf", ".hidden.gguf", "", "a\nb.gguf"] {
        let files = vec![FileRef { path: path.into(), sha256: sha256.clone() }];
        let error = house.models.add(AddModel { name: None, source: None, files }).await.unwrap_err().to_string();
        assert!(error.contains("is not a plain file name"), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_sharded_model_needs_every_shard_that_its_index_names() {
    let (first, second) = shapes().split_at_checked(10).map(|(a, b)| (a.to_vec(), b.to_vec())).unwrap();
    let map: serde_json::Map<_, _> = first
        .iter()
        .map(|(name, _)| (name.clone(), json!("model-1.safetensors")))
        .chain(second.iter().map(|(name, _)| (name.clone(), json!("model-2.safetensors"))))
        .collect();
    let mut files = folder_with("model.safetensors", None);
    files.push(("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string().into_bytes()));
    files.push(("model-1.safetensors", tiny::safetensors(&first)));
    let error = refusal(files.clone()).await;
    assert!(error.starts_with("model-2.safetensors: the file is missing; the index names this shard"), "{error}");

    files.push(("model-2.safetensors", tiny::safetensors(&second[1..])));
    let error = refusal(files.clone()).await;
    assert!(error.contains("which the index promises, is not there"), "{error}");

    files.pop();
    files.push(("model-2.safetensors", tiny::safetensors(&second)));
    let house = House::open().await;
    tiny::write(&house.data("sharded"), files);
    assert_eq!(house.add("sharded").await.unwrap().parameters, 1_448);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let error = refusal(folder_with("tokenizer.json", None)).await;
    assert!(error.starts_with("tokenizer.json: the file is missing; save the fast tokenizer"), "{error}");
    let error = refusal(folder_with("config.json", None)).await;
    assert!(error.starts_with("config.json: the file is missing"), "{error}");
}

#[tokio::test]
async fn damaged_files_are_told_from_whole_ones() {
    let mut cut = tiny::safetensors(&shapes());
    cut.truncate(cut.len() - 5);
    let error = refusal(folder_with("model.safetensors", Some(cut))).await;
    assert!(error.starts_with("model.safetensors: truncated: tensor `"), "{error}");

    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec();
    let error = refusal(folder_with("model.safetensors", Some(pointer.clone()))).await;
    assert!(error.contains("a Git LFS pointer of 70 bytes, not the file itself; run `git lfs pull`"), "{error}");
    let error = refusal(vec![("model.gguf", pointer)]).await;
    assert!(error.contains("Git LFS pointer"), "{error}");

    let error = refusal(folder_with("config.json", Some(b"{\"model_type\": ".to_vec()))).await;
    assert!(error.starts_with("config.json: not JSON: EOF"), "{error}");
    let error = refusal(vec![("model.gguf", b"<html>not found</html>".to_vec())]).await;
    assert!(error.contains("not a GGUF file: it begins with `<htm`"), "{error}");
}

#[tokio::test]
async fn what_does_not_fit_together_is_refused_with_both_values() {
    for (field, value, said) in [
        ("vocab_size", 33, "`model.embed_tokens.weight` has shape [32, 8], the configuration says [33, 8]"),
        ("hidden_size", 16, "has shape [32, 8], the configuration says [32, 16]"),
        ("num_hidden_layers", 3, "the weights have 2 layers, the configuration says 3"),
        ("num_hidden_layers", 1, "belongs to layer 1, the configuration says 1 layers"),
        ("intermediate_size", 24, "has shape [16, 8], the configuration says [24, 8]"),
    ] {
        let mut config = tiny::config_json();
        config[field] = value.into();
        let error = refusal(folder_with("config.json", Some(config.to_string().into_bytes()))).await;
        assert!(error.contains(said), "{field}: {error}");
    }
    let mut tokenizer = tiny::tokenizer_json();
    tokenizer["model"]["vocab"]["extra"] = 99.into();
    let error = refusal(folder_with("tokenizer.json", Some(tokenizer.to_string().into_bytes()))).await;
    assert!(error.starts_with("tokenizer.json: token id 99 lies beyond the model's vocabulary of 32"), "{error}");
}

#[tokio::test]
async fn texts_that_cannot_end_within_the_embedding_are_refused() {
    let mut tokenizer = tiny::tokenizer_json();
    tokenizer["added_tokens"] = json!([{"id": 99, "content": "<|im_end|>", "special": true}]);
    let files = |eos: &str| {
        let mut files = folder_with("tokenizer.json", Some(tokenizer.to_string().into_bytes()));
        files.retain(|(name, _)| *name != "tokenizer_config.json");
        files.push(("tokenizer_config.json", json!({"eos_token": eos}).to_string().into_bytes()));
        files
    };
    let error = refusal(files("<|im_end|>")).await;
    let expected = "tokenizer.json: texts end with token 99, `<|im_end|>`; the model's vocabulary has 32; give the model \
                    a row for each token (model.resize_token_embeddings(len(tokenizer))) and save both, or take \
                    tokenizer and weights from the same model";
    assert_eq!(error, expected);
    let error = refusal(files("</s>")).await;
    assert!(error.contains("tokenizer_config.json has the eos_token `</s>`, which tokenizer.json lacks"), "{error}");
    // As smaller models of a family are published: the worker makes no use of such tokens either.
    let house = House::open().await;
    tiny::write(&house.data("model"), files("t3"));
    house.add("model").await.unwrap();
    let beyond = house.models.resolve("model").await.unwrap().facts.tokens_beyond.unwrap();
    assert_eq!((beyond.count, beyond.such_as.as_str()), (1, "<|im_end|>"));
}

#[tokio::test]
async fn pickles_adapters_and_heaps_of_ggufs_are_refused_with_a_way_out() {
    let mut files = folder_with("model.safetensors", None);
    files.push(("pytorch_model.bin", b"PK".to_vec()));
    let error = refusal(files).await;
    assert!(error.contains("`pytorch_model.bin` is a pickle") && error.contains("save as safetensors: "), "{error}");

    let adapter = vec![("adapter_config.json", b"{}".to_vec()), ("adapter_model.safetensors", Vec::new())];
    let error = refusal(adapter).await;
    assert!(
        error.contains("this is an adapter, not a model; add the model that the adapter was trained on"),
        "{error}"
    );

    let error = refusal(vec![("a.gguf", Vec::new()), ("b.gguf", Vec::new())]).await;
    assert!(error.contains("2 GGUF files: a.gguf, b.gguf; name one of them"), "{error}");
    let error = refusal(vec![("m-00001-of-00002.gguf", Vec::new()), ("m-00002-of-00002.gguf", Vec::new())]).await;
    assert!(error.contains("join the parts with `llama-gguf-split --merge`"), "{error}");
    let error = refusal(vec![("README.md", Vec::new())]).await;
    assert!(error.contains("no weights"), "{error}");

    let house = House::open().await;
    fs::write(house.data("w.safetensors"), tiny::safetensors(&shapes())).unwrap();
    let error = house.add("w.safetensors").await.unwrap_err().to_string();
    assert!(error.contains("give the folder that holds all three"), "{error}");
}

#[tokio::test]
async fn unknown_names_are_answered_with_what_there_is() {
    let house = House::open().await;
    let error = house.models.resolve("tiny").await.unwrap_err().to_string();
    assert_eq!(error, "no model `tiny`; the store is empty: add one with `drydock models add`, or name hf:owner/name");
    fs::write(house.data("tiny.gguf"), Gguf::tiny().bytes()).unwrap();
    house.add("tiny.gguf").await.unwrap();
    let error = house.models.resolve("tinny").await.unwrap_err().to_string();
    assert_eq!(error, "no model `tinny`; did you mean `tiny`? there is `tiny`");
    let error = house.models.resolve("./tiny.gguf").await.unwrap_err().to_string();
    assert!(error.contains("must be added first"), "{error}");
    let bad = AddModel { name: Some("a b".into()), source: Some("tiny.gguf".into()), files: Vec::new() };
    let error = house.models.add(bad).await.unwrap_err().to_string();
    assert!(error.contains("`a-b` would do"), "{error}");
}

#[tokio::test]
async fn a_job_keeps_its_model_when_the_name_goes_or_the_folder_is_cleared() {
    let house = House::open().await;
    fs::write(house.data("tiny.gguf"), Gguf::tiny().bytes()).unwrap();
    house.add("tiny.gguf").await.unwrap();
    let input = house.models.resolve("tiny").await.unwrap().input;
    let folder = house.models.ensure(&input).await.unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(house.models.ensure(&input).await.unwrap(), folder);
    assert!(house.models.remove("tiny").await.unwrap());
    assert!(!house.models.remove("tiny").await.unwrap());
    assert_eq!(house.models.ensure(&input).await.unwrap(), folder);

    let lost =
        ModelInput { name: "lost".into(), source: ModelSource::Stored { digest: "0".repeat(64) }, adapter: None };
    let failure = house.models.ensure(&lost).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.message.contains("add it again"), "{failure}");
}
