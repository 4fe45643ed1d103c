//! Rows in tokens, cut to length and split into those that are trained on and those that are held out.

use drydock_spec::FailureKind::{BadDataset, BadModel, NothingToLearn};
use drydock_spec::dataset::Example;
use drydock_spec::finetune::Objective;
use drydock_spec::lengths::RowLengths;
use drydock_spec::report::DatasetReport;
use drydock_spec::{Failure, FailureKind};
use rayon::prelude::*;

use super::lesson::{Lesson, Matter};
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

/// A row in the making, and what looks odd about it.
struct Tokenized {
    row: Row,
    /// Tokens before the first one that counted before the row was cut.
    prompt: usize,
    /// Tokens before it was cut.
    whole: usize,
    cut: bool,
    /// The beginning-of-text token stood there twice.
    begins_twice: bool,
    /// The end counts, or was cut off.
    ends: bool,
}

/// What became of an example.
enum Outcome {
    Lesson {
        lesson: Lesson,
        /// Tokens of each of its rows before they were cut.
        whole: Vec<usize>,
        cut: bool,
        begins_twice: bool,
        ends: bool,
    },
    /// Nothing is left that counts.
    Nothing { cut: bool, prompt: usize },
}

/// Lessons and what was lost on the way.
#[derive(Debug, Default)]
pub struct Lessons {
    pub lessons: Vec<Lesson>,
    /// What they were before any was cut.
    pub lengths: RowLengths,
    skipped: usize,
    skipped_by_cutting: usize,
    shortest_skipped_prompt: Option<usize>,
    truncated: usize,
    /// Lessons that teach no end, and where the first of them stands.
    endless: Option<(usize, String)>,
    /// The same for those that begin twice.
    begun_twice: Option<(usize, String)>,
}

/// How examples become rows.
pub struct Tokenizing<'a> {
    pub renderer: &'a Renderer,
    pub text: &'a Text,
    pub objective: Objective,
    /// Tokens that a row is cut to.
    pub max_length: usize,
    /// Tokens that the model has an embedding for.
    pub vocabulary: usize,
}

/// Examples between two looks at the clock and at signals.
const PIECE: usize = 256;

impl Tokenizing<'_> {
    /// Every example as a lesson; `tokenized` hears how many are done.
    pub fn lessons(&self, examples: &[Placed], mut tokenized: impl FnMut(usize) -> Result<()>) -> Result<Lessons> {
        let mut lessons = Lessons::default();
        for (index, piece) in examples.chunks(PIECE).enumerate() {
            let outcomes: Result<Vec<Vec<Outcome>>> = piece.par_iter().map(|placed| self.outcomes(placed)).collect();
            outcomes?.into_iter().flatten().for_each(|outcome| lessons.add(outcome));
            tokenized(index * PIECE + piece.len())?;
        }
        Ok(lessons)
    }

    /// One lesson an example, but two of a pair that is to be learnt answer by answer.
    fn outcomes(&self, placed: &Placed) -> Result<Vec<Outcome>> {
        let Placed { example, place, .. } = placed;
        let bad_row = |error: String| Ending::from(Failure::new(BadDataset, format!("{place}: {error}")));
        let one = |outcome| vec![outcome];
        match (self.objective, example) {
            (Objective::Sft, _) => {
                let row = self.tokenized(&self.renderer.render(example).map_err(bad_row)?)?;
                Ok(one(outcome(place, [row], |[row]| Matter::Text(row))))
            }
            (Objective::Dpo | Objective::Orpo, Example::Preference { chosen, rejected }) => {
                let [chosen, rejected] = self.renderer.pair(chosen, rejected).map_err(bad_row)?;
                let rows = [self.tokenized(&chosen)?, self.tokenized(&rejected)?];
                Ok(one(outcome(place, rows, |[chosen, rejected]| Matter::Pair { chosen, rejected })))
            }
            (Objective::Kto, Example::Labelled { example, good }) => Ok(one(self.judged(example, *good, placed)?)),
            (Objective::Kto, Example::Preference { chosen, rejected }) => {
                Ok(vec![self.judged(chosen, true, placed)?, self.judged(rejected, false, placed)?])
            }
            (Objective::Dpo | Objective::Orpo, _) => {
                Err(bad_row("the objective learns from pairs of answers; columns `chosen` and `rejected` are expected".into()))
            }
            (Objective::Kto, _) => Err(bad_row(
                "objective kto learns from judged answers; columns `prompt`, `completion` and `label` are expected, or \
                 `chosen` and `rejected`"
                    .into(),
            )),
        }
    }

    fn judged(&self, example: &Example, good: bool, placed: &Placed) -> Result<Outcome> {
        let rendered = self.renderer.answer(example);
        let rendered = rendered.map_err(|error| Failure::new(BadDataset, format!("{}: {error}", placed.place)))?;
        let row = self.tokenized(&rendered)?;
        Ok(outcome(&placed.place, [row], |[row]| Matter::Answer { row, good }))
    }

    fn tokenized(&self, rendered: &Rendered) -> Result<Tokenized> {
        let (mut tokens, mut counts) = self.counted(rendered)?;
        let prompt = counts.iter().position(|&counts| counts).unwrap_or(counts.len());
        let whole = tokens.ids.len();
        let cut = whole > self.max_length;
        let ends = cut || tokens.ids.iter().zip(&counts).any(|(id, counts)| *counts && self.text.stops.contains(id));
        let begins_twice = tokens.began_twice;
        tokens.ids.truncate(self.max_length);
        counts.truncate(self.max_length);
        Ok(Tokenized { row: Row { ids: tokens.ids, counts }, prompt, whole, cut, begins_twice, ends })
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

/// A lesson, if each of its rows has something that counts.
fn outcome<const N: usize>(place: &str, rows: [Tokenized; N], matter: impl FnOnce([Row; N]) -> Matter) -> Outcome {
    let any = |of: fn(&Tokenized) -> bool| rows.iter().any(of);
    let (cut, begins_twice, ends) = (any(|row| row.cut), any(|row| row.begins_twice), any(|row| row.ends));
    if any(|row| row.row.supervised() == 0) {
        return Outcome::Nothing { cut, prompt: rows.iter().map(|row| row.prompt).min().unwrap_or(0) };
    }
    let whole = rows.iter().map(|row| row.whole).collect();
    let lesson = Lesson { matter: matter(rows.map(|row| row.row)), place: place.to_owned() };
    Outcome::Lesson { lesson, whole, cut, begins_twice, ends }
}

impl Lessons {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Lesson { lesson, whole, cut, begins_twice, ends } => {
                let longest = whole.iter().max().copied().unwrap_or(0);
                self.lengths.add(whole.iter().sum::<usize>() as u64, longest as u64);
                self.truncated += usize::from(cut);
                for (odd, seen) in [(begins_twice, &mut self.begun_twice), (!ends, &mut self.endless)] {
                    if odd {
                        seen.get_or_insert_with(|| (0, lesson.place.clone())).0 += 1;
                    }
                }
                self.lessons.push(lesson);
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

    /// What looks odd but stops nothing: a code, and a sentence with numbers and a next step.
    pub fn oddities(&self, max_length: usize) -> Vec<(&'static str, String)> {
        let (all, mut odd) = (self.lessons.len() + self.skipped, Vec::new());
        if let Some((count, place)) = &self.endless {
            let message = format!(
                "{count} of {all} rows teach no end of an answer, the first at {place}; the model may not learn to \
                 stop: check that the chat template or the rows end answers with the model's end-of-text token"
            );
            odd.push(("eos_not_learnt", message));
        }
        if let Some((count, place)) = &self.begun_twice {
            let message = format!(
                "{count} of {all} rows begin with the beginning-of-text token twice, the first at {place}, as rows or \
                 chat template write what the tokenizer adds by itself; one of the two is left out"
            );
            odd.push(("double_bos", message));
        }
        if self.truncated > 0 {
            let message = format!(
                "{} of {all} rows are cut at max_seq_length = {max_length}, and their answers with them: raise \
                 max_seq_length, or shorten the rows",
                self.truncated
            );
            odd.push(("answers_cut", message));
        }
        if self.skipped > 0 {
            let message = format!(
                "{} of {all} rows are left out, as nothing in them counts: {} are cut at max_seq_length = {max_length} \
                 before the answer starts, the others have an empty answer",
                self.skipped, self.skipped_by_cutting
            );
            odd.push(("rows_skipped", message));
        }
        odd
    }

    /// Refuses a dataset of which no row is left, and says why: without rows nothing is learnt, or measured.
    pub fn check(&self, max_length: usize) -> Result<()> {
        if !self.lessons.is_empty() {
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
    pub train: Vec<Lesson>,
    /// Never trained on.
    pub held_out: Vec<Lesson>,
    /// What the dataset's rows were before any was cut; held-out rows that are given for themselves do not count.
    pub lengths: RowLengths,
    pub report: DatasetReport,
}

/// Holds out `share` of the rows by chance (rounded up, but never all), or takes the held-out rows that are given.
pub fn split(read: Lessons, given: Option<Lessons>, share: f64, seed: u64) -> Result<Split> {
    let (mut skipped, mut truncated, lengths) = (read.skipped, read.truncated, read.lengths);
    let (train, held_out) = match given {
        Some(given) => {
            skipped += given.skipped;
            truncated += given.truncated;
            (read.lessons, given.lessons)
        }
        None => hold_out(read.lessons, share, seed),
    };
    let rows = train.iter().chain(&held_out).flat_map(Lesson::rows);
    let longest = rows.map(|row| row.ids.len()).max().unwrap_or(0);
    let report = DatasetReport {
        train_rows: train.len() as u64,
        eval_rows: held_out.len() as u64,
        skipped_rows: skipped as u64,
        truncated_rows: truncated as u64,
        train_tokens: train.iter().map(|lesson| lesson.tokens() as u64).sum(),
        supervised_tokens: train.iter().map(|lesson| lesson.supervised() as u64).sum(),
        longest_row: longest as u64,
    };
    if train.is_empty() {
        return failed(FailureKind::NothingToLearn, "no row is left to train on");
    }
    Ok(Split { train, held_out, lengths, report })
}

fn hold_out(lessons: Vec<Lesson>, share: f64, seed: u64) -> (Vec<Lesson>, Vec<Lesson>) {
    let count = ((lessons.len() as f64 * share).ceil() as usize).min(lessons.len().saturating_sub(1));
    let mut chosen = vec![false; lessons.len()];
    for index in Chance::new(seed, Purpose::Split).permutation(lessons.len()).into_iter().take(count) {
        chosen[index] = true;
    }
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (lesson, chosen) in lessons.into_iter().zip(chosen) {
        if chosen { held_out.push(lesson) } else { train.push(lesson) }
    }
    (train, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lessons(count: usize) -> Lessons {
        let lesson = |id| Lesson {
            matter: Matter::Text(Row { ids: vec![0, id as u32], counts: vec![false, true] }),
            place: format!("line {id}"),
        };
        Lessons { lessons: (0..count).map(lesson).collect(), ..Lessons::default() }
    }

    #[test]
    fn held_out_rows_are_never_trained_on_and_follow_the_seed() {
        let split_by = |seed| split(lessons(100), None, 0.1, seed).unwrap();
        let first = split_by(1);
        assert_eq!((first.train.len(), first.held_out.len()), (90, 10));
        assert!(first.held_out.iter().all(|row| !first.train.contains(row)));
        assert_eq!(first.held_out, split_by(1).held_out);
        assert_ne!(first.held_out, split_by(2).held_out);
        assert_eq!((first.report.train_tokens, first.report.supervised_tokens), (180, 90));
    }

    #[test]
    fn a_single_row_is_trained_on_and_not_held_out() {
        let split = split(lessons(1), None, 0.5, 1).unwrap();
        assert_eq!((split.train.len(), split.held_out.len()), (1, 0));
    }

    #[test]
    fn what_looks_odd_is_counted_and_the_first_is_named() {
        let mut read = Lessons::default();
        for (index, lesson) in lessons(4).lessons.into_iter().enumerate() {
            read.add(Outcome::Lesson {
                lesson,
                whole: vec![2 + 10 * index],
                cut: index == 0,
                begins_twice: false,
                ends: index < 2,
            });
        }
        read.add(Outcome::Nothing { cut: false, prompt: 3 });
        assert_eq!((read.lengths.rows, read.lengths.tokens, read.lengths.longest), (4, 2 + 12 + 22 + 32, 32));
        let odd = read.oddities(16);
        assert_eq!(
            odd.iter().map(|(code, _)| *code).collect::<Vec<_>>(),
            ["eos_not_learnt", "answers_cut", "rows_skipped"]
        );
        assert!(odd[0].1.starts_with("2 of 5 rows teach no end of an answer, the first at line 2"), "{}", odd[0].1);
    }

    #[test]
    fn nothing_to_learn_says_why() {
        let mut nothing = Lessons::default();
        for prompt in [40, 31] {
            nothing.add(Outcome::Nothing { cut: true, prompt });
        }
        let Err(Ending::Failed(failure)) = nothing.check(16) else { panic!("it is accepted") };
        assert_eq!(
            failure.message,
            "all 2 rows are longer than max_seq_length = 16 before the answer starts; the shortest prompt has 31 tokens"
        );
        let mut empty = Lessons::default();
        empty.add(Outcome::Nothing { cut: false, prompt: 5 });
        let Err(Ending::Failed(failure)) = empty.check(16) else { panic!("it is accepted") };
        assert_eq!(failure.message, "all 1 rows have an empty answer");
    }
}
