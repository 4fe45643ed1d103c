//! Projections that lie in one tensor of the files (Phi-3): queries, keys and values as `qkv_proj`, gate and up as
//! `gate_up_proj`. The decoder has them one by one; here is where each of them lies.

use std::ops::Range;

use drydock_spec::finetune::TargetModule;

use super::config::Config;

/// Projections that the files hold in one.
pub const WHOLES: [(&str, &[TargetModule]); 2] = [
    ("qkv_proj", &[TargetModule::QProj, TargetModule::KProj, TargetModule::VProj]),
    ("gate_up_proj", &[TargetModule::GateProj, TargetModule::UpProj]),
];

/// Where a tensor lies in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The other's name.
    pub whole: String,
    /// Rows that the other has.
    pub of: usize,
    pub rows: Range<usize>,
}

/// The tensor of the files that holds the one that the decoder calls `name`, where that is another.
pub fn part(name: &str, config: &Config) -> Option<Part> {
    if !config.features.fused {
        return None;
    }
    let (layer, kind) = name.rsplit_once('.')?;
    let (layer, module) = layer.rsplit_once('.')?;
    let (whole, parts) = WHOLES.iter().find(|(_, parts)| parts.iter().any(|part| part.name() == module))?;
    let mut end = 0;
    let mut rows = 0..0;
    for part in *parts {
        let start = end;
        end += config.shape(*part)[0];
        if part.name() == module {
            rows = start..end;
        }
    }
    Some(Part { whole: format!("{layer}.{whole}.{kind}"), of: end, rows })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_follow_one_another() {
        let config = |architecture| {
            Config::from_hf(&json!({"model_type": architecture, "hidden_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
                "max_position_embeddings": 256}))
            .unwrap()
        };
        let found = |name: &str| part(name, &config("phi3")).map(|part| (part.whole, part.of, part.rows));
        let qkv = "model.layers.1.self_attn.qkv_proj.weight".to_owned();
        assert_eq!(found("model.layers.1.self_attn.q_proj.weight"), Some((qkv.clone(), 128, 0..64)));
        assert_eq!(found("model.layers.1.self_attn.v_proj.weight"), Some((qkv, 128, 96..128)));
        let gate_up = "model.layers.0.mlp.gate_up_proj.weight".to_owned();
        assert_eq!(found("model.layers.0.mlp.up_proj.weight"), Some((gate_up, 256, 128..256)));
        assert_eq!(found("model.layers.0.mlp.down_proj.weight"), None);
        assert_eq!(part("model.layers.1.self_attn.q_proj.weight", &config("llama")), None);
    }
}
