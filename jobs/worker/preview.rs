//! What training would see of a dataset, without the model's weights.

use drydock_spec::preview::{FILE, RenderedRow};
use drydock_spec::report::Finished;
use drydock_spec::{AttemptSpec, FinetuneSpec, Preview, Report, Stage};

use crate::data;
use crate::data::lesson::Lesson;
use crate::data::rows::Row;
use crate::ending::{Result, input};
use crate::model::ModelFiles;
use crate::model::tokenizer::Text;
use crate::report::{Reporter, resident_bytes};
use crate::save::Saver;

/// Rows that are tokenized at most: enough to judge a dataset by, in a few seconds.
const MAX_ROWS: usize = 20_000;

/// Rows that are shown.
const SHOWN: usize = 3;

/// Writes `preview.json`; what comes back is the last report.
pub fn preview(attempt: &AttemptSpec, spec: &FinetuneSpec, reporter: &Reporter) -> Result<Finished> {
    reporter.stage(Stage::Load);
    let files = ModelFiles::open(&input(&attempt.inputs.model, "model")?.path)?;
    let mut text = files.text()?;
    let prepared = data::prepare(spec, &attempt.inputs, &files.config, &mut text, MAX_ROWS, reporter)?;
    let train = prepared.split.train.iter().flat_map(Lesson::rows);
    let preview = Preview {
        format: prepared.format,
        rows: prepared.rows as u64,
        tokenized_rows: prepared.tokenized as u64,
        dataset: prepared.split.report.clone(),
        lengths: Some(prepared.split.lengths.clone()),
        rendered: train.take(SHOWN).map(|row| shown(row, &text)).collect::<Result<_>>()?,
        model_limit: files.config.max_positions as u64,
    };
    reporter.report(Report::Dataset(preview.dataset.clone()));
    reporter.stage(Stage::Save);
    Saver::new(&attempt.output, reporter).json(FILE, "preview", &preview)?;
    Ok(Finished { steps: 0, train_loss: None, tokens: 0, peak_rss_bytes: resident_bytes().1 })
}

/// The row's tokens turned back into text: this is what the model sees, special tokens and cuts included.
fn shown(row: &Row, text: &Text) -> Result<RenderedRow> {
    let counted: Vec<u32> = row.ids.iter().zip(&row.counts).filter(|(_, counts)| **counts).map(|(id, _)| *id).collect();
    Ok(RenderedRow {
        text: text.decode(&row.ids, false)?,
        supervised: text.decode(&counted, false)?,
        tokens: row.ids.len() as u64,
        supervised_tokens: row.supervised() as u64,
    })
}
