//! How questions are put: through the model's chat template, or plainly as text, after solved rows.
//!
//! Plainly, the parts of a chat's turns are joined by empty lines and its answer begins on a new line; a completion
//! follows its prompt as it stands; a choice follows its question after a space. An empty line parts solved rows. In a
//! chat, solved rows are turns.

use drydock_spec::FailureKind::BadDataset;
use drydock_spec::dataset::{Message, Role};

use super::rows::{Asked, Question, Rows};
use crate::data::render::{Rendered, Renderer};
use crate::data::rows::check_ids;
use crate::ending::{OrFail, Result, failed};
use crate::model::tokenizer::Text;

/// What parts solved rows in a plain prompt.
pub const BETWEEN_ROWS: &str = "\n\n";

/// Puts questions to one model.
pub struct Prompter<'a> {
    pub renderer: &'a Renderer,
    pub text: &'a Text,
    /// Whether questions are put as chats.
    pub chat: bool,
    /// Tokens that a question and its answer may have.
    pub window: usize,
    /// Tokens that the model has an embedding for.
    pub vocabulary: usize,
}

/// Tokens, perhaps without those that there was no room for.
pub struct Fitted {
    pub ids: Vec<u32>,
    pub cut: bool,
}

impl Prompter<'_> {
    /// A measured row's question after its solved rows.
    pub fn rendered(&self, rows: &Rows, index: usize, question: &Question) -> Result<Rendered> {
        let shots = rows.shots(index);
        if self.chat {
            let turns = chat(&question.asked, &shots);
            return self.renderer.chat_question(&turns).or_fail(BadDataset, &rows.measured[index].place);
        }
        let mut text = String::new();
        for shot in shots {
            let (asked, answer) = (plain(&shot.asked), &shot.accepted[0]);
            text.extend([asked.as_str(), delimiter(&shot.asked), answer, BETWEEN_ROWS]);
        }
        text.push_str(&plain(&question.asked));
        Ok(Rendered { text, learnt: Vec::new(), special: true })
    }

    /// What stands between a question and a choice.
    pub fn before_choice(&self) -> &'static str {
        if self.chat { "" } else { " " }
    }

    /// The tokens of a question that leave room for so many more; those on the left are given up first.
    pub fn fitted(&self, rendered: &Rendered, room: usize, place: &str) -> Result<Fitted> {
        let mut ids = self.text.encode_prompt(&rendered.text, rendered.special)?.ids;
        check_ids(&ids, self.vocabulary)?;
        if ids.is_empty() {
            return failed(BadDataset, format!("{place}: the question has no tokens"));
        }
        let most = self.window.saturating_sub(room).max(1);
        let cut = ids.len() > most;
        if cut {
            ids.drain(..ids.len() - most);
        }
        Ok(Fitted { ids, cut })
    }
}

/// The question's own instructions, the solved rows as turns, and the question's other turns.
fn chat(asked: &Asked, shots: &[&Question]) -> Vec<Message> {
    let (instructions, others): (Vec<_>, Vec<_>) = turns(asked).into_iter().partition(is_system);
    let solved = shots.iter().flat_map(|shot| {
        let answer = Message { role: Role::Assistant, content: shot.accepted[0].clone() };
        turns(&shot.asked).into_iter().filter(|turn| !is_system(turn)).chain([answer])
    });
    instructions.into_iter().chain(solved).chain(others).collect()
}

fn is_system(turn: &Message) -> bool {
    turn.role == Role::System
}

fn turns(asked: &Asked) -> Vec<Message> {
    match asked {
        Asked::Turns(turns) => turns.clone(),
        Asked::Prompt(text) | Asked::Choice(text) => vec![Message { role: Role::User, content: text.clone() }],
    }
}

/// A question without the delimiter that its answer follows; a chat's belongs to it, as it is never part of a word.
fn plain(asked: &Asked) -> String {
    match asked {
        Asked::Turns(turns) => {
            let parts: Vec<&str> = turns.iter().map(|turn| turn.content.as_str()).collect();
            parts.join("\n\n") + "\n"
        }
        Asked::Prompt(text) | Asked::Choice(text) => text.clone(),
    }
}

fn delimiter(asked: &Asked) -> &'static str {
    match asked {
        Asked::Turns(_) | Asked::Prompt(_) => "",
        Asked::Choice(_) => " ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[test]
    fn solved_rows_are_turns_of_a_chat_under_the_questions_own_instructions() {
        let ask = |text: &str| Asked::Turns(vec![turn(Role::System, "Be brief."), turn(Role::User, text)]);
        let shot = Question { asked: ask("1+1"), accepted: vec!["2".into(), "two".into()] };
        let want = [
            turn(Role::System, "Be brief."),
            turn(Role::User, "1+1"),
            turn(Role::Assistant, "2"),
            turn(Role::User, "2+2"),
        ];
        assert_eq!(chat(&ask("2+2"), &[&shot]), want);
    }

    #[test]
    fn plain_questions_are_joined_as_their_kind_asks() {
        let chat = Asked::Turns(vec![turn(Role::User, "C\n\nQ")]);
        assert_eq!((plain(&chat).as_str(), delimiter(&chat)), ("C\n\nQ\n", ""));
        let choice = Asked::Choice("Q?".into());
        assert_eq!((plain(&choice).as_str(), delimiter(&choice)), ("Q?", " "));
    }
}
