//! The tokenizer's files of a Hugging Face folder: whether its tokens are those that the model has an embedding for, by
//! the rules that the worker goes by.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Unusable;

/// `tokenizer.json`, as far as its ids go.
#[derive(Debug, Deserialize)]
pub(super) struct Tokenizer {
    model: Vocabulary,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Debug, Deserialize)]
struct Added {
    id: u64,
    #[serde(default)]
    content: String,
}

#[derive(Debug, Deserialize)]
struct Vocabulary {
    vocab: Ids,
}

/// Ids by token, or, in unigram models, tokens in the order of their ids.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    Named(BTreeMap<String, u64>),
    Listed(Vec<(String, IgnoredAny)>),
}

/// Tokens that a tokenizer has been given for which the model has no embedding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensBeyond {
    pub count: u64,
    /// One of them.
    pub such_as: String,
}

const SAME_MODEL: &str = "take tokenizer and weights from the same model";
const RESIZE: &str = "give the model a row for each token (model.resize_token_embeddings(len(tokenizer))) and save both, or take \
                      tokenizer and weights from the same model";

impl Tokenizer {
    pub(super) fn parse(text: &[u8]) -> Result<Self, Unusable> {
        let tokenizer: Self = serde_json::from_slice(text).map_err(|error| {
            let next = "save the fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...)";
            Unusable::damaged(format!("not a tokenizer: {error}"), next)
        })?;
        let empty = tokenizer.added_tokens.is_empty() && tokenizer.model.vocab.largest().is_none();
        match empty {
            true => Err(Unusable::damaged("no token inside", "take the file from the model's own repository")),
            false => Ok(tokenizer),
        }
    }

    /// Refuses a vocabulary that leads beyond the embedding's `rows`: any text could have such a token. Those that were
    /// added to it are no fault yet: the tokenizer of a family often knows tokens that its smaller models lack.
    pub(super) fn beyond(&self, rows: u32) -> Result<Option<TokensBeyond>, Unusable> {
        let rows = u64::from(rows);
        if let Some(largest) = self.model.vocab.largest().filter(|largest| *largest >= rows) {
            let problem = format!("token id {largest} lies beyond the model's vocabulary of {rows}");
            return Err(Unusable::damaged(problem, SAME_MODEL));
        }
        let beyond: Vec<_> = self.added_tokens.iter().filter(|token| token.id >= rows).collect();
        Ok(beyond.first().map(|first| {
            let such_as = first.content.chars().take(60).collect();
            TokensBeyond { count: beyond.len() as u64, such_as }
        }))
    }

    /// Refuses a tokenizer without its own special tokens, and one whose texts can only end with a token that the model has
    /// no embedding for. `config` is `tokenizer_config.json`; `ends` are the ids that the model's other files have for
    /// an end.
    pub(super) fn check_ends(&self, config: &Value, ends: &[u64], rows: u32) -> Result<(), Unusable> {
        for name in ["bos_token", "eos_token"] {
            if let Some(token) = special(config, name).filter(|token| self.id(token).is_none()) {
                let problem = format!("tokenizer_config.json has the {name} `{token}`, which tokenizer.json lacks");
                return Err(Unusable::damaged(problem, "take both files from the same model"));
            }
        }
        let own = special(config, "eos_token").and_then(|token| Some((token, self.id(token)?)));
        let within = |id: u64| id < u64::from(rows);
        match own {
            Some((token, id)) if !within(id) && !ends.iter().any(|end| within(*end)) => {
                let problem = format!("texts end with token {id}, `{token}`; the model's vocabulary has {rows}");
                Err(Unusable::damaged(problem, RESIZE))
            }
            _ => Ok(()),
        }
    }

    fn id(&self, token: &str) -> Option<u64> {
        let added = self.added_tokens.iter().find(|added| added.content == token).map(|added| added.id);
        added.or_else(|| self.model.vocab.id(token))
    }
}

impl Ids {
    fn largest(&self) -> Option<u64> {
        match self {
            Self::Named(ids) => ids.values().max().copied(),
            Self::Listed(tokens) => (tokens.len() as u64).checked_sub(1),
        }
    }

    fn id(&self, token: &str) -> Option<u64> {
        match self {
            Self::Named(ids) => ids.get(token).copied(),
            Self::Listed(tokens) => tokens.iter().position(|(listed, _)| listed == token).map(|id| id as u64),
        }
    }
}

/// A special token's text; it is given as such, or with what else is known of it.
fn special<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// One id or several, as `eos_token_id` has them; nothing of what is neither.
pub(super) fn ids(value: &Value) -> Vec<u64> {
    match value {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        one => one.as_u64().into_iter().collect(),
    }
}

/// A text file as JSON.
pub(super) fn json(text: &[u8]) -> Result<Value, Unusable> {
    serde_json::from_slice(text)
        .map_err(|error| Unusable::damaged(format!("not JSON: {error}"), "download the file again"))
}

/// Whether `tokenizer_config.json` has a chat template; several by name count as well.
pub(super) fn has_chat_template(config: &Value) -> bool {
    config.get("chat_template").is_some_and(|template| !template.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer with this vocabulary and tokens `<0>`, `<1>`, ... added to it under these ids.
    fn tokenizer(vocab: &Value, added: &[u64]) -> Tokenizer {
        let added: Vec<_> =
            added.iter().enumerate().map(|(n, id)| json!({"id": id, "content": format!("<{n}>")})).collect();
        let json = json!({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added});
        Tokenizer::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_vocabulary_that_is_larger_than_the_embedding_is_refused() {
        assert_eq!(tokenizer(&json!({"a": 0, "b": 511}), &[3]).beyond(512), Ok(None));
        assert_eq!(tokenizer(&json!([["a", 0.0], ["b", -1.0]]), &[3]).beyond(512), Ok(None));
        let error = tokenizer(&json!({"a": 512}), &[3]).beyond(512).unwrap_err().to_string();
        assert!(error.starts_with("token id 512 lies beyond the model's vocabulary of 512"), "{error}");
        assert!(tokenizer(&json!([["a", 0.0], ["b", -1.0]]), &[]).beyond(1).is_err());
        assert!(Tokenizer::parse(b"{}").unwrap_err().to_string().contains("not a tokenizer"));
        let empty = Tokenizer::parse(br#"{"model": {"vocab": {}}}"#).unwrap_err().to_string();
        assert!(empty.starts_with("no token inside"), "{empty}");
    }

    #[test]
    fn tokens_that_a_smaller_model_of_the_family_lacks_are_known_and_no_fault() {
        let beyond = tokenizer(&json!({"a": 0}), &[5, 600, 601]).beyond(512).unwrap();
        assert_eq!(beyond, Some(TokensBeyond { count: 2, such_as: "<1>".into() }));
    }

    #[test]
    fn a_text_must_be_able_to_end() {
        let tokenizer = tokenizer(&json!({"a": 0, "</s>": 2}), &[600]);
        let refusal = |eos: Value, ends: &[u64]| {
            let checked = tokenizer.check_ends(&json!({"eos_token": eos}), ends, 512);
            checked.map_err(|error| error.to_string()).err()
        };
        assert_eq!(refusal(json!("</s>"), &[]), None);
        assert_eq!(refusal(json!(null), &[900]), None, "the model's own files are not the tokenizer's fault");
        let error = refusal(json!({"content": "<0>"}), &[900]).unwrap();
        assert!(
            error.starts_with("texts end with token 600, `<0>`; the model's vocabulary has 512; give the"),
            "{error}"
        );
        assert_eq!(refusal(json!("<0>"), &[900, 2]), None, "another end is there");
        let error = refusal(json!("<|im_end|>"), &[]).unwrap();
        assert!(error.contains("the eos_token `<|im_end|>`, which tokenizer.json lacks"), "{error}");
    }
}
