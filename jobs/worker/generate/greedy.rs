//! Answers of many prompts at once, always the likeliest token.
//!
//! Rows of different lengths share every pass without padding. One that is finished leaves, and a waiting one takes its
//! place in the next pass.

use drydock_spec::FailureKind::BadModel;

use crate::ending::{Result, failed};
use crate::model::conversation::{Conversation, Piece};
use crate::model::speaker::Speaker;
use crate::model::tokenizer::Text;

/// What is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// At least one.
    pub ids: Vec<u32>,
    /// Tokens of the answer at most, at least one.
    pub max_new_tokens: usize,
}

impl Prompt {
    /// Positions that the prompt and the longest answer take.
    pub fn positions(&self) -> usize {
        self.ids.len() + self.max_new_tokens
    }
}

/// Why an answer goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Model,
    /// One of the texts at which answers end has come; the answer still holds it.
    Text,
    /// There is no room for more.
    Length,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Without the token that ends it.
    pub ids: Vec<u32>,
    pub end: End,
}

/// Who answers, and how.
pub struct Greedy<'a, S> {
    pub speaker: &'a S,
    pub text: &'a Text,
    /// Texts that end an answer, besides [`Text::stops`].
    pub until: &'a [String],
    /// Prompts that are answered at once.
    pub batch_size: usize,
}

/// A prompt that is being answered.
struct Row<'p, M> {
    index: usize,
    prompt: &'p Prompt,
    conversation: Conversation<M>,
    answer: Vec<u32>,
}

impl<M> Row<'_, M> {
    /// What the model has not taken in yet.
    fn news(&self) -> &[u32] {
        self.answer.last().map_or(&self.prompt.ids, std::slice::from_ref)
    }
}

impl<S: Speaker> Greedy<'_, S> {
    /// The answer of each prompt. `before_pass` hears how many are there. A prompt waits where the prompts of a pass would
    /// have more tokens than should go through the model together.
    pub fn answer_each(
        &self,
        prompts: &[Prompt],
        mut before_pass: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Answer>> {
        let mut answers: Vec<Option<Answer>> = prompts.iter().map(|_| None).collect();
        let mut waiting = prompts.iter().enumerate().peekable();
        let mut rows: Vec<Row<'_, S::Memory>> = Vec::new();
        let mut done = 0;
        loop {
            let mut fresh = 0;
            while rows.len() < self.batch_size
                && let Some((index, prompt)) =
                    waiting.next_if(|(_, prompt)| fresh == 0 || fresh + prompt.ids.len() <= S::TOKENS_AT_ONCE)
            {
                fresh += prompt.ids.len();
                let conversation = self.speaker.conversation(prompt.positions())?;
                rows.push(Row { index, prompt, conversation, answer: Vec::new() });
            }
            if rows.is_empty() {
                return Ok(answers.into_iter().flatten().collect());
            }
            before_pass(done)?;
            let mut going_on = Vec::with_capacity(rows.len());
            for (mut row, next) in self.next_tokens(&mut rows)?.into_iter().zip(rows).map(|(next, row)| (row, next)) {
                match self.end(&mut row, next)? {
                    None => going_on.push(row),
                    Some(end) => {
                        answers[row.index] = Some(Answer { ids: row.answer, end });
                        done += 1;
                    }
                }
            }
            rows = going_on;
        }
    }

    /// The likeliest token after each row.
    fn next_tokens(&self, rows: &mut [Row<'_, S::Memory>]) -> Result<Vec<u32>> {
        let news: Vec<Vec<u32>> = rows.iter().map(|row| row.news().to_vec()).collect();
        let mut pieces: Vec<Piece<'_, S::Memory>> =
            rows.iter_mut().zip(&news).map(|(row, ids)| Piece { conversation: &mut row.conversation, ids }).collect();
        match self.speaker.next_tokens(&mut pieces)?.into_iter().collect() {
            Some(next) => Ok(next),
            None => failed(BadModel, "the model answers with logits that are no numbers: its weights are damaged"),
        }
    }

    /// Adds the next token to a row's answer, unless it ends it.
    fn end(&self, row: &mut Row<'_, S::Memory>, next: u32) -> Result<Option<End>> {
        if self.text.stops.contains(&next) {
            return Ok(Some(End::Model));
        }
        row.answer.push(next);
        Ok(if self.ends_in_text(&row.answer)? {
            Some(End::Text)
        } else {
            (row.answer.len() == row.prompt.max_new_tokens).then_some(End::Length)
        })
    }

    /// Whether one of the texts has just come. A token writes a byte or more, so that the last tokens are enough.
    fn ends_in_text(&self, answer: &[u32]) -> Result<bool> {
        let Some(longest) = self.until.iter().map(String::len).max() else { return Ok(false) };
        let written = self.text.decode(&answer[answer.len().saturating_sub(longest)..], true)?;
        Ok(self.until.iter().any(|text| written.contains(text.as_str())))
    }
}

/// The index of the largest logit, the first of several; nothing where none is a number.
pub fn likeliest(logits: &[f32]) -> Option<u32> {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (index, &logit)| if logit > best.1 { (index, logit) } else { best });
    let index = u32::try_from(best.0).expect("token ids are u32");
    best.1.is_finite().then_some(index)
}

#[cfg(test)]
mod tests {
    use super::likeliest;

    #[test]
    fn the_first_of_the_largest_is_taken_and_nothing_of_no_numbers() {
        assert_eq!(likeliest(&[0.0, 2.0, f32::NAN, 2.0]), Some(1));
        assert_eq!(likeliest(&[f32::NAN, f32::NAN]), None);
        assert_eq!(likeliest(&[f32::NEG_INFINITY; 3]), None);
    }
}
