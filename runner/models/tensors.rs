//! Whether a file's tensors are those of the decoder that the configuration describes.

use std::collections::BTreeMap;

use drydock_gpu::Decoder;
use drydock_spec::model::Architecture;

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
    parts: Parts,
}

/// A layer's tensors, without `.weight` and `.bias`.
#[derive(Debug, Clone, Copy)]
struct Parts {
    input_norm: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    query_key_value: &'static str,
    query_norm: &'static str,
    key_norm: &'static str,
    output: &'static str,
    /// Where there are no norms after attention and MLP.
    mlp_norm: &'static str,
    /// Where there are: after attention, before the MLP, and after it.
    norms_after: [&'static str; 3],
    gate: &'static str,
    up: &'static str,
    gate_up: &'static str,
    down: &'static str,
}

pub(super) const GGUF: Naming = Naming {
    embedding: "token_embd",
    norm: "output_norm",
    head: "output",
    layer: "blk.",
    parts: Parts {
        input_norm: "attn_norm",
        query: "attn_q",
        key: "attn_k",
        value: "attn_v",
        query_key_value: "attn_qkv",
        query_norm: "attn_q_norm",
        key_norm: "attn_k_norm",
        output: "attn_output",
        mlp_norm: "ffn_norm",
        norms_after: ["post_attention_norm", "ffn_norm", "post_ffw_norm"],
        gate: "ffn_gate",
        up: "ffn_up",
        gate_up: "ffn_up",
        down: "ffn_down",
    },
};

pub(super) const HUGGING_FACE: Naming = Naming {
    embedding: "model.embed_tokens",
    norm: "model.norm",
    head: "lm_head",
    layer: "model.layers.",
    parts: Parts {
        input_norm: "input_layernorm",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        query_key_value: "self_attn.qkv_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        output: "self_attn.o_proj",
        mlp_norm: "post_attention_layernorm",
        norms_after: ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"],
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        gate_up: "mlp.gate_up_proj",
        down: "mlp.down_proj",
    },
};

/// What a layer's tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) architecture: Architecture,
    pub(super) biases: Biases,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Biases {
    pub(super) query_key_value: bool,
    pub(super) output: bool,
    pub(super) mlp: bool,
}

impl Layout {
    /// Values of a layer beside its projections' weights and the norms before attention and MLP.
    pub(super) fn layer_vectors(&self, decoder: &Decoder) -> u32 {
        let Biases { query_key_value, output, mlp } = self.biases;
        let vectors = [
            (query_key_value, decoder.query_width().saturating_add(decoder.kv_width().saturating_mul(2))),
            (output, decoder.hidden),
            (mlp, decoder.ffn.saturating_mul(2).saturating_add(decoder.hidden)),
            (self.architecture.query_key_norm(), decoder.head_dim.saturating_mul(2)),
            (self.architecture.norms_after(), decoder.hidden.saturating_mul(2)),
        ];
        vectors.into_iter().filter(|(there, _)| *there).fold(0, |sum, (_, values)| sum.saturating_add(values))
    }

    /// A layer's tensors, each with its dimensions.
    fn parts(&self, decoder: &Decoder, names: &Parts) -> Vec<(String, Vec<Dimension>)> {
        let hidden = ("hidden size", decoder.hidden);
        let queries = ("heads x head size", decoder.query_width());
        let kv = ("key-value heads x head size", decoder.kv_width());
        let ffn = ("feed-forward size", decoder.ffn);
        let head = ("head size", decoder.head_dim);
        let mut all = Vec::new();
        let mut weight = |name: &str, shape: &[Dimension]| all.push((format!("{name}.weight"), shape.to_vec()));
        weight(names.input_norm, &[hidden]);
        let fused = self.architecture.fused();
        let projections = if fused {
            let all_heads = decoder.kv_width().saturating_mul(2).saturating_add(decoder.query_width());
            let gate_up = ("2 x feed-forward size", decoder.ffn.saturating_mul(2));
            let qkv = ("(heads + 2 x key-value heads) x head size", all_heads);
            vec![
                (names.query_key_value, qkv, hidden, self.biases.query_key_value),
                (names.output, hidden, queries, self.biases.output),
                (names.gate_up, gate_up, hidden, self.biases.mlp),
                (names.down, hidden, ffn, self.biases.mlp),
            ]
        } else {
            vec![
                (names.query, queries, hidden, self.biases.query_key_value),
                (names.key, kv, hidden, self.biases.query_key_value),
                (names.value, kv, hidden, self.biases.query_key_value),
                (names.output, hidden, queries, self.biases.output),
                (names.gate, ffn, hidden, self.biases.mlp),
                (names.up, ffn, hidden, self.biases.mlp),
                (names.down, hidden, ffn, self.biases.mlp),
            ]
        };
        for (name, out, width, _) in &projections {
            weight(name, &[*out, *width]);
        }
        if self.architecture.query_key_norm() {
            weight(names.query_norm, &[head]);
            weight(names.key_norm, &[head]);
        }
        if self.architecture.norms_after() {
            names.norms_after.iter().for_each(|name| weight(name, &[hidden]));
        } else {
            weight(names.mlp_norm, &[hidden]);
        }
        let biased = projections.into_iter().filter(|(.., biased)| *biased);
        all.extend(biased.map(|(name, out, ..)| (format!("{name}.bias"), vec![out])));
        all
    }
}

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
fn expected(decoder: &Decoder, layout: &Layout, naming: &Naming) -> Vec<(String, Vec<Dimension>)> {
    let hidden = ("hidden size", decoder.hidden);
    let vocabulary = ("vocabulary", decoder.vocabulary);
    let mut all = vec![(naming.embedding(), vec![vocabulary, hidden])];
    let parts = layout.parts(decoder, &naming.parts);
    for layer in 0..decoder.layers {
        all.extend(parts.iter().map(|(part, shape)| (format!("{}{layer}.{part}", naming.layer), shape.clone())));
    }
    all.push((format!("{}.weight", naming.norm), vec![hidden]));
    if !decoder.tied {
        all.push((naming.head(), vec![vocabulary, hidden]));
    }
    all
}

/// Refuses tensors that are missing, of another shape, or more than the decoder has a use for.
pub(super) fn check(decoder: &Decoder, layout: &Layout, naming: &Naming, tensors: &Tensors) -> Result<(), Unusable> {
    let expected = expected(decoder, layout, naming);
    for (name, dimensions) in &expected {
        let Some(tensor) = tensors.get(name) else {
            return Err(missing(decoder, naming, tensors, name));
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
    let unknown = |name: &&String| name.ends_with(".bias") && !expected.iter().any(|(known, _)| known == *name);
    match tensors.keys().find(unknown) {
        Some(name) => Err(Unusable::unsupported(
            format!("tensor `{name}` is a bias that the configuration and its architecture do not have"),
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
    use drydock_spec::model::ARCHITECTURES;

    use super::*;

    fn decoder() -> Decoder {
        Decoder {
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
        }
    }

    const LLAMA: Layout = Layout {
        architecture: Architecture::Llama,
        biases: Biases { query_key_value: false, output: false, mlp: false },
    };

    fn tensors(decoder: &Decoder, layout: &Layout, naming: &Naming) -> Tensors {
        expected(decoder, layout, naming)
            .into_iter()
            .map(|(name, shape)| {
                let shape = shape.into_iter().map(|(_, size)| u64::from(size)).collect();
                (name, Tensor { dtype: "f32", shape })
            })
            .collect()
    }

    fn refusal(decoder: &Decoder, tensors: &Tensors) -> String {
        check(decoder, &LLAMA, &HUGGING_FACE, tensors).unwrap_err().to_string()
    }

    #[test]
    fn the_tensors_of_the_decoder_pass_under_both_namings() {
        for (naming, name) in
            [GGUF, HUGGING_FACE].into_iter().flat_map(|naming| ARCHITECTURES.map(|name| (naming, name)))
        {
            for tied in [true, false] {
                let architecture = Architecture::named(name).unwrap();
                let biases = Biases { query_key_value: architecture.query_key_value_bias(), ..Biases::default() };
                let layout = Layout { architecture, biases };
                let decoder = Decoder { tied, layer_vectors: layout.layer_vectors(&decoder()), ..decoder() };
                let tensors = tensors(&decoder, &layout, &naming);
                assert_eq!(check(&decoder, &layout, &naming, &tensors), Ok(()));
                let numbers: u64 = tensors.values().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
                assert_eq!(numbers, decoder.parameters(), "{name}");
            }
        }
    }

    #[test]
    fn each_number_that_does_not_fit_is_told_with_both_values() {
        let tensors = tensors(&decoder(), &LLAMA, &HUGGING_FACE);
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
        let mut tensors = tensors(&decoder(), &LLAMA, &HUGGING_FACE);
        let bias = Tensor { dtype: "f32", shape: vec![8] };
        tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), bias);
        assert!(refusal(&decoder(), &tensors).contains("is a bias"));
        let biased = Layout { biases: Biases { query_key_value: true, ..Biases::default() }, ..LLAMA };
        let error = check(&decoder(), &biased, &HUGGING_FACE, &tensors).unwrap_err().to_string();
        assert!(error.starts_with("tensor `model.layers.0.self_attn.k_proj.bias` is missing"), "{error}");
    }
}
