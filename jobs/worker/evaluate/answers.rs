//! Answers in a model's own words: whether they are right, whether the model stops by itself, whether it goes round in
//! circles.

use drydock_spec::FailureKind::BadOption;
use drydock_spec::evaluate::{EvaluateSpec, Measure};
use serde_json::{Value, json};

use super::prompt::{BETWEEN_ROWS, Prompter};
use super::rows::{Question, Rows};
use super::statistics::Series;
use super::{Measured, Metric, Session, numeric, squad};
use crate::ending::{Result, failed};
use crate::generate::greedy::{Answer, End, Greedy, Prompt};
use crate::model::speaker::Speaker;

/// Tokens that a repetition must span at least, and how often it must come in a row.
const LOOP: (usize, usize) = (16, 3);

/// Every row's question, ready to be answered.
pub struct Questions {
    pub prompts: Vec<Prompt>,
    /// Those that were cut from the left.
    pub cut: usize,
}

impl Questions {
    pub fn none() -> Self {
        Self { prompts: Vec::new(), cut: 0 }
    }
}

/// What a model said.
struct Given {
    text: String,
    /// Tokens, without the one that ends the answer.
    tokens: usize,
    stopped: bool,
    looping: bool,
}

/// Texts at which answers end: those of the spec, and what parts solved rows where they stand before the question.
pub fn until(spec: &EvaluateSpec, chat: bool) -> Vec<String> {
    let parts = (!chat && spec.num_fewshot > 0).then(|| BETWEEN_ROWS.to_owned());
    let mut until = spec.until.clone();
    until.extend(parts.filter(|parts| !spec.until.contains(parts)));
    until
}

/// Puts every row's question.
pub fn questions(
    rows: &Rows,
    prompter: &Prompter<'_>,
    max_new_tokens: usize,
    mut before_each: impl FnMut() -> Result<()>,
) -> Result<Questions> {
    if max_new_tokens >= prompter.window {
        let window = prompter.window;
        return failed(
            BadOption,
            format!("max_new_tokens = {max_new_tokens}: no room is left for a question in a window of {window} tokens"),
        );
    }
    let mut questions = Questions::none();
    for (index, placed) in rows.measured.iter().enumerate() {
        before_each()?;
        let Some(question) = Question::of(placed) else { continue };
        let rendered = prompter.rendered(rows, index, &question)?;
        let fitted = prompter.fitted(&rendered, max_new_tokens, &placed.place)?;
        questions.cut += usize::from(fitted.cut);
        questions.prompts.push(Prompt { ids: fitted.ids, max_new_tokens });
    }
    Ok(questions)
}

/// Lets a model answer once, and takes every measure of its answers.
pub fn measure<S: Speaker>(
    session: &Session<'_, S>,
    rows: &Rows,
    prompts: &[Prompt],
    measures: &[Measure],
) -> Result<Vec<Measured>> {
    let greedy = Greedy {
        speaker: session.speaker,
        text: session.text,
        until: &session.until,
        batch_size: session.spec.batch_size as usize,
    };
    let answers = greedy.answer_each(prompts, |done| session.done(done, prompts.len()))?;
    session.done(1, 1)?;
    let given: Vec<Given> = answers.iter().map(|answer| given(session, answer)).collect::<Result<_>>()?;
    let accepted: Vec<Vec<String>> =
        rows.measured.iter().filter_map(Question::of).map(|question| question.accepted).collect();
    Ok(measures.iter().map(|&measure| measured(measure, &given, &accepted)).collect())
}

fn given<S: Speaker>(session: &Session<'_, S>, answer: &Answer) -> Result<Given> {
    let text = session.text.decode(&answer.ids, true)?;
    Ok(Given {
        text: before_any(&text, &session.until).to_owned(),
        tokens: answer.ids.len(),
        stopped: answer.end == End::Model,
        looping: answer.end == End::Length && goes_in_circles(&answer.ids),
    })
}

/// The text up to the first of the texts at which it ends.
fn before_any<'t>(text: &'t str, until: &[String]) -> &'t str {
    let end = until.iter().filter_map(|until| text.find(until.as_str())).min();
    &text[..end.unwrap_or(text.len())]
}

/// Whether the end repeats itself: the last tokens, however many, stand there three times or more in a row.
fn goes_in_circles(ids: &[u32]) -> bool {
    let (least, times) = LOOP;
    (1..=ids.len() / times).any(|period| {
        let same = (period..ids.len()).rev().take_while(|&at| ids[at] == ids[at - period]).count();
        same + period >= least.max(times * period)
    })
}

fn measured(measure: Measure, given: &[Given], accepted: &[Vec<String>]) -> Measured {
    let judged: Vec<Vec<Judged>> =
        given.iter().zip(accepted).map(|(given, accepted)| judged(measure, &given.text, accepted)).collect();
    let names = judged.first().map_or(&[][..], Vec::as_slice);
    let mut metrics: Vec<Metric> = names
        .iter()
        .enumerate()
        .map(|(at, Judged { name, filter, .. })| Metric {
            name,
            filter,
            series: Series::mean(judged.iter().map(|judged| judged[at].value)),
        })
        .collect();
    let share = |flag: fn(&Given) -> f64| Series::mean(given.iter().map(flag));
    metrics.extend([
        Metric::plain("stopped", share(|given| f64::from(given.stopped))),
        Metric::plain("looping", share(|given| f64::from(given.looping))),
        Metric::plain("answer_tokens", share(|given| given.tokens as f64)),
    ]);
    let samples = given.iter().zip(&judged).map(|(given, judged)| sample(given, judged)).collect();
    Measured { measure, metrics, samples }
}

/// What one rule says about one answer.
struct Judged {
    name: &'static str,
    filter: &'static str,
    /// What was compared.
    found: String,
    value: f64,
}

fn judged(measure: Measure, answer: &str, accepted: &[String]) -> Vec<Judged> {
    if measure == Measure::NumericMatch {
        let right: Vec<String> = accepted.iter().filter_map(|text| numeric::reference(text)).collect();
        let by = |(filter, find): (&'static str, numeric::Find)| {
            let found = find(answer).map_or_else(|| numeric::INVALID.to_owned(), numeric::bare);
            Judged { name: "exact_match", filter, value: f64::from(right.contains(&found)), found }
        };
        return numeric::FILTERS.map(by).into();
    }
    let found = squad::normalized(answer);
    let judged = |name, value| Judged { name, filter: "none", found: found.clone(), value };
    vec![judged("exact_match", squad::exact_match(answer, accepted)), judged("f1", squad::f1(answer, accepted))]
}

fn sample(given: &Given, judged: &[Judged]) -> Value {
    let mut sample = json!({ "resps": given.text, "stopped": given.stopped, "looping": given.looping });
    for Judged { name, filter, found, value } in judged {
        sample[format!("{name},{filter}")] = json!(value);
        sample["filtered_resps"][*filter] = json!(found);
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_told_from_answers_that_end() {
        let told = |ids: &[u32]| goes_in_circles(ids);
        assert!(told(&[vec![9, 8], [1, 2, 3].repeat(6)].concat()));
        assert!(told(&[vec![9, 8], [1, 2, 3].repeat(6), vec![1, 2]].concat()), "the last time is cut off");
        assert!(told(&[7; 16]));
        assert!(!told(&[7; 15]), "too short to tell");
        assert!(!told(&(0..100).collect::<Vec<u32>>()));
        let twice: Vec<u32> = (0..40).chain(0..40).collect();
        assert!(!told(&twice), "twice is no circle");
        assert!(!told(&[[1, 2, 3].repeat(6), vec![4]].concat()), "it has found out");
        assert!(!told(&[]));
    }

    #[test]
    fn an_answer_ends_before_the_first_of_the_texts() {
        let until = ["\n\n".to_owned(), "Q:".to_owned()];
        assert_eq!(before_any("four\nQ: x\n\n", &until), "four\n");
        assert_eq!(before_any("four", &until), "four");
    }

    #[test]
    fn answers_are_judged_by_their_measure() {
        let values = |measure, answer: &str, accepted: &str| -> Vec<f64> {
            judged(measure, answer, &[accepted.to_owned()]).into_iter().map(|judged| judged.value).collect()
        };
        assert_eq!(values(Measure::ExactMatch, "The answer", "answer"), [1.0, 1.0]);
        assert_eq!(values(Measure::NumericMatch, "6 * 3 = $18.", "... \n#### 18"), [0.0, 1.0]);
        assert_eq!(values(Measure::NumericMatch, "#### 1,800", "#### 1800"), [1.0, 1.0]);
    }
}
