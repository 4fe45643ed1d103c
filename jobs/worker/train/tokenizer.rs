//! A tokenizer learnt from the data: byte-level BPE (Sennrich et al. 2016), as GPT-2 has it.

use std::collections::HashSet;

use drydock_spec::FailureKind::{BadDataset, Crashed};
use serde_json::{Map, Value, json};
use tokenizers::decoders::byte_level::ByteLevel as Decoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::ending::{OrFail, Result, failed};
use crate::model::tokenizer::Text;

/// The end of a text; the only token that is not made of bytes.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Learns at most `vocabulary` tokens: the 256 bytes, [`END_OF_TEXT`], and the pairs that are met most often, at least
/// twice. Any text can be said with them. `length` is the longest row that the model will take, in tokens.
pub fn learn<'a>(texts: impl Iterator<Item = &'a str> + Send, vocabulary: usize, length: u32) -> Result<Text> {
    let bytes: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    if vocabulary <= bytes.len() {
        let message = format!("vocab_size = {vocabulary}: the {} bytes and the end of text take more", bytes.len());
        return failed(BadDataset, message);
    }
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(bytes)
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    // No space is put before a text: what goes in comes out again.
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(Decoder::new(false, true, true)));
    // Paragraphs rather than whole texts: no token reaches across an empty line anyway, and none is held twice.
    let paragraphs = texts.flat_map(|text| text.split_inclusive("\n\n"));
    let learnt = tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), paragraphs);
    learnt.or_fail(BadDataset, "no tokenizer could be learnt from the texts")?;
    let json = tokenizer.to_string(false).or_fail(Crashed, "tokenizer.json")?;
    Text::new(json, config(length), None)
}

/// `tokenizer_config.json`, as AutoTokenizer reads it.
fn config(length: u32) -> Map<String, Value> {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
    });
    match config {
        Value::Object(config) => config,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(vocabulary: usize) -> Text {
        let text = "the cat sat on the mat; the rat sat on the cat\n\n".repeat(20);
        learn([text.as_str()].into_iter(), vocabulary, 64).unwrap()
    }

    #[test]
    fn what_is_met_often_becomes_one_token_and_anything_can_be_said() {
        let text = learnt(300);
        let ids = |said: &str| text.encode(said, false).unwrap().ids;
        assert_eq!(ids(" the").len(), 1);
        for said in ["the cat sat", "Größe 7 µm — 水\n\n\tend ", ""] {
            assert_eq!(text.decode(&ids(said), false).unwrap(), said);
        }
        assert_eq!(text.stops, ids(END_OF_TEXT));
        assert_eq!(text.stops, [0]);
    }

    #[test]
    fn the_same_texts_give_the_same_tokenizer() {
        assert_eq!(learnt(300).tokenizer_json, learnt(300).tokenizer_json);
    }

    #[test]
    fn fewer_tokens_than_bytes_are_refused() {
        assert!(learn(["a"].into_iter(), 200, 64).is_err());
    }
}
