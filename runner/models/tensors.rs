//! Whether a file's tensors are those of the decoder that the configuration describes.

use std::collections::BTreeMap;

use drydock_gpu::Decoder;

use super::Unusable;

/// A tensor as a file's header announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Such as `Q4_1` or `bf16`.
    pub(super) dtype: &'static str,
    /// Rows first, as Hugging Face writes it.
    pub(super) shape: Vec<u64>,
}

/// Tensors by name.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// A dimension, and which number of the configuration it comes from.
type Dimension = (&'static str, u32);

/// How a format names the decoder's tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Naming {
    embedding: &'static str,
    norm: &'static str,
    head: &'static str,
    /// What stands before a layer's number.
    layer: &'static str,
    /// Attention's norm, query, key, value and output; the MLP's norm, gate, up and down.
    parts: [&'static str; 9],
}

pub(super) const GGUF: Naming = Naming {
    embedding: "token_embd",
    norm: "output_norm",
    head: "output",
    layer: "blk.",
    parts: ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"],
};

pub(super) const HUGGING_FACE: Naming = Naming {
    embedding: "model.embed_tokens",
    norm: "model.norm",
    head: "lm_head",
    layer: "model.layers.",
    parts: [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
};

impl Naming {
    pub(super) fn head(&self) -> String {
        format!("{}.weight", self.head)
    }

    pub(super) fn embedding(&self) -> String {
        format!("{}.weight", self.embedding)
    }

    /// The number of the layer that a tensor belongs to.
    fn layer_of(&self, tensor: &str) -> Option<u32> {
        tensor.strip_prefix(self.layer)?.split('.').next()?.parse().ok()
    }
}

/// Every tensor that the decoder has, with its dimensions.
fn expected(decoder: &Decoder, naming: &Naming) -> Vec<(String, Vec<Dimension>)> {
    let hidden = ("hidden size", decoder.hidden);
    let queries = ("heads x head size", decoder.query_width());
    let kv = ("key-value heads x head size", decoder.kv_width());
    let ffn = ("feed-forward size", decoder.ffn);
    let vocabulary = ("vocabulary", decoder.vocabulary);
    let shapes = [
        vec![hidden],
        vec![queries, hidden],
        vec![kv, hidden],
        vec![kv, hidden],
        vec![hidden, queries],
        vec![hidden],
        vec![ffn, hidden],
        vec![ffn, hidden],
        vec![hidden, ffn],
    ];
    let mut all = vec![(naming.embedding(), vec![vocabulary, hidden])];
    for layer in 0..decoder.layers {
        for (part, shape) in naming.parts.iter().zip(&shapes) {
            all.push((format!("{}{layer}.{part}.weight", naming.layer), shape.clone()));
        }
    }
    all.push((format!("{}.weight", naming.norm), vec![hidden]));
    if !decoder.tied {
        all.push((naming.head(), vec![vocabulary, hidden]));
    }
    all
}

/// Refuses tensors that are missing, of another shape, or more than the decoder has a use for.
pub(super) fn check(decoder: &Decoder, naming: &Naming, tensors: &Tensors) -> Result<(), Unusable> {
    for (name, dimensions) in expected(decoder, naming) {
        let Some(tensor) = tensors.get(&name) else {
            return Err(missing(decoder, naming, tensors, &name));
        };
        let shape: Vec<u64> = dimensions.iter().map(|(_, size)| u64::from(*size)).collect();
        if tensor.shape != shape {
            let of: Vec<_> = dimensions.iter().map(|(what, _)| *what).collect();
            let problem = format!(
                "tensor `{name}` has shape {:?}, the configuration says {shape:?} ({})",
                tensor.shape,
                of.join(", ")
            );
            return Err(Unusable::damaged(problem, "take configuration and weights from the same model"));
        }
    }
    if let Some((name, layer)) = tensors.keys().find_map(|name| {
        let layer = naming.layer_of(name).filter(|layer| *layer >= decoder.layers)?;
        Some((name, layer))
    }) {
        let problem = format!(
            "tensor `{name}` belongs to layer {layer}, the configuration says {} layers, counted from 0",
            decoder.layers
        );
        return Err(Unusable::damaged(problem, "take configuration and weights from the same model"));
    }
    match tensors.keys().find(|name| name.ends_with(".bias")) {
        Some(name) => Err(Unusable::unsupported(
            format!("tensor `{name}` is a bias; models without biases are known"),
            "choose a model of a supported architecture",
        )),
        None => Ok(()),
    }
}

fn missing(decoder: &Decoder, naming: &Naming, tensors: &Tensors, name: &str) -> Unusable {
    let present = tensors.keys().filter_map(|tensor| naming.layer_of(tensor)).max().map_or(0, |last| last + 1);
    let problem = match naming.layer_of(name) {
        Some(layer) if layer >= present => {
            format!(
                "tensor `{name}` is missing: the weights have {present} layers, the configuration says {}",
                decoder.layers
            )
        }
        _ => format!("tensor `{name}` is missing among {}", tensors.len()),
    };
    Unusable::damaged(problem, "bring the model again from a complete copy")
}

/// The type that most of the weights have.
pub(super) fn dtype(tensors: &Tensors) -> &'static str {
    let mut numbers: BTreeMap<&'static str, u64> = BTreeMap::new();
    for tensor in tensors.values() {
        let count = tensor.shape.iter().fold(1u64, |a, b| a.saturating_mul(*b));
        let sum = numbers.entry(tensor.dtype).or_default();
        *sum = sum.saturating_add(count);
    }
    numbers.into_iter().max_by_key(|(_, count)| *count).map_or("none", |(dtype, _)| dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> Decoder {
        Decoder { layers: 2, hidden: 8, heads: 2, kv_heads: 1, head_dim: 4, ffn: 16, vocabulary: 32, tied: true }
    }

    fn tensors(decoder: &Decoder, naming: &Naming) -> Tensors {
        expected(decoder, naming)
            .into_iter()
            .map(|(name, shape)| {
                let shape = shape.into_iter().map(|(_, size)| u64::from(size)).collect();
                (name, Tensor { dtype: "f32", shape })
            })
            .collect()
    }

    fn refusal(decoder: &Decoder, tensors: &Tensors) -> String {
        check(decoder, &HUGGING_FACE, tensors).unwrap_err().to_string()
    }

    #[test]
    fn the_tensors_of_the_decoder_pass_under_both_namings() {
        for naming in [GGUF, HUGGING_FACE] {
            for tied in [true, false] {
                let decoder = Decoder { tied, ..decoder() };
                assert_eq!(check(&decoder, &naming, &tensors(&decoder, &naming)), Ok(()));
            }
        }
    }

    #[test]
    fn each_number_that_does_not_fit_is_told_with_both_values() {
        let tensors = tensors(&decoder(), &HUGGING_FACE);
        let vocabulary = refusal(&Decoder { vocabulary: 33, ..decoder() }, &tensors);
        let expected = "tensor `model.embed_tokens.weight` has shape [32, 8], the configuration says [33, 8] \
                        (vocabulary, hidden size); take configuration and weights from the same model";
        assert_eq!(vocabulary, expected);
        let heads = refusal(&Decoder { heads: 3, ..decoder() }, &tensors);
        assert!(heads.contains("q_proj.weight` has shape [8, 8], the configuration says [12, 8]"), "{heads}");
        let more = refusal(&Decoder { layers: 3, ..decoder() }, &tensors);
        assert!(more.contains("the weights have 2 layers, the configuration says 3"), "{more}");
        let fewer = refusal(&Decoder { layers: 1, ..decoder() }, &tensors);
        assert!(fewer.contains("belongs to layer 1, the configuration says 1 layers"), "{fewer}");
        let untied = refusal(&Decoder { tied: false, ..decoder() }, &tensors);
        assert!(untied.starts_with("tensor `lm_head.weight` is missing"), "{untied}");
    }

    #[test]
    fn biases_are_not_silently_left_out() {
        let mut tensors = tensors(&decoder(), &HUGGING_FACE);
        let bias = Tensor { dtype: "f32", shape: vec![8] };
        tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), bias);
        assert!(refusal(&decoder(), &tensors).contains("is a bias"));
    }
}
