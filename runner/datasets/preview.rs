//! What the first rows look like, as text for people. How a model's own template writes them shows inside a container.

use drydock_spec::dataset::{Example, Format, Message, Role};

use crate::api::{RenderedRow, RowsPreview};

/// Characters of a row that are shown; what is longer is cut, and says so.
const LONGEST: usize = 2_000;

/// The preview of these rows.
pub(super) fn of(format: Format, rows: &[Example]) -> RowsPreview {
    RowsPreview { format, dataset: None, rendered: rows.iter().map(row).collect() }
}

fn row(example: &Example) -> RenderedRow {
    let (text, supervised) = written(example);
    RenderedRow { text: cut(text), supervised: cut(supervised), tokens: None, supervised_tokens: None }
}

/// All of a row, and the part of it that is learnt, preferred or right.
fn written(example: &Example) -> (String, String) {
    match example {
        Example::Chat(turns) => {
            let all: Vec<_> = turns.iter().map(turn).collect();
            let learnt = turns.iter().filter(|turn| turn.role == Role::Assistant).map(|turn| turn.content.as_str());
            (all.join("\n"), learnt.collect::<Vec<_>>().join("\n"))
        }
        Example::Completion { prompt, completion } => (format!("{prompt}{completion}"), completion.clone()),
        Example::Text(text) => (text.clone(), text.clone()),
        Example::Preference { chosen, rejected } => {
            let (chosen, rejected) = (written(chosen), written(rejected));
            (format!("chosen: {}\nrejected: {}", chosen.0, rejected.0), chosen.1)
        }
        Example::Labelled { example, good } => {
            let (text, supervised) = written(example);
            (format!("{}: {text}", if *good { "good" } else { "bad" }), supervised)
        }
        Example::Choice { question, choices, answer } => {
            let listed = ('A'..).zip(choices).map(|(letter, choice)| format!("\n{letter}. {choice}"));
            (question.clone() + &listed.collect::<String>(), choices.get(*answer).cloned().unwrap_or_default())
        }
    }
}

fn turn(turn: &Message) -> String {
    let role = match turn.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    format!("{role}: {}", turn.content)
}

fn cut(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((at, _)) => format!("{} ... ({} characters more)", &text[..at], text[at..].chars().count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[test]
    fn a_chat_shows_who_says_what_and_what_is_learnt() {
        let chat =
            Example::Chat(vec![say(Role::System, "Be kind."), say(Role::User, "Hi"), say(Role::Assistant, "Hello")]);
        let shown = row(&chat);
        assert_eq!(shown.text, "system: Be kind.\nuser: Hi\nassistant: Hello");
        assert_eq!(shown.supervised, "Hello");
        let completion = Example::Completion { prompt: "2+2=".into(), completion: "4".into() };
        assert_eq!((row(&completion).text.as_str(), row(&completion).supervised.as_str()), ("2+2=4", "4"));
    }

    #[test]
    fn pairs_labels_and_choices_show_which_is_better() {
        let said =
            |completion: &str| Box::new(Example::Completion { prompt: "2+2=".into(), completion: completion.into() });
        let pair = row(&Example::Preference { chosen: said("4"), rejected: said("5") });
        assert_eq!((pair.text.as_str(), pair.supervised.as_str()), ("chosen: 2+2=4\nrejected: 2+2=5", "4"));
        let bad = row(&Example::Labelled { example: said("5"), good: false });
        assert_eq!(bad.text, "bad: 2+2=5");
        let choices = vec!["3".into(), "4".into()];
        let choice = row(&Example::Choice { question: "2+2?".into(), choices, answer: 1 });
        assert_eq!((choice.text.as_str(), choice.supervised.as_str()), ("2+2?\nA. 3\nB. 4", "4"));
    }

    #[test]
    fn a_long_row_is_cut_and_says_so() {
        let shown = row(&Example::Text("ä".repeat(LONGEST + 7)));
        assert!(shown.text.ends_with("ä ... (7 characters more)"), "{}", shown.text);
    }
}
