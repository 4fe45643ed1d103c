//! Which tensor of a file is held in which form.
//!
//! A mix spends more bits where errors do most harm: on the output, on the values of attention, on the way down from the
//! MLP in the first and last layers. Which tensor gets what follows llama.cpp's `llama-quantize`, so that a name such as
//! `Q4_K_M` means the same here; what a row does not fit into falls back as it does there.

use drydock_spec::FailureKind::BadOption;
use drydock_spec::pattern::fits;
use drydock_spec::quantize::{QuantType, QuantizeSpec, TensorType};

use crate::blocks::BlockKind;
use crate::ending::{Result, failed};
use crate::gguf::Metadata;

/// What a mix asks about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub layers: usize,
    /// Query heads to a key-value head.
    pub queries_per_key: usize,
    /// Whether the head's weight is the embedding's.
    pub tied: bool,
    /// Whether it is known which values matter.
    pub has_importance: bool,
}

impl Model {
    pub fn of(metadata: &Metadata, tied: bool, has_importance: bool) -> Result<Self> {
        let architecture = metadata.text("general.architecture").unwrap_or("(none)");
        let key = |name: &str| format!("{architecture}.{name}");
        let layers = metadata.required(&key("block_count"))?;
        let query = metadata.required(&key("attention.head_count"))?;
        let key_value = metadata.count(&key("attention.head_count_kv")).unwrap_or(query).max(1);
        Ok(Self { layers, queries_per_key: query / key_value, tied, has_importance })
    }

    /// The 70B models of Llama 2 and 3 and Qwen: eight heads share a matrix of values, which therefore costs little.
    fn shares_values_widely(&self) -> bool {
        self.layers == 80 && self.queries_per_key > 1
    }
}

/// A tensor's place in the model, as far as a mix cares.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Embedding,
    Output,
    /// Alone or together with queries and keys.
    Values,
    AttentionOutput,
    Down,
    Other,
}

impl Part {
    fn of(name: &str) -> Self {
        match name {
            "token_embd.weight" => Self::Embedding,
            "output.weight" => Self::Output,
            _ if name.contains("attn_qkv.weight") || name.contains("attn_v.weight") => Self::Values,
            _ if name.contains("attn_output.weight") => Self::AttentionOutput,
            _ if name.contains("ffn_down") => Self::Down,
            _ => Self::Other,
        }
    }
}

/// Whether a tensor is quantized at all: matrices are, norms and biases are not.
fn is_quantizable(name: &str, shape: &[usize]) -> bool {
    shape.len() >= 2 && name.ends_with("weight") && !name.contains("_norm.weight")
}

/// The form in which a tensor that is held as `kind` now is going to be held.
pub fn choose(spec: &QuantizeSpec, model: &Model, name: &str, shape: &[usize], kind: BlockKind) -> Result<BlockKind> {
    let width = shape.last().copied().unwrap_or(1);
    if let Some((_, asked)) = spec.tensor_types.iter().find(|(pattern, _)| fits(pattern, name)) {
        return asked_for(block_kind(*asked), name, shape);
    }
    let main = block_kind(spec.quant_type.main_type());
    if !is_quantizable(name, shape) {
        return Ok(kind);
    }
    if !main.is_quantized() {
        return Ok(main);
    }
    let chosen = if spec.pure { main } else { mixed(spec.quant_type, model, name, width) };
    Ok(fitting(chosen, width))
}

/// What was asked for by name is given or refused, never replaced.
fn asked_for(kind: BlockKind, name: &str, shape: &[usize]) -> Result<BlockKind> {
    let width = shape.last().copied().unwrap_or(1);
    let takes = |kind: &BlockKind| match kind.is_quantized() {
        true => is_quantizable(name, shape) && kind.row_bytes(width).is_some(),
        // llama.cpp computes with vectors in f32 only.
        false => is_quantizable(name, shape) || *kind == BlockKind::F32,
    };
    if takes(&kind) {
        return Ok(kind);
    }
    let can: Vec<&str> = BlockKind::ALL.into_iter().filter(takes).map(BlockKind::name).collect();
    let message = format!("tensor `{name}` of {shape:?} cannot be held in {kind}; it can be in {}", can.join(", "));
    failed(BadOption, message)
}

/// The mix's own choice for a matrix.
fn mixed(mix: QuantType, model: &Model, name: &str, width: usize) -> BlockKind {
    use BlockKind::{Q3K, Q4_1, Q4K, Q5_1, Q5K, Q6K, Q8_0};
    use QuantType as Mix;
    let main = block_kind(mix.main_type());
    let part = Part::of(name);
    let (layer, layers) = (layer(name), model.layers);
    let early = layer < layers / 8;
    // The first and the last eighth, and every third between them.
    let matters = early || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
    match part {
        _ if part == Part::Output || part == Part::Embedding && model.tied => match main {
            Q8_0 => Q8_0,
            _ if main.row_bytes(width).is_none() => Q8_0,
            _ => Q6K,
        },
        Part::Values => {
            let kind = match mix {
                Mix::Q2_K_S | Mix::Q2_K if model.queries_per_key >= 4 => Q4K,
                Mix::Q2_K => Q3K,
                Mix::Q3_K_M if layer < 2 => Q5K,
                Mix::Q3_K_M => Q4K,
                Mix::Q3_K_L => Q5K,
                Mix::Q4_K_M | Mix::Q5_K_M if matters => Q6K,
                Mix::Q4_K_S if layer < 4 => Q5K,
                _ => main,
            };
            if model.shares_values_widely() && matches!(kind, Q3K | Q4K) { Q5K } else { kind }
        }
        Part::Down => match mix {
            Mix::Q2_K_S if early => Q4K,
            Mix::Q2_K => Q3K,
            Mix::Q3_K_M if layer < layers / 16 => Q5K,
            Mix::Q3_K_M => Q4K,
            Mix::Q3_K_L => Q5K,
            Mix::Q4_K_M | Mix::Q5_K_M if matters => Q6K,
            Mix::Q4_K_S if early => Q5K,
            // With importances these go astray in the first layers.
            Mix::Q4_0 if model.has_importance && early => Q4_1,
            Mix::Q5_0 if model.has_importance && early => Q5_1,
            _ => main,
        },
        Part::AttentionOutput => match mix {
            Mix::Q2_K => Q3K,
            Mix::Q3_K_M => Q4K,
            Mix::Q3_K_L => Q5K,
            _ => main,
        },
        Part::Embedding | Part::Output | Part::Other => main,
    }
}

/// The form that a row of this width can take instead.
pub fn fitting(kind: BlockKind, width: usize) -> BlockKind {
    let smaller = match kind {
        BlockKind::Q2K | BlockKind::Q3K => BlockKind::Q4_0,
        BlockKind::Q4K => BlockKind::Q5_0,
        BlockKind::Q5K => BlockKind::Q5_1,
        BlockKind::Q6K => BlockKind::Q8_0,
        other => other,
    };
    let fits = |kind: &BlockKind| kind.row_bytes(width).is_some();
    [kind, smaller].into_iter().find(fits).unwrap_or(BlockKind::F16)
}

/// The layer that a tensor belongs to; 0 for those that belong to none.
fn layer(name: &str) -> usize {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The form of a type that somebody asks for.
pub fn block_kind(kind: TensorType) -> BlockKind {
    match kind {
        TensorType::F32 => BlockKind::F32,
        TensorType::F16 => BlockKind::F16,
        TensorType::BF16 => BlockKind::Bf16,
        TensorType::Q4_0 => BlockKind::Q4_0,
        TensorType::Q4_1 => BlockKind::Q4_1,
        TensorType::Q5_0 => BlockKind::Q5_0,
        TensorType::Q5_1 => BlockKind::Q5_1,
        TensorType::Q8_0 => BlockKind::Q8_0,
        TensorType::Q2_K => BlockKind::Q2K,
        TensorType::Q3_K => BlockKind::Q3K,
        TensorType::Q4_K => BlockKind::Q4K,
        TensorType::Q5_K => BlockKind::Q5K,
        TensorType::Q6_K => BlockKind::Q6K,
    }
}

/// The number that stands for a mix in `general.file_type`.
pub fn file_type(mix: QuantType) -> u32 {
    match mix {
        QuantType::F32 => 0,
        QuantType::F16 => 1,
        QuantType::Q4_0 => 2,
        QuantType::Q4_1 => 3,
        QuantType::Q8_0 => 7,
        QuantType::Q5_0 => 8,
        QuantType::Q5_1 => 9,
        QuantType::Q2_K => 10,
        QuantType::Q2_K_S => 21,
        QuantType::Q3_K_S => 11,
        QuantType::Q3_K_M => 12,
        QuantType::Q3_K_L => 13,
        QuantType::Q4_K_S => 14,
        QuantType::Q4_K_M => 15,
        QuantType::Q5_K_S => 16,
        QuantType::Q5_K_M => 17,
        QuantType::Q6_K => 18,
        QuantType::BF16 => 32,
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::quantize::QuantizeArgs;

    use super::*;
    use crate::ending::Ending;

    fn spec(mix: QuantType, tensor_types: &[(&str, TensorType)]) -> QuantizeSpec {
        let types = tensor_types.iter().map(|(pattern, kind)| (pattern.to_string(), *kind)).collect();
        let imatrix_dataset = (mix == QuantType::Q2_K_S).then(|| "d".to_owned());
        let args =
            QuantizeArgs { model: "m".into(), quant_type: Some(mix), imatrix_dataset, ..QuantizeArgs::default() };
        QuantizeArgs { tensor_types: Some(types), ..args }.parse().unwrap()
    }

    const MODEL: Model = Model { layers: 16, queries_per_key: 2, tied: false, has_importance: false };

    fn chosen(mix: QuantType, model: &Model, name: &str, width: usize) -> BlockKind {
        choose(&spec(mix, &[]), model, name, &[64, width], BlockKind::F16).unwrap()
    }

    #[test]
    fn a_medium_mix_spends_more_on_values_and_on_the_way_down() {
        let of = |name: &str| chosen(QuantType::Q4_K_M, &MODEL, name, 512);
        let down: Vec<bool> =
            (0..16).map(|layer| of(&format!("blk.{layer}.ffn_down.weight")) == BlockKind::Q6K).collect();
        let more: Vec<usize> = (0..16).filter(|layer| down[*layer]).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(of("blk.0.attn_v.weight"), BlockKind::Q6K);
        assert_eq!(of("blk.2.attn_v.weight"), BlockKind::Q4K);
        assert_eq!(of("blk.0.attn_q.weight"), BlockKind::Q4K);
        assert_eq!((of("output.weight"), of("token_embd.weight")), (BlockKind::Q6K, BlockKind::Q4K));
        assert_eq!(chosen(QuantType::Q4_K_S, &MODEL, "blk.3.attn_v.weight", 512), BlockKind::Q5K);
        assert_eq!(chosen(QuantType::Q4_K_S, &MODEL, "blk.4.attn_v.weight", 512), BlockKind::Q4K);
    }

    #[test]
    fn the_smallest_mix_spares_values_that_many_heads_share_and_the_first_ways_down() {
        let shared = Model { queries_per_key: 4, ..MODEL };
        let of = |model: &Model, name: &str| chosen(QuantType::Q2_K_S, model, name, 512);
        assert_eq!([&MODEL, &shared].map(|model| of(model, "blk.9.attn_v.weight")), [BlockKind::Q2K, BlockKind::Q4K]);
        assert_eq!(
            [1, 2].map(|layer| of(&MODEL, &format!("blk.{layer}.ffn_down.weight"))),
            [BlockKind::Q4K, BlockKind::Q2K]
        );
        assert_eq!(of(&MODEL, "blk.0.attn_output.weight"), BlockKind::Q2K);
        assert_eq!(file_type(QuantType::Q2_K_S), 21);
    }

    #[test]
    fn a_tied_embedding_is_held_as_the_output_is() {
        let tied = Model { tied: true, ..MODEL };
        assert_eq!(chosen(QuantType::Q4_0, &tied, "token_embd.weight", 512), BlockKind::Q6K);
        assert_eq!(chosen(QuantType::Q4_0, &tied, "token_embd.weight", 576), BlockKind::Q8_0);
        assert_eq!(chosen(QuantType::Q8_0, &tied, "token_embd.weight", 512), BlockKind::Q8_0);
    }

    #[test]
    fn rows_that_do_not_fit_fall_back_step_by_step() {
        let of = |mix, width| chosen(mix, &MODEL, "blk.5.attn_q.weight", width);
        assert_eq!(of(QuantType::Q2_K, 576), BlockKind::Q4_0);
        assert_eq!(of(QuantType::Q3_K_M, 576), BlockKind::Q4_0);
        assert_eq!(of(QuantType::Q4_K_M, 576), BlockKind::Q5_0);
        assert_eq!(of(QuantType::Q5_K_M, 576), BlockKind::Q5_1);
        assert_eq!(of(QuantType::Q6_K, 576), BlockKind::Q8_0);
        assert_eq!(of(QuantType::Q6_K, 100), BlockKind::F16);
        assert_eq!(of(QuantType::Q4_0, 100), BlockKind::F16);
    }

    #[test]
    fn norms_stay_as_they_are_and_pure_means_it() {
        let norm =
            choose(&spec(QuantType::Q4_0, &[]), &MODEL, "blk.0.attn_norm.weight", &[512], BlockKind::F32).unwrap();
        assert_eq!(norm, BlockKind::F32);
        let pure = QuantizeSpec { pure: true, ..spec(QuantType::Q4_K_M, &[]) };
        let output = choose(&pure, &MODEL, "output.weight", &[64, 512], BlockKind::F16).unwrap();
        assert_eq!(output, BlockKind::Q4K);
    }

    #[test]
    fn what_is_asked_for_by_name_is_given_or_refused() {
        let spec = spec(QuantType::Q4_0, &[("blk.*.attn_q.weight", TensorType::Q4_K), ("*norm*", TensorType::Q8_0)]);
        let of = |name: &str, shape: &[usize]| choose(&spec, &MODEL, name, shape, BlockKind::F16);
        assert_eq!(of("blk.3.attn_q.weight", &[64, 512]).unwrap(), BlockKind::Q4K);
        let Err(Ending::Failed(refused)) = of("blk.3.attn_q.weight", &[64, 576]) else { panic!("it is accepted") };
        assert_eq!(refused.kind, BadOption);
        let can = "it can be in F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0";
        assert_eq!(refused.message, format!("tensor `blk.3.attn_q.weight` of [64, 576] cannot be held in Q4_K; {can}"));
        let Err(Ending::Failed(refused)) = of("blk.3.attn_norm.weight", &[512]) else { panic!("it is accepted") };
        assert!(refused.message.ends_with("cannot be held in Q8_0; it can be in F32"), "{refused}");
    }
}
