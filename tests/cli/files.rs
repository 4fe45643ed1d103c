//! Uploads and downloads.

use serde_json::json;

use crate::fake::{Fake, Script, id, sha256, view};

#[tokio::test]
async fn a_file_that_the_gateway_has_is_not_uploaded_again() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in
        [("config.json", "{}"), ("model.safetensors", "weights"), ("pytorch_model.bin", "pickle"), (".x.json", "")]
    {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let fake = Fake::start(Script::default()).await;
    fake.script.lock().unwrap().blobs.insert(sha256(b"weights"), b"weights".to_vec());
    let ran = fake.run(&["models", "add", folder.path().to_str().unwrap(), "--name", "m"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "m\n"), "{}", ran.stderr);
    assert!(
        ran.stderr.starts_with("config.json: 2 B uploaded\nmodel.safetensors: 7 B, there already\n"),
        "{}",
        ran.stderr
    );
    let expected = json!({"name": "m", "files": [
        {"path": "config.json", "sha256": sha256(b"{}")},
        {"path": "model.safetensors", "sha256": sha256(b"weights")},
    ]});
    assert_eq!(
        fake.heard(|script| (script.uploads.clone(), script.imports.clone())),
        (vec![sha256(b"{}")], vec![expected])
    );
}

#[tokio::test]
async fn a_folder_without_safe_weights_is_refused_before_anything_is_imported() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), "pickle").unwrap();
    let fake = Fake::start(Script::default()).await;
    let ran = fake.run(&["models", "add", folder.path().to_str().unwrap()]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("save them as safetensors"), "{}", ran.stderr);
    assert!(fake.heard(|script| script.imports.is_empty()));
}

#[tokio::test]
async fn a_model_of_the_hub_is_the_gateways_to_fetch() {
    let fake = Fake::start(Script::default()).await;
    let ran = fake.run(&["models", "add", "hf:owner/name@main", "--name", "m", "--json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(fake.heard(|script| script.imports.clone()), [json!({"name": "m", "source": "hf:owner/name@main"})]);
}

fn artifacts(damage: Option<Vec<u8>>) -> Script {
    let artifacts =
        [("adapter/model.safetensors".to_owned(), vec![7; 300_000]), ("training.json".into(), b"{}".to_vec())];
    Script { jobs: vec![view(&id(1), "succeeded")], artifacts: artifacts.into(), damage, ..Script::default() }
}

#[tokio::test]
async fn artifacts_are_downloaded_whole() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(artifacts(None)).await;
    let ran = fake.run(&["artifacts", "last", "--download", folder.path().to_str().unwrap()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read(folder.path().join("adapter/model.safetensors")).unwrap(), vec![7; 300_000]);
    assert_eq!(std::fs::read(folder.path().join("training.json")).unwrap(), b"{}");
    assert!(ran.stdout.contains(&sha256(b"{}")), "{}", ran.stdout);
}

#[tokio::test]
async fn a_download_of_nothing_is_not_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(Script { jobs: vec![view(&id(1), "running")], ..Script::default() }).await;
    let ran = fake.run(&["artifacts", "last", "--download", folder.path().join("new").to_str().unwrap()]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("is running and has made no artifacts"), "{}", ran.stderr);
    assert!(!folder.path().join("new").exists());
}

#[tokio::test]
async fn a_damaged_download_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(artifacts(Some(b"other".to_vec()))).await;
    let ran = fake.run(&["artifacts", "last", "--download", folder.path().to_str().unwrap()]).await;
    assert_eq!(ran.code, 1);
    let wrong = format!("adapter/model.safetensors: downloaded sha256 {} (5 bytes)", sha256(b"other"));
    assert!(ran.stderr.contains(&wrong), "{}", ran.stderr);
    assert_eq!(std::fs::read_dir(folder.path().join("adapter")).unwrap().count(), 0);
}
