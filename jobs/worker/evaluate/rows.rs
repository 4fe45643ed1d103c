//! Which rows are measured, which are shown solved, and what they allow to measure.

use drydock_spec::FailureKind::{BadDataset, BadOption};
use drydock_spec::dataset::{Example, Message, Role};
use drydock_spec::evaluate::{EvaluateSpec, Measure};
use drydock_spec::{Failure, Inputs};

use super::numeric;
use crate::data::read::{self, Placed};
use crate::ending::{Result, failed, input};
use crate::random::{Chance, Purpose};

/// Words of an answer at most that somebody would be expected to give exactly.
const SHORT_ANSWER: usize = 10;

/// A dataset, divided.
pub struct Rows {
    pub measured: Vec<Placed>,
    /// Rows of the whole dataset.
    pub in_dataset: usize,
    /// The others, to draw solved rows from.
    pub others: Vec<Question>,
    /// Solved rows before each question.
    shots: usize,
    seed: u64,
}

/// How a question is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The turns of a chat before its last answer.
    Turns(Vec<Message>),
    /// A text that the answer follows as it stands.
    Prompt(String),
    /// A question that a choice follows after a space.
    Choice(String),
}

/// A question and what answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub asked: Asked,
    /// At least one.
    pub accepted: Vec<String>,
}

impl Question {
    /// What a row asks; nothing where it is a text, or a judgement of answers.
    pub fn of(placed: &Placed) -> Option<Self> {
        let (asked, answer) = match &placed.example {
            Example::Chat(turns) => {
                let last = turns.iter().rposition(|turn| turn.role == Role::Assistant)?;
                (Asked::Turns(turns[..last].to_vec()), &turns[last].content)
            }
            Example::Completion { prompt, completion } => (Asked::Prompt(prompt.clone()), completion),
            Example::Choice { question, choices, answer } => (Asked::Choice(question.clone()), &choices[*answer]),
            Example::Text(_) | Example::Preference { .. } | Example::Labelled { .. } => return None,
        };
        let accepted = if placed.accepted.is_empty() { vec![answer.clone()] } else { placed.accepted.clone() };
        Some(Self { asked, accepted })
    }
}

impl Rows {
    /// Reads the dataset: the first rows are measured, up to the limit.
    pub fn read(inputs: &Inputs, spec: &EvaluateSpec) -> Result<Self> {
        let columns = spec.columns.clone().unwrap_or_default();
        let mut measured = read::read(input(&inputs.dataset, "dataset")?, &columns)?.examples;
        let in_dataset = measured.len();
        let limit = spec.limit.map_or(in_dataset, |limit| in_dataset.min(limit as usize));
        let others: Vec<Question> = measured.drain(limit..).filter_map(|placed| Question::of(&placed)).collect();
        let shots = spec.num_fewshot as usize;
        if others.len() < shots {
            let message = format!(
                "num_fewshot = {shots}: of {} rows {limit} are measured, and {} others can be shown solved",
                limit + others.len(),
                others.len()
            );
            let hint = format!("set limit to leave at least {shots} rows out, or num_fewshot = 0");
            return Err(Failure::new(BadOption, message).with_hint(hint).into());
        }
        Ok(Self { measured, in_dataset, others, shots, seed: spec.seed })
    }

    /// The solved rows before a question.
    pub fn shots(&self, question: usize) -> Vec<&Question> {
        if self.shots == 0 {
            return Vec::new();
        }
        let question = u32::try_from(question).unwrap_or(u32::MAX);
        let order = Chance::new(self.seed, Purpose::Shots(question)).permutation(self.others.len());
        order.into_iter().take(self.shots).map(|index| &self.others[index]).collect()
    }

    /// Whether questions are chats.
    pub fn chats(&self) -> bool {
        self.measured.iter().any(|placed| matches!(placed.example, Example::Chat(_)))
    }

    /// What is to be measured: what the spec asks for, if the rows allow it, or else what the rows are for.
    pub fn measures(&self, spec: &EvaluateSpec) -> Result<Vec<Measure>> {
        let Some(asked) = &spec.measures else { return self.usual_measures() };
        let mut measures = asked.clone();
        measures.sort_unstable();
        measures.dedup();
        for &measure in &measures {
            if let Some((placed, problem)) = self.obstacle(measure) {
                let message =
                    format!("measures = [\"{}\"]: {} {problem}; {}", name(measure), placed.place, wants(measure));
                return failed(BadOption, message);
            }
        }
        Ok(measures)
    }

    fn usual_measures(&self) -> Result<Vec<Measure>> {
        let allowed = |measure| self.obstacle(measure).is_none();
        if allowed(Measure::MultipleChoice) {
            return Ok(vec![Measure::MultipleChoice]);
        }
        if !allowed(Measure::Perplexity) {
            let placed = &self.measured[0];
            let message = format!("{}: {}; nothing can be measured on it", placed.place, kind(&placed.example));
            return failed(BadDataset, message);
        }
        let answers = || self.measured.iter().filter_map(Question::of).flat_map(|question| question.accepted);
        let mut measures = vec![Measure::Perplexity];
        if allowed(Measure::NumericMatch) && answers().all(|answer| answer.contains("#### ")) {
            measures.push(Measure::NumericMatch);
        } else if allowed(Measure::ExactMatch)
            && answers().all(|answer| answer.split_whitespace().count() <= SHORT_ANSWER)
        {
            measures.push(Measure::ExactMatch);
        }
        Ok(measures)
    }

    /// The first row that cannot be measured so, and why.
    fn obstacle(&self, measure: Measure) -> Option<(&Placed, String)> {
        self.measured.iter().find_map(|placed| Some((placed, obstacle(measure, placed)?)))
    }
}

/// Why a row cannot be measured so.
fn obstacle(measure: Measure, placed: &Placed) -> Option<String> {
    let fits = match measure {
        Measure::Perplexity => {
            matches!(placed.example, Example::Text(_) | Example::Chat(_) | Example::Completion { .. })
        }
        Measure::MultipleChoice => matches!(placed.example, Example::Choice { .. }),
        Measure::ExactMatch | Measure::NumericMatch => {
            matches!(placed.example, Example::Chat(_) | Example::Completion { .. })
        }
    };
    if !fits {
        return Some(format!("is {}", kind(&placed.example)));
    }
    if !measure.generates() {
        return None;
    }
    let accepted = Question::of(placed)?.accepted;
    if accepted.iter().all(|answer| answer.trim().is_empty()) {
        return Some("has an empty answer".into());
    }
    let numberless = measure == Measure::NumericMatch && accepted.iter().any(|text| numeric::reference(text).is_none());
    numberless.then(|| "has an answer without a number".into())
}

/// A measure's name, as in options and results.
pub fn name(measure: Measure) -> &'static str {
    match measure {
        Measure::Perplexity => "perplexity",
        Measure::MultipleChoice => "multiple_choice",
        Measure::ExactMatch => "exact_match",
        Measure::NumericMatch => "numeric_match",
    }
}

/// What the rows of a measure must be.
fn wants(measure: Measure) -> &'static str {
    match measure {
        Measure::Perplexity => "perplexity takes texts, chats, and prompts with completions",
        Measure::MultipleChoice => "multiple_choice takes rows with `question`, `choices` and `answer`",
        Measure::ExactMatch => "exact_match takes chats, prompts with completions, and SQuAD's questions",
        Measure::NumericMatch => "numeric_match takes chats, and prompts with completions, whose answers hold a number",
    }
}

fn kind(example: &Example) -> &'static str {
    match example {
        Example::Chat(_) => "a chat",
        Example::Completion { .. } => "a prompt with its completion",
        Example::Text(_) => "a text",
        Example::Preference { .. } => "a pair of a better and a worse answer",
        Example::Labelled { .. } => "an answer with a label",
        Example::Choice { .. } => "a multiple choice",
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::evaluate::EvaluateArgs;

    use super::*;
    use crate::ending::Ending;

    fn rows(lines: &[&str], options: EvaluateArgs) -> Result<(Rows, Vec<Measure>)> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rows.jsonl"), lines.join("\n")).unwrap();
        let spec = EvaluateArgs { model: "m".into(), dataset: "d".into(), ..options }.parse().unwrap();
        let inputs = Inputs { dataset: Some(folder.path().to_owned()), ..Inputs::default() };
        let rows = Rows::read(&inputs, &spec)?;
        let measures = rows.measures(&spec)?;
        Ok((rows, measures))
    }

    fn refusal(lines: &[&str], options: EvaluateArgs) -> String {
        match rows(lines, options).map(|_| ()) {
            Err(Ending::Failed(failure)) => failure.message,
            other => panic!("{other:?}"),
        }
    }

    const TEXT: &str = r#"{"text": "t"}"#;
    const CHOICE: &str = r#"{"question": "q", "choices": ["a", "b"], "answer": 1}"#;
    const SHORT: &str = r#"{"prompt": "2+2=", "completion": " four"}"#;
    const LONG: &str = r#"{"prompt": "Tell!", "completion": " once upon a time there was a very very small ship"}"#;
    const SUM: &str =
        r#"{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4\n#### 4"}]}"#;

    #[test]
    fn what_is_measured_follows_from_the_rows() {
        use Measure::{ExactMatch, MultipleChoice, NumericMatch, Perplexity};
        for (line, want) in [
            (TEXT, &[Perplexity][..]),
            (CHOICE, &[MultipleChoice]),
            (SHORT, &[Perplexity, ExactMatch]),
            (LONG, &[Perplexity]),
            (SUM, &[Perplexity, NumericMatch]),
        ] {
            assert_eq!(rows(&[line], EvaluateArgs::default()).unwrap().1, want, "{line}");
        }
    }

    #[test]
    fn a_measure_that_the_rows_do_not_allow_is_refused_with_the_rows_that_would() {
        let ask = |line: &str, measure| {
            refusal(&[line], EvaluateArgs { measures: Some(vec![measure]), ..EvaluateArgs::default() })
        };
        assert_eq!(
            ask(TEXT, Measure::ExactMatch),
            "measures = [\"exact_match\"]: rows.jsonl, line 1 is a text; exact_match takes chats, prompts with \
             completions, and SQuAD's questions"
        );
        assert!(ask(SHORT, Measure::MultipleChoice).contains("is a prompt with its completion"));
        assert!(ask(SHORT, Measure::NumericMatch).contains("has an answer without a number"));
        assert!(ask(CHOICE, Measure::Perplexity).contains("is a multiple choice"));
        let pair = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;
        assert!(refusal(&[pair], EvaluateArgs::default()).contains("a pair of a better and a worse answer"));
        let empty = r#"{"prompt": "p", "completion": " "}"#;
        assert!(ask(empty, Measure::ExactMatch).contains("has an empty answer"));
    }

    #[test]
    fn solved_rows_follow_the_seed_and_are_never_measured() {
        let lines: Vec<String> = (0..30).map(|i| format!(r#"{{"prompt": "{i}", "completion": " {i}"}}"#)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let options = EvaluateArgs { limit: Some(10), num_fewshot: Some(3), ..EvaluateArgs::default() };
        let (rows, _) = rows(&lines, options.clone()).unwrap();
        let measured: Vec<Question> = rows.measured.iter().filter_map(Question::of).collect();
        for question in 0..10 {
            let shots = rows.shots(question);
            assert_eq!(shots, rows.shots(question));
            assert_eq!(shots.len(), 3);
            assert!(shots.iter().all(|shot| !measured.contains(shot)));
            assert!(shots[0] != shots[1] && shots[1] != shots[2] && shots[0] != shots[2]);
        }
        assert_ne!(rows.shots(0), rows.shots(1));
        let too_many = EvaluateArgs { limit: Some(28), ..options };
        assert_eq!(
            refusal(&lines, too_many),
            "num_fewshot = 3: of 30 rows 28 are measured, and 2 others can be shown solved"
        );
    }
}
