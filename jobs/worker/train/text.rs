//! From texts to rows: every token but a text's first is predicted once an epoch.

use drydock_spec::FailureKind::{BadDataset, NothingToLearn};
use drydock_spec::dataset::Example;
use drydock_spec::report::DatasetReport;
use drydock_spec::{Inputs, TrainSpec};

use crate::data::lesson::{Lesson, Matter};
use crate::data::read::read;
use crate::data::rows::Row;
use crate::ending::{Result, failed, input};
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::stop;

/// A text and where it stands, as in `shakespeare.txt`.
struct Placed {
    text: String,
    place: String,
}

/// The texts of a dataset.
pub struct Texts {
    train: Vec<Placed>,
    /// Where they are given; otherwise the end of the others is held out.
    held_out: Option<Vec<Placed>>,
}

/// Texts, ready for one model.
pub struct Learnable {
    pub train: Vec<Lesson>,
    pub held_out: Vec<Lesson>,
    /// Tokens that rows were cut to.
    pub max_length: usize,
    pub report: DatasetReport,
}

impl Texts {
    pub fn read(inputs: &Inputs, spec: &TrainSpec) -> Result<Self> {
        let columns = spec.columns.clone().unwrap_or_default();
        let texts = |folder| -> Result<Vec<Placed>> {
            let examples = read(folder, &columns)?.examples;
            examples.into_iter().map(|placed| as_text(placed.example, placed.place)).collect()
        };
        let held_out = inputs.eval_dataset.as_deref().map(texts).transpose()?;
        Ok(Self { train: texts(input(&inputs.dataset, "dataset")?)?, held_out })
    }

    /// What a tokenizer may be learnt from.
    pub fn to_learn_from(&self) -> impl Iterator<Item = &str> + Send {
        self.train.iter().map(|placed| placed.text.as_str())
    }

    /// Tokenizes the texts, each with its end, and cuts them into rows.
    pub fn learnable(&self, text: &Text, spec: &TrainSpec, reporter: &Reporter) -> Result<Learnable> {
        let max_length = spec.recipe.seq_length(spec.config.max_position_embeddings) as usize;
        let all = self.train.len() + self.held_out.as_ref().map_or(0, Vec::len);
        let mut done = 0;
        let mut lessons = |texts: &[Placed]| -> Result<Vec<Lesson>> {
            let mut lessons = Vec::new();
            for placed in texts {
                stop::check()?;
                let ended = format!("{}{}", placed.text, text.eos.as_deref().unwrap_or_default());
                let ids = text.encode(&ended, true)?.ids;
                let lesson = |row| Lesson { matter: Matter::Text(row), place: placed.place.clone() };
                lessons.extend(rows(&ids, max_length).into_iter().map(lesson));
                done += 1;
                reporter.progress(done, all as u64);
            }
            Ok(lessons)
        };
        let mut train = lessons(&self.train)?;
        let held_out = match &self.held_out {
            Some(texts) => lessons(texts)?,
            None => hold_out(&mut train, spec.test_size),
        };
        if train.is_empty() {
            return failed(NothingToLearn, "no text of the dataset has two tokens, so there is nothing to predict");
        }
        let report = report(&train, &held_out);
        Ok(Learnable { train, held_out, max_length, report })
    }
}

fn as_text(example: Example, place: String) -> Result<Placed> {
    let text = match example {
        Example::Text(text) => text,
        Example::Completion { prompt, completion } => prompt + &completion,
        Example::Chat(_) | Example::Preference { .. } | Example::Labelled { .. } | Example::Choice { .. } => {
            let message =
                format!("{place}: a model from nothing learns from texts; columns `text`, or plain .txt files");
            return failed(BadDataset, message);
        }
    };
    Ok(Placed { text, place })
}

/// Cuts a text into rows of at most `length` tokens. Each row after the first begins with the token that the one before
/// it ended with: so that token's successor is predicted too, and no token counts twice.
fn rows(ids: &[u32], length: usize) -> Vec<Row> {
    let step = length - 1;
    let starts = (0..ids.len().saturating_sub(1)).step_by(step);
    starts.map(|start| Row::learnt(ids[start..(start + length).min(ids.len())].to_vec())).collect()
}

/// The last `share` of the rows, to be held out: what comes later in a text is what a model has to foresee. One row at
/// least is left to learn from.
fn hold_out<T>(rows: &mut Vec<T>, share: f64) -> Vec<T> {
    let count = ((rows.len() as f64 * share).ceil() as usize).min(rows.len().saturating_sub(1));
    rows.split_off(rows.len() - count)
}

fn report(train: &[Lesson], held_out: &[Lesson]) -> DatasetReport {
    let longest = train.iter().chain(held_out).map(Lesson::tokens).max().unwrap_or(0);
    DatasetReport {
        train_rows: train.len() as u64,
        eval_rows: held_out.len() as u64,
        train_tokens: train.iter().map(|lesson| lesson.tokens() as u64).sum(),
        supervised_tokens: train.iter().map(|lesson| lesson.supervised() as u64).sum(),
        longest_row: longest as u64,
        ..DatasetReport::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_token_but_the_first_is_predicted_once(len in 0usize..200, length in 2usize..50) {
            let ids: Vec<u32> = (0..len as u32).collect();
            let rows = rows(&ids, length);
            prop_assert!(rows.iter().all(|row| (2..=length).contains(&row.ids.len())));
            let predicted: Vec<u32> = rows.iter().flat_map(|row| row.ids[1..].to_vec()).collect();
            prop_assert_eq!(predicted, ids.get(1..).unwrap_or_default());
        }
    }

    #[test]
    fn the_end_is_held_out_and_something_is_left() {
        let mut all = rows(&(0..101).collect::<Vec<_>>(), 11);
        let held_out = hold_out(&mut all, 0.25);
        assert_eq!((all.len(), held_out.len()), (7, 3));
        assert_eq!(held_out[0].ids[0], 70);
        let mut one = rows(&[1, 2, 3], 11);
        assert!(hold_out(&mut one, 0.5).is_empty() && one.len() == 1);
    }
}
