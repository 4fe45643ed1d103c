use std::io::Cursor;

use super::*;

#[path = "../../../tests/support/tiny.rs"]
mod tiny;

use tiny::{Gguf, number, string, strings, weights};

fn read_bytes(bytes: &[u8]) -> Result<Facts, Unusable> {
    read(Cursor::new(bytes), bytes.len() as u64, false)
}

fn refusal(gguf: &Gguf) -> String {
    read_bytes(&gguf.bytes()).unwrap_err().to_string()
}

#[test]
fn a_whole_file_is_understood() {
    let facts = read_bytes(&Gguf::tiny().bytes()).unwrap();
    let decoder = Decoder {
        layers: 2,
        hidden: 8,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 16,
        vocabulary: 32,
        tied: true,
        layer_vectors: 0,
        norms_after: false,
    };
    assert_eq!(facts.decoder, decoder);
    assert_eq!((facts.architecture.as_str(), facts.max_positions, facts.dtype.as_str()), ("llama", 128, "F32"));
    assert!(facts.has_chat_template);
}

#[test]
fn an_untied_head_is_noticed() {
    let mut gguf = Gguf::tiny();
    gguf.tensors.push(weights("output.weight", &[8, 32]));
    assert!(!read_bytes(&gguf.bytes()).unwrap().decoder.tied);
}

#[test]
fn a_file_cut_anywhere_is_refused_and_says_where() {
    let whole = Gguf::tiny().bytes();
    let last = read_bytes(&whole[..whole.len() - 1]).unwrap_err().to_string();
    let expected = format!("truncated: tensor `output_norm.weight` ends at byte {}, the file has", whole.len());
    assert!(last.starts_with(&expected), "{last}");
    for length in 0..whole.len() {
        let error = read_bytes(&whole[..length]).unwrap_err();
        assert!(error.problem.starts_with("truncated: "), "{length}: {error}");
    }
}

#[test]
fn what_is_no_gguf_is_shown() {
    let error = refusal(&Gguf { magic: *b"PK\x03\x04", ..Gguf::tiny() });
    assert!(error.contains("begins with `PK\\x03\\x04` (a zip archive, such as a PyTorch checkpoint)"), "{error}");
    assert!(refusal(&Gguf { magic: *b"ggml", ..Gguf::tiny() }).contains("before GGUF"));
    assert!(refusal(&Gguf { version: 1, ..Gguf::tiny() }).contains("GGUF version 1; versions 2 and 3 are known"));
    assert!(refusal(&Gguf { version: 3u32.swap_bytes(), ..Gguf::tiny() }).contains("big-endian"));
}

#[test]
fn what_the_worker_cannot_do_is_named() {
    let qwen = Gguf::tiny().with("general.architecture", string("qwen3moe"));
    assert!(refusal(&qwen).starts_with("the architecture is `qwen3moe`; known are llama, mistral, qwen2, qwen3"));
    let mut iq = Gguf::tiny();
    iq.tensors[1].kind = 16;
    assert!(refusal(&iq).contains("is IQ2_XXS (type 16), which the worker cannot read"));
}

#[test]
fn what_does_not_fit_together_is_told_with_both_values() {
    let deep = Gguf::tiny().with("llama.block_count", number(3));
    assert!(refusal(&deep).contains("the weights have 2 layers, the configuration says 3"));
    let wide = Gguf::tiny().with("llama.feed_forward_length", number(17));
    assert!(refusal(&wide).contains("`blk.0.ffn_gate.weight` has shape [16, 8], the configuration says [17, 8]"));
    let tokens = Gguf::tiny().with("tokenizer.ggml.tokens", strings(31));
    assert!(refusal(&tokens).contains("the tokenizer has 31 tokens, the embedding 32"));
    assert!(refusal(&Gguf::tiny().without("output_norm.weight")).contains("`output_norm.weight` is missing"));
    assert!(refusal(&Gguf::tiny().without("llama.block_count")).contains("metadata `llama.block_count` is missing"));
}

#[test]
fn a_tokenizer_that_the_worker_cannot_rebuild_needs_one_beside_it() {
    for (gguf, said) in [
        (Gguf::tiny().without("tokenizer.ggml.tokens"), "`tokenizer.ggml.tokens` is missing"),
        (Gguf::tiny().without("tokenizer.ggml.merges"), "`tokenizer.ggml.merges` is missing"),
        (Gguf::tiny().with("tokenizer.ggml.model", string("bert")), "of the kind `bert`; known are gpt2, llama"),
        (Gguf::tiny().with("tokenizer.ggml.model", string("llama")), "`tokenizer.ggml.scores` is missing"),
        (Gguf::tiny().with("tokenizer.ggml.pre", string("tekken")), "the pre-tokenizer is `tekken`; known are smollm"),
    ] {
        let refusal = refusal(&gguf);
        assert!(refusal.contains(said) && refusal.contains("put the model's tokenizer.json beside"), "{refusal}");
        let bytes = gguf.bytes();
        assert!(read(Cursor::new(&bytes), bytes.len() as u64, true).is_ok());
    }
    let dynamic = Gguf::tiny().with("llama.rope.scaling.type", string("dynamic"));
    assert!(self::refusal(&dynamic).contains("the rope scaling is `dynamic`"));
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let header = |tensors: u64, keys: u64, rest: &[u8]| {
        [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), rest].concat()
    };
    for bytes in [header(u64::MAX, 0, b""), header(0, u64::MAX, b""), header(0, 1, &u64::MAX.to_le_bytes())] {
        let error = read_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("at most are read"), "{error}");
    }
    let list = |count: u64| {
        Gguf::tiny().with("x", [&9u32.to_le_bytes()[..], &4u32.to_le_bytes(), &count.to_le_bytes()].concat())
    };
    assert!(refusal(&list(u64::MAX)).contains("elements in a list"));
    assert!(refusal(&list(16 << 20)).starts_with("truncated: the header"));
    let text = Gguf::tiny().with("x", [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat());
    assert!(refusal(&text).starts_with("truncated: the header"));
    let nested: Vec<u8> = (0..100).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    let nested = Gguf::tiny().with("x", [&9u32.to_le_bytes()[..], &nested].concat());
    assert!(refusal(&nested).contains("nested too deep"));
    let mut huge = Gguf::tiny();
    huge.tensors[0].shape = vec![u64::MAX, u64::MAX];
    // The file's own size cannot be computed from such a shape, so its data is that of the honest one.
    let honest = Gguf::tiny().bytes();
    let at =
        honest.windows(16).position(|window| window == [8u64.to_le_bytes(), 32u64.to_le_bytes()].concat()).unwrap();
    let mut bytes = honest;
    bytes[at..at + 16].fill(0xff);
    assert!(read_bytes(&bytes).unwrap_err().to_string().contains("cannot have shape"));
}

proptest::proptest! {
    #[test]
    fn no_single_wrong_byte_makes_the_reader_panic(at in 0usize..2000, byte: u8) {
        let mut bytes = Gguf::tiny().bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read_bytes(&bytes);
    }
}
