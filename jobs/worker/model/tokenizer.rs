//! From text to tokens and back, and what belongs to it: special tokens and the chat template.

mod pieces;

use std::path::Path;

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::model::PRE_TOKENIZERS;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::config::OneOrMany;
use super::hf::{read_json, read_text};
use crate::ending::{OrFail, Result, failed};

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
    pub(crate) fn new(json: String, mut config: Map<String, Value>, chat_template: Option<String>) -> Result<Self> {
        let mut tokenizer = parsed(&json)?;
        // Some files carry the cutting and padding of the day they were saved; rows are cut here, and never padded.
        tokenizer.with_truncation(None).or_fail(BadModel, "tokenizer.json")?;
        tokenizer.with_padding(None);
        let [bos, eos, pad] = ["bos_token", "eos_token", "pad_token"].map(|name| special(&config, name));
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
    /// fault yet: the tokenizer of a family often knows tokens that its smaller models lack.
    pub(super) fn limit(&mut self, rows: usize) {
        self.rows = rows;
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

    /// Tokens that there are, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The tokens of a text. `special`: with the beginning (and end) that the tokenizer adds by itself, but never with
    /// two where the text has its own.
    pub fn encode(&self, text: &str, special: bool) -> Result<Tokens> {
        let encoding = self.tokenizer.encode(text, special).or_fail(BadModel, "the tokenizer refuses a text")?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(at) = ids.iter().position(|id| *id as usize >= self.rows) {
            let (token, id, rows) = (&encoding.get_tokens()[at], ids[at], self.rows);
            let message =
                format!("the tokenizer makes token {id}, `{token}`, of a text; the model's vocabulary has {rows}");
            let failure = drydock_spec::Failure::new(BadModel, message);
            return Err(failure.with_hint("take the tokenizer files that belong to the model").into());
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
        self.tokenizer.decode(ids, skip_special).or_fail(BadModel, "the tokenizer cannot write its own tokens")
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.tokenizer.token_to_id(self.bos.as_deref()?)
    }

    /// The token that `tokenizer_config.json` calls by this name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.tokenizer.token_to_id(&special(&self.tokenizer_config, name)?)
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
    match std::panic::catch_unwind(|| json.parse::<Tokenizer>()) {
        Ok(tokenizer) => tokenizer.or_fail(BadModel, "tokenizer.json"),
        Err(_) => failed(BadModel, "tokenizer.json describes no tokenizer that can be made"),
    }
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

/// A tokenizer as a GGUF's metadata has it.
pub(super) struct GgufTokenizer {
    pub method: Method,
    pub tokens: Vec<String>,
    /// llama.cpp's kinds: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub kinds: Vec<u64>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub pad: Option<u32>,
    pub unknown: Option<u32>,
    pub add_bos: Option<bool>,
    pub chat_template: Option<String>,
}

/// How text becomes tokens.
pub(super) enum Method {
    /// Bytes are merged, in text that was cut before by the rules that llama.cpp calls so.
    Bytes { pre_tokenizer: String, merges: Vec<String> },
    /// SentencePiece: characters are merged by the scores of what they make.
    Pieces { scores: Vec<f32>, space_prefix: bool },
}

/// The patterns of Llama 3 and Qwen 2 differ in how many digits go together.
fn split_pattern(digits: &str) -> String {
    format!(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*\
         |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    )
}

/// How text is cut before merging, as `tokenizer.json` says it, by the name that llama.cpp gave it.
pub fn pre_tokenizer(name: &str) -> Option<Value> {
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let after = |first: Value, regex: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(regex)]});
    let split = |digits: &str| {
        let pattern = json!({"Regex": split_pattern(digits)});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    match name {
        "smollm" => Some(after(json!({"type": "Digits", "individual_digits": true}), true)),
        "gpt-2" | "default" => Some(bytes(true)),
        "llama-bpe" => Some(after(split("\\p{N}{1,3}"), false)),
        "qwen2" => Some(after(split("\\p{N}"), false)),
        _ => None,
    }
}

/// The same, or its refusal.
fn known_pre_tokenizer(name: &str) -> Result<Value> {
    if let Some(known) = pre_tokenizer(name) {
        return Ok(known);
    }
    let known = PRE_TOKENIZERS.join(", ");
    let message = format!("the GGUF's pre-tokenizer is `{name}`; known are: {known}");
    let failure = drydock_spec::Failure::new(UnsupportedModel, message);
    Err(failure.with_hint("put the model's tokenizer.json beside the .gguf file").into())
}

impl GgufTokenizer {
    /// The same as Hugging Face's files, then read like those.
    pub(super) fn build(self) -> Result<Text> {
        if self.kinds.len() != self.tokens.len() {
            let (tokens, kinds) = (self.tokens.len(), self.kinds.len());
            return failed(BadModel, format!("the GGUF's tokenizer has {tokens} tokens and {kinds} token types"));
        }
        let token = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize)).cloned();
        let mut json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "post_processor": self.post_processor(),
        });
        match &self.method {
            Method::Bytes { pre_tokenizer, merges } => {
                json["normalizer"] = if pre_tokenizer == "qwen2" { json!({"type": "NFC"}) } else { Value::Null };
                json["pre_tokenizer"] = known_pre_tokenizer(pre_tokenizer)?;
                json["decoder"] =
                    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
                json["model"] = self.byte_model(merges, pre_tokenizer == "llama-bpe")?;
            }
            Method::Pieces { scores, space_prefix } => {
                if scores.len() != self.tokens.len() {
                    let (tokens, scores) = (self.tokens.len(), scores.len());
                    return failed(BadModel, format!("the GGUF's tokenizer has {tokens} tokens and {scores} scores"));
                }
                let unknown = token(self.unknown);
                let parts = pieces::parts(&self.tokens, &self.kinds, scores, unknown.as_deref(), *space_prefix);
                json["normalizer"] = parts.normalizer;
                json["decoder"] = parts.decoder;
                json["model"] = parts.model;
            }
        }
        let mut config = Map::new();
        for (name, id) in
            [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad), ("unk_token", self.unknown)]
        {
            if let Some(token) = token(id) {
                config.insert(name.into(), token.into());
            }
        }
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        let mut text = Text::new(json.to_string(), config, self.chat_template)?;
        text.also_stop_at(self.eot);
        Ok(text)
    }

    fn byte_model(&self, merges: &[String], ignore_merges: bool) -> Result<Value> {
        let vocabulary = self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into()));
        let merges = merges.iter().map(|merge| merge.split_once(' ')).collect::<Option<Vec<_>>>();
        Ok(json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": ignore_merges,
            "vocab": vocabulary.collect::<Map<String, Value>>(),
            "merges": merges.ok_or("a merge is not two tokens").or_fail(BadModel, "GGUF tokenizer")?,
        }))
    }

    fn added_tokens(&self) -> Vec<Value> {
        let added = self.tokens.iter().zip(&self.kinds).enumerate().filter(|(_, (_, kind))| matches!(kind, 2..=4));
        // SentencePiece finds what users have defined in the text as it cuts it, with its own sign for spaces.
        let cut_text = matches!(self.method, Method::Pieces { space_prefix: false, .. });
        added
            .map(|(id, (content, kind))| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": cut_text && *kind == 4, "special": *kind != 4})
            })
            .collect()
    }

    /// Puts the beginning-of-text token before every text, where the model wants that; files of Llama 3 and of
    /// SentencePiece often do not say so and mean it.
    fn post_processor(&self) -> Value {
        let wanted = self.add_bos.unwrap_or(match &self.method {
            Method::Bytes { pre_tokenizer, .. } => pre_tokenizer == "llama-bpe",
            Method::Pieces { .. } => true,
        });
        let Some((id, token)) = self.bos.filter(|_| wanted).and_then(|id| Some((id, self.tokens.get(id as usize)?)))
        else {
            return Value::Null;
        };
        let bos = |kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let sequence = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
        let mut special = Map::new();
        special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        json!({
            "type": "TemplateProcessing",
            "single": [bos(0), sequence("A", 0)],
            "pair": [bos(0), sequence("A", 0), bos(1), sequence("B", 1)],
            "special_tokens": special,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::Ending;

    /// Bytes, `<s>` and `</s>`, and one merge.
    fn parts(pre_tokenizer: &str) -> GgufTokenizer {
        let mut tokens: Vec<String> = ["<s>", "</s>", "a", "b", "1", "2", "Ġ", "ab"].map(str::to_owned).to_vec();
        tokens.push("Ġa".into());
        let merges = vec!["a b".into(), "Ġ a".into()];
        GgufTokenizer {
            method: Method::Bytes { pre_tokenizer: pre_tokenizer.into(), merges },
            kinds: vec![3, 3, 1, 1, 1, 1, 1, 1, 1],
            tokens,
            bos: Some(0),
            eos: Some(1),
            eot: None,
            pad: None,
            unknown: None,
            add_bos: Some(true),
            chat_template: None,
        }
    }

    #[test]
    fn a_tokenizer_is_rebuilt_with_its_special_tokens() {
        let text = parts("smollm").build().unwrap();
        let tokens = text.encode("ab a12</s>", false).unwrap();
        assert_eq!(tokens.ids, [7, 8, 4, 5, 1]);
        assert_eq!(tokens.starts, [0, 2, 4, 5, 6]);
        assert_eq!(text.decode(&tokens.ids, true).unwrap(), "ab a12");
        assert_eq!((text.stops.as_slice(), text.tokenizer_config["pad_token"].as_str()), (&[1][..], Some("</s>")));
    }

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
    fn a_text_begins_once() {
        let text = parts("gpt-2").build().unwrap();
        assert_eq!(text.encode("ab", true).unwrap().ids, [0, 7]);
        assert_eq!(text.encode("<s>ab", true).unwrap().ids, [0, 7]);
        assert_eq!(text.encode("ab", false).unwrap().ids, [7]);
    }

    #[test]
    fn every_known_pre_tokenizer_builds_and_an_unknown_one_is_named() {
        for known in PRE_TOKENIZERS {
            assert_eq!(parts(known).build().unwrap().encode("ab", false).unwrap().ids, [7], "{known}");
        }
        let Err(Ending::Failed(failure)) = parts("tekken").build().map(|_| ()) else { panic!("it is accepted") };
        assert_eq!(failure.kind, UnsupportedModel);
        assert!(failure.message.starts_with("the GGUF's pre-tokenizer is `tekken`; known are: smollm"), "{failure}");
    }
}
