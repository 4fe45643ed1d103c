//! Answers to the sample prompts of a training.

pub mod greedy;

use drydock_spec::Report;
use drydock_spec::report::{Phase, Sample};

use crate::data::render::Rendered;
use crate::ending::Result;
use crate::model::speaker::Speaker;
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::stop;
use crate::training::engine::Engine;
use greedy::{Answer, End, Greedy, Prompt};

/// A sample prompt, ready to be answered.
pub struct Question {
    prompt: String,
    ids: Prompt,
}

impl Question {
    /// Positions that the question and the longest answer take.
    pub fn positions(&self) -> usize {
        self.ids.positions()
    }
}

/// What somebody wants to have answered.
pub struct Prompts<'a> {
    pub prompts: &'a [String],
    pub max_new_tokens: usize,
    /// Positions that the model has.
    pub limit: usize,
}

/// The prompts, put as `put` says. One that leaves no room for an answer is passed over with a warning.
pub fn questions(
    asked: &Prompts<'_>,
    text: &Text,
    put: impl Fn(&str) -> std::result::Result<Rendered, String>,
    reporter: &Reporter,
) -> Result<Vec<Question>> {
    let (mut questions, limit) = (Vec::new(), asked.limit);
    for prompt in asked.prompts {
        let rendered = match put(prompt) {
            Ok(rendered) => rendered,
            Err(error) => {
                reporter.warn("sample_prompt", error);
                continue;
            }
        };
        let ids = text.encode_prompt(&rendered.text, rendered.special)?.ids;
        if ids.is_empty() || ids.len() >= limit {
            let message = format!("a sample prompt has {} tokens; from 1 to {} can be answered", ids.len(), limit - 1);
            reporter.warn("sample_prompt", message);
            continue;
        }
        let max_new_tokens = asked.max_new_tokens.min(limit - ids.len());
        questions.push(Question { prompt: prompt.clone(), ids: Prompt { ids, max_new_tokens } });
    }
    Ok(questions)
}

/// Answers every prompt at once; `before_pass` hears how many answers are there.
pub fn answers(
    speaker: &impl Speaker,
    text: &Text,
    prompts: &[Prompt],
    before_pass: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Answer>> {
    Greedy { speaker, text, until: &[], batch_size: prompts.len() }.answer_each(prompts, before_pass)
}

/// Has every question answered by the engine, and reports the answers.
pub fn answer_all(
    engine: &dyn Engine,
    text: &Text,
    questions: &[Question],
    phase: Phase,
    reporter: &Reporter,
) -> Result<Vec<Sample>> {
    let prompts: Vec<Prompt> = questions.iter().map(|question| question.ids.clone()).collect();
    let answers = engine.answers(text, &prompts, &mut |done| {
        reporter.progress(done as u64, questions.len() as u64);
        stop::check()
    })?;
    let mut samples = Vec::with_capacity(questions.len());
    for (question, answer) in questions.iter().zip(answers) {
        let completion = text.decode(&answer.ids, true)?;
        let stopped = answer.end == End::Model;
        let sample = Sample { phase, prompt: question.prompt.clone(), completion, stopped };
        reporter.report(Report::Sample(sample.clone()));
        samples.push(sample);
    }
    Ok(samples)
}
