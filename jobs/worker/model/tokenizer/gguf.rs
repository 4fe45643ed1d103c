//! A tokenizer as GGUF files have it: lists of tokens, merges or scores, and names for what else there is.

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::model::PRE_TOKENIZERS;
use serde_json::{Map, Value, json};

use super::framing::post_processor;
use super::{ENDS_OF_TURNS, Text, pieces};
use crate::ending::{OrFail, Result, failed};

/// Far above what any token has. Every way to cut a piece in two is looked at.
const MAX_TOKEN_BYTES: usize = 1024;

/// A tokenizer as a GGUF's metadata has it.
pub(in crate::model) struct GgufTokenizer {
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
pub(in crate::model) enum Method {
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
    pub(in crate::model) fn build(self) -> Result<Text> {
        if self.kinds.len() != self.tokens.len() {
            let (tokens, kinds) = (self.tokens.len(), self.kinds.len());
            return failed(BadModel, format!("the GGUF's tokenizer has {tokens} tokens and {kinds} token types"));
        }
        if let Some((id, token)) = self.tokens.iter().enumerate().find(|(_, token)| token.len() > MAX_TOKEN_BYTES) {
            let bytes = token.len();
            return failed(
                BadModel,
                format!("the GGUF's token {id} has {bytes} bytes; at most {MAX_TOKEN_BYTES} are read"),
            );
        }
        let named = [("bos", self.bos), ("eos", self.eos), ("eot", self.eot)];
        if let Some((name, Some(id))) =
            named.into_iter().find(|(_, id)| id.is_some_and(|id| id as usize >= self.tokens.len()))
        {
            let tokens = self.tokens.len();
            return failed(
                BadModel,
                format!("GGUF metadata `tokenizer.ggml.{name}_token_id`: {id}; there are {tokens} tokens"),
            );
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
        let ends: Vec<u32> = self.eot.into_iter().chain(self.ends_of_turns()).collect();
        let mut text = Text::new(json.to_string(), config, self.chat_template)?;
        text.also_stop_at(ends);
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
        let bos = self.bos.filter(|_| wanted);
        post_processor(bos.and_then(|id| Some((self.tokens.get(id as usize)?.as_str(), id))), None)
    }

    /// Tokens that end a turn by their names: a file names one or two of its ends, and llama.cpp finds the others so.
    fn ends_of_turns(&self) -> impl Iterator<Item = u32> {
        let kinds = (0..).zip(self.tokens.iter().zip(&self.kinds));
        kinds
            .filter(|(_, (token, kind))| matches!(kind, 3 | 4) && ENDS_OF_TURNS.contains(&token.as_str()))
            .map(|(id, _)| id)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ending::Ending;

    /// Bytes, `<s>` and `</s>`, and one merge.
    pub(in crate::model::tokenizer) fn parts(pre_tokenizer: &str) -> GgufTokenizer {
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
    fn a_token_that_ends_a_turn_by_its_name_ends_answers() {
        let mut turns = parts("smollm");
        turns.tokens.extend(["<|end|>".to_owned(), "<|im_end|>".to_owned()]);
        turns.kinds.extend([3, 1]);
        assert_eq!(turns.build().unwrap().stops, [1, 9], "not what is an ordinary piece of text");
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

    #[test]
    fn a_tokenizer_that_does_not_fit_is_refused() {
        let refused = |change: fn(&mut GgufTokenizer)| {
            let mut parts = parts("gpt-2");
            change(&mut parts);
            match parts.build() {
                Err(Ending::Failed(failure)) if failure.kind == BadModel => failure.message,
                _ => panic!("it was taken"),
            }
        };
        let beyond = refused(|parts| parts.eos = Some(9));
        assert_eq!(beyond, "GGUF metadata `tokenizer.ggml.eos_token_id`: 9; there are 9 tokens");
        assert!(refused(|parts| parts.tokens[4] = "1".repeat(1025)).contains("token 4 has 1025 bytes"));
        assert!(refused(|parts| parts.kinds.truncate(8)).contains("9 tokens and 8 token types"));
        let merges = |merges: &[&str]| Method::Bytes {
            pre_tokenizer: "gpt-2".into(),
            merges: merges.iter().map(|merge| merge.to_string()).collect(),
        };
        let mut unknown = parts("gpt-2");
        unknown.method = merges(&["a z"]);
        assert!(matches!(unknown.build(), Err(Ending::Failed(failure)) if failure.kind == BadModel));
        let mut text = parts("gpt-2").build().unwrap();
        let Err(Ending::Failed(failure)) = text.fit(1) else { panic!("it was taken") };
        assert_eq!(failure.message, "texts end with the token 1; the model's vocabulary has 1");
        assert!(text.encode("ab", false).is_err(), "a token without a row in the embedding");
    }
}
