//! Answers to sample prompts, token by token, always the likeliest one.

use drydock_spec::report::{Phase, Sample};
use drydock_spec::{FinetuneSpec, Report};

use crate::data::Prepared;
use crate::ending::Result;
use crate::model::decoder::Decoder;
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::stop;

/// A sample prompt, ready to be answered.
pub struct Question {
    prompt: String,
    ids: Vec<u32>,
    max_new_tokens: usize,
}

impl Question {
    /// Positions that the question and the longest answer take.
    pub fn positions(&self) -> usize {
        self.ids.len() + self.max_new_tokens
    }
}

/// The spec's sample prompts, put the way that the rows are: as chats where those are chats, else as they stand. One
/// that leaves no room for an answer is passed over with a warning.
pub fn questions(
    spec: &FinetuneSpec,
    prepared: &Prepared,
    text: &Text,
    limit: usize,
    reporter: &Reporter,
) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for prompt in &spec.sample_prompts {
        let rendered = match prepared.renderer.question(prompt, prepared.chat) {
            Ok(rendered) => rendered,
            Err(error) => {
                reporter.warn("sample_prompt", error);
                continue;
            }
        };
        let mut ids = text.encode(&rendered.text, rendered.special)?.ids;
        // A tokenizer that ends every text would end the question before the answer.
        if rendered.special && ids.len() > 1 && ids.last().is_some_and(|last| text.stops.contains(last)) {
            ids.pop();
        }
        if ids.is_empty() || ids.len() >= limit {
            let message = format!("a sample prompt has {} tokens; from 1 to {} can be answered", ids.len(), limit - 1);
            reporter.warn("sample_prompt", message);
            continue;
        }
        let max_new_tokens = (spec.max_new_tokens as usize).min(limit - ids.len());
        questions.push(Question { prompt: prompt.clone(), ids, max_new_tokens });
    }
    Ok(questions)
}

/// Answers every question and reports the answers.
pub fn answer_all(
    decoder: &Decoder,
    text: &Text,
    questions: &[Question],
    phase: Phase,
    reporter: &Reporter,
) -> Result<Vec<Sample>> {
    let mut samples = Vec::with_capacity(questions.len());
    for (index, question) in questions.iter().enumerate() {
        let (ids, stopped) = answer(decoder, question, &text.stops, || {
            reporter.progress(index as u64, questions.len() as u64);
            stop::check()
        })?;
        let completion = text.decode(&ids, true)?;
        let sample = Sample { phase, prompt: question.prompt.clone(), completion, stopped };
        reporter.report(Report::Sample(sample.clone()));
        samples.push(sample);
    }
    Ok(samples)
}

/// The answer's tokens, and whether it came to its own end.
fn answer(
    decoder: &Decoder,
    question: &Question,
    stops: &[u32],
    mut before_each: impl FnMut() -> Result<()>,
) -> Result<(Vec<u32>, bool)> {
    let mut conversation = decoder.conversation();
    let mut logits = conversation.take_in(&question.ids)?;
    let mut answer = Vec::new();
    loop {
        before_each()?;
        let next = likeliest(&logits);
        if stops.contains(&next) {
            return Ok((answer, true));
        }
        answer.push(next);
        if answer.len() == question.max_new_tokens {
            return Ok((answer, false));
        }
        logits = conversation.take_in(&[next])?;
    }
}

/// The index of the largest logit; the first of several.
fn likeliest(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (index, &logit)| if logit > best.1 { (index, logit) } else { best });
    u32::try_from(best.0).expect("token ids are u32")
}
