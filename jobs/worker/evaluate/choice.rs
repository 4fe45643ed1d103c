//! Which of several choices a model finds likeliest.
//!
//! A choice's likelihood is that of its tokens after the question's, with a space between them (none in a chat), as
//! lm-evaluation-harness measures it. `acc` takes the choice with the largest sum of log-likelihoods, `acc_norm` the
//! one with the largest per character of the choice, `acc_bytes` per byte: long choices are not to lose for being long.

use drydock_spec::FailureKind::BadDataset;
use drydock_spec::dataset::Example;
use drydock_spec::evaluate::Measure;
use serde_json::{Value, json};

use super::prompt::Prompter;
use super::rows::{Question, Rows};
use super::statistics::Series;
use super::{Measured, Metric, Session, no_number};
use crate::data::read::Placed;
use crate::data::rows::check_ids;
use crate::ending::{Result, failed};
use crate::kernels::cross_entropy::Target;
use crate::model::conversation::{Conversation, Piece};
use crate::model::speaker::Speaker;

/// A question in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// What all choices begin with: the question without its last tokens.
    shared: Vec<u32>,
    tails: Vec<Tail>,
    /// The right one.
    answer: usize,
    /// Characters and bytes of each choice.
    lengths: Vec<(usize, usize)>,
    pub cut: bool,
}

/// What of a choice follows the shared tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tail {
    ids: Vec<u32>,
    /// The first token that belongs to the choice; at least 1.
    counted_from: usize,
}

impl Choices {
    /// From whole rows, each the question's `context` tokens with one choice's behind them. What does not fit the
    /// window is cut from the left, of all choices alike.
    pub fn new(mut rows: Vec<Vec<u32>>, context: usize, window: usize) -> Self {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        // At least the last token of the question stays, to predict the first of the choice.
        let cut = longest.saturating_sub(window).min(context - 1);
        rows.iter_mut().for_each(|row| drop(row.drain(..cut)));
        let context = context - cut;
        let shared = (0..context - 1).take_while(|&at| rows.iter().all(|row| row[at] == rows[0][at])).count();
        let tail = |row: &Vec<u32>| Tail { ids: row[shared..].to_vec(), counted_from: context - shared };
        Self {
            shared: rows[0][..shared].to_vec(),
            tails: rows.iter().map(tail).collect(),
            answer: 0,
            lengths: Vec::new(),
            cut: cut > 0,
        }
    }

    /// Positions that the longest of the rows takes.
    pub fn positions(&self) -> usize {
        self.shared.len() + self.tails.iter().map(|tail| tail.ids.len()).max().unwrap_or(0)
    }

    /// Tokens that go through the model.
    pub fn tokens(&self) -> usize {
        self.shared.len() + self.tails.iter().map(|tail| tail.ids.len()).sum::<usize>()
    }
}

/// Every row's question.
pub fn choices(
    rows: &Rows,
    prompter: &Prompter<'_>,
    mut before_each: impl FnMut() -> Result<()>,
) -> Result<Vec<Choices>> {
    let one = |(index, placed)| {
        before_each()?;
        choices_of(rows, index, placed, prompter)
    };
    rows.measured.iter().enumerate().map(one).collect()
}

fn choices_of(rows: &Rows, index: usize, placed: &Placed, by: &Prompter<'_>) -> Result<Choices> {
    let (Example::Choice { choices, answer, .. }, Some(question)) = (&placed.example, Question::of(placed)) else {
        return failed(BadDataset, format!("{}: no multiple choice", placed.place));
    };
    let rendered = by.rendered(rows, index, &question)?;
    // White space at a question's end belongs to what follows it, as in lm-eval: it may share a token with it.
    let context = by.text.encode_prompt(rendered.text.trim_end(), rendered.special)?.ids.len();
    if context == 0 {
        return failed(BadDataset, format!("{}: the question has no tokens", placed.place));
    }
    let mut whole = Vec::with_capacity(choices.len());
    for choice in choices {
        let text = format!("{}{}{choice}", rendered.text, by.before_choice());
        let ids = by.text.encode_prompt(&text, rendered.special)?.ids;
        check_ids(&ids, by.vocabulary)?;
        if choice.trim().is_empty() || ids.len() <= context {
            return failed(BadDataset, format!("{}: the choice `{choice}` has no tokens", placed.place));
        }
        whole.push(ids);
    }
    if let Some(longest) = whole.iter().map(|ids| ids.len() - context).max().filter(|&longest| longest >= by.window) {
        let message = format!("{}: a choice has {longest} tokens; the window has {}", placed.place, by.window);
        return failed(BadDataset, message);
    }
    let lengths = choices.iter().map(|choice| (choice.chars().count(), choice.len())).collect();
    Ok(Choices { answer: *answer, lengths, ..Choices::new(whole, context, by.window) })
}

/// Measures a model on its questions.
pub fn measure<S: Speaker>(session: &Session<'_, S>, questions: &[Choices]) -> Result<Measured> {
    let mut likelihoods = Vec::with_capacity(questions.len());
    for group in groups(questions, S::TOKENS_AT_ONCE) {
        session.done(likelihoods.len(), questions.len())?;
        likelihoods.extend(log_likelihoods(session.speaker, group, || session.check())?);
    }
    session.done(1, 1)?;
    if let Some(row) = likelihoods.iter().position(|sums| sums.iter().any(|sum| !sum.is_finite())) {
        return Err(no_number("the log-likelihood of a choice", row));
    }
    let judged: Vec<[bool; 3]> = questions.iter().zip(&likelihoods).map(|(q, sums)| judged(q, sums)).collect();
    let share = |at: usize| Series::mean(judged.iter().map(|judged| f64::from(judged[at])));
    let metrics = METRICS.into_iter().enumerate().map(|(at, name)| Metric::plain(name, share(at))).collect();
    let samples = likelihoods.iter().zip(&judged).map(|(sums, judged)| sample(sums, *judged)).collect();
    Ok(Measured { measure: Measure::MultipleChoice, metrics, samples })
}

const METRICS: [&str; 3] = ["acc", "acc_norm", "acc_bytes"];

/// Whether the right choice is taken, by each of [`METRICS`].
fn judged(question: &Choices, sums: &[f64]) -> [bool; 3] {
    let right_per = |length: fn(&(usize, usize)) -> usize| {
        let per: Vec<f64> = sums.iter().zip(&question.lengths).map(|(sum, of)| sum / length(of) as f64).collect();
        largest(&per) == question.answer
    };
    [right_per(|_| 1), right_per(|&(characters, _)| characters), right_per(|&(_, bytes)| bytes)]
}

fn sample(sums: &[f64], judged: [bool; 3]) -> Value {
    let mut sample = json!({ "resps": sums, "filtered_resps": largest(sums) });
    for (name, right) in METRICS.into_iter().zip(judged) {
        sample[name] = u8::from(right).into();
    }
    sample
}

/// The index of the largest; the first of several.
fn largest(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

/// Neighbouring questions that go through the model together, of so many tokens unless a single one has more.
fn groups(questions: &[Choices], at_once: usize) -> impl Iterator<Item = &[Choices]> {
    let mut tokens = 0;
    questions.chunk_by(move |one, next| {
        tokens += one.positions();
        let together = tokens + next.positions() <= at_once;
        if !together {
            tokens = 0;
        }
        together
    })
}

/// The log-likelihood of every choice of every question. What a question's choices share is taken in once; then the
/// first choices of all questions follow in one pass, are forgotten again, and the second choices take their place.
pub fn log_likelihoods<S: Speaker>(
    speaker: &S,
    questions: &[Choices],
    mut before_pass: impl FnMut() -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    let conversations = questions.iter().map(|question| speaker.conversation(question.positions()));
    let mut conversations: Vec<Conversation<S::Memory>> = conversations.collect::<Result<_>>()?;
    let with_shared = conversations.iter_mut().zip(questions).filter(|(_, question)| !question.shared.is_empty());
    let mut shared: Vec<Piece<'_, S::Memory>> =
        with_shared.map(|(conversation, question)| Piece { conversation, ids: &question.shared }).collect();
    if !shared.is_empty() {
        speaker.take_in(&mut shared)?;
    }
    let mut sums: Vec<Vec<f64>> = questions.iter().map(|_| Vec::new()).collect();
    for number in 0..questions.iter().map(|question| question.tails.len()).max().unwrap_or(0) {
        before_pass()?;
        let (mut pieces, mut targets, mut counts, mut begin) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for ((index, question), conversation) in questions.iter().enumerate().zip(&mut conversations) {
            let Some(tail) = question.tails.get(number) else { continue };
            conversation.truncate(question.shared.len());
            pieces.push(Piece { conversation, ids: &tail.ids });
            let counted = tail.counted_from..tail.ids.len();
            counts.push((index, counted.len()));
            targets.extend(counted.map(|at| Target { position: begin + at - 1, token: tail.ids[at] }));
            begin += tail.ids.len();
        }
        let mut losses = speaker.piece_losses(&mut pieces, &targets)?.into_iter();
        for (index, count) in counts {
            sums[index].push(-losses.by_ref().take(count).sum::<f64>());
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_choices_do_not_lose_for_being_long() {
        let question = |answer, lengths: &[(usize, usize)]| Choices {
            answer,
            lengths: lengths.to_vec(),
            ..Choices::new(vec![vec![1, 2], vec![1, 3]], 1, 8)
        };
        // -3 for two letters, -4 for four: the sum prefers the first, both shares the second.
        assert_eq!(judged(&question(1, &[(2, 2), (4, 4)]), &[-3.0, -4.0]), [false, true, true]);
        // Two letters of which one has three bytes.
        assert_eq!(judged(&question(0, &[(2, 4), (3, 3)]), &[-3.0, -3.0]), [true, false, true]);
    }
}
