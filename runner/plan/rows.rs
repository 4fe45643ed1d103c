//! What a job learns from or is measured on: whether the form of the rows fits, and what they take.

use drydock_gpu::estimate::{Rows, Tokens};
use drydock_spec::InvalidOption;
use drydock_spec::dataset::Format;
use drydock_spec::evaluate::Measure;
use drydock_spec::finetune::Objective;
use drydock_spec::lengths::RowLengths;
use drydock_spec::option::Complaints;
use drydock_spec::recipe::Recipe;

use super::cut::{self, CutRows};
use crate::datasets::Resolved;
use crate::models::Facts;

/// A job's rows.
pub(super) struct Data {
    pub(super) rows: Resolved,
    pub(super) eval: Option<Resolved>,
    /// What the model's tokenizer has counted of `rows`, where it has seen all of them.
    pub(super) lengths: Option<RowLengths>,
}

/// Which forms of rows fit a job, what that is called, and what would go with other rows.
pub(super) struct Wanted {
    what: &'static str,
    fits: fn(Format) -> bool,
}

impl Data {
    fn all(&self) -> impl Iterator<Item = &Resolved> + Clone {
        std::iter::once(&self.rows).chain(&self.eval)
    }

    /// What the worker has to read and to hold.
    pub(super) fn rows(&self) -> Rows {
        let longest = self.all().map(|rows| rows.manifest.longest_row_tokens).max().unwrap_or(0);
        Rows {
            count: self.all().map(|rows| rows.manifest.rows).sum(),
            file_bytes: self.all().flat_map(|rows| &rows.manifest.files).map(|file| file.bytes).sum(),
            text_bytes: self.all().map(|rows| rows.manifest.text_bytes).sum(),
            // Of two letters one token is counted, see `datasets::read`.
            longest_bytes: longest.saturating_mul(2),
        }
    }

    /// Tokens of the longest row: as the tokenizer has counted them, or else generously.
    pub(super) fn longest(&self) -> u32 {
        let counted = self.lengths.as_ref().map(|lengths| lengths.longest);
        let rows = counted.unwrap_or(self.rows.manifest.longest_row_tokens);
        let eval = self.eval.as_ref().map_or(0, |eval| eval.manifest.longest_row_tokens);
        u32::try_from(rows.max(eval)).unwrap_or(u32::MAX)
    }

    /// Rows that are learnt from, where `test_size` of them are held out unless others are given for that.
    pub(super) fn learnt(&self, test_size: f64) -> u64 {
        let rows = self.rows.manifest.rows;
        let held_out = if self.eval.is_some() { 0 } else { (rows as f64 * test_size).ceil() as u64 };
        rows - held_out.min(rows.saturating_sub(1))
    }

    /// What they cost of time, each cut to `longest` tokens.
    pub(super) fn tokens(&self, longest: u32) -> Tokens {
        let rows = self.rows();
        match &self.lengths {
            Some(counted) if self.eval.is_none() => {
                let mean = counted.tokens as f64 / counted.rows.max(1) as f64;
                Tokens { rows: rows.count, length: mean.clamp(1.0, longest.max(1).into()) }
            }
            _ => Tokens::of(rows.count, rows.text_bytes, longest),
        }
    }

    /// Those that are cut to `length` tokens, for a model that takes `limit`.
    pub(super) fn cut(&self, length: u32, limit: u32) -> Option<CutRows> {
        let rows = self.all().map(|rows| rows.manifest.rows).sum();
        cut::of(self.all().map(|rows| &rows.manifest.lengths), rows, length, limit)
    }

    /// What is doubtful about them.
    pub(super) fn warnings(&self) -> Vec<String> {
        let blank = self.all().filter(|rows| rows.manifest.blank_rows > 0);
        blank
            .map(|rows| {
                let (count, name) = (rows.manifest.blank_rows, &rows.input.name);
                format!("{count} rows of `{name}` have a blank answer or text and are passed over")
            })
            .collect()
    }

    /// Tokens in them that the model may not know.
    pub(super) fn with_tokens_beyond(&self, facts: &Facts) -> Option<String> {
        let beyond = facts.tokens_beyond.as_ref()?;
        let (count, such_as, name) = (beyond.count, &beyond.such_as, &self.rows.input.name);
        Some(format!(
            "the model has no embedding for {count} of its tokenizer's tokens, such as `{such_as}`; the job fails if a \
             row of `{name}` has one: leave such rows out, or give the model a row for \
             each token (model.resize_token_embeddings(len(tokenizer))) and add it again"
        ))
    }

    /// Chats need a template to be written as the model knows them.
    pub(super) fn without_template(&self, facts: &Facts) -> Option<String> {
        let chats = matches!(self.rows.manifest.format, Format::Messages | Format::Alpaca | Format::Squad);
        (chats && !facts.has_chat_template).then(|| {
            "the model has no chat template; turns are written as plain text with the speaker's name".to_owned()
        })
    }
}

/// Tokens of a row at most: what rows are cut to, or less where none is as long. Packs are always filled.
pub(super) fn length(recipe: &Recipe, model_limit: u32, data: &Data) -> u32 {
    let cut = recipe.seq_length(model_limit);
    if recipe.packing { cut } else { cut.min(data.longest()) }
}

/// A row cannot be longer than the model takes.
pub(super) fn check_length(wrong: &mut Complaints, length: Option<u32>, limit: u32) {
    let Some(length) = length else { return };
    wrong.require(length <= limit, || {
        let next = format!("choose at most {limit}, or leave it out");
        InvalidOption::new("max_seq_length", length, format!("the model takes {limit} tokens at most"), next)
    });
}

/// Of a single row nothing can be held out.
pub(super) fn check_held_out(wrong: &mut Complaints, test_size: f64, data: &Data) {
    wrong.require(data.rows.manifest.rows > 1 || test_size == 0.0, || {
        let problem = "the dataset has a single row, which cannot be trained on and held out at once";
        InvalidOption::new("test_size", test_size, problem, "set test_size to 0, or load more rows")
    });
}

/// Rows of a form that the job has no use for are refused with the jobs that they would fit.
pub(super) fn check_form(wrong: &mut Complaints, data: &Data, option: &str, wanted: Wanted) {
    for (option, rows) in [(option, Some(&data.rows)), ("eval_dataset", data.eval.as_ref())] {
        let Some(rows) = rows else { continue };
        let format = rows.manifest.format;
        wrong.require((wanted.fits)(format), || {
            let problem = format!("its rows hold {}, and {}", held(format), wanted.what);
            InvalidOption::new(option, &rows.input.name, problem, fitting(format))
        });
    }
}

/// What the form of rows is called, with the columns that made it so.
fn held(format: Format) -> &'static str {
    match format {
        Format::Messages => "chats (`messages`)",
        Format::PromptCompletion => "prompts with completions",
        Format::Text => "plain text",
        Format::Alpaca => "instructions with outputs",
        Format::Preference => "pairs of a chosen and a rejected answer",
        Format::Labelled => "answers with a label",
        Format::MultipleChoice => "questions with choices",
        Format::Squad => "SQuAD's questions",
    }
}

/// What rows of this form are good for, as the next step.
fn fitting(format: Format) -> &'static str {
    match format {
        Format::Preference => {
            "choose objective \"dpo\" or \"orpo\" for them, or name the columns to learn with `columns`"
        }
        Format::Labelled => "choose objective \"kto\" for them, or name the columns to learn with `columns`",
        Format::MultipleChoice => {
            "evaluate them with measures [\"multiple_choice\"], or name the columns to learn with `columns`"
        }
        Format::Text => "finetune or train on them, or measure their perplexity",
        Format::Messages | Format::PromptCompletion | Format::Alpaca | Format::Squad => {
            "finetune on them with objective \"sft\", or measure perplexity or exact_match"
        }
    }
}

fn is_written(format: Format) -> bool {
    matches!(format, Format::Text) || is_answered(format)
}

fn is_answered(format: Format) -> bool {
    matches!(format, Format::Messages | Format::PromptCompletion | Format::Alpaca | Format::Squad)
}

pub(super) fn wanted_by_finetune(objective: Objective) -> Wanted {
    match objective {
        Objective::Sft => {
            Wanted { what: "objective \"sft\" learns from texts, completions or chats", fits: is_written }
        }
        Objective::Dpo => Wanted { what: "objective \"dpo\" learns from pairs", fits: |f| f == Format::Preference },
        Objective::Orpo => Wanted { what: "objective \"orpo\" learns from pairs", fits: |f| f == Format::Preference },
        Objective::Kto => Wanted { what: "objective \"kto\" learns from labels", fits: |f| f == Format::Labelled },
    }
}

pub(super) fn wanted_by_training() -> Wanted {
    Wanted { what: "training from nothing learns from texts, completions or chats", fits: is_written }
}

pub(super) fn wanted_by_imatrix() -> Wanted {
    Wanted { what: "an importance matrix is measured on texts, completions or chats", fits: is_written }
}

pub(super) fn wanted_by_measure(measure: Measure) -> Wanted {
    match measure {
        Measure::Perplexity => {
            Wanted { what: "perplexity is measured on texts, completions or chats", fits: is_written }
        }
        Measure::MultipleChoice => {
            Wanted { what: "multiple_choice needs choices", fits: |format| format == Format::MultipleChoice }
        }
        Measure::ExactMatch => Wanted { what: "exact_match needs prompts with answers", fits: is_answered },
        Measure::NumericMatch => Wanted { what: "numeric_match needs prompts with answers", fits: is_answered },
    }
}

/// Whether the rows are such as `measure` is made on.
pub(super) fn suits(data: &Data, measure: Measure) -> bool {
    (wanted_by_measure(measure).fits)(data.rows.manifest.format)
}
