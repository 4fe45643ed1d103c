//! Rows in tokens, cut to length and split into those that are trained on and those that are held out.

use drydock_spec::FailureKind::{BadDataset, BadModel, NothingToLearn};
use drydock_spec::report::DatasetReport;
use drydock_spec::{Failure, FailureKind};
use rayon::prelude::*;

use super::read::Placed;
use super::render::{Rendered, Renderer};
use crate::ending::{Ending, Result, failed};
use crate::model::tokenizer::{Text, Tokens};
use crate::random::{Chance, Purpose};

/// A row, as it goes through the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub ids: Vec<u32>,
    /// Which tokens count for the loss; the first never does, as nothing predicts it.
    pub counts: Vec<bool>,
}

impl Row {
    /// A row of which everything is learnt that anything predicts.
    pub fn learnt(ids: Vec<u32>) -> Self {
        let mut counts = vec![true; ids.len()];
        if let Some(first) = counts.first_mut() {
            *first = false;
        }
        Self { ids, counts }
    }

    /// Tokens that count.
    pub fn supervised(&self) -> usize {
        self.counts.iter().skip(1).filter(|&&counts| counts).count()
    }
}

/// What became of an example.
enum Outcome {
    Row {
        row: Row,
        cut: bool,
    },
    /// Nothing is left that counts.
    Nothing {
        cut: bool,
        prompt: usize,
    },
}

/// Rows and what was lost on the way.
#[derive(Debug, Default)]
pub struct Rows {
    pub rows: Vec<Row>,
    skipped: usize,
    skipped_by_cutting: usize,
    shortest_skipped_prompt: Option<usize>,
    truncated: usize,
}

/// How examples become rows.
pub struct Tokenizing<'a> {
    pub renderer: &'a Renderer,
    pub text: &'a Text,
    /// Tokens that a row is cut to.
    pub max_length: usize,
    /// Tokens that the model has an embedding for.
    pub vocabulary: usize,
}

/// Examples between two looks at the clock and at signals.
const PIECE: usize = 256;

impl Tokenizing<'_> {
    /// Every example as a row; `tokenized` hears how many are done.
    pub fn rows(&self, examples: &[Placed], mut tokenized: impl FnMut(usize) -> Result<()>) -> Result<Rows> {
        let mut rows = Rows::default();
        for (index, piece) in examples.chunks(PIECE).enumerate() {
            let outcomes: Result<Vec<Outcome>> = piece.par_iter().map(|placed| self.row(placed)).collect();
            outcomes?.into_iter().for_each(|outcome| rows.add(outcome));
            tokenized(index * PIECE + piece.len())?;
        }
        Ok(rows)
    }

    fn row(&self, placed: &Placed) -> Result<Outcome> {
        let rendered = self.renderer.render(&placed.example);
        let rendered =
            rendered.map_err(|error| Ending::from(Failure::new(BadDataset, format!("{}: {error}", placed.place))))?;
        let (mut tokens, mut counts) = self.counted(&rendered)?;
        let prompt = counts.iter().position(|&counts| counts).unwrap_or(counts.len());
        let cut = tokens.ids.len() > self.max_length;
        tokens.ids.truncate(self.max_length);
        counts.truncate(self.max_length);
        let row = Row { ids: tokens.ids, counts };
        Ok(if row.supervised() == 0 { Outcome::Nothing { cut, prompt } } else { Outcome::Row { row, cut } })
    }

    /// The text's tokens, uncut, and which of them count.
    pub fn counted(&self, rendered: &Rendered) -> Result<(Tokens, Vec<bool>)> {
        let tokens = self.text.encode(&rendered.text, rendered.special)?;
        check_ids(&tokens.ids, self.vocabulary)?;
        // A token counts if it begins in a learnt part. One that begins before it and reaches into it does not: at
        // the time of the answer it is already there.
        let learnt = |start: &usize| rendered.learnt.iter().any(|range| range.contains(start));
        let mut counts: Vec<bool> = tokens.starts.iter().map(learnt).collect();
        // The end that a tokenizer adds has no place in the text, and belongs to the answer.
        if rendered.special && counts.len() > 1 && self.text.stops.contains(tokens.ids.last().unwrap_or(&u32::MAX)) {
            counts.pop();
            counts.push(true);
        }
        if let Some(first) = counts.first_mut() {
            *first = false;
        }
        Ok((tokens, counts))
    }
}

/// Refuses tokens that the model has no embedding for.
pub fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => failed(BadModel, format!("the tokenizer has a token {id}; the model knows {vocabulary} tokens")),
        None => Ok(()),
    }
}

impl Rows {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Row { row, cut } => {
                self.rows.push(row);
                self.truncated += usize::from(cut);
            }
            Outcome::Nothing { cut, prompt } => {
                self.skipped += 1;
                if cut {
                    self.skipped_by_cutting += 1;
                    let shortest = self.shortest_skipped_prompt.unwrap_or(usize::MAX);
                    self.shortest_skipped_prompt = Some(shortest.min(prompt));
                }
            }
        }
    }

    /// Refuses a dataset of which no row is left, and says why.
    pub fn check(&self, max_length: usize) -> Result<()> {
        if !self.rows.is_empty() {
            return Ok(());
        }
        let all = self.skipped;
        let (message, hint) = match self.shortest_skipped_prompt {
            Some(prompt) if self.skipped_by_cutting == all => (
                format!(
                    "all {all} rows are longer than max_seq_length = {max_length} before the answer starts; \
                     the shortest prompt has {prompt} tokens"
                ),
                format!("raise max_seq_length above {prompt}"),
            ),
            Some(prompt) => (
                format!(
                    "of {all} rows {} are cut at max_seq_length = {max_length} before the answer starts (the \
                     shortest prompt has {prompt} tokens), the others have an empty answer",
                    self.skipped_by_cutting
                ),
                format!("raise max_seq_length above {prompt}, or check the dataset's columns"),
            ),
            None => (
                format!("all {all} rows have an empty answer"),
                "check that the dataset's columns hold the answers where they are looked for".to_owned(),
            ),
        };
        Err(Failure::new(NothingToLearn, message).with_hint(hint).into())
    }
}

/// The rows of a job.
#[derive(Debug)]
pub struct Split {
    pub train: Vec<Row>,
    /// Never trained on.
    pub held_out: Vec<Row>,
    pub report: DatasetReport,
}

/// Holds out `share` of the rows by chance (rounded up, but never all), or takes the held-out rows that are given.
pub fn split(rows: Rows, given: Option<Rows>, share: f64, seed: u64) -> Result<Split> {
    let (mut skipped, mut truncated) = (rows.skipped, rows.truncated);
    let (train, held_out) = match given {
        Some(given) => {
            skipped += given.skipped;
            truncated += given.truncated;
            (rows.rows, given.rows)
        }
        None => hold_out(rows.rows, share, seed),
    };
    let longest = train.iter().chain(&held_out).map(|row| row.ids.len()).max().unwrap_or(0);
    let report = DatasetReport {
        train_rows: train.len() as u64,
        eval_rows: held_out.len() as u64,
        skipped_rows: skipped as u64,
        truncated_rows: truncated as u64,
        train_tokens: train.iter().map(|row| row.ids.len() as u64).sum(),
        supervised_tokens: train.iter().map(|row| row.supervised() as u64).sum(),
        longest_row: longest as u64,
    };
    if train.is_empty() {
        return failed(FailureKind::NothingToLearn, "no row is left to train on");
    }
    Ok(Split { train, held_out, report })
}

fn hold_out(rows: Vec<Row>, share: f64, seed: u64) -> (Vec<Row>, Vec<Row>) {
    let count = ((rows.len() as f64 * share).ceil() as usize).min(rows.len().saturating_sub(1));
    let mut chosen = vec![false; rows.len()];
    for index in Chance::new(seed, Purpose::Split).permutation(rows.len()).into_iter().take(count) {
        chosen[index] = true;
    }
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (row, chosen) in rows.into_iter().zip(chosen) {
        if chosen { held_out.push(row) } else { train.push(row) }
    }
    (train, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> Rows {
        let row = |id| Row { ids: vec![0, id as u32], counts: vec![false, true] };
        Rows { rows: (0..count).map(row).collect(), ..Rows::default() }
    }

    #[test]
    fn held_out_rows_are_never_trained_on_and_follow_the_seed() {
        let split_by = |seed| split(rows(100), None, 0.1, seed).unwrap();
        let first = split_by(1);
        assert_eq!((first.train.len(), first.held_out.len()), (90, 10));
        assert!(first.held_out.iter().all(|row| !first.train.contains(row)));
        assert_eq!(first.held_out, split_by(1).held_out);
        assert_ne!(first.held_out, split_by(2).held_out);
        assert_eq!((first.report.train_tokens, first.report.supervised_tokens), (180, 90));
    }

    #[test]
    fn a_single_row_is_trained_on_and_not_held_out() {
        let split = split(rows(1), None, 0.5, 1).unwrap();
        assert_eq!((split.train.len(), split.held_out.len()), (1, 0));
    }

    #[test]
    fn nothing_to_learn_says_why() {
        let mut nothing = Rows::default();
        for prompt in [40, 31] {
            nothing.add(Outcome::Nothing { cut: true, prompt });
        }
        let Err(Ending::Failed(failure)) = nothing.check(16) else { panic!("it is accepted") };
        assert_eq!(
            failure.message,
            "all 2 rows are longer than max_seq_length = 16 before the answer starts; the shortest prompt has 31 tokens"
        );
        let mut empty = Rows::default();
        empty.add(Outcome::Nothing { cut: false, prompt: 5 });
        let Err(Ending::Failed(failure)) = empty.check(16) else { panic!("it is accepted") };
        assert_eq!(failure.message, "all 1 rows have an empty answer");
    }
}
