//! From text to tokens and back, and what belongs to it: special tokens and the chat template.

mod framing;
pub mod gguf;
mod pieces;

use std::path::Path;

use drydock_spec::FailureKind::BadModel;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::config::OneOrMany;
use super::hf::{read_json, read_text};
use crate::ending::{OrFail, Result};
use crate::foreign;

/// Tokens that end a turn of a chat, by the names that models of the known architectures give them.
pub const ENDS_OF_TURNS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// How a model reads and writes.
pub struct Text {
    tokenizer: Tokenizer,
    /// `tokenizer.json`, as it is handed on with an adapter.
    pub tokenizer_json: String,
    /// `tokenizer_config.json`, the same.
    pub tokenizer_config: Map<String, Value>,
    /// Jinja source that makes one text of a chat.
    pub chat_template: Option<String>,
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
    /// Rows of the model's embedding, which a tokenizer's files know nothing of; unlimited before there is a model.
    rows: usize,
}

/// A text in tokens.
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Byte at which each token begins in the text.
    pub starts: Vec<usize>,
    /// Whether the text began twice, and one of its beginnings was left out.
    pub began_twice: bool,
}

impl Text {
    /// From the files of a Hugging Face folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let json = read_text(&path)?;
        let optional = |name: &str| {
            let path = folder.join(name);
            if path.exists() { read_json(&path) } else { Ok(Value::Null) }
        };
        let config = match optional("tokenizer_config.json")? {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        let jinja = folder.join("chat_template.jinja");
        let template = if jinja.exists() { Some(read_text(&jinja)?) } else { chat_template(&config) };
        let mut text = Self::new(json, config, template)?;
        if let Some(stops) = optional("generation_config.json")?.get("eos_token_id") {
            let stops: Option<OneOrMany> = serde_json::from_value(stops.clone()).ok();
            text.also_stop_at(stops.map(Vec::from).unwrap_or_default());
        }
        Ok(text)
    }

    /// From the contents of `tokenizer.json` and `tokenizer_config.json`.
    pub fn new(json: String, mut config: Map<String, Value>, chat_template: Option<String>) -> Result<Self> {
        let mut tokenizer = parsed(&json)?;
        // Some files carry the cutting and padding of the day they were saved; rows are cut here, and never padded.
        tokenizer.with_truncation(None).or_fail(BadModel, "tokenizer.json")?;
        tokenizer.with_padding(None);
        let [bos, eos, pad] = ["bos_token", "eos_token", "pad_token"].map(|name| special(&config, name));
        // As a text of several tokens it would be taught, and never be met.
        for (name, token) in [("bos_token", &bos), ("eos_token", &eos)] {
            if let Some(token) = token.as_ref().filter(|token| tokenizer.token_to_id(token).is_none()) {
                return misfit(format!("tokenizer_config.json has the {name} `{token}`, which tokenizer.json lacks"));
            }
        }
        framing::frame(&mut tokenizer, &config, bos.as_deref(), eos.as_deref())?;
        config.entry("tokenizer_class").or_insert_with(|| "PreTrainedTokenizerFast".into());
        if let Some(template) = &chat_template {
            config.insert("chat_template".into(), template.as_str().into());
        }
        let pad = pad.or_else(|| eos.clone());
        if let Some(pad) = &pad {
            config.insert("pad_token".into(), pad.as_str().into());
        }
        let mut text = Self {
            tokenizer,
            tokenizer_json: json,
            tokenizer_config: config,
            chat_template,
            bos,
            eos,
            stops: Vec::new(),
            rows: usize::MAX,
        };
        let eos = text.eos.as_deref().and_then(|eos| text.tokenizer.token_to_id(eos));
        text.also_stop_at(eos);
        Ok(text)
    }

    /// Refuses texts from now on that have a token without a row in the model's embedding. That such tokens exist is no
    /// fault yet: the tokenizer of a family often knows tokens that its smaller models lack. But one of those that end
    /// texts must be there, if there are any.
    pub fn fit(&mut self, rows: usize) -> Result<()> {
        self.rows = rows;
        match self.stops.first() {
            Some(stop) if self.stops.iter().all(|stop| *stop as usize >= rows) => {
                misfit(format!("texts end with the token {stop}; the model's vocabulary has {rows}"))
            }
            _ => Ok(()),
        }
    }

    /// Adds tokens that end an answer.
    pub fn also_stop_at(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.stops.extend(ids);
        self.stops.sort_unstable();
        self.stops.dedup();
    }

    /// Ends answers with these tokens as well, and texts with the first of them where the tokenizer's files name none.
    pub(super) fn end_with(&mut self, ids: &[u32]) {
        self.also_stop_at(ids.iter().copied());
        if self.eos.is_some() {
            return;
        }
        self.eos = ids.first().and_then(|&id| self.tokenizer.id_to_token(id));
        if let Some(eos) = &self.eos {
            self.tokenizer_config.insert("eos_token".into(), eos.as_str().into());
            self.tokenizer_config.entry("pad_token").or_insert_with(|| eos.as_str().into());
        }
    }

    /// Rows that an embedding for all tokens needs, special ones included: between two of them there may be numbers
    /// that are none.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1)
    }

    /// The tokens of a text. `special`: with the beginning (and end) that the tokenizer adds by itself, but never with
    /// two where the text has its own.
    pub fn encode(&self, text: &str, special: bool) -> Result<Tokens> {
        const REFUSED: &str = "the tokenizer refuses a text";
        let encoding = foreign::contained(|| self.tokenizer.encode(text, special)).or_fail(BadModel, REFUSED)?;
        let encoding = encoding.or_fail(BadModel, REFUSED)?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(at) = ids.iter().position(|id| *id as usize >= self.rows) {
            let (token, id, rows) = (&encoding.get_tokens()[at], ids[at], self.rows);
            return misfit(format!(
                "the tokenizer makes token {id}, `{token}`, of a text; the model's vocabulary has {rows}"
            ));
        }
        let mut starts: Vec<usize> = encoding.get_offsets().iter().map(|offsets| offsets.0).collect();
        let id = |token: &Option<String>| token.as_deref().and_then(|token| self.tokenizer.token_to_id(token));
        let began_twice = matches!((id(&self.bos), &ids[..]), (Some(bos), [a, b, ..]) if (*a, *b) == (bos, bos));
        if began_twice {
            ids.remove(0);
            starts.remove(0);
        }
        if let (Some(eos), [.., before, last]) = (id(&self.eos), &ids[..])
            && (*before, *last) == (eos, eos)
        {
            ids.pop();
            starts.pop();
        }
        Ok(Tokens { ids, starts, began_twice })
    }

    /// The tokens of a text that is to go on: a tokenizer that ends every text would end it before the answer.
    pub fn encode_prompt(&self, text: &str, special: bool) -> Result<Tokens> {
        let mut tokens = self.encode(text, special)?;
        if special && tokens.ids.len() > 1 && tokens.ids.last().is_some_and(|last| self.stops.contains(last)) {
            tokens.ids.pop();
            tokens.starts.pop();
        }
        Ok(tokens)
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        const REFUSED: &str = "the tokenizer cannot write its own tokens";
        let text = foreign::contained(|| self.tokenizer.decode(ids, skip_special)).or_fail(BadModel, REFUSED)?;
        text.or_fail(BadModel, REFUSED)
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.tokenizer.token_to_id(self.bos.as_deref()?)
    }

    /// The token that `tokenizer_config.json` calls by this name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.tokenizer.token_to_id(&special(&self.tokenizer_config, name)?)
    }

    /// Whether this token ends a turn of a chat by its name.
    pub fn ends_a_turn(&self, id: u32) -> bool {
        self.tokenizer.id_to_token(id).is_some_and(|token| ENDS_OF_TURNS.contains(&token.as_str()))
    }

    /// The texts of the tokens that end an answer.
    pub fn stop_texts(&self) -> Vec<String> {
        self.stops.iter().filter_map(|&id| self.tokenizer.id_to_token(id)).collect()
    }

    /// Uses this template from now on, and hands it on.
    pub fn set_chat_template(&mut self, template: &str) {
        self.chat_template = Some(template.to_owned());
        self.tokenizer_config.insert("chat_template".into(), template.into());
    }
}

/// Reads `tokenizer.json`. Its crate unwraps what it has not checked, such as a part that is no JSON to its end; a
/// panic in there is the file's fault, and leaves nothing behind but the file's text.
fn parsed(json: &str) -> Result<Tokenizer> {
    serde_json::from_str::<serde::de::IgnoredAny>(json).or_fail(BadModel, "tokenizer.json")?;
    let tokenizer = foreign::contained(|| json.parse::<Tokenizer>()).or_fail(BadModel, "tokenizer.json")?;
    tokenizer.or_fail(BadModel, "tokenizer.json")
}

/// Files that do not belong together.
fn misfit<T>(message: String) -> Result<T> {
    let failure = drydock_spec::Failure::new(BadModel, message);
    Err(failure.with_hint("take the tokenizer files that belong to the model").into())
}

/// A special token's text: written as it is, or as an object with `content`.
fn special(config: &Map<String, Value>, name: &str) -> Option<String> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The template in `tokenizer_config.json`: one text, or a list of named ones, of which the default is taken.
fn chat_template(config: &Map<String, Value>) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::gguf::GgufTokenizer;
    use super::gguf::tests::parts;
    use super::*;
    use crate::ending::Ending;

    #[test]
    fn a_chat_template_that_cannot_be_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), parts("gpt-2").build().unwrap().tokenizer_json).unwrap();
        let template = folder.path().join("chat_template.jinja");
        std::fs::write(&template, [0xff]).unwrap();
        let refused = || match Text::from_folder(folder.path()) {
            Err(Ending::Failed(failure)) => failure.message,
            _ => panic!("it was taken"),
        };
        assert!(refused().starts_with("cannot read chat_template.jinja"), "{}", refused());
        std::fs::File::create(&template).unwrap().set_len((256 << 20) + 1).unwrap();
        assert!(refused().contains("chat_template.jinja is longer than 256 MiB"), "{}", refused());
    }

    #[test]
    fn a_tokenizer_that_its_crate_cannot_bear_is_the_files_fault() {
        let whole: Value = serde_json::from_str(&parts("smollm").build().unwrap().tokenizer_json).unwrap();
        let message = |json: String| match Text::new(json, Map::new(), None) {
            Err(Ending::Failed(failure)) if failure.kind == BadModel => failure.message,
            _ => panic!("it was taken"),
        };
        let json = whole.to_string();
        assert!(message(json[..json.len() / 2].to_owned()).starts_with("tokenizer.json: EOF while parsing"));
        let mut named = Map::new();
        named.insert("eos_token".into(), "</end>".into());
        let Err(Ending::Failed(failure)) = Text::new(json, named, None) else { panic!("it was taken") };
        assert_eq!(failure.message, "tokenizer_config.json has the eos_token `</end>`, which tokenizer.json lacks");
        assert_eq!(failure.hint, "take the tokenizer files that belong to the model");
    }

    #[test]
    fn numbers_that_no_token_has_need_a_row_all_the_same() {
        let mut json: Value = serde_json::from_str(&parts("gpt-2").build().unwrap().tokenizer_json).unwrap();
        assert_eq!(Text::new(json.to_string(), Map::new(), None).unwrap().vocabulary(), 9);
        json["model"]["vocab"]["c"] = 40.into();
        assert_eq!(Text::new(json.to_string(), Map::new(), None).unwrap().vocabulary(), 41);
    }

    #[test]
    fn a_text_begins_once() {
        let text = parts("gpt-2").build().unwrap();
        assert_eq!(text.encode("ab", true).unwrap().ids, [0, 7]);
        assert_eq!(text.encode("<s>ab", true).unwrap().ids, [0, 7]);
        assert_eq!(text.encode("ab", false).unwrap().ids, [7]);
    }

    #[test]
    fn what_is_put_around_a_text_is_as_the_configuration_asks() {
        let folder = tempfile::tempdir().unwrap();
        let ids = |add_bos: Option<bool>, config: Value| {
            let written = GgufTokenizer { add_bos, ..parts("gpt-2") }.build().unwrap().tokenizer_json;
            std::fs::write(folder.path().join("tokenizer.json"), written).unwrap();
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            Text::from_folder(folder.path()).unwrap().encode("ab", true).unwrap().ids
        };
        let both = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let with = |asked: Value| {
            let mut config = both.clone();
            asked.as_object().unwrap().iter().for_each(|(name, value)| config[name] = value.clone());
            config
        };
        assert_eq!(ids(Some(true), both.clone()), [0, 7]);
        assert_eq!(ids(Some(true), with(json!({"add_bos_token": false}))), [7]);
        assert_eq!(ids(Some(false), with(json!({"add_bos_token": true}))), [0, 7]);
        assert_eq!(ids(Some(true), with(json!({"add_eos_token": true}))), [0, 7, 1]);
        assert_eq!(ids(Some(false), json!({"add_bos_token": true})), [7], "there is no token to begin with");
    }
}
