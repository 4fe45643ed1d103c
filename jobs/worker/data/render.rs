//! From examples to text, and which part of the text is learnt.

pub mod template;

use std::ops::Range;

use drydock_spec::dataset::{Example, Message, Role};

use crate::ending::Result;
use crate::model::tokenizer::Text;
use template::ChatTemplate;

/// A text, as it is trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Bytes of the text that count for the loss, in order and apart.
    pub learnt: Vec<Range<usize>>,
    /// Whether the tokenizer puts its own beginning before the text; a chat template writes its own.
    pub special: bool,
}

/// Writes examples the way that a model reads them.
pub struct Renderer {
    template: ChatTemplate,
    /// Texts that end a turn or a text.
    stops: Vec<String>,
    eos: Option<String>,
    /// Whether prompts are learnt as well.
    learn_all: bool,
}

impl Renderer {
    /// For a model whose chat template is known; see [`template::FALLBACK`].
    pub fn new(text: &Text, completion_only_loss: bool) -> Result<Self> {
        let source = text.chat_template.as_deref().unwrap_or(template::FALLBACK);
        let template = ChatTemplate::new(source, [("bos_token", &text.bos), ("eos_token", &text.eos)])?;
        Ok(Self { template, stops: text.stop_texts(), eos: text.eos.clone(), learn_all: !completion_only_loss })
    }

    /// The example's text and what of it counts. The error is about the example alone.
    pub fn render(&self, example: &Example) -> Result<Rendered, String> {
        let mut rendered = match example {
            Example::Chat(messages) => self.chat(messages, 0)?,
            Example::Completion { prompt, completion } => self.completion(prompt, completion),
            Example::Text(text) => {
                let text = self.ended(text.clone());
                Rendered { learnt: alone(0..text.len()), text, special: true }
            }
            Example::Preference { .. } | Example::Labelled { .. } => {
                return Err(
                    "the rows say which answers are better, not what to say; choose objective dpo, orpo or kto".into(),
                );
            }
            Example::Choice { .. } => {
                return Err("the rows are multiple choices, which can be evaluated on but not learnt".into());
            }
        };
        if self.learn_all {
            rendered.learnt = alone(0..rendered.text.len());
        }
        Ok(rendered)
    }

    /// Two answers to the same prompt. Only what comes after the prompt counts: for chats, after the turns that both
    /// have in common.
    pub fn pair(&self, chosen: &Example, rejected: &Example) -> Result<[Rendered; 2], String> {
        let prompt = match (chosen, rejected) {
            (Example::Chat(chosen), Example::Chat(rejected)) => {
                chosen.iter().zip(rejected).take_while(|(chosen, rejected)| chosen == rejected).count()
            }
            _ => 0,
        };
        Ok([self.after_prompt(chosen, prompt)?, self.after_prompt(rejected, prompt)?])
    }

    /// An answer to be judged. Only what comes after the prompt counts: for chats, after the last turn that is not the
    /// assistant's.
    pub fn answer(&self, example: &Example) -> Result<Rendered, String> {
        let prompt = match example {
            Example::Chat(turns) => turns.iter().rposition(|turn| turn.role != Role::Assistant).map_or(0, |at| at + 1),
            _ => 0,
        };
        self.after_prompt(example, prompt)
    }

    fn after_prompt(&self, example: &Example, prompt: usize) -> Result<Rendered, String> {
        match example {
            Example::Chat(messages) => self.chat(messages, prompt),
            Example::Completion { prompt, completion } => Ok(self.completion(prompt, completion)),
            _ => Err("an answer has no prompt; chats, or columns with prompt and answer, are expected".into()),
        }
    }

    fn completion(&self, prompt: &str, completion: &str) -> Rendered {
        let text = self.ended(format!("{prompt}{completion}"));
        Rendered { learnt: alone(prompt.len()..text.len()), text, special: true }
    }

    /// A question, up to where the answer begins. `chat`: through the chat template, as one turn of a user.
    pub fn question(&self, prompt: &str, chat: bool) -> Result<Rendered, String> {
        if chat {
            return self.chat_question(&[Message { role: Role::User, content: prompt.to_owned() }]);
        }
        Ok(Rendered { text: prompt.to_owned(), learnt: Vec::new(), special: true })
    }

    /// Turns of a chat, up to where the assistant answers the last of them.
    pub fn chat_question(&self, turns: &[Message]) -> Result<Rendered, String> {
        Ok(Rendered { text: self.template.render(turns, true)?, learnt: Vec::new(), special: false })
    }

    /// The end-of-text token belongs to what is learnt: without it a model never stops.
    fn ended(&self, mut text: String) -> String {
        if let Some(eos) = &self.eos
            && !text.ends_with(eos.as_str())
        {
            text.push_str(eos);
        }
        text
    }

    /// The whole chat, of which the assistant's turns from `first` on count. Each is found as what the template adds to
    /// the turns before it.
    fn chat(&self, messages: &[Message], first: usize) -> Result<Rendered, String> {
        let text = self.template.render(messages, false)?;
        let mut learnt: Vec<Range<usize>> = Vec::new();
        for (index, message) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let searched = learnt.last().map_or(0, |range| range.end);
            let silent = message.content.trim().is_empty();
            let range = match self.turn_by_prefixes(messages, index, &text) {
                Some(range) if range.start >= searched && (silent || !range.is_empty()) => range,
                _ => self.turn_by_content(&message.content, &text, searched).ok_or_else(|| {
                    let shown: String = message.content.chars().take(60).collect();
                    format!("the chat template does not show the assistant's turn {} (`{shown}`)", index + 1)
                })?,
            };
            learnt.push(range);
        }
        let before = messages[..first.min(messages.len())].iter();
        let learnt = learnt.split_off(before.filter(|message| message.role == Role::Assistant).count());
        Ok(Rendered { text, learnt, special: false })
    }

    /// A turn from behind its header (which a prompt for an answer ends with) to the end of its end-of-turn token.
    fn turn_by_prefixes(&self, messages: &[Message], index: usize, text: &str) -> Option<Range<usize>> {
        let prompt = self.template.render(&messages[..index], true).ok()?;
        let until = self.template.render(&messages[..=index], false).ok()?;
        let turn = until.strip_prefix(prompt.as_str())?;
        if !text.starts_with(&until) {
            return None;
        }
        let end = self.stops.iter().filter_map(|stop| turn.rfind(stop.as_str()).map(|at| at + stop.len())).max();
        Some(prompt.len()..prompt.len() + end.unwrap_or(turn.len()))
    }

    /// The same where a template writes turns differently once others follow: by the turn's own words.
    fn turn_by_content(&self, content: &str, text: &str, searched: usize) -> Option<Range<usize>> {
        let content = content.trim();
        let start = searched + text[searched..].find(content)?;
        let end = start + content.len();
        let stop = self.stops.iter().find(|stop| text[end..].trim_start().starts_with(stop.as_str()));
        let end = stop.map_or(end, |stop| end + text[end..].find(stop.as_str()).unwrap_or(0) + stop.len());
        Some(start..end)
    }
}

/// The only part that counts.
fn alone(range: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(range).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] \
        + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn renderer(template: &str) -> Renderer {
        Renderer {
            template: ChatTemplate::new(template, []).unwrap(),
            stops: vec!["<|im_end|>".into()],
            eos: Some("<|im_end|>".into()),
            learn_all: false,
        }
    }

    fn turn(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    fn learnt(rendered: &Rendered) -> Vec<&str> {
        rendered.learnt.iter().map(|range| &rendered.text[range.clone()]).collect()
    }

    #[test]
    fn an_answer_counts_with_its_end_and_without_its_header() {
        let chat = Example::Chat(vec![
            turn(Role::User, "q1"),
            turn(Role::Assistant, "a1"),
            turn(Role::User, "q2"),
            turn(Role::Assistant, "a2\n"),
        ]);
        let rendered = renderer(CHATML).render(&chat).unwrap();
        assert!(rendered.text.ends_with("<|im_start|>assistant\na2\n<|im_end|>\n"));
        assert_eq!(learnt(&rendered), ["a1<|im_end|>", "a2\n<|im_end|>"]);
        assert!(!rendered.special);
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_still_shows_what_counts() {
        // Only the last turn is written in full, as templates do that drop earlier reasoning.
        let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if loop.last %} (last){% endif %}<|im_end|>{% endfor %}";
        let chat = Example::Chat(vec![turn(Role::Assistant, "a1"), turn(Role::User, "q"), turn(Role::Assistant, "a1")]);
        let rendered = renderer(template).render(&chat).unwrap();
        assert_eq!(learnt(&rendered), ["a1<|im_end|>", "a1"]);
        assert!(rendered.learnt[1].start > rendered.text.find("[user]").unwrap());
    }

    #[test]
    fn of_two_answers_only_what_they_do_not_share_counts() {
        let said = |answer: &str| {
            Example::Chat(vec![
                turn(Role::User, "q1"),
                turn(Role::Assistant, "shared"),
                turn(Role::User, "q2"),
                turn(Role::Assistant, answer),
            ])
        };
        let pair = renderer(CHATML).pair(&said("yes"), &said("no")).unwrap();
        assert_eq!(pair.each_ref().map(learnt), [["yes<|im_end|>"], ["no<|im_end|>"]]);
        assert_eq!(learnt(&renderer(CHATML).answer(&said("yes")).unwrap()), ["yes<|im_end|>"]);
        let same = renderer(CHATML).pair(&said("yes"), &said("yes")).unwrap();
        assert!(same.iter().all(|side| side.learnt.is_empty()), "nothing is better than the same");
        let all = Renderer { learn_all: true, ..renderer(CHATML) };
        let plain = |answer: &str| Example::Completion { prompt: "2+2=".into(), completion: answer.into() };
        let pair = all.pair(&plain("4"), &plain("5")).unwrap();
        assert_eq!(pair.each_ref().map(learnt), [["4<|im_end|>"], ["5<|im_end|>"]], "a prompt is never preferred");
    }

    #[test]
    fn strings_are_joined_as_they_stand_and_ended_once() {
        let renderer = renderer(CHATML);
        let completion = |text: &str| Example::Completion { prompt: "Q: x\nA:".into(), completion: text.into() };
        let rendered = renderer.render(&completion(" y")).unwrap();
        assert_eq!((rendered.text.as_str(), learnt(&rendered)), ("Q: x\nA: y<|im_end|>", vec![" y<|im_end|>"]));
        assert_eq!(renderer.render(&completion(" y<|im_end|>")).unwrap(), rendered);
        let all = Renderer { learn_all: true, ..renderer }.render(&completion(" y")).unwrap();
        assert_eq!(learnt(&all), [all.text.as_str()]);
    }

    proptest! {
        /// Whatever is said: the assistant's words and nothing else count, in their order.
        #[test]
        fn what_counts_is_exactly_what_the_assistant_says(
            turns in prop::collection::vec((0..3usize, "[a-z \\n<>|]{0,12}"), 1..8)
        ) {
            let roles = [Role::System, Role::User, Role::Assistant];
            let messages: Vec<Message> = turns.iter().map(|(role, text)| turn(roles[*role], text)).collect();
            let rendered = renderer(CHATML).render(&Example::Chat(messages.clone())).unwrap();
            let want: Vec<String> = messages
                .iter()
                .filter(|message| message.role == Role::Assistant)
                .map(|message| format!("{}<|im_end|>", message.content))
                .collect();
            prop_assert_eq!(learnt(&rendered), want);
            for range in &rendered.learnt {
                prop_assert!(rendered.text[..range.start].ends_with("<|im_start|>assistant\n"));
            }
        }
    }
}
