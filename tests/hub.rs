//! Models and datasets from a hub that moves, breaks off, is busy, lies or keeps its doors shut.

#![allow(clippy::unwrap_used, reason = "the steps that tests share may panic as tests do")]

#[path = "support/house.rs"]
mod house;
#[path = "support/small_hub.rs"]
mod small_hub;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::time::Instant;

use drydock::engine::EngineWatch;
use drydock::plan::{ModelInput, ModelSource, Plan, PlanError};
use drydock::sandbox::SandboxError;
use drydock::sandbox::gpus::KnownGpus;
use drydock_spec::{FailureKind, FinetuneArgs, JobArgs, LimitArgs};
use house::House;
use small_hub::{Fault, SmallHub, TOKEN};

const MODEL: &str = "models/o/tiny";
const WEIGHTS: &str = "model.safetensors";
const ROWS: &str = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";

/// A hub with the tiny model on `main`, and a house that knows it.
async fn world() -> (SmallHub, House, String) {
    let hub = SmallHub::open().await;
    let commit = hub.commit(MODEL, "main", tiny::hugging_face());
    let house = house_at(&hub).await;
    (hub, house, commit)
}

async fn house_at(hub: &SmallHub) -> House {
    House::with(|config| config.hub.endpoint = Some(hub.endpoint.clone())).await
}

async fn plan(house: &House, model: &str) -> Result<Plan, PlanError> {
    fs::write(house.data("rows.jsonl"), ROWS).unwrap();
    house.load("rows.jsonl").await.unwrap();
    let engine = EngineWatch::still(Err(SandboxError::Unreachable("none here".into())));
    let args = FinetuneArgs { model: model.into(), dataset: "rows".into(), lora_r: Some(4), ..FinetuneArgs::default() };
    house.planner(engine, KnownGpus::none()).plan(JobArgs::Finetune(args), &LimitArgs::default()).await
}

fn pinned(commit: &str) -> ModelInput {
    ModelInput {
        name: "hf:o/tiny".into(),
        source: ModelSource::Hub { repo: "o/tiny".into(), commit: commit.to_owned() },
        adapter: None,
    }
}

#[tokio::test]
async fn a_plan_pins_the_branch_and_the_pinned_commit_is_fetched_after_it_moved() {
    let (hub, house, commit) = world().await;
    let plan = plan(&house, "hf:o/tiny").await.unwrap();
    assert_eq!(plan.inputs.model, Some(pinned(&commit)));
    let weights = tiny::safetensors(&tiny::shapes());
    assert!(plan.estimate.download_bytes > weights.len() as u64);
    assert_eq!(hub.seen(WEIGHTS), []);

    let mut moved = tiny::hugging_face();
    moved[0].1 = b"{}".to_vec();
    assert_ne!(hub.commit(MODEL, "main", moved), commit);
    let folder = house.models.ensure(plan.inputs.model.as_ref().unwrap()).await.unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), tiny::hugging_face()[0].1);
    let listed = house.models.list().await.unwrap().remove(0);
    assert_eq!((listed.name, listed.origin), (format!("tiny-{}", &commit[..8]), format!("hf:o/tiny@{commit}")));
}

#[tokio::test]
async fn many_attempts_share_one_download() {
    let (hub, house, commit) = world().await;
    let input = pinned(&commit);
    let folders = futures::future::join_all((0..8).map(|_| house.models.ensure(&input))).await;
    let folders: Vec<_> = folders.into_iter().map(Result::unwrap).collect();
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    house.models.ensure(&input).await.unwrap();
    assert_eq!(hub.seen(WEIGHTS).iter().filter(|seen| seen.host == "cdn").count(), 1);
    assert_eq!(house.models.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was_cut() {
    let (hub, house, commit) = world().await;
    hub.fail(WEIGHTS, [Fault::CutAfter(1000), Fault::CutAfter(500), Fault::IgnoresRange]);
    let folder = house.models.ensure(&pinned(&commit)).await.unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), tiny::safetensors(&tiny::shapes()));
    let ranges: Vec<_> =
        hub.seen(WEIGHTS).into_iter().filter(|seen| seen.host == "cdn").map(|seen| seen.range).collect();
    let range = |range: &str| Some(range.to_owned());
    assert_eq!(ranges, [None, range("bytes=1000-"), range("bytes=1500-")]);
    assert_eq!(fs::read_dir(house.config.state_dir.join("blobs/partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_download_goes_on_after_a_restart() {
    let (hub, house, commit) = world().await;
    hub.fail(WEIGHTS, std::iter::once(Fault::CutAfter(1000)).chain((0..3).map(|_| Fault::Status(503, None))));
    let failure = house.models.ensure(&pinned(&commit)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::HubUnavailable);
    assert!(failure.kind.retryable() && failure.message.contains("answers 503"), "{failure}");
    let before = hub.seen(WEIGHTS).len();

    let house = house.reopen(|config| config.hub.endpoint = Some(hub.endpoint.clone())).await;
    house.models.ensure(&pinned(&commit)).await.unwrap();
    let after: Vec<_> = hub.seen(WEIGHTS)[before..].iter().map(|seen| seen.range.clone()).collect();
    assert_eq!(after, [Some("bytes=1000-".to_owned()), Some("bytes=1000-".to_owned())]);
}

#[tokio::test]
async fn a_busy_hub_is_waited_for_as_long_as_it_asks() {
    let (hub, house, commit) = world().await;
    hub.fail_questions([Fault::Status(429, Some(1)), Fault::Status(500, None)]);
    hub.fail("config.json", [Fault::Status(429, Some(1))]);
    let begun = Instant::now();
    assert_eq!(house.models.resolve("hf:o/tiny").await.unwrap().input, pinned(&commit));
    assert!(begun.elapsed().as_secs() >= 2, "{:?}", begun.elapsed());
    hub.fail_questions((0..9).map(|_| Fault::Status(503, None)));
    let error = house.models.resolve("hf:o/tiny").await.unwrap_err().to_string();
    assert!(error.starts_with("the hub answers 503 Service Unavailable (tried 4 times); try again later"), "{error}");
}

#[tokio::test]
async fn wrong_content_never_becomes_a_blob() {
    let (hub, house, commit) = world().await;
    hub.fail(WEIGHTS, [Fault::Garbage]);
    hub.fail("tokenizer_config.json", [Fault::Garbage]);
    house.models.ensure(&pinned(&commit)).await.unwrap();

    let house = house_at(&hub).await;
    for (file, checksum) in [("config.json", "git's sha1"), (WEIGHTS, "sha256")] {
        hub.fail(file, [Fault::Garbage, Fault::Garbage]);
        let failure = house.models.ensure(&pinned(&commit)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::HubUnavailable);
        let expected = format!("`{file}` of `o/tiny` came with {checksum}");
        assert!(failure.message.starts_with(&expected), "{failure}");
    }
    assert!(house.models.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_gated_model_says_how_to_get_in_and_the_token_goes_to_the_hub_alone() {
    let (hub, house, commit) = world().await;
    hub.gate(MODEL);
    let error = plan(&house, "hf:o/tiny").await.unwrap_err().to_string();
    assert!(error.contains("(401); accept its licence at https://huggingface.co/o/tiny"), "{error}");
    let failure = house.models.ensure(&pinned(&commit)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::AccessDenied);

    let token = house.data("token");
    let with_token = |text: &str| {
        fs::write(&token, text).unwrap();
        let (endpoint, file) = (hub.endpoint.clone(), token.clone());
        House::with(|config| {
            config.hub.endpoint = Some(endpoint);
            config.hub.token_file = Some(file);
        })
    };
    let wrong = with_token("hf_another").await.models.ensure(&pinned(&commit)).await.unwrap_err();
    assert!(wrong.message.contains("(403); accept its licence"), "{wrong}");
    assert!(!wrong.message.contains("hf_another"));
    with_token(TOKEN).await.models.ensure(&pinned(&commit)).await.unwrap();
    let seen = hub.seen(WEIGHTS);
    assert!(seen.iter().any(|seen| seen.host == "hub" && seen.authorized), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.host == "hub" || !seen.authorized), "{seen:?}");
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_is_mistyped() {
    let (hub, house, _) = world().await;
    let said = async |model: &str| house.models.resolve(model).await.unwrap_err().to_string();
    assert!(said("hf:o/other").await.starts_with("the hub has no repository `o/other`; check owner and name"));
    let error = said("hf:o/tiny@v9").await;
    assert!(error.starts_with("the hub has no revision `v9` of `o/tiny`; check the branch"), "{error}");
    assert!(said("hf:tiny").await.contains("has no owner; write hf:owner/name"));
    let lost = house.models.ensure(&pinned(&"0".repeat(40))).await.unwrap_err();
    assert_eq!(lost.kind, FailureKind::NotFound);

    let pickles = vec![("config.json", b"{}".to_vec()), ("pytorch_model.bin", b"PK".to_vec())];
    hub.commit("models/o/old", "main", pickles);
    assert!(said("hf:o/old").await.contains("`pytorch_model.bin` is a pickle"));
    hub.commit(
        "models/o/mamba",
        "main",
        [
            ("config.json", b"{\"model_type\": \"mamba\"}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            (WEIGHTS, b"x".to_vec()),
        ],
    );
    assert!(said("hf:o/mamba").await.contains("the architecture is `mamba`"));
}

#[tokio::test]
async fn gguf_files_are_added_by_name_before_they_are_used() {
    let (hub, house, _) = world().await;
    let file = tiny::Gguf::tiny().bytes();
    let commit = hub.commit("models/o/ggufs", "main", [("a.Q4.gguf", file.clone()), ("sub/b.gguf", file)]);
    let error = house.models.resolve("hf:o/ggufs").await.unwrap_err().to_string();
    assert!(error.contains("fetch it first: `drydock models add hf:o/ggufs`"), "{error}");
    assert!(house.add("hf:o/ggufs/none.gguf").await.unwrap_err().to_string().contains("there is a.Q4.gguf"));
    let model = house.add("hf:o/ggufs/a.Q4.gguf").await.unwrap();
    assert_eq!((model.name.as_str(), model.origin), ("a.q4", format!("hf:o/ggufs@{commit}/a.Q4.gguf")));
    assert_eq!(house.add("hf:o/ggufs/sub/b.gguf").await.unwrap().digest, model.digest);
    let resolved = house.models.resolve("hf:o/ggufs/a.Q4.gguf").await.unwrap();
    assert_eq!(resolved.input.source, ModelSource::Stored { digest: model.digest });
}

#[tokio::test]
async fn what_was_fetched_before_serves_offline() {
    let (_hub, house, commit) = world().await;
    house.add("hf:o/tiny").await.unwrap();
    let house = house.reopen(|config| config.hub.offline = true).await;
    for name in ["hf:o/tiny".to_owned(), format!("hf:o/tiny@{commit}")] {
        let resolved = house.models.resolve(&name).await.unwrap();
        assert!(house.models.ensure(&resolved.input).await.is_ok());
    }
    let error = house.models.resolve("hf:o/other").await.unwrap_err().to_string();
    assert!(error.starts_with("hub.offline is set, so `hf:o/other` is not asked for"), "{error}");
    assert!(house.load("hf:o/rows/a.jsonl").await.unwrap_err().to_string().contains("hub.offline is set"));
}

#[tokio::test]
async fn a_commit_that_is_here_is_not_asked_for() {
    let (hub, house, commit) = world().await;
    house.add("hf:o/tiny").await.unwrap();
    hub.fail_questions((0..9).map(|_| Fault::Status(503, None)));
    let resolved = house.models.resolve(&format!("hf:o/tiny@{commit}")).await.unwrap();
    assert!(matches!(resolved.input.source, ModelSource::Stored { .. }));
}

#[tokio::test]
async fn a_model_without_chat_template_is_known_before_it_is_fetched() {
    let (hub, house, _) = world().await;
    assert!(house.models.resolve("hf:o/tiny").await.unwrap().facts.has_chat_template);
    let mut files = tiny::hugging_face();
    files.retain(|(name, _)| *name != "tokenizer_config.json");
    hub.commit("models/o/plain", "main", files);
    assert!(!house.models.resolve("hf:o/plain").await.unwrap().facts.has_chat_template);
    assert_eq!(hub.seen(WEIGHTS), []);
}

#[tokio::test]
async fn rows_are_loaded_from_a_dataset_repository() {
    let (hub, house, _) = world().await;
    let large: String = (0..1000).map(|i| format!("{{\"text\": \"row {i}\"}}\n")).collect();
    let files = [("data/train.jsonl", large.clone().into_bytes()), ("data/README.md", Vec::new())];
    let commit = hub.commit("datasets/o/Rows", "main", files);
    hub.fail("data/train.jsonl", [Fault::CutAfter(5000)]);
    let dataset = house.load("hf:o/Rows/data/train.jsonl").await.unwrap().dataset;
    assert_eq!((dataset.name.as_str(), dataset.rows), ("rows", 1000));
    assert_eq!(dataset.origin, format!("hf:o/Rows@{commit}/data/train.jsonl"));
    let folder = house.datasets.folder(&house.datasets.resolve("rows").await.unwrap().input).unwrap();
    assert_eq!(fs::read_to_string(folder.join("train.jsonl")).unwrap(), large);
    let error = house.load("hf:o/Rows/data/test.jsonl").await.unwrap_err().to_string();
    assert!(error.contains("put one of these behind the name: `data/train.jsonl`"), "{error}");
}

#[tokio::test]
async fn no_address_of_the_hub_shows_in_what_is_said() {
    let (hub, house, commit) = world().await;
    hub.fail(WEIGHTS, (0..9).map(|_| Fault::Status(500, None)));
    let failure = house.models.ensure(&pinned(&commit)).await.unwrap_err();
    assert!(!failure.message.contains("signature") && !failure.message.contains("127.0.0.1"), "{failure}");
    let nowhere = House::with(|config| config.hub.endpoint = Some("http://127.0.0.1:1/secret-path".into())).await;
    let error = nowhere.models.resolve("hf:o/tiny").await.unwrap_err().to_string();
    assert!(error.starts_with("the hub cannot be reached: ") && !error.contains("secret-path"), "{error}");
}
