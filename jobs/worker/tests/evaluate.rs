//! Evaluations: against what Transformers computes (`tests/reference/make_evaluate.py`), and as a process.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use drydock_spec::contract::{EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED};
use drydock_spec::report::Score;
use drydock_spec::{Failure, FailureKind, Report, ReportLine};
use drydock_worker::data::batch::Batch;
use drydock_worker::data::rows::Row;
use drydock_worker::evaluate::choice::{Choices, log_likelihoods};
use drydock_worker::evaluate::perplexity::stretches;
use drydock_worker::generate::greedy::{End, Greedy, Prompt};
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;
use serde::Deserialize;
use serde_json::{Value, json};
use tiny::{CHATML, tokenizer};

#[path = "fixture/tiny.rs"]
mod tiny;

#[derive(Deserialize)]
struct Reference {
    ids: Vec<u32>,
    strided: Vec<Strided>,
    choices: Vec<ReferenceChoices>,
    generation: Generation,
}

#[derive(Deserialize)]
struct Strided {
    length: usize,
    stride: usize,
    tokens: usize,
    perplexity: f64,
}

#[derive(Deserialize)]
struct ReferenceChoices {
    context: Vec<u32>,
    continuations: Vec<Vec<u32>>,
    sums: Vec<f64>,
}

#[derive(Deserialize)]
struct Generation {
    max_new_tokens: usize,
    stops: Vec<u32>,
    prompts: Vec<Vec<u32>>,
    answers: Vec<Vec<u32>>,
}

fn references() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference")
}

fn reference() -> Reference {
    serde_json::from_slice(&fs::read(references().join("evaluate/reference.json")).unwrap()).unwrap()
}

fn decoder() -> Decoder {
    let files = ModelFiles::open(&references().join("llama_lora/tied")).unwrap();
    Decoder::load(&files, 512, |_| Ok(())).unwrap()
}

#[test]
fn strided_perplexity_is_that_of_transformers() {
    let (reference, decoder) = (reference(), decoder());
    let mut counts = vec![true; reference.ids.len()];
    counts[0] = false;
    let whole = Row { ids: reference.ids, counts };
    for Strided { length, stride, tokens, perplexity } in reference.strided {
        let rows: Vec<Row> =
            stretches(whole.ids.len(), length, stride).iter().map(|stretch| stretch.of(&whole)).collect();
        let losses = decoder.target_losses(&Batch::of(&rows)).unwrap();
        assert_eq!(losses.len(), tokens);
        let got = (losses.iter().sum::<f64>() / tokens as f64).exp();
        assert!((got / perplexity - 1.0).abs() < 1e-5, "{length}, {stride}: {got}, not {perplexity}");
    }
}

#[test]
fn choices_have_the_likelihoods_of_transformers_and_of_whole_rows() {
    let (reference, decoder) = (reference(), decoder());
    let rows = |question: &ReferenceChoices| -> Vec<Vec<u32>> {
        question.continuations.iter().map(|ids| [&question.context[..], ids].concat()).collect()
    };
    let questions: Vec<Choices> =
        reference.choices.iter().map(|question| Choices::new(rows(question), question.context.len(), 512)).collect();
    let sums = log_likelihoods(&decoder, &questions, || Ok(())).unwrap();
    for (question, sums) in reference.choices.iter().zip(&sums) {
        assert_eq!(sums.len(), question.sums.len());
        for ((row, got), want) in rows(question).iter().zip(sums).zip(&question.sums) {
            assert!((got - want).abs() < 1e-4, "{got}, not {want}");
            let logits = decoder.logits(row).unwrap().to_vec2::<f32>().unwrap();
            let whole: f64 = (question.context.len()..row.len()).map(|at| log_softmax(&logits[at - 1], row[at])).sum();
            assert!((got - whole).abs() < 1e-4, "{got}, not {whole} as from the whole row");
        }
    }
}

fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    f64::from(logits[token as usize]) - sum.ln()
}

#[test]
fn choices_are_cut_from_the_left_alike() {
    let decoder = decoder();
    let rows = vec![vec![9, 8, 7, 6, 5, 4], vec![9, 8, 7, 6, 3, 2, 1]];
    let cut = Choices::new(rows, 4, 5);
    assert!(cut.cut);
    let short = Choices::new(vec![vec![7, 6, 5, 4], vec![7, 6, 3, 2, 1]], 2, 5);
    let sums = |questions: &[Choices]| log_likelihoods(&decoder, questions, || Ok(())).unwrap();
    assert_eq!(sums(&[cut]), sums(&[short]));
}

#[test]
fn answers_of_many_rows_at_once_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let mut text = drydock_worker::model::tokenizer::Text::from_folder(folder.path()).unwrap();
    let (Generation { max_new_tokens, stops, prompts, answers }, decoder) = (reference().generation, decoder());
    text.also_stop_at(stops.clone());
    let prompts: Vec<Prompt> = prompts.into_iter().map(|ids| Prompt { ids, max_new_tokens }).collect();
    for batch_size in [1, 2, 3, 7, 16] {
        let greedy = Greedy { decoder: &decoder, text: &text, until: &[], batch_size };
        let mut passes = 0;
        let got = greedy.answer_each(&prompts, |_| {
            passes += 1;
            Ok(())
        });
        for (got, want) in got.unwrap().iter().zip(&answers) {
            let stopped = stops.contains(want.last().unwrap());
            let said = if stopped { &want[..want.len() - 1] } else { &want[..] };
            assert_eq!(got.ids, said, "{batch_size} at once");
            assert_eq!(got.end, if stopped { End::Model } else { End::Length });
        }
        // Finished rows leave room at once: together they take no more passes than one after the other on each place.
        let one_by_one: usize = answers.iter().map(Vec::len).sum();
        assert!(passes <= one_by_one.div_ceil(batch_size) + max_new_tokens, "{passes} passes, {batch_size} at once");
    }
}

/// An evaluation on disk: a tiny model with a tokenizer of bytes, rows, and room for what comes out.
struct Scene {
    folder: tempfile::TempDir,
    spec: Value,
}

impl Scene {
    fn new(options: Value, rows: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["model", "dataset", "out"] {
            fs::create_dir(path(name)).unwrap();
        }
        let fixture = references().join("llama_lora/tied");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(name), path("model").join(name)).unwrap();
        }
        fs::write(path("model/tokenizer.json"), tokenizer().to_string()).unwrap();
        let config = json!({"eos_token": "<|im_end|>", "chat_template": CHATML});
        fs::write(path("model/tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(path("dataset/rows.jsonl"), rows).unwrap();
        let mut evaluate = json!({"model": "tiny", "dataset": "rows"});
        evaluate.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let spec = json!({
            "contract": 1,
            "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C",
            "attempt": 1,
            "trace_id": "0123456789abcdef0123456789abcdef",
            "spec": {"evaluate": evaluate},
            "inputs": {"model": {"path": path("model"), "name": "tiny/random-llama"}, "dataset": path("dataset")},
            "output": path("out"),
            "events": path("events.jsonl"),
            "threads": 1,
        });
        Self { folder, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Child {
        fs::write(self.path("spec.json"), self.spec.to_string()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_drydock-worker")).arg("run").arg(self.path("spec.json")).spawn().unwrap()
    }

    fn reports(&self) -> Vec<Report> {
        let text = fs::read_to_string(self.path("events.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<ReportLine>(line).unwrap().report).collect()
    }

    /// Scores and `results.json` of an evaluation that goes well.
    fn results(&self) -> (Vec<Score>, Value) {
        let code = self.start().wait().unwrap().code();
        let reports = self.reports();
        assert_eq!(code, Some(EXIT_FINISHED), "{:?}", reports.last());
        let scores = reports.into_iter().filter_map(|report| match report {
            Report::Score(score) => Some(score),
            _ => None,
        });
        (scores.collect(), serde_json::from_slice(&fs::read(self.path("out/results.json")).unwrap()).unwrap())
    }

    fn samples(&self, measure: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(&format!("out/samples_{measure}.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn failure(&self) -> Failure {
        assert_eq!(self.start().wait().unwrap().code(), Some(EXIT_FAILED));
        match self.reports().pop() {
            Some(Report::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
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
    let (scores, results) = Scene::new(json!({"max_seq_length": 32, "stride": 8}), &texts()).results();
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

#[test]
fn a_longer_context_is_the_same_for_rows_that_fit() {
    let perplexity = |options: Value| Scene::new(options, &texts()).results().1["results"]["perplexity"].clone();
    assert_eq!(
        perplexity(json!({"max_seq_length": 64})),
        perplexity(json!({"max_seq_length": 128, "stride": 3, "batch_size": 2}))
    );
}

#[test]
fn choices_are_measured_and_their_samples_kept() {
    let row =
        |i: usize| json!({"question": format!("Row {i}"), "choices": ["one", "three", "seventeen"], "answer": i % 3});
    let scene = Scene::new(json!({"num_fewshot": 2, "limit": 9, "log_samples": 4}), &lines((0..12).map(row)));
    let (scores, results) = scene.results();
    let values: Vec<(&str, u64)> = scores.iter().map(|score| (score.metric.as_str(), score.rows)).collect();
    assert_eq!(values, [("acc", 9), ("acc_norm", 9)]);
    let samples = scene.samples("multiple_choice");
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
    let scene = Scene::new(options, &sums());
    let (scores, results) = scene.results();
    let keys: Vec<&str> = scores.iter().map(|score| score.metric.as_str()).collect();
    let whole = ["stopped", "looping", "answer_tokens"];
    let want =
        [&["exact_match", "f1"][..], &whole, &["exact_match,strict-match", "exact_match,flexible-extract"], &whole];
    assert_eq!(keys, want.concat());
    assert_eq!(results["configs"]["exact_match"]["apply_chat_template"], true);
    let (exact, numeric) = (scene.samples("exact_match"), scene.samples("numeric_match"));
    assert_eq!((exact.len(), numeric.len()), (12, 12));
    for (exact, numeric) in exact.iter().zip(&numeric) {
        assert_eq!(exact["models"]["tiny"]["resps"], numeric["models"]["tiny"]["resps"]);
    }
}

#[test]
fn models_are_compared_on_the_same_rows() {
    let mut scene = Scene::new(json!({"compare_with": [{"model": "tiny"}]}), &texts());
    let same = json!({"path": scene.path("model"), "name": "again"});
    scene.spec["inputs"]["compared"] = json!([same]);
    let (scores, results) = scene.results();
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
    let mut scene = Scene::new(json!({"adapter": "learnt", "max_new_tokens": 30}), &sums());
    let training =
        json!({"model": "tiny", "dataset": "rows", "learning_rate": 0.01, "num_train_epochs": 20, "test_size": 0});
    let evaluating = std::mem::replace(&mut scene.spec["spec"], json!({"finetune": training}));
    assert_eq!(scene.start().wait().unwrap().code(), Some(EXIT_FINISHED));
    scene.spec["spec"] = evaluating;
    scene.spec["inputs"]["model"]["adapter"] = json!(scene.path("out/adapter"));
    fs::remove_file(scene.path("events.jsonl")).unwrap();
    let (scores, results) = scene.results();
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
        let failure = Scene::new(options, rows).failure();
        (failure.kind, failure.message)
    };
    assert_eq!(
        told(json!({"max_seq_length": 129}), &texts()),
        (FailureKind::BadOption, "max_seq_length = 129: the model takes 128 tokens at most".into())
    );
    let (kind, message) = told(json!({"measures": ["exact_match"]}), &texts());
    assert_eq!(kind, FailureKind::BadOption);
    assert!(message.contains("rows.jsonl, line 1 is a text; exact_match takes chats"), "{message}");
    let (kind, message) = told(json!({"max_new_tokens": 128, "measures": ["exact_match"]}), &sums());
    assert_eq!(kind, FailureKind::BadOption);
    assert!(message.starts_with("max_new_tokens = 128: no room is left"), "{message}");
    let blank = lines([json!({"question": "q", "choices": ["a", " "], "answer": 0})]);
    let (kind, message) = told(json!({}), &blank);
    assert_eq!((kind, message), (FailureKind::BadDataset, "rows.jsonl, line 1: the choice ` ` has no tokens".into()));
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
            "rows.jsonl, line 1 has an empty answer",
        ),
        (json!({"measures": ["numeric_match"]}), json!({"messages": turns("four")}), "an answer without a number"),
    ] {
        let failure = Scene::new(options, &lines([row])).failure();
        assert!(matches!(failure.kind, FailureKind::BadDataset | FailureKind::BadOption), "{failure:?}");
        assert!(failure.message.contains("rows.jsonl, line 1") && failure.message.contains(told), "{failure:?}");
        assert!(!failure.hint.is_empty());
    }
    let empty = Scene::new(json!({}), "\n\n").failure();
    assert_eq!(empty.kind, FailureKind::BadDataset);
    assert!(empty.message.starts_with("the dataset has no rows"), "{empty:?}");
}

#[test]
fn a_question_that_does_not_fit_is_cut_and_counted() {
    let scene = Scene::new(json!({"measures": ["exact_match"], "max_seq_length": 40, "max_new_tokens": 16}), &sums());
    let (_, results) = scene.results();
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
    let scene = Scene::new(json!({"measures": ["exact_match"], "max_new_tokens": 100, "batch_size": 4}), &many);
    let mut child = scene.start();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(scene.path("events.jsonl")).is_ok_and(|text| text.contains(r#""type":"progress""#)) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself: {:?}", scene.reports().last());
        assert!(Instant::now() < deadline, "no sign of life came");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: the child has not been waited for, so the id is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(EXIT_STOPPED));
    assert!(matches!(scene.reports().last(), Some(Report::Stopped { .. })));
    assert_eq!(fs::read_dir(scene.path("out")).unwrap().count(), 0, "nothing half-way is left");
}
