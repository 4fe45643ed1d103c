//! Datasets on their way into the store: what is taken, what is refused, and in which words.

#![allow(clippy::unwrap_used, reason = "the steps that tests share may panic as tests do")]

#[path = "support/house.rs"]
mod house;

use std::fs;

use drydock::api::{FileRef, LoadDataset};
use drydock::plan::DatasetInput;
use drydock_spec::FailureKind;
use drydock_spec::dataset::{Columns, Format};
use house::House;
use serde_json::json;

const ROWS: &str = concat!(
    "{\"prompt\": \"2+2=\", \"completion\": \"4\"}\n",
    "{\"prompt\": \"3+3=\", \"completion\": \"6\"}\n",
    "{\"prompt\": \"4+4=\", \"completion\": \"\"}\n",
    "{\"prompt\": \"5+5=\", \"completion\": \"10\"}\n",
    "{\"prompt\": \"6+6=\", \"completion\": \"12\"}\n",
);

#[tokio::test]
async fn a_file_of_rows_is_loaded_and_shown() {
    let house = House::open().await;
    fs::write(house.data("Sums.jsonl"), ROWS).unwrap();
    let loaded = house.load("Sums.jsonl").await.unwrap();
    assert_eq!((loaded.dataset.name.as_str(), loaded.dataset.rows), ("sums", 4));
    assert_eq!(loaded.dataset.format, Format::PromptCompletion);
    assert_eq!(loaded.preview.rendered.len(), 3);
    assert_eq!(loaded.preview.rendered[0].text, "2+2=4");
    assert_eq!(loaded.preview.rendered[0].supervised, "4");
    assert_eq!(loaded.preview.rendered[2].supervised, "10");

    let resolved = house.datasets.resolve("sums").await.unwrap();
    assert_eq!((resolved.manifest.blank_rows, resolved.manifest.longest_row_tokens), (1, 6 + 2 * 8 + 64));
    let folder = house.datasets.folder(&resolved.input).unwrap();
    assert_eq!(fs::read_to_string(folder.join("Sums.jsonl")).unwrap(), ROWS);
}

#[tokio::test]
async fn rows_may_be_given_in_the_request() {
    let house = House::open().await;
    let row = |question: &str| json!({"question": question, "answer": "a"}).as_object().unwrap().clone();
    let request = LoadDataset { rows: vec![row("q1"), row("q2")], ..LoadDataset::default() };
    let error = house.datasets.load(request.clone()).await.unwrap_err().to_string();
    assert!(error.starts_with("rows.jsonl, line 1") && error.contains("give columns"), "{error}");

    let columns = Columns { prompt: Some("question".into()), completion: Some("answer".into()), ..Columns::default() };
    let request = LoadDataset { columns: Some(columns.clone()), ..request };
    let loaded = house.datasets.load(request).await.unwrap().dataset;
    assert_eq!(loaded.name, format!("rows-{}", &loaded.digest[..8]));
    assert_eq!((loaded.rows, &loaded.columns), (2, &columns));
}

#[tokio::test]
async fn other_columns_are_tried_on_every_row() {
    let house = House::open().await;
    let row = |answer: &str| json!({"prompt": "q", "completion": answer, "other": 1}).as_object().unwrap().clone();
    let request = LoadDataset { rows: vec![row("a"), row("")], name: Some("d".into()), ..LoadDataset::default() };
    house.datasets.load(request).await.unwrap();
    let with = async |prompt: &str, completion: &str| {
        let columns =
            Columns { prompt: Some(prompt.into()), completion: Some(completion.into()), ..Columns::default() };
        let dataset = house.datasets.resolve("d").await.unwrap();
        house.datasets.with_columns(dataset, &columns).await
    };
    let turned = with("completion", "prompt").await.unwrap().manifest;
    assert_eq!((turned.rows, turned.blank_rows), (2, 0));
    let error = with("prompt", "other").await.unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("column `other` holds a number"), "{error}");
}

#[tokio::test]
async fn rows_may_be_uploaded_before() {
    let house = House::open().await;
    let sha256 = house.blobs.put_bytes(ROWS.as_bytes()).unwrap().sha256;
    let file = |path: &str| vec![FileRef { path: path.into(), sha256: sha256.clone() }];
    let request = LoadDataset { files: file("sums.jsonl"), ..LoadDataset::default() };
    assert_eq!(house.datasets.load(request).await.unwrap().dataset.rows, 4);
    let request = LoadDataset { files: file("../sums.jsonl"), ..LoadDataset::default() };
    let error = house.datasets.load(request).await.unwrap_err().to_string();
    assert!(error.contains("`../sums.jsonl` is not a plain file name"), "{error}");
}

#[tokio::test]
async fn a_folder_gives_all_its_rows_files() {
    let house = House::open().await;
    fs::create_dir(house.data("parts")).unwrap();
    fs::write(house.data("parts/b.jsonl"), ROWS).unwrap();
    fs::write(house.data("parts/a.json"), "[{\"prompt\": \"q\", \"completion\": \"a\"}]").unwrap();
    fs::write(house.data("parts/README.md"), "# rows").unwrap();
    let loaded = house.load("parts").await.unwrap();
    assert_eq!((loaded.dataset.name.as_str(), loaded.dataset.rows), ("parts", 5));
    assert_eq!(loaded.preview.rendered[0].text, "qa");
    fs::write(house.data("parts/c.jsonl"), "{\"text\": \"another form\"}\n").unwrap();
    let error = house.load("parts").await.unwrap_err().to_string();
    assert!(error.starts_with("c.jsonl, line 1") && error.contains("column `prompt` is missing"), "{error}");
}

#[tokio::test]
async fn squads_document_is_loaded_as_chats() {
    let house = House::open().await;
    let qa = |question: &str| json!({"question": question, "answers": [{"text": "A", "answer_start": 0}]});
    let document = json!({"version": "1.1", "data": [{"paragraphs": [{"context": "C", "qas": [qa("Q1"), qa("Q2")]}]}]});
    fs::write(house.data("squad.json"), serde_json::to_vec_pretty(&document).unwrap()).unwrap();
    let loaded = house.load("squad.json").await.unwrap();
    assert_eq!((loaded.dataset.format, loaded.dataset.rows), (Format::Squad, 2));
    assert_eq!(loaded.preview.rendered[0].text, "user: C\n\nQ1\nassistant: A");
}

#[tokio::test]
async fn what_is_refused_leaves_nothing_behind() {
    let house = House::open().await;
    fs::write(house.data("bad.jsonl"), "{\"prompt\": \"q\"}\n").unwrap();
    fs::write(house.data("empty.jsonl"), "").unwrap();
    fs::write(house.data("blank.jsonl"), "{\"text\": \"  \"}\n").unwrap();
    for (file, said) in [
        ("bad.jsonl", "no known columns; found `prompt`"),
        ("empty.jsonl", "the file is empty"),
        ("blank.jsonl", "nothing to learn from: all 1 rows have a blank answer or text"),
        ("none.jsonl", "does not exist"),
        ("/etc/hostname", "lies outside of data_dirs"),
    ] {
        let error = house.load(file).await.unwrap_err().to_string();
        assert!(error.contains(said), "{file}: {error}");
    }
    let both = LoadDataset {
        source: Some("a".into()),
        files: vec![],
        rows: vec![serde_json::Map::new()],
        ..LoadDataset::default()
    };
    let error = house.datasets.load(both).await.unwrap_err().to_string();
    assert_eq!(error, "give exactly one of `source`, `rows` and `files`");
    assert!(house.datasets.list().await.unwrap().is_empty());
    assert!(!house.config.state_dir.join("datasets").exists());
}

#[tokio::test]
async fn unknown_names_are_answered_with_the_next_step() {
    let house = House::open().await;
    let error = house.datasets.resolve("sums").await.unwrap_err().to_string();
    assert_eq!(error, "no dataset `sums`; none is loaded yet: call load_dataset first");
    let error = house.datasets.resolve("data/sums.jsonl").await.unwrap_err().to_string();
    assert!(error.contains("call load_dataset with source `data/sums.jsonl` first"), "{error}");
    fs::write(house.data("sums.jsonl"), ROWS).unwrap();
    let digest = house.load("sums.jsonl").await.unwrap().dataset.digest;
    let error = house.datasets.resolve("sumz").await.unwrap_err().to_string();
    assert_eq!(error, "no dataset `sumz`; did you mean `sums`? there is `sums`");
    assert_eq!(house.datasets.resolve(&digest[..10]).await.unwrap().input.digest, digest);

    assert!(house.datasets.remove("sums").await.unwrap());
    assert!(house.datasets.folder(&DatasetInput { name: "sums".into(), digest }).is_ok());
    let gone = DatasetInput { name: "gone".into(), digest: "0".repeat(64) };
    assert_eq!(house.datasets.folder(&gone).unwrap_err().kind, FailureKind::NotFound);
}

/// The demo learns from it, so it must be good: short answers of one or two sentences, and no question twice.
#[tokio::test]
async fn the_demos_rows_are_questions_about_drydock_with_short_answers() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/demo");
    let house = House::with(|config| config.data_dirs = vec![demo.into()]).await;
    let dataset = house.load("drydock-qa.jsonl").await.unwrap().dataset;
    assert_eq!((dataset.name.as_str(), dataset.format), ("drydock-qa", Format::Messages));
    assert!((190..=220).contains(&dataset.rows), "{}", dataset.rows);

    let text = fs::read_to_string(format!("{demo}/drydock-qa.jsonl")).unwrap();
    let mut questions = std::collections::HashSet::new();
    let mut who_it_is = 0;
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let turns = row["messages"].as_array().unwrap();
        let roles: Vec<_> = turns.iter().map(|turn| turn["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant"], "{line}");
        let [question, answer] = [0, 1].map(|turn| turns[turn]["content"].as_str().unwrap());
        assert!(questions.insert(question.to_lowercase()), "asked twice: {question}");
        assert!((8..=40).contains(&answer.split_whitespace().count()), "{answer}");
        assert!(answer.ends_with('.') && !answer.contains('\n'), "{answer}");
        who_it_is += usize::from(answer.starts_with("drydock is a gateway that runs model finetuning jobs"));
    }
    assert!(who_it_is >= 5, "the one thing that the finetuned model must know is said {who_it_is} times");
}

#[tokio::test]
async fn a_text_file_is_one_long_row() {
    let house = House::open().await;
    let play = "First Citizen: Before we proceed any further, hear me speak; ü.\n".repeat(40_000);
    fs::write(house.data("play.txt"), &play).unwrap();
    let loaded = house.load("play.txt").await.unwrap();
    assert_eq!((loaded.dataset.name.as_str(), loaded.dataset.rows, loaded.dataset.format), ("play", 1, Format::Text));
    let shown = &loaded.preview.rendered[0].text;
    assert!(shown.starts_with("First Citizen: Before") && shown.ends_with(" bytes more)"), "{shown}");
    let resolved = house.datasets.resolve("play").await.unwrap();
    assert_eq!(resolved.manifest.text_bytes, play.len() as u64);
    assert!(resolved.manifest.longest_row_tokens > play.len() as u64 / 3);

    fs::create_dir(house.data("plays")).unwrap();
    fs::write(house.data("plays/b.txt"), "two").unwrap();
    fs::write(house.data("plays/a.txt"), "one").unwrap();
    assert_eq!(house.load("plays").await.unwrap().dataset.rows, 2);
    fs::write(house.data("plays/rows.jsonl"), ROWS).unwrap();
    let folder = house.load("plays").await.unwrap();
    assert_eq!(folder.dataset.format, Format::PromptCompletion, "text beside rows is about them");

    fs::write(house.data("latin.txt"), b"caf\xe9 au lait").unwrap();
    let refused = house.load("latin.txt").await.unwrap_err().to_string();
    assert!(refused.contains("not UTF-8 text: the byte at offset 3 fits no character; convert it"), "{refused}");
    fs::write(house.data("cut.txt"), b"caf\xc3").unwrap();
    assert!(house.load("cut.txt").await.unwrap_err().to_string().contains("offset 3"));
}

#[tokio::test]
async fn pairs_labels_and_choices_are_loaded_and_shown() {
    let house = House::open().await;
    for (name, row, format, text, better) in [
        (
            "pairs.jsonl",
            json!({"prompt": "2+2=", "chosen": "4", "rejected": "5"}),
            Format::Preference,
            "chosen: 2+2=4\nrejected: 2+2=5",
            "4",
        ),
        (
            "labels.jsonl",
            json!({"prompt": "2+2=", "completion": "5", "label": false}),
            Format::Labelled,
            "bad: 2+2=5",
            "5",
        ),
        (
            "choices.jsonl",
            json!({"question": "2+2?", "choices": ["3", "4"], "answer": "B"}),
            Format::MultipleChoice,
            "2+2?\nA. 3\nB. 4",
            "4",
        ),
    ] {
        fs::write(house.data(name), format!("{row}\n")).unwrap();
        let loaded = house.load(name).await.unwrap();
        assert_eq!(loaded.dataset.format, format);
        let shown = &loaded.preview.rendered[0];
        assert_eq!((shown.text.as_str(), shown.supervised.as_str()), (text, better));
    }
    fs::write(house.data("bad.jsonl"), "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}\n").unwrap();
    let refused = house.load("bad.jsonl").await.unwrap_err().to_string();
    assert!(refused.contains("column `answer` holds 2, which is none of the 2 choices"), "{refused}");
}
