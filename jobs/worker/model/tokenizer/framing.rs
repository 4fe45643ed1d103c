//! What a tokenizer puts around every text by itself.

use drydock_spec::FailureKind::BadModel;
use serde_json::{Map, Value, json};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::ending::{OrFail, Result};

/// The part of a `tokenizer.json` that puts these tokens, each with its id, before and behind every text.
pub(super) fn post_processor(begin: Option<(&str, u32)>, end: Option<(&str, u32)>) -> Value {
    if begin.is_none() && end.is_none() {
        return Value::Null;
    }
    let token = |around: Option<(&str, u32)>, kind: u8| {
        around.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": kind}}))
    };
    let framed = |name: &str, kind: u8| {
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        token(begin, kind).into_iter().chain([text]).chain(token(end, kind)).collect::<Vec<_>>()
    };
    let special: Map<String, Value> = begin
        .into_iter()
        .chain(end)
        .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [framed("A", 0), framed("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": pair,
        "special_tokens": special,
    })
}

/// Gives `add_bos_token` and `add_eos_token` of `tokenizer_config.json` the last word, as Transformers 5 does; what they
/// leave open stays as `tokenizer.json` has it.
pub(super) fn frame(
    tokenizer: &mut Tokenizer,
    config: &Map<String, Value>,
    bos: Option<&str>,
    eos: Option<&str>,
) -> Result<()> {
    let asked = ["add_bos_token", "add_eos_token"].map(|name| config.get(name).and_then(Value::as_bool));
    if asked == [None, None] {
        return Ok(());
    }
    let ids = tokenizer.encode("a", true).or_fail(BadModel, "the tokenizer refuses a text")?.get_ids().to_vec();
    let [begin, end] = [bos, eos].map(|token| token.and_then(|token| Some((token, tokenizer.token_to_id(token)?))));
    let around = [(begin, ids.first()), (end, ids.last())];
    let is = around.map(|(token, id)| token.is_some() && token.map(|(_, id)| id) == id.copied());
    let wanted = [0, 1].map(|side| around[side].0.is_some() && asked[side].unwrap_or(is[side]));
    if wanted == is {
        return Ok(());
    }
    let part = post_processor(begin.filter(|_| wanted[0]), end.filter(|_| wanted[1]));
    let part: Option<PostProcessorWrapper> = serde_json::from_value(part).or_fail(BadModel, "tokenizer.json")?;
    tokenizer.with_post_processor(part);
    Ok(())
}
