//! Evaluations: what they report, what they leave, and what they refuse.

use std::fs;

use drydock_spec::contract::{EXIT_FINISHED, EXIT_STOPPED};
use drydock_spec::report::Score;
use drydock_spec::{FailureKind, Report};
use serde_json::{Value, json};

use crate::scene::Scene;

/// Scores and `results.json` of an evaluation that goes well.
fn results(scene: &Scene) -> (Vec<Score>, Value) {
    let (code, reports) = scene.run("run");
    assert_eq!(code, EXIT_FINISHED, "{:?}", reports.last());
    let scores = reports.into_iter().filter_map(|report| match report {
        Report::Score(score) => Some(score),
        _ => None,
    });
    (scores.collect(), scene.json("results.json"))
}

fn samples(scene: &Scene, measure: &str) -> Vec<Value> {
    let text = fs::read_to_string(scene.path(&format!("out/samples_{measure}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

fn texts() -> String {
    lines((0..6).map(|i| json!({"text": format!("Row {i}: the quick brown fox jumps over {} lazy dogs.\n", i * i)})))
}

fn sums() -> String {
    lines((0..12).map(|i| {
        json!({"messages": [{"role": "user", "content": format!("{i} + 1")},
                            {"role": "assistant", "content": format!("One more.\n#### {}", i + 1)}]})
    }))
}

#[test]
fn texts_are_measured_by_token_word_and_byte() {
    let (scores, results) = results(&Scene::evaluating(json!({"max_seq_length": 32, "stride": 8}), &texts()));
    let names: Vec<&str> = scores.iter().map(|score| score.metric.as_str()).collect();
    assert_eq!(names, ["perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]);
    let numbers = &results["results"]["perplexity"];
    let number = |key: &str| numbers[key].as_f64().unwrap();
    // A token of this tokenizer is a byte.
    assert!((number("byte_perplexity,none") / number("perplexity,none") - 1.0).abs() < 1e-12);
    assert!((number("bits_per_byte,none") - number("byte_perplexity,none").log2()).abs() < 1e-9);
    assert!(number("word_perplexity,none") > number("perplexity,none"));
    assert!(number("perplexity_stderr,none") > 0.0);
    assert_eq!(results["configs"]["perplexity"]["stride"], 8);
    assert_eq!(results["n-samples"]["perplexity"], json!({"original": 6, "effective": 6}));
}

/// A word may be as long as its text, where a language has no spaces: then its perplexity is beyond all numbers.
#[test]
fn words_without_end_have_no_perplexity_and_the_rest_is_measured() {
    let rows = lines([json!({"text": format!("a {}", "xyzzy".repeat(100))}), json!({"text": "b c"})]);
    let (scores, results) = results(&Scene::evaluating(json!({}), &rows));
    let names: Vec<&str> = scores.iter().map(|score| score.metric.as_str()).collect();
    assert_eq!(names, ["perplexity", "byte_perplexity", "bits_per_byte"], "{results}");
}

#[test]
fn a_model_whose_weights_are_no_numbers_is_told_and_not_measured() {
    let choice = json!({"question": "q", "choices": ["a", "b"], "answer": 0});
    for (rows, options, what) in [
        (texts(), json!({}), "the loss of row 1 is no number"),
        (lines([choice]), json!({}), "the log-likelihood of a choice of row 1 is no number"),
        (
            sums(),
            json!({"measures": ["exact_match"], "max_new_tokens": 8}),
            "the model answers with logits that are no numbers",
        ),
    ] {
        let scene = Scene::evaluating(options, &rows);
        scene.break_a_weight();
        let failure = scene.failure();
        assert_eq!(failure.kind, FailureKind::BadModel);
        assert!(failure.message.starts_with(what), "{}", failure.message);
    }
}

#[test]
fn a_longer_context_is_the_same_for_rows_that_fit() {
    let perplexity = |options: Value| results(&Scene::evaluating(options, &texts())).1["results"]["perplexity"].clone();
    assert_eq!(
        perplexity(json!({"max_seq_length": 64})),
        perplexity(json!({"max_seq_length": 128, "stride": 3, "batch_size": 2}))
    );
}

#[test]
fn choices_are_measured_and_their_samples_kept() {
    let row =
        |i: usize| json!({"question": format!("Row {i}"), "choices": ["one", "three", "seventeen"], "answer": i % 3});
    let scene = Scene::evaluating(json!({"num_fewshot": 2, "limit": 9, "log_samples": 4}), &lines((0..12).map(row)));
    let (scores, results) = results(&scene);
    let values: Vec<(&str, u64)> = scores.iter().map(|score| (score.metric.as_str(), score.rows)).collect();
    assert_eq!(values, [("acc", 9), ("acc_norm", 9), ("acc_bytes", 9)]);
    let samples = samples(&scene, "multiple_choice");
    assert_eq!(samples.len(), 4);
    let said = &samples[2]["models"]["tiny"];
    assert_eq!(said["resps"].as_array().unwrap().len(), 3);
    assert_eq!(samples[2]["target"], 2);
    assert_eq!(said["acc"], u8::from(said["filtered_resps"] == 2));
    assert_eq!(results["n-shot"]["multiple_choice"], 2);
    assert_eq!(results["configs"]["multiple_choice"]["target_delimiter"], " ");
}

#[test]
fn answers_are_given_once_and_judged_by_every_measure() {
    let options = json!({"measures": ["exact_match", "numeric_match"], "max_new_tokens": 20, "batch_size": 3});
    let scene = Scene::evaluating(options, &sums());
    let (scores, results) = results(&scene);
    let keys: Vec<&str> = scores.iter().map(|score| score.metric.as_str()).collect();
    let whole = ["stopped", "looping", "answer_tokens"];
    let want =
        [&["exact_match", "f1"][..], &whole, &["exact_match,strict-match", "exact_match,flexible-extract"], &whole];
    assert_eq!(keys, want.concat());
    assert_eq!(results["configs"]["exact_match"]["apply_chat_template"], true);
    let (exact, numeric) = (samples(&scene, "exact_match"), samples(&scene, "numeric_match"));
    assert_eq!((exact.len(), numeric.len()), (12, 12));
    for (exact, numeric) in exact.iter().zip(&numeric) {
        assert_eq!(exact["models"]["tiny"]["resps"], numeric["models"]["tiny"]["resps"]);
    }
}

#[test]
fn models_are_compared_on_the_same_rows() {
    let mut scene = Scene::evaluating(json!({"compare_with": [{"model": "tiny"}]}), &texts());
    let same = json!({"path": scene.path("model"), "name": "again"});
    scene.spec["inputs"]["compared"] = json!([same]);
    let (scores, results) = results(&scene);
    assert_eq!(scores[4].model, "tiny (2)");
    assert_eq!(scores[0].value, scores[4].value);
    assert_eq!(results["models"].as_array().unwrap().len(), 2);
    let comparison = &results["comparisons"][0];
    assert_eq!((&comparison["baseline"], &comparison["model"]), (&json!("tiny"), &json!("tiny (2)")));
    assert_eq!((&comparison["difference"], &comparison["difference_stderr"]), (&json!(0.0), &json!(0.0)));
}

/// The tiny model learns the answers, and the evaluation of base and adapter side by side shows it.
#[test]
fn what_an_adapter_has_learnt_shows_beside_its_base() {
    let mut scene = Scene::evaluating(json!({"adapter": "learnt", "max_new_tokens": 30}), &sums());
    let training =
        json!({"model": "tiny", "dataset": "rows", "learning_rate": 0.01, "num_train_epochs": 20, "test_size": 0});
    let evaluating = std::mem::replace(&mut scene.spec["spec"], json!({"finetune": training}));
    assert_eq!(scene.run("run").0, EXIT_FINISHED);
    scene.spec["spec"] = evaluating;
    scene.spec["inputs"]["model"]["adapter"] = json!(scene.path("out/adapter"));
    let (scores, results) = results(&scene);
    assert_eq!(results["model_name"], "tiny + learnt");
    let models: Vec<&Value> = results["models"].as_array().unwrap().iter().map(|model| &model["model"]).collect();
    assert_eq!(models, ["tiny", "tiny + learnt"]);
    let of = |metric: &str| {
        let all = results["comparisons"].as_array().unwrap();
        all.iter().find(|comparison| comparison["metric"] == metric).unwrap()["difference"].as_f64().unwrap()
    };
    assert!(of("perplexity") < -10.0, "{}", results["comparisons"]);
    let reported = scores.iter().find(|score| score.metric == "perplexity_difference").unwrap();
    assert_eq!((reported.model.as_str(), reported.value), ("tiny + learnt", of("perplexity")));
    assert!(reported.stderr.unwrap() > 0.0);
    assert!(of("stopped") > 0.5, "it has learnt to stop: {}", results["comparisons"]);
}

#[test]
fn what_cannot_be_measured_is_told() {
    let told = |options: Value, rows: &str| {
        let failure = Scene::evaluating(options, rows).failure();
        (failure.kind, failure.message)
    };
    assert_eq!(
        told(json!({"max_seq_length": 129}), &texts()),
        (FailureKind::BadOption, "max_seq_length = 129: the model takes 128 tokens at most".into())
    );
    let (kind, message) = told(json!({"measures": ["exact_match"]}), &texts());
    assert_eq!(kind, FailureKind::BadOption);
    assert!(message.contains("train.jsonl, line 1 is a text; exact_match takes chats"), "{message}");
    let (kind, message) = told(json!({"max_new_tokens": 128, "measures": ["exact_match"]}), &sums());
    assert_eq!(kind, FailureKind::BadOption);
    assert!(message.starts_with("max_new_tokens = 128: no room is left"), "{message}");
    let blank = lines([json!({"question": "q", "choices": ["a", " "], "answer": 0})]);
    let (kind, message) = told(json!({}), &blank);
    assert_eq!((kind, message), (FailureKind::BadDataset, "train.jsonl, line 1: the choice ` ` has no tokens".into()));
    let one_letter = lines([json!({"text": "x"})]);
    let (kind, message) = told(json!({}), &one_letter);
    assert_eq!((kind, message), (FailureKind::BadDataset, "none of the 1 rows has a token that counts".into()));
    assert_eq!(told(json!({"stride": 200}), &texts()).0, FailureKind::BadOption);
}

#[test]
fn rows_that_answer_nothing_are_told_by_their_place() {
    let turns = |answer: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]);
    let choice = |choices: Value, answer: Value| json!({"question": "q", "choices": choices, "answer": answer});
    for (options, row, told) in [
        (json!({}), choice(json!(["a", "b"]), json!(2)), "column `answer` holds 2, which is none of the 2 choices"),
        (json!({}), choice(json!(["a", "b"]), json!(-1)), "column `answer` holds -1, which is none of the 2 choices"),
        (json!({}), choice(json!([]), json!(0)), "column `choices` holds 0 choices; at least 2 are expected"),
        (json!({}), choice(json!(["a"]), json!(0)), "column `choices` holds 1 choices; at least 2 are expected"),
        (json!({}), json!({"question": "q", "choices": ["a", "b"]}), "column `answer` is missing"),
        (json!({}), json!({"prompt": "p"}), "no known columns; found `prompt`"),
        (json!({}), json!({"messages": [{"role": "user", "content": "q"}]}), "hold no assistant turn"),
        (
            json!({"measures": ["exact_match"]}),
            json!({"messages": turns(" ")}),
            "train.jsonl, line 1 has an empty answer",
        ),
        (json!({"measures": ["numeric_match"]}), json!({"messages": turns("four")}), "an answer without a number"),
    ] {
        let failure = Scene::evaluating(options, &lines([row])).failure();
        assert!(matches!(failure.kind, FailureKind::BadDataset | FailureKind::BadOption), "{failure:?}");
        assert!(failure.message.contains("train.jsonl, line 1") && failure.message.contains(told), "{failure:?}");
        assert!(!failure.hint.is_empty());
    }
    let empty = Scene::evaluating(json!({}), "\n\n").failure();
    assert_eq!(empty.kind, FailureKind::BadDataset);
    assert!(empty.message.starts_with("the dataset has no rows"), "{empty:?}");
}

#[test]
fn a_question_that_does_not_fit_is_cut_and_counted() {
    let scene =
        Scene::evaluating(json!({"measures": ["exact_match"], "max_seq_length": 40, "max_new_tokens": 16}), &sums());
    let (_, results) = results(&scene);
    // Questions with two-digit numbers have 25 tokens, of 24 that there is room for.
    assert_eq!(results["configs"]["exact_match"]["questions_cut"], 2);
    let warned = scene
        .reports()
        .into_iter()
        .any(|report| matches!(report, Report::Warning { code, .. } if code == "questions_cut"));
    assert!(warned);
}

#[test]
fn sigterm_stops_an_evaluation_between_two_passes() {
    let many = lines((0..4000).map(|i| json!({"prompt": format!("Tell me {i}"), "completion": " no"})));
    let scene = Scene::evaluating(json!({"measures": ["exact_match"], "max_new_tokens": 100, "batch_size": 4}), &many);
    let sign_of_life = |report: &Report| matches!(report, Report::Progress { .. });
    assert_eq!(scene.kill_after(scene.start("run"), sign_of_life, libc::SIGTERM), Some(EXIT_STOPPED));
    assert!(matches!(scene.reports().last(), Some(Report::Stopped { .. })));
    assert_eq!(fs::read_dir(scene.path("out")).unwrap().count(), 0, "nothing half-way is left");
}
