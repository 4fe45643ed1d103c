//! SentencePiece's BPE, from Hugging Face's list of merges back to pieces with scores.
//!
//! The file knows in which order pairs are joined; llama.cpp joins the two neighbours that make the piece of the highest
//! score, whichever two these are. Both do the same if, and only if, the merges are ordered by the piece that they make,
//! and no way to make a piece is left out. That holds for every file that was converted from a SentencePiece model, and
//! is checked.
//!
//! What a GGUF cannot say: that only the very first text gets a space before it, and none that has one (Metaspace's
//! scheme `first`, as in later files of Mistral's). llama.cpp puts one before every text between special tokens.

use std::collections::{BTreeMap, BTreeSet};

use drydock_spec::FailureKind::UnsupportedModel;
use serde_json::Value as Json;

use crate::ending::{Result, failed};

/// What stands for a space.
const SPACE: &str = "▁";

/// Refuses what a tokenizer does to a text before cutting it, where it is not what SentencePiece does; says whether a
/// text begins with a space, whether it does or not.
pub(super) fn space_prefix(json: &Json) -> Result<bool> {
    let (mut spaces, mut prefix) = (false, false);
    for step in steps(&json["normalizer"], "normalizers") {
        match step["type"].as_str() {
            None => {}
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => spaces = true,
            Some("Prepend") if step["prepend"] == SPACE => prefix = true,
            Some(other) => return unlike("normalizes text by", other),
        }
    }
    for step in steps(&json["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            None => {}
            Some("Metaspace") if step["replacement"] == SPACE => {
                spaces = true;
                let scheme = step["prepend_scheme"].as_str().unwrap_or("always");
                prefix |= scheme != "never" && step["add_prefix_space"] != false;
            }
            // There are no spaces left to cut at.
            Some("Split") if step["pattern"]["String"] == " " && spaces => {}
            Some(other) => return unlike("cuts text by", other),
        }
    }
    if spaces { Ok(prefix) } else { unlike("leaves spaces as they are:", "no Metaspace") }
}

pub(super) fn steps<'j>(part: &'j Json, list: &str) -> &'j [Json] {
    part[list].as_array().map_or(std::slice::from_ref(part), Vec::as_slice)
}

fn unlike<T>(does: &str, step: &str) -> Result<T> {
    let message = format!("the tokenizer {does} `{step}`; SentencePiece, and with it GGUF, does not");
    failed(UnsupportedModel, message)
}

/// The score of every piece, in the order of `tokens`; `joined` are the pieces that merging may make.
///
/// Scores fall from -1 in the order in which the merges make the pieces; what no merge makes comes after all of them.
pub(super) fn scores(tokens: &[String], merges: &[String], joined: &BTreeSet<&str>) -> Result<Vec<f32>> {
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    let mut pairs: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut last = String::new();
    for (left, right) in merges.iter().filter_map(|merge| merge.split_once(' ')) {
        let piece = format!("{left}{right}");
        pairs.insert((left, right));
        if piece != last {
            let rank = ranks.len() + 1;
            if ranks.insert(piece.clone(), rank).is_some() {
                let message =
                    format!("the tokenizer's merges make `{piece}` early and late; a GGUF has one score for it");
                return failed(UnsupportedModel, message);
            }
            last = piece;
        }
    }
    for piece in joined {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if joined.contains(left) && joined.contains(right) && !pairs.contains(&(left, right)) {
                let message = format!("the tokenizer never joins `{left}` and `{right}`; a GGUF cannot say so");
                return failed(UnsupportedModel, message);
            }
        }
    }
    let after_all = ranks.len() + 1;
    Ok(tokens.iter().map(|token| -(ranks.get(token).copied().unwrap_or(after_all) as f32)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scores_of(tokens: &[&str], merges: &[&str]) -> Result<Vec<f32>> {
        let owned = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        scores(&owned(tokens), &owned(merges), &tokens.iter().copied().collect())
    }

    #[test]
    fn the_piece_that_is_made_first_has_the_highest_score() {
        let found = scores_of(&["a", "b", "ab", "aab", "aa"], &["a b", "aa b", "a ab", "a a"]);
        assert_eq!(found.unwrap(), [-4.0, -4.0, -1.0, -2.0, -3.0]);
    }

    #[test]
    fn merges_that_scores_cannot_say_are_refused() {
        let early_and_late = scores_of(&["a", "b", "c", "ab", "bc", "abc"], &["a b", "ab c", "b c", "a bc"]);
        assert!(format!("{early_and_late:?}").contains("`abc` early and late"), "{early_and_late:?}");
        let never = scores_of(&["a", "b", "ab"], &[]);
        assert!(format!("{never:?}").contains("never joins `a` and `b`"), "{never:?}");
    }

    #[test]
    fn a_space_before_the_text_is_told_from_none() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let llama =
            json!({"normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}, "pre_tokenizer": null});
        let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"});
        let gemma = json!({"normalizer": replace, "pre_tokenizer": split});
        let mistral = json!({"normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}});
        assert_eq!([&llama, &gemma, &mistral].map(|json| space_prefix(json).unwrap()), [true, false, true]);
        let other = json!({"normalizer": {"type": "NFKC"}, "pre_tokenizer": null});
        assert!(space_prefix(&other).is_err());
        assert!(space_prefix(&json!({"normalizer": null, "pre_tokenizer": null})).is_err());
    }
}
