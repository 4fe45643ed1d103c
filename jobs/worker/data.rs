//! From a dataset's files to rows: read, render, tokenize, split.

pub mod batch;
pub mod lesson;
pub mod packing;
pub mod read;
pub mod render;
pub mod rows;

use drydock_spec::dataset::{Example, Format};
use drydock_spec::{Failure, FailureKind, FinetuneSpec, Inputs, Stage};

use crate::ending::{Result, input};
use crate::model::config::Config;
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::stop;
use read::{Examples, Placed};
use render::Renderer;
use rows::{Split, Tokenizing, split};

/// A dataset, ready for one model.
pub struct Prepared {
    pub format: Format,
    /// Rows of the dataset, whether they were tokenized or not.
    pub rows: usize,
    pub tokenized: usize,
    /// Whether the rows are chats: then questions are put as chats too.
    pub chat: bool,
    pub split: Split,
    pub renderer: Renderer,
    /// Tokens that rows were cut to.
    pub max_length: usize,
}

/// Reads the dataset and makes rows of its examples, of the first `cap` at most.
pub fn prepare(
    spec: &FinetuneSpec,
    inputs: &Inputs,
    config: &Config,
    text: &mut Text,
    cap: usize,
    reporter: &Reporter,
) -> Result<Prepared> {
    reporter.stage(Stage::Tokenize);
    let max_length = max_length(spec, config)?;
    let columns = spec.columns.clone().unwrap_or_default();
    let train = read::read(input(&inputs.dataset, "dataset")?, &columns)?;
    let eval = inputs.eval_dataset.as_deref().map(|folder| read::read(folder, &columns)).transpose()?;
    let chat = train.examples.iter().any(|placed| is_chat(&placed.example));
    if chat && text.chat_template.is_none() {
        text.set_chat_template(render::template::FALLBACK);
        let message = "the model has no chat template; turns are written as `User: ...` and `Assistant: ...`";
        reporter.warn("no_chat_template", message);
    }
    let renderer = Renderer::new(text, spec.completion_only_loss)?;
    let objective = spec.objective;
    let tokenizing = Tokenizing { renderer: &renderer, text, objective, max_length, vocabulary: config.vocabulary };
    let lessons = |examples: &[Placed]| {
        tokenizing.lessons(&examples[..examples.len().min(cap)], |done| {
            reporter.progress(done as u64, examples.len() as u64);
            stop::check()
        })
    };
    let trained = lessons(&train.examples)?;
    trained.check(max_length)?;
    for (code, message) in trained.oddities(max_length) {
        reporter.warn(code, message);
    }
    let held_out = eval.as_ref().map(|eval: &Examples| lessons(&eval.examples)).transpose()?;
    if let Some(held_out) = &held_out {
        // Without any, what was asked for would silently not be measured.
        held_out.check(max_length).map_err(|ending| ending.about("eval_dataset"))?;
    }
    let split = split(trained, held_out, spec.test_size, spec.recipe.seed)?;
    let (format, rows) = (train.format, train.examples.len());
    Ok(Prepared { format, rows, tokenized: rows.min(cap), chat, split, renderer, max_length })
}

fn is_chat(example: &Example) -> bool {
    match example {
        Example::Chat(_) => true,
        Example::Preference { chosen, .. } => is_chat(chosen),
        Example::Labelled { example, .. } => is_chat(example),
        Example::Completion { .. } | Example::Text(_) | Example::Choice { .. } => false,
    }
}

/// The length that rows are cut to. To ask for more than the model can take is a mistake that should be seen.
fn max_length(spec: &FinetuneSpec, config: &Config) -> Result<usize> {
    let limit = u32::try_from(config.max_positions).unwrap_or(u32::MAX);
    match spec.recipe.max_seq_length {
        Some(asked) if asked > limit => {
            let message = format!("max_seq_length = {asked}: the model takes {limit} tokens at most");
            let hint = format!("choose a max_seq_length from 8 to {limit}");
            Err(Failure::new(FailureKind::BadOption, message).with_hint(hint).into())
        }
        _ => Ok(spec.recipe.seq_length(limit) as usize),
    }
}
