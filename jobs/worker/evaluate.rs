//! An evaluation from the models' files to `results.json`: the same rows, one model after the other.
//!
//! The first model is measured as it is, and then with its adapter, if there is one; the others follow. Only one is in
//! memory at a time. Every model sees the same rows after the same solved rows, so that differences can be told row by
//! row (see [`statistics`]).

pub mod answers;
pub mod choice;
pub mod numeric;
pub mod perplexity;
pub mod prompt;
pub mod results;
pub mod rows;
pub mod squad;
pub mod statistics;

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use drydock_spec::contract::ModelInput;
use drydock_spec::evaluate::{EvaluateSpec, Measure};
use drydock_spec::finetune::Objective;
use drydock_spec::recipe::DType;
use drydock_spec::report::{DatasetReport, Finished, ModelReport, Score};
use drydock_spec::{AttemptSpec, Failure, FailureKind, Report, Stage};
use serde_json::Value;

use crate::compute::Compute;
#[cfg(feature = "cuda")]
use crate::cuda::speaker::Loaded;
use crate::data::render::{Renderer, template};
use crate::data::rows::Tokenizing;
use crate::ending::{Ending, Result, input};
use crate::forget;
use crate::kernels::weight::Precision;
use crate::model::ModelFiles;
use crate::model::config::Config;
use crate::model::decoder::Decoder;
use crate::model::lora::SavedAdapter;
use crate::model::speaker::Speaker;
use crate::model::tokenizer::Text;
use crate::report::{Reporter, resident_bytes};
use crate::save::Saver;
use crate::stop;
use answers::{Questions, questions};
use choice::{Choices, choices};
use perplexity::{Window, windows};
use prompt::Prompter;
use results::{Outcome, Settings};
use rows::Rows;
use statistics::{Estimate, Series};

/// Tokens of a window of text, where the spec does not say.
const WINDOW: usize = 512;

/// What one measure says about one model.
pub struct Measured {
    measure: Measure,
    metrics: Vec<Metric>,
    /// What became of each row.
    samples: Vec<Value>,
}

/// A number, by the names that lm-evaluation-harness has for it.
pub struct Metric {
    name: &'static str,
    /// How answers were read before they were compared.
    filter: &'static str,
    series: Series,
}

impl Metric {
    fn plain(name: &'static str, series: Series) -> Self {
        Self { name, filter: "none", series }
    }
}

/// A model, loaded, while it is measured.
pub struct Session<'a, S> {
    speaker: &'a S,
    text: &'a Text,
    /// Texts that end answers.
    until: Vec<String>,
    spec: &'a EvaluateSpec,
    pace: &'a Pace<'a>,
}

impl<S> Session<'_, S> {
    /// Of the measure at hand so much is done.
    fn done(&self, done: usize, of: usize) -> Result<()> {
        self.pace.done(done, of)
    }

    fn check(&self) -> Result<()> {
        stop::check()
    }
}

/// How far the whole evaluation has come: every measure of every model counts for the same, whatever it goes through.
pub struct Pace<'a> {
    reporter: &'a Reporter,
    /// Measures that are done.
    before: Cell<u64>,
    measures: u64,
}

impl Pace<'_> {
    /// Steps that a measure is reported in.
    const STEPS: u64 = 1000;

    fn done(&self, done: usize, of: usize) -> Result<()> {
        let here = Self::STEPS * done as u64 / of.max(1) as u64;
        self.reporter.progress(Self::STEPS * self.before.get() + here, Self::STEPS * self.measures);
        stop::check()
    }

    fn next(&self) {
        self.before.set(self.before.get() + 1);
    }
}

/// A model to be measured, and in which states.
struct Subject<'a> {
    /// As the caller named it.
    name: String,
    input: &'a ModelInput,
    /// The adapter's name, where there is an adapter.
    adapter: Option<String>,
    /// Whether it is also measured without its adapter.
    bare: bool,
}

/// Does the whole job; what comes back is the last report.
pub fn evaluate(
    attempt: &AttemptSpec,
    spec: &EvaluateSpec,
    compute: &Compute,
    reporter: &Reporter,
) -> Result<Finished> {
    reporter.stage(Stage::Load);
    let rows = Rows::read(&attempt.inputs, spec)?;
    let measures = rows.measures(spec)?;
    let subjects = subjects(attempt, spec)?;
    let states: usize = subjects.iter().map(|subject| subject.states().len()).sum();
    let pace = Pace { reporter, before: Cell::new(0), measures: (measures.len() * states) as u64 };
    let mut outcomes = Vec::new();
    let mut tokens = 0;
    for (index, subject) in subjects.iter().enumerate() {
        reporter.stage(Stage::Tokenize);
        let files = ModelFiles::open(&subject.input.path)?;
        let mut text = files.text()?;
        let prepared = Prepared::new(&rows, &measures, spec, &files.config, &mut text, reporter)?;
        if index == 0 {
            reporter.report(Report::Dataset(prepared.report(rows.measured.len())));
        }
        reporter.stage(Stage::Load);
        forget::free_heap();
        let mut decoder = Decoder::load(&files, prepared.positions(), |_| stop::check())?;
        decoder.scoring = precision(spec);
        for adapter in subject.states() {
            if let Some(folder) = adapter {
                SavedAdapter::open(folder)?.load(&mut decoder)?;
            }
            reporter.report(Report::Model(model_report(&decoder)));
            let examination =
                Examination { prepared: &prepared, rows: &rows, measures: &measures, text: &text, spec, pace: &pace };
            let (measured, seconds) = examination.on(compute, &decoder)?;
            let outcome = Outcome {
                model: subject.named(adapter.is_some(), &outcomes),
                settings: prepared.settings.clone(),
                parameters: decoder.parameters(),
                measured,
                seconds,
            };
            tokens += prepared.tokens();
            report_scores(&outcome, outcomes.first(), rows.measured.len(), spec.seed, reporter);
            outcomes.push(outcome);
        }
    }
    reporter.stage(Stage::Save);
    results::save(&Saver::new(&attempt.output, reporter), spec, &rows, &measures, &outcomes)?;
    Ok(Finished { steps: 0, train_loss: None, tokens, peak_rss_bytes: resident_bytes().1 })
}

/// What a model is asked.
struct Examination<'a> {
    prepared: &'a Prepared,
    rows: &'a Rows,
    measures: &'a [Measure],
    text: &'a Text,
    spec: &'a EvaluateSpec,
    pace: &'a Pace<'a>,
}

impl Examination<'_> {
    /// What it finds of a model that computes there, and the seconds that it took.
    fn on(&self, compute: &Compute, decoder: &Decoder) -> Result<(Vec<Measured>, f64)> {
        match compute {
            Compute::Cpu => self.of(decoder),
            #[cfg(feature = "cuda")]
            Compute::Cuda(devices) => match (&devices[..], self.spec.dtype) {
                ([device], DType::F32) => self.of(&Loaded::<f32>::new(device, decoder)?.voice()),
                ([device], DType::Bf16) => self.of(&Loaded::<half::bf16>::new(device, decoder)?.voice()),
                (several, _) => {
                    let message = format!("an evaluation computes on one GPU, and the attempt has {}", several.len());
                    Err(Failure::new(FailureKind::BadOption, message).with_hint("set limits.gpus to 1").into())
                }
            },
        }
    }

    fn of<S: Speaker>(&self, speaker: &S) -> Result<(Vec<Measured>, f64)> {
        let Self { prepared, rows, measures, text, spec, pace } = *self;
        pace.reporter.stage(Stage::Evaluate);
        let started = Instant::now();
        let until = answers::until(spec, prepared.settings.chat);
        let session = Session { speaker, text, until, spec, pace };
        let measured = prepared.measure(&session, rows, measures)?;
        Ok((measured, started.elapsed().as_secs_f64()))
    }
}

fn subjects<'a>(attempt: &'a AttemptSpec, spec: &EvaluateSpec) -> Result<Vec<Subject<'a>>> {
    let adapter_name = |named: &Option<String>, input: &ModelInput| {
        input.adapter.is_some().then(|| named.clone().unwrap_or_else(|| "adapter".into()))
    };
    let first = input(&attempt.inputs.model, "model")?;
    let adapter = adapter_name(&spec.adapter, first);
    let mut subjects = vec![Subject { name: spec.model.clone(), input: first, adapter, bare: true }];
    if attempt.inputs.compared.len() != spec.compare_with.len() {
        let (given, asked) = (attempt.inputs.compared.len(), spec.compare_with.len());
        let message = format!("the spec has {given} `inputs.compared` for {asked} `compare_with`");
        return Err(Failure::new(FailureKind::ContractBroken, message).into());
    }
    for (other, input) in spec.compare_with.iter().zip(&attempt.inputs.compared) {
        let adapter = adapter_name(&other.adapter, input);
        subjects.push(Subject { name: other.model.clone(), input, adapter, bare: false });
    }
    Ok(subjects)
}

impl Subject<'_> {
    /// The adapters that it is measured with, one after the other; none at first where it is measured bare.
    fn states(&self) -> Vec<Option<&Path>> {
        let adapter = self.input.adapter.as_deref();
        if self.bare && adapter.is_some() { vec![None, adapter] } else { vec![adapter] }
    }

    /// What it is called in reports and results; two of one name are numbered.
    fn named(&self, with_adapter: bool, outcomes: &[Outcome]) -> String {
        let name = match &self.adapter {
            Some(adapter) if with_adapter => format!("{} + {adapter}", self.name),
            _ => self.name.clone(),
        };
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        let free = names.find(|name| outcomes.iter().all(|outcome| outcome.model != *name));
        free.unwrap_or(name)
    }
}

/// What is made of a row is no number: then nothing of the model can be measured.
fn no_number(what: &str, row: usize) -> Ending {
    let message = format!("{what} of row {} is no number: the model's weights are damaged or out of range", row + 1);
    Failure::new(FailureKind::BadModel, message).into()
}

fn model_report(decoder: &Decoder) -> ModelReport {
    let parameters = decoder.parameters();
    ModelReport { architecture: decoder.config.architecture.clone(), parameters, trainable_parameters: 0 }
}

/// Reports a model's numbers, each with its difference to the first model's where the rows are the same for both.
fn report_scores(outcome: &Outcome, first: Option<&Outcome>, rows: usize, seed: u64, reporter: &Reporter) {
    let report = |measure, metric, Estimate { value, stderr }| {
        let model = outcome.model.clone();
        reporter.report(Report::Score(Score { model, measure, metric, value, stderr, rows: rows as u64 }));
    };
    for (measure, metric) in outcome.metrics() {
        report(measure, metric.key(), metric.series.estimate(seed));
        if let Some(difference) = first.and_then(|first| first.difference(metric, measure, seed)) {
            report(measure, format!("{}_difference", metric.key()), difference);
        }
    }
}

/// The rows in one model's tokens: what goes through it, and how long it gets.
struct Prepared {
    settings: Settings,
    windows: Vec<Window>,
    choices: Vec<Choices>,
    questions: Questions,
}

impl Prepared {
    fn new(
        rows: &Rows,
        measures: &[Measure],
        spec: &EvaluateSpec,
        config: &Config,
        text: &mut Text,
        reporter: &Reporter,
    ) -> Result<Self> {
        let settings = settings(rows, spec, config, text, reporter)?;
        let renderer = Renderer::new(text, true)?;
        let (vocabulary, chat) = (config.vocabulary, settings.chat);
        let objective = Objective::Sft;
        let tokenizing = Tokenizing { renderer: &renderer, text, objective, max_length: settings.window, vocabulary };
        let prompter = Prompter { renderer: &renderer, text, chat, window: settings.question_window, vocabulary };
        let asked = |wanted: fn(&Measure) -> bool| measures.iter().any(wanted);
        let mut prepared = Self { settings, windows: Vec::new(), choices: Vec::new(), questions: Questions::none() };
        if asked(|measure| *measure == Measure::Perplexity) {
            prepared.windows = windows(&rows.measured, &tokenizing, prepared.settings.stride, stop::check)?;
        }
        if asked(|measure| *measure == Measure::MultipleChoice) {
            prepared.choices = choices(rows, &prompter, stop::check)?;
        }
        if asked(|measure| measure.generates()) {
            prepared.questions = questions(rows, &prompter, spec.max_new_tokens as usize, stop::check)?;
        }
        prepared.settings.cut = prepared.questions.cut + prepared.choices.iter().filter(|choices| choices.cut).count();
        if prepared.settings.cut > 0 {
            let (cut, window) = (prepared.settings.cut, prepared.settings.question_window);
            let message = format!("{cut} questions were cut from the left to fit {window} tokens with their answers");
            reporter.warn("questions_cut", message);
        }
        Ok(prepared)
    }

    /// Positions of the longest row, with its answer.
    fn positions(&self) -> usize {
        let windows = self.windows.iter().map(|window| window.tokens.ids.len());
        let choices = self.choices.iter().map(Choices::positions);
        let prompts = self.questions.prompts.iter().map(|prompt| prompt.positions());
        windows.chain(choices).chain(prompts).max().unwrap_or(1)
    }

    /// Tokens that the model takes in, without its own.
    fn tokens(&self) -> u64 {
        let windows = self.windows.iter().map(|window| window.tokens.ids.len());
        let choices = self.choices.iter().map(Choices::tokens);
        let prompts = self.questions.prompts.iter().map(|prompt| prompt.ids.len());
        windows.chain(choices).chain(prompts).sum::<usize>() as u64
    }

    fn report(&self, rows: usize) -> DatasetReport {
        DatasetReport {
            eval_rows: rows as u64,
            truncated_rows: self.settings.cut as u64,
            supervised_tokens: self.windows.iter().map(|window| window.tokens.supervised() as u64).sum(),
            longest_row: self.positions() as u64,
            ..DatasetReport::default()
        }
    }

    /// Takes every measure of a loaded model.
    fn measure<S: Speaker>(
        &self,
        session: &Session<'_, S>,
        rows: &Rows,
        measures: &[Measure],
    ) -> Result<Vec<Measured>> {
        let count = rows.measured.len();
        let mut measured = Vec::with_capacity(measures.len());
        for &measure in measures {
            match measure {
                Measure::Perplexity => measured.push(perplexity::measure(session, &self.windows, count)?),
                Measure::MultipleChoice => measured.push(choice::measure(session, &self.choices)?),
                Measure::ExactMatch | Measure::NumericMatch => {
                    // Answers are given once, and judged by every measure that asks for them.
                    if measured.iter().all(|measured: &Measured| !measured.measure.generates()) {
                        let judging: Vec<Measure> = measures.iter().copied().filter(|m| m.generates()).collect();
                        measured.extend(answers::measure(session, rows, &self.questions.prompts, &judging)?);
                    }
                }
            }
            session.pace.next();
        }
        Ok(measured)
    }
}

/// What products are computed in. Quantized weights are used as they are, which is what they will be when somebody
/// answers with them; weights that are not quantized know no difference.
fn precision(spec: &EvaluateSpec) -> Precision {
    match spec.dtype {
        DType::F32 => Precision::Int8,
        DType::Bf16 => Precision::Bf16,
    }
}

/// What holds for this model: its windows, and how it is asked.
fn settings(
    rows: &Rows,
    spec: &EvaluateSpec,
    config: &Config,
    text: &mut Text,
    reporter: &Reporter,
) -> Result<Settings> {
    let limit = config.max_positions;
    let asked = spec.max_seq_length.map(|length| length as usize);
    if let Some(asked) = asked.filter(|&asked| asked > limit) {
        let message = format!("max_seq_length = {asked}: the model takes {limit} tokens at most");
        let hint = format!("choose a max_seq_length from 8 to {limit}");
        return Err(Failure::new(FailureKind::BadOption, message).with_hint(hint).into());
    }
    let window = asked.unwrap_or(limit.min(WINDOW));
    let stride = spec.stride.map_or(window, |stride| stride as usize);
    if stride > window {
        let message = format!("stride = {stride}: windows of {window} tokens would leave out what is between them");
        return Err(Failure::new(FailureKind::BadOption, message).with_hint(format!("choose at most {window}")).into());
    }
    let chat = spec.apply_chat_template.unwrap_or_else(|| rows.chats());
    if (chat || rows.chats()) && text.chat_template.is_none() {
        text.set_chat_template(template::FALLBACK);
        let message = "the model has no chat template; turns are written as `User: ...` and `Assistant: ...`";
        reporter.warn("no_chat_template", message);
    }
    Ok(Settings {
        architecture: config.architecture.clone(),
        window,
        stride: stride.min(window - 1),
        question_window: asked.unwrap_or(limit),
        chat,
        text_begins_with: text.decode(&text.encode_prompt("", true)?.ids, false)?,
        cut: 0,
    })
}
