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
    let (text, supervised) = match example {
        Example::Chat(turns) => {
            let all: Vec<_> = turns.iter().map(turn).collect();
            let learnt = turns.iter().filter(|turn| turn.role == Role::Assistant).map(|turn| turn.content.as_str());
            (all.join("\n"), learnt.collect::<Vec<_>>().join("\n"))
        }
        Example::Completion { prompt, completion } => (format!("{prompt}{completion}"), completion.clone()),
        Example::Text(text) => (text.clone(), text.clone()),
    };
    RenderedRow { text: cut(text), supervised: cut(supervised), tokens: None, supervised_tokens: None }
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
    fn a_long_row_is_cut_and_says_so() {
        let shown = row(&Example::Text("ä".repeat(LONGEST + 7)));
        assert!(shown.text.ends_with("ä ... (7 characters more)"), "{}", shown.text);
    }
}
