//! What an evaluation leaves behind: `results.json` in lm-evaluation-harness's form where that fits, and
//! `samples_<measure>.jsonl` with every model's answers side by side.

use drydock_spec::dataset::Example;
use drydock_spec::evaluate::{EvaluateSpec, Measure};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::rows::{Asked, Question, Rows, name};
use super::statistics::Estimate;
use super::{Measured, Metric, answers};
use crate::data::read::Placed;
use crate::ending::Result;
use crate::save::Saver;

/// The version of how each measure is taken; a number changes with what it is compared to.
const VERSION: u32 = 1;

/// Characters of a text that its sample shows.
const SHOWN_CHARS: usize = 2000;

/// What held for one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    pub architecture: String,
    /// Tokens of a window of text at most.
    pub window: usize,
    /// Tokens that windows are apart.
    pub stride: usize,
    /// Tokens of a question and its answer at most.
    pub question_window: usize,
    /// Whether questions were put through the chat template.
    pub chat: bool,
    /// What the tokenizer puts before a plain text.
    pub text_begins_with: String,
    /// Questions that were cut from the left.
    pub cut: usize,
}

/// What was measured of one model in one state.
pub struct Outcome {
    /// As the caller named it, with its adapter.
    pub model: String,
    pub settings: Settings,
    pub parameters: u64,
    pub measured: Vec<Measured>,
    pub seconds: f64,
}

impl Outcome {
    /// Every number, with the measure that it comes from.
    pub fn metrics(&self) -> impl Iterator<Item = (Measure, &Metric)> {
        self.measured.iter().flat_map(|measured| measured.metrics.iter().map(|metric| (measured.measure, metric)))
    }

    /// How much larger a metric of another model is than this one's, from pairs of the same rows.
    pub fn difference(&self, other: &Metric, measure: Measure, seed: u64) -> Option<Estimate> {
        let same = |(of, own): &(Measure, &Metric)| (*of, own.name, own.filter) == (measure, other.name, other.filter);
        let (_, own) = self.metrics().find(same)?;
        other.series.minus(&own.series, seed)
    }
}

impl Metric {
    /// Its name in reports.
    pub fn key(&self) -> String {
        if self.filter == "none" { self.name.to_owned() } else { format!("{},{}", self.name, self.filter) }
    }

    /// Whether more of it is better; nothing where neither is.
    fn higher_is_better(&self) -> Option<bool> {
        match self.name {
            "acc" | "acc_norm" | "acc_bytes" | "exact_match" | "f1" | "stopped" => Some(true),
            "perplexity" | "word_perplexity" | "byte_perplexity" | "bits_per_byte" | "looping" => Some(false),
            _ => None,
        }
    }
}

/// Writes everything.
pub fn save(
    saver: &Saver<'_>,
    spec: &EvaluateSpec,
    rows: &Rows,
    measures: &[Measure],
    outcomes: &[Outcome],
) -> Result<()> {
    for &measure in measures {
        let lines = (0..rows.measured.len().min(spec.log_samples as usize))
            .map(|row| sample(row, &rows.measured[row], measure, outcomes));
        saver.lines(&format!("samples_{}.jsonl", name(measure)), "samples", lines)?;
    }
    saver.json("results.json", "results", &results(spec, rows, measures, outcomes))
}

/// The subject is the first model, with its adapter where it has one; the others stand under `models`.
fn results(spec: &EvaluateSpec, rows: &Rows, measures: &[Measure], outcomes: &[Outcome]) -> Value {
    let subject = &outcomes[usize::from(spec.adapter.is_some()).min(outcomes.len() - 1)];
    let by_measure = |value: &dyn Fn(Measure) -> Value| -> Map<String, Value> {
        measures.iter().map(|&measure| (name(measure).to_owned(), value(measure))).collect()
    };
    let (first, others) = (&outcomes[0], &outcomes[1..]);
    json!({
        "results": numbers(subject, spec.seed),
        "models": outcomes.iter().map(|outcome| model(outcome, spec.seed)).collect::<Vec<_>>(),
        "comparisons": others.iter().flat_map(|other| comparisons(first, other, spec.seed)).collect::<Vec<_>>(),
        "configs": by_measure(&|measure| config(measure, spec, subject)),
        "versions": by_measure(&|_| VERSION.into()),
        "n-shot": by_measure(&|measure| shots(measure, spec).into()),
        "n-samples": by_measure(&|_| {
            json!({"original": rows.in_dataset, "effective": rows.measured.len()})
        }),
        "higher_is_better": higher_is_better(subject),
        "config": spec,
        "model_name": subject.model,
        "worker": crate::NAME_AND_VERSION,
    })
}

fn model(outcome: &Outcome, seed: u64) -> Value {
    json!({
        "model": outcome.model,
        "parameters": outcome.parameters,
        "settings": outcome.settings,
        "total_evaluation_time_seconds": outcome.seconds,
        "results": numbers(outcome, seed),
    })
}

/// Each measure's numbers under lm-eval's keys: `metric,filter` and `metric_stderr,filter`.
fn numbers(outcome: &Outcome, seed: u64) -> Map<String, Value> {
    let of_one = |measured: &Measured| {
        let mut numbers = Map::from_iter([("alias".to_owned(), name(measured.measure).into())]);
        for Metric { name, filter, series } in &measured.metrics {
            let estimate = series.estimate(seed);
            let stderr = estimate.stderr.map_or_else(|| "N/A".into(), Value::from);
            numbers.insert(format!("{name},{filter}"), estimate.value.into());
            numbers.insert(format!("{name}_stderr,{filter}"), stderr);
        }
        (name(measured.measure).to_owned(), numbers.into())
    };
    outcome.measured.iter().map(of_one).collect()
}

/// By how much another model differs from the first in each metric, on the same rows. Nothing is said of metrics whose
/// rows are not the same for both.
fn comparisons(first: &Outcome, other: &Outcome, seed: u64) -> Vec<Value> {
    let compared = |(measure, metric): (Measure, &Metric)| {
        let difference = first.difference(metric, measure, seed)?;
        Some(json!({
            "model": other.model,
            "baseline": first.model,
            "measure": name(measure),
            "metric": metric.key(),
            "difference": difference.value,
            "difference_stderr": difference.stderr,
            "higher_is_better": metric.higher_is_better(),
        }))
    };
    other.metrics().filter_map(compared).collect()
}

fn higher_is_better(outcome: &Outcome) -> Map<String, Value> {
    let of_one = |measured: &Measured| {
        let metrics = measured.metrics.iter();
        let known = metrics.filter_map(|metric| Some((metric.name.to_owned(), metric.higher_is_better()?.into())));
        (name(measured.measure).to_owned(), Value::Object(known.collect()))
    };
    outcome.measured.iter().map(of_one).collect()
}

fn shots(measure: Measure, spec: &EvaluateSpec) -> u32 {
    if measure == Measure::Perplexity { 0 } else { spec.num_fewshot }
}

/// Everything that decides a measure's numbers besides model and rows.
fn config(measure: Measure, spec: &EvaluateSpec, subject: &Outcome) -> Value {
    let settings = &subject.settings;
    let output = match measure {
        Measure::Perplexity => {
            return json!({
                "output_type": "loglikelihood_rolling",
                "max_seq_length": settings.window,
                "stride": settings.stride,
                "text_begins_with": settings.text_begins_with,
                "stderr": "bootstrap over windows",
            });
        }
        Measure::MultipleChoice => "multiple_choice",
        Measure::ExactMatch | Measure::NumericMatch => "generate_until",
    };
    let mut config = json!({
        "output_type": output,
        "max_seq_length": settings.question_window,
        "num_fewshot": spec.num_fewshot,
        "fewshot_config": {"sampler": "random, anew for each question, from rows that are not measured"},
        "apply_chat_template": settings.chat,
        "text_begins_with": settings.text_begins_with,
        "questions_cut": settings.cut,
    });
    if measure == Measure::MultipleChoice {
        config["target_delimiter"] = if settings.chat { "" } else { " " }.into();
    } else {
        config["generation_kwargs"] = json!({
            "until": answers::until(spec, settings.chat),
            "max_gen_toks": spec.max_new_tokens,
            "do_sample": false,
        });
    }
    config
}

/// One row and what every model made of it.
fn sample(row: usize, placed: &Placed, measure: Measure, outcomes: &[Outcome]) -> Value {
    let of_model = |outcome: &Outcome| {
        let measured = outcome.measured.iter().find(|measured| measured.measure == measure)?;
        Some((outcome.model.clone(), measured.samples[row].clone()))
    };
    let models: Map<String, Value> = outcomes.iter().filter_map(of_model).collect();
    let (doc, target) = shown(placed);
    json!({ "doc_id": row, "place": placed.place, "doc": doc, "target": target, "models": models })
}

/// What was asked, and what would have been right.
fn shown(placed: &Placed) -> (Value, Value) {
    if let Example::Choice { question, choices, answer } = &placed.example {
        return (json!({ "question": question, "choices": choices }), json!(answer));
    }
    match (Question::of(placed), &placed.example) {
        (Some(Question { asked: Asked::Turns(turns), accepted }), _) => (json!({ "messages": turns }), json!(accepted)),
        (Some(Question { asked: Asked::Prompt(prompt) | Asked::Choice(prompt), accepted }), _) => {
            (json!({ "prompt": prompt }), json!(accepted))
        }
        (None, Example::Text(text)) => {
            (json!({ "text": text.chars().take(SHOWN_CHARS).collect::<String>() }), Value::Null)
        }
        (None, _) => (Value::Null, Value::Null),
    }
}
