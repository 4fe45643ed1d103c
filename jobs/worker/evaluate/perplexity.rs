//! How surprised a model is by texts, and by the answers of chats and completions.
//!
//! Long rows are measured in windows that slide by a stride, as Hugging Face's documentation does it: each token counts
//! once, in the first window that holds it, and tokens before that are context only. Nothing is put before a text but
//! what its tokenizer puts there by itself: without such a beginning a text's first token does not count, as nothing
//! predicts it.

use std::ops::Range;

use drydock_spec::FailureKind::BadDataset;
use drydock_spec::dataset::Example;
use drydock_spec::evaluate::Measure;
use serde_json::{Value, json};

use super::statistics::{Kind, Series};
use super::{Measured, Metric, Session, no_number};
use crate::data::batch::Batch;
use crate::data::read::Placed;
use crate::data::render::{Rendered, Renderer};
use crate::data::rows::{Row, Tokenizing};
use crate::ending::{OrFail, Result, failed};
use crate::model::speaker::Speaker;

/// What of a row goes through the model at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Which row it is of.
    pub row: usize,
    pub tokens: Row,
    /// Words and bytes that its counted tokens write; nothing for chats and completions, of which only parts count.
    written: Option<(f64, f64)>,
}

/// A stretch of a long row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    pub all: Range<usize>,
    /// The first token that counts.
    pub counted_from: usize,
}

impl Stretch {
    /// What of a row lies in it.
    pub fn of(&self, row: &Row) -> Row {
        let counts = self.all.clone().map(|token| token >= self.counted_from && row.counts[token]);
        Row { ids: row.ids[self.all.clone()].to_vec(), counts: counts.collect() }
    }
}

/// Stretches of at most `length` tokens that begin `stride` tokens apart. They overlap by one at least: the first token
/// of a stretch is predicted in the one before.
pub fn stretches(tokens: usize, length: usize, stride: usize) -> Vec<Stretch> {
    let stride = stride.min(length - 1);
    let (mut all, mut begin, mut counted_from) = (Vec::new(), 0, 1);
    loop {
        let end = (begin + length).min(tokens);
        all.push(Stretch { all: begin..end, counted_from });
        if end == tokens {
            return all;
        }
        (begin, counted_from) = (begin + stride, end);
    }
}

/// Every row's windows; those in which nothing counts are left out.
pub fn windows(
    rows: &[Placed],
    tokenizing: &Tokenizing<'_>,
    stride: usize,
    mut before_each: impl FnMut() -> Result<()>,
) -> Result<Vec<Window>> {
    let mut windows = Vec::new();
    for (row, placed) in rows.iter().enumerate() {
        before_each()?;
        windows.extend(windows_of(row, placed, tokenizing, stride)?);
    }
    if windows.is_empty() {
        return failed(BadDataset, format!("none of the {} rows has a token that counts", rows.len()));
    }
    Ok(windows)
}

fn windows_of(row: usize, placed: &Placed, by: &Tokenizing<'_>, stride: usize) -> Result<Vec<Window>> {
    let rendered = rendered(&placed.example, by.renderer).or_fail(BadDataset, &placed.place)?;
    let (tokens, counts) = by.counted(&rendered)?;
    let is_text = matches!(placed.example, Example::Text(_));
    let bytes = bytes_at(&tokens.starts, rendered.text.len());
    let whole = Row { ids: tokens.ids, counts };
    let window = |stretch: Stretch| {
        let written = || {
            let at = bytes[stretch.counted_from]..bytes[stretch.all.end];
            (words(&rendered.text, at.clone()) as f64, at.len() as f64)
        };
        let written = (is_text && stretch.counted_from < stretch.all.end).then(written);
        Window { row, tokens: stretch.of(&whole), written }
    };
    let windows = stretches(whole.ids.len(), by.max_length, stride).into_iter().map(window);
    Ok(windows.filter(|window| window.tokens.supervised() > 0).collect())
}

/// All of a text counts. Chats and completions are measured as they are trained on.
fn rendered(example: &Example, renderer: &Renderer) -> Result<Rendered, String> {
    match example {
        Example::Text(text) => {
            let learnt = std::iter::once(0..text.len()).collect();
            Ok(Rendered { text: text.clone(), learnt, special: true })
        }
        other => renderer.render(other),
    }
}

/// The byte at which each token begins, and after the last one where the text ends. Tokens that stand for no text (an
/// end that the tokenizer adds) claim to begin at 0.
fn bytes_at(starts: &[usize], len: usize) -> Vec<usize> {
    let mut furthest = 0;
    let begins = starts.iter().map(|&start| {
        furthest = furthest.max(start);
        furthest
    });
    begins.chain([len]).collect()
}

/// Words that begin within these bytes of a text.
fn words(text: &str, at: Range<usize>) -> usize {
    let mut after_space =
        text[..text.floor_char_boundary(at.start)].chars().next_back().is_none_or(char::is_whitespace);
    let part = &text[text.floor_char_boundary(at.start)..text.floor_char_boundary(at.end)];
    let begins = part.chars().filter(|c| {
        let begins = after_space && !c.is_whitespace();
        after_space = c.is_whitespace();
        begins
    });
    begins.count()
}

/// Measures a model on its windows.
pub fn measure<S: Speaker>(session: &Session<'_, S>, windows: &[Window], rows: usize) -> Result<Measured> {
    let mut losses = Vec::with_capacity(windows.len());
    for part in by_tokens(windows, S::TOKENS_AT_ONCE) {
        session.done(losses.len(), windows.len())?;
        let batch = Batch::of(part.iter().map(|window| &window.tokens));
        let mut of_targets = session.speaker.target_losses(&batch)?.into_iter();
        let sums = part.iter().map(|window| of_targets.by_ref().take(window.tokens.supervised()).sum::<f64>());
        losses.extend(sums);
    }
    session.done(1, 1)?;
    if let Some((window, _)) = windows.iter().zip(&losses).find(|(_, loss)| !loss.is_finite()) {
        return Err(no_number("the loss", window.row));
    }
    let tokens = |window: &Window| window.tokens.supervised() as f64;
    let series = |kind, units: &dyn Fn(&Window) -> f64| {
        Series::losses(kind, windows.iter().zip(&losses).map(|(window, &loss)| (loss, units(window))))
    };
    let mut metrics = vec![Metric::plain("perplexity", series(Kind::Perplexity, &tokens))];
    if windows.iter().all(|window| window.written.is_some()) {
        let words = |window: &Window| window.written.map_or(0.0, |written| written.0);
        let bytes = |window: &Window| window.written.map_or(0.0, |written| written.1);
        metrics.extend([
            Metric::plain("word_perplexity", series(Kind::Perplexity, &words)),
            Metric::plain("byte_perplexity", series(Kind::Perplexity, &bytes)),
            Metric::plain("bits_per_byte", series(Kind::Bits, &bytes)),
        ]);
        // A text may have no words, or such as are as long as it is: then a word's perplexity is beyond all numbers.
        metrics.retain(|metric| metric.series.is_finite());
    }
    let mut samples: Vec<(f64, usize)> = vec![(0.0, 0); rows];
    for (window, loss) in windows.iter().zip(&losses) {
        samples[window.row].0 += loss;
        samples[window.row].1 += window.tokens.supervised();
    }
    let samples = samples.into_iter().map(sample).collect();
    Ok(Measured { measure: Measure::Perplexity, metrics, samples })
}

fn sample((loss, tokens): (f64, usize)) -> Value {
    let perplexity = (tokens > 0).then(|| (loss / tokens as f64).exp());
    json!({ "loss": loss, "tokens": tokens, "perplexity": perplexity })
}

/// Neighbouring windows that go through the model together: of so many tokens, unless a single one has more.
fn by_tokens(windows: &[Window], at_once: usize) -> impl Iterator<Item = &[Window]> {
    let mut tokens = 0;
    windows.chunk_by(move |one, next| {
        tokens += one.tokens.ids.len();
        let together = tokens + next.tokens.ids.len() <= at_once;
        if !together {
            tokens = 0;
        }
        together
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_slide_as_in_the_documentation() {
        let got: Vec<_> = stretches(10, 4, 2).into_iter().map(|s| (s.all, s.counted_from)).collect();
        assert_eq!(got, [(0..4, 1), (2..6, 4), (4..8, 6), (6..10, 8)]);
        let got: Vec<_> = stretches(6, 4, 4).into_iter().map(|s| (s.all, s.counted_from)).collect();
        assert_eq!(got, [(0..4, 1), (3..6, 4)]);
    }

    proptest! {
        #[test]
        fn every_token_but_the_first_counts_once_and_has_context(
            tokens in 1usize..200, length in 2usize..40, stride in 1usize..40
        ) {
            let mut next = 1;
            for Stretch { all, counted_from } in stretches(tokens, length, stride.min(length)) {
                prop_assert!(all.len() <= length);
                prop_assert_eq!(counted_from, next);
                prop_assert!(all.start < counted_from);
                next = all.end.max(next);
            }
            prop_assert_eq!(next, tokens.max(1));
        }

        #[test]
        fn words_of_parts_are_the_words_of_the_whole(text in "[a \\n]{0,20}", cut in 0usize..20) {
            let cut = cut.min(text.len());
            let parts = words(&text, 0..cut) + words(&text, cut..text.len());
            prop_assert_eq!(parts, text.split_whitespace().count());
        }
    }

    #[test]
    fn passes_hold_what_fits() {
        let window = |len| Window { row: 0, tokens: Row { ids: vec![0; len], counts: vec![true; len] }, written: None };
        let windows: Vec<Window> = [600, 424, 1, 2000, 500, 500].map(window).to_vec();
        let sizes: Vec<usize> = by_tokens(&windows, 1024).map(<[Window]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 2]);
    }
}
