//! A finetune from the model's files to the adapter.

pub mod train;

use drydock_spec::report::{Evaluation, Finished, ModelReport, Phase};
use drydock_spec::{AttemptSpec, FinetuneSpec, Report, Stage};

use crate::data::batch::Batch;
use crate::data::rows::Row;
use crate::data::{self, Prepared};
use crate::ending::{Result, input};
use crate::generate::{Question, answer_all, questions};
use crate::model::ModelFiles;
use crate::model::decoder::Decoder;
use crate::model::method::{Chosen, choose};
use crate::model::parameter::Trainable;
use crate::report::{Reporter, resident_bytes};
use crate::save::model::WholeModel;
use crate::save::shards::SavedAs;
use crate::save::{Saver, Summary};
use crate::stop;
use train::Trainer;

/// Tokens in one forward pass where no gradient is asked for.
const SCORING_TOKENS: usize = 1024;

/// Does the whole job; what comes back is the last report.
pub fn finetune(attempt: &AttemptSpec, spec: &FinetuneSpec, reporter: &Reporter) -> Result<Finished> {
    reporter.stage(Stage::Load);
    let model = input(&attempt.inputs.model, "model")?;
    let mut files = ModelFiles::open(&model.path)?;
    let mut text = files.text()?;
    let prepared = data::prepare(spec, &attempt.inputs, &files.config, &mut text, usize::MAX, reporter)?;
    reporter.report(Report::Dataset(prepared.split.report.clone()));
    let questions = questions(spec, &prepared, &text, files.config.max_positions, reporter)?;

    reporter.stage(Stage::Load);
    let mut decoder = load(&mut files, &prepared, &questions, reporter)?;
    let Chosen { trainables, adapter } = choose(&mut decoder, spec, model.adapter.as_deref())?;
    reporter.report(Report::Model(model_report(&decoder, &trainables)));

    reporter.stage(Stage::Evaluate);
    let held_out = &prepared.split.held_out;
    let loss_before = evaluate(&decoder, held_out, Phase::Before, reporter)?;
    let answers_before = answer_all(&decoder, &text, &questions, Phase::Before, reporter)?;

    reporter.stage(Stage::Train);
    let trained = Trainer::new(&decoder, &spec.recipe, &trainables, &prepared.split.train).train(reporter)?;

    reporter.stage(Stage::Save);
    let saver = Saver::new(&attempt.output, reporter);
    if let Some(shape) = adapter.filter(|_| spec.keep.adapter()) {
        saver.adapter(&shape, &model.name, &trainables)?;
        saver.tokenizer("adapter", &text)?;
    }
    if spec.keep.merged() {
        let description = files.description(&text)?;
        let dtype = description.dtype().unwrap_or(SavedAs::F16);
        saver.model("model", WholeModel { decoder: &decoder, description: &description, text: &text }, dtype)?;
    }

    reporter.stage(Stage::Evaluate);
    let loss_after = evaluate(&decoder, held_out, Phase::After, reporter)?;
    let answers_after = answer_all(&decoder, &text, &questions, Phase::After, reporter)?;

    reporter.stage(Stage::Save);
    saver.summary(&Summary {
        worker: crate::NAME_AND_VERSION,
        model: &model.name,
        options: spec,
        max_seq_length: prepared.max_length,
        dataset: &prepared.split.report,
        evaluations: loss_before.into_iter().chain(loss_after).collect(),
        samples: answers_before.into_iter().chain(answers_after).collect(),
        training: &trained,
    })?;
    Ok(Finished {
        steps: trained.steps,
        train_loss: Some(trained.final_loss),
        tokens: trained.tokens,
        peak_rss_bytes: resident_bytes().1,
    })
}

/// The decoder, for rows and answers of the lengths that will come.
fn load(files: &mut ModelFiles, prepared: &Prepared, questions: &[Question], reporter: &Reporter) -> Result<Decoder> {
    let longest_row = prepared.split.report.longest_row as usize;
    let positions = questions.iter().map(Question::positions).fold(longest_row, usize::max);
    let layers = files.config.layers as u64;
    Decoder::load(files, positions, |done| {
        reporter.progress(done as u64, layers);
        stop::check()
    })
}

fn model_report(decoder: &Decoder, trainables: &[Trainable]) -> ModelReport {
    ModelReport {
        architecture: decoder.config.architecture.clone(),
        parameters: decoder.parameters(),
        trainable_parameters: trainables.iter().map(|trainable| trainable.var.elem_count() as u64).sum(),
    }
}

/// The mean loss per supervised token of the held-out rows; nothing where there are none.
fn evaluate(decoder: &Decoder, rows: &[Row], phase: Phase, reporter: &Reporter) -> Result<Option<Evaluation>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let (mut sum, mut tokens, mut done) = (0.0, 0u64, 0);
    for part in by_tokens(rows, SCORING_TOKENS) {
        stop::check()?;
        let batch = Batch::of(part);
        sum += decoder.score(&batch)?;
        tokens += batch.targets.len() as u64;
        done += part.len() as u64;
        reporter.progress(done, rows.len() as u64);
    }
    let loss = sum / tokens as f64;
    let evaluation = Evaluation { phase, step: None, loss, perplexity: loss.exp(), tokens };
    reporter.report(Report::Evaluation(evaluation.clone()));
    Ok(Some(evaluation))
}

/// Neighbouring rows with at most so many tokens together, or a single row with more.
fn by_tokens(rows: &[Row], most: usize) -> impl Iterator<Item = &[Row]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fit = rest.iter().take_while(|row| {
            tokens += row.ids.len();
            tokens <= most
        });
        let (part, others) = rest.split_at(fit.count().max(1).min(rest.len()));
        rest = others;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_scored_in_parts_that_fit() {
        let rows: Vec<Row> = [3, 4, 9, 2, 2].map(|len| Row { ids: vec![0; len], counts: vec![true; len] }).to_vec();
        let lengths: Vec<usize> = by_tokens(&rows, 7).map(<[Row]>::len).collect();
        assert_eq!(lengths, [2, 1, 2]);
    }
}
