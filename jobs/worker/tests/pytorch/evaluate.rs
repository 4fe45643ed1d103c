//! Likelihoods and answers as Transformers computes them; `tests/reference/make_evaluate.py`.

use std::fs;
use std::path::{Path, PathBuf};

use drydock_worker::data::batch::Batch;
use drydock_worker::data::rows::Row;
use drydock_worker::evaluate::choice::{Choices, log_likelihoods};
use drydock_worker::evaluate::perplexity::stretches;
use drydock_worker::generate::greedy::{End, Greedy, Prompt};
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;
use serde::Deserialize;

use crate::tiny::tokenizer;

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
        let greedy = Greedy { speaker: &decoder, text: &text, until: &[], batch_size };
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
