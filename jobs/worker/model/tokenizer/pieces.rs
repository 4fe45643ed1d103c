//! SentencePiece's BPE (Llama 2, Mistral, Gemma, Phi-3), rebuilt from pieces and scores as a GGUF file has them.
//!
//! SentencePiece joins the two neighbours that together make the piece of the highest score, again and again. As a list
//! of merges that is: every way to cut a piece in two pieces, by falling score (Transformers converts in the same way).
//! Spaces are part of the pieces, written `▁`; characters without a piece are spelt in bytes.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// What stands for a space.
const SPACE: &str = "▁";
/// llama.cpp's kind of ordinary pieces; the others are never joined.
const NORMAL: u64 = 1;

/// The parts of a `tokenizer.json`.
pub(super) struct Parts {
    pub normalizer: Value,
    pub decoder: Value,
    pub model: Value,
}

/// The parts for pieces with their kinds and scores. `space_prefix`: a text begins with a space, whether it does or not.
pub(super) fn parts(
    tokens: &[String],
    kinds: &[u64],
    scores: &[f32],
    unknown: Option<&str>,
    space_prefix: bool,
) -> Parts {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match space_prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}),
        false => replace,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let vocabulary: Map<String, Value> = (0u64..).zip(tokens).map(|(id, token)| (token.clone(), id.into())).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": vocabulary,
        "merges": merges(tokens, kinds, scores),
    });
    Parts { normalizer, decoder: json!({"type": "Sequence", "decoders": decoders}), model }
}

/// Every way to make a piece of two, the best piece first; among ways to the same score, the longest left part.
fn merges<'t>(tokens: &'t [String], kinds: &[u64], scores: &[f32]) -> Vec<(&'t str, &'t str)> {
    struct Merge<'t> {
        parts: (&'t str, &'t str),
        score: f32,
        lengths: (usize, usize),
    }
    let normal = || tokens.iter().zip(kinds).zip(scores).filter(|((_, kind), _)| **kind == NORMAL);
    let known: HashMap<&str, ()> = normal().map(|((token, _), _)| (token.as_str(), ())).collect();
    let mut all = Vec::new();
    for ((token, _), &score) in normal() {
        let characters = token.chars().count();
        for (left, (at, _)) in token.char_indices().enumerate().skip(1) {
            let parts = token.split_at(at);
            if known.contains_key(parts.0) && known.contains_key(parts.1) {
                all.push(Merge { parts, score, lengths: (left, characters - left) });
            }
        }
    }
    // Stable: what is equal in all of this stays in the order of the vocabulary.
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)));
    all.into_iter().map(|merge| merge.parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_piece_is_made_first() {
        let tokens: Vec<String> = ["<s>", "a", "b", "ab", "aab", "aa", "<0x0A>"].map(str::to_owned).to_vec();
        let scores = [0.0, -9.0, -9.0, -1.0, -2.0, -2.0, 0.0];
        let found = merges(&tokens, &[3, 1, 1, 1, 1, 1, 6], &scores);
        assert_eq!(found, [("a", "b"), ("aa", "b"), ("a", "ab"), ("a", "a")]);
    }
}
