//! A tokenizer as GGUF's metadata, under the keys that llama.cpp reads.
//!
//! Two kinds of tokenizers can be said so that the same text gives the same tokens: byte-level BPE whose cutting of text
//! into words has a name in llama.cpp, and SentencePiece's BPE ([`pieces`]).

use std::collections::{BTreeMap, BTreeSet};

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::model::PRE_TOKENIZERS;
use serde_json::Value as Json;

use super::pieces;
use crate::ending::{OrFail, Result, failed};
use crate::gguf::{Metadata, Value};
use crate::model::config::Config;
use crate::model::tokenizer::Text;
use crate::model::tokenizer::gguf::pre_tokenizer;

/// llama.cpp's kinds of tokens.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// Adds what the metadata has to say about tokens, special ones and the chat template.
pub fn describe(text: &Text, config: &Config, metadata: &mut Metadata) -> Result<()> {
    let json: Json = serde_json::from_str(&text.tokenizer_json).or_fail(BadModel, "tokenizer.json")?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        let kind = model["type"].as_str().unwrap_or("(none)");
        let message = format!("the tokenizer is of the kind {kind}; only BPE is written into GGUF files");
        return failed(UnsupportedModel, message);
    }
    let tokens = Tokens::of(&json, config.vocabulary)?;
    if model["byte_fallback"] == true {
        let tokens = tokens.with_bytes(model);
        let joined = tokens.texts.iter().zip(&tokens.kinds).filter(|(_, kind)| **kind == kind::NORMAL);
        let joined: BTreeSet<&str> = joined.map(|(text, _)| text.as_str()).collect();
        metadata.set("tokenizer.ggml.model", Value::text("llama"));
        metadata.set("tokenizer.ggml.pre", Value::text("default"));
        let space_prefix = pieces::space_prefix(&json)?;
        let scores = pieces::scores(&tokens.texts, &merges(model)?, &joined)?;
        metadata.set("tokenizer.ggml.scores", Value::f32s(scores));
        metadata.set("tokenizer.ggml.add_space_prefix", Value::Bool(space_prefix));
        tokens.describe(metadata);
    } else {
        metadata.set("tokenizer.ggml.model", Value::text("gpt2"));
        metadata.set("tokenizer.ggml.pre", Value::text(name_of_pre_tokenizer(&json)?));
        metadata.set("tokenizer.ggml.merges", Value::texts(merges(model)?));
        tokens.describe(metadata);
    }
    special_ids(text, config, metadata);
    if let Some(template) = &text.chat_template {
        metadata.set("tokenizer.chat_template", Value::text(template));
    }
    Ok(())
}

fn special_ids(text: &Text, config: &Config, metadata: &mut Metadata) {
    let id = |name: &str| text.special_id(name);
    let eos = id("eos_token").or(config.eos.first().copied());
    let ids = [
        ("bos", id("bos_token")),
        ("eos", eos),
        ("unknown", id("unk_token")),
        ("padding", id("pad_token")),
        ("eot", end_of_turn(text, eos)),
    ];
    for (name, id) in ids {
        if let Some(id) = id {
            metadata.set(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
        }
    }
    let begins = text.encode("a", true).is_ok_and(|tokens| tokens.ids.first().copied() == text.bos_id());
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(begins && text.bos_id().is_some()));
}

/// What ends an answer where that is not what ends a text. Of several the one that ends turns by its name; llama.cpp
/// finds the others by theirs.
fn end_of_turn(text: &Text, eos: Option<u32>) -> Option<u32> {
    let others = || text.stops.iter().copied().filter(|stop| Some(*stop) != eos);
    others().find(|stop| text.ends_a_turn(*stop)).or_else(|| others().next())
}

/// The vocabulary, token by token.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

impl Tokens {
    fn of(json: &Json, size: usize) -> Result<Self> {
        let mut known: BTreeMap<usize, (String, i32)> = BTreeMap::new();
        let vocabulary = json["model"]["vocab"].as_object().ok_or("no `vocab`").or_fail(BadModel, "tokenizer.json")?;
        for (token, id) in vocabulary {
            known.insert(whole(id)?, (token.clone(), kind::NORMAL));
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let content = added["content"].as_str().unwrap_or_default().to_owned();
            let kind = if added["special"] == true { kind::CONTROL } else { kind::USER_DEFINED };
            let id = whole(&added["id"])?;
            // The tokenizer of a family often knows tokens that its smaller models have no row for, nor any use.
            if id < size {
                known.insert(id, (content, kind));
            }
        }
        if let Some((id, (token, _))) = known.last_key_value().filter(|(id, _)| **id >= size) {
            let message = format!("the tokenizer has token {id}, `{token}`; the model's vocabulary has {size}");
            return failed(BadModel, message);
        }
        // Rows of the embedding without a token need a name all the same.
        let (texts, kinds) =
            (0..size).map(|id| known.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), kind::UNUSED))).unzip();
        Ok(Self { texts, kinds })
    }

    /// Marks the tokens that spell single bytes, `<0x00>` to `<0xFF>`, and the one for what cannot be spelt.
    fn with_bytes(mut self, model: &Json) -> Self {
        let bytes: BTreeSet<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        for (text, kind) in self.texts.iter().zip(&mut self.kinds) {
            if bytes.contains(text) {
                *kind = kind::BYTE;
            } else if model["unk_token"] == text.as_str() {
                *kind = kind::UNKNOWN;
            }
        }
        self
    }

    fn describe(self, metadata: &mut Metadata) {
        metadata.set("tokenizer.ggml.tokens", Value::texts(self.texts));
        metadata.set("tokenizer.ggml.token_type", Value::i32s(self.kinds));
    }
}

fn whole(id: &Json) -> Result<usize> {
    let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
    id.ok_or("a token without a number").or_fail(BadModel, "tokenizer.json")
}

/// Merges are written as `a b`, or as lists of two.
fn merges(model: &Json) -> Result<Vec<String>> {
    let merges = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merge = |merge: &Json| match merge {
        Json::String(merge) => Some(merge.clone()),
        Json::Array(two) => match &two[..] {
            [Json::String(a), Json::String(b)] => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    let merges: Option<Vec<String>> = merges.iter().map(merge).collect();
    merges.ok_or("a merge is not two tokens").or_fail(BadModel, "tokenizer.json")
}

/// llama.cpp's name for how text is cut before merging.
fn name_of_pre_tokenizer(json: &Json) -> Result<&'static str> {
    let found = cuts(&json["pre_tokenizer"]);
    let normalizes = is_normalized(json)?;
    let fits = |name: &&&'static str| {
        pre_tokenizer(name).is_some_and(|known| cuts(&known) == found) && normalizes == (**name == "qwen2")
    };
    match PRE_TOKENIZERS.iter().find(fits) {
        Some(name) => Ok(name),
        None => {
            let known = PRE_TOKENIZERS.join(", ");
            let message = format!("the tokenizer cuts text as none of these does, which GGUF has names for: {known}");
            failed(UnsupportedModel, message)
        }
    }
}

/// Whether text is brought into Unicode's form NFC before it is cut. Any other change has no name in GGUF.
fn is_normalized(json: &Json) -> Result<bool> {
    let steps = pieces::steps(&json["normalizer"], "normalizers");
    let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
    match kinds.iter().find(|kind| **kind != "NFC") {
        None => Ok(!kinds.is_empty()),
        Some(other) => {
            let message = format!("the tokenizer normalizes text by `{other}`; GGUF has a name for NFC only");
            failed(UnsupportedModel, message)
        }
    }
}

/// The steps of a pre-tokenizer, as far as they decide where text is cut.
fn cuts(pre_tokenizer: &Json) -> Vec<(String, Json, bool, bool)> {
    let one = std::slice::from_ref(pre_tokenizer);
    let steps = pre_tokenizer["pretokenizers"].as_array().map_or(one, Vec::as_slice);
    let step = |step: &Json| {
        let kind = step["type"].as_str().unwrap_or_default().to_owned();
        let flag = |name: &str, default: bool| step[name].as_bool().unwrap_or(default);
        match kind.as_str() {
            "ByteLevel" => (kind, Json::Null, flag("add_prefix_space", true), flag("use_regex", true)),
            "Digits" => (kind, Json::Null, flag("individual_digits", false), false),
            _ => (kind, step["pattern"].clone(), flag("invert", false), step["behavior"] == "Isolated"),
        }
    };
    steps.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    /// Single bytes of ASCII letters and tokens that end something.
    fn text(normalizer: &Json) -> Text {
        let token = |(id, content): (u32, &str)| {
            json!({"id": id, "content": content, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        };
        let added: Vec<Json> = (3..).zip(["</s>", "<|assistant|>", "<|end|>"]).map(token).collect();
        let json = json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}});
        let config = Map::from_iter([("eos_token".to_owned(), json!("</s>"))]);
        let mut text = Text::new(json.to_string(), config, None).unwrap();
        text.also_stop_at([4, 5]);
        text
    }

    fn described(normalizer: &Json) -> Result<Metadata> {
        let config = Config::from_hf(&json!({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 8, "max_position_embeddings": 256}));
        let mut metadata = Metadata::default();
        describe(&text(normalizer), &config.unwrap(), &mut metadata)?;
        Ok(metadata)
    }

    #[test]
    fn of_several_ends_the_one_of_a_turn_is_written() {
        let metadata = described(&Json::Null).unwrap();
        let id = |name: &str| metadata.count(&format!("tokenizer.ggml.{name}_token_id"));
        assert_eq!((id("eos"), id("eot"), id("bos")), (Some(3), Some(5), None));
    }

    #[test]
    fn what_is_done_to_text_before_it_is_cut_is_written_or_refused() {
        let pre =
            |normalizer: Json| described(&normalizer).map(|found| found.text("tokenizer.ggml.pre").map(str::to_owned));
        assert_eq!(pre(json!({"type": "Sequence", "normalizers": []})).unwrap().as_deref(), Some("gpt-2"));
        let lower = pre(json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}));
        assert!(format!("{lower:?}").contains("normalizes text by `Lowercase`"), "{lower:?}");
        let composed = pre(json!({"type": "NFC"}));
        assert!(format!("{composed:?}").contains("cuts text as none of these does"), "{composed:?}");
    }
}
