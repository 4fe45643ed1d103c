//! What llama.cpp's converter makes of a Hugging Face checkpoint's tensors: their names, and what it does to values.

use crate::model::config::{Config, Features};

/// How the values of a tensor in a GGUF file differ from those in Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    Nothing,
    /// The two values of a head that turn together lie side by side instead of half a head apart; so many heads. Only
    /// the converter of Llama (and with it Mistral) does this.
    SideBySide(usize),
    /// So much was added to each value.
    Offset(f32),
}

/// GGUF's names of a layer's parts, and Hugging Face's.
const PARTS: [(&str, &str); 14] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// GGUF's name of a tensor that Hugging Face calls `name`.
pub fn gguf_name(name: &str, features: &Features) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let ours = match part {
        // Where there are norms after attention, this is what it says; elsewhere it is the norm before the MLP.
        "post_attention_layernorm" if features.norms_after => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => PARTS.iter().find(|(_, theirs)| *theirs == part)?.0,
    };
    Some(format!("blk.{layer}.{ours}.{kind}"))
}

/// What the converter did to the tensor that Hugging Face calls `name`.
pub fn change(name: &str, config: &Config) -> Change {
    let permuted = matches!(config.architecture.as_str(), "llama" | "mistral");
    match name.rsplit('.').nth(1) {
        Some("q_proj") if permuted => Change::SideBySide(config.heads.query),
        Some("k_proj") if permuted => Change::SideBySide(config.heads.key_value),
        Some(part) if part.ends_with("norm") && config.features.norm_offset != 0.0 => {
            Change::Offset(config.features.norm_offset)
        }
        _ => Change::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(architecture: &str) -> Config {
        Config::from_hf(&json!({"model_type": architecture, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
            "max_position_embeddings": 256}))
        .unwrap()
    }

    fn name(architecture: &str, name: &str) -> Option<String> {
        gguf_name(name, &config(architecture).features)
    }

    #[test]
    fn tensor_names_are_translated() {
        assert_eq!(name("llama", "model.layers.7.mlp.down_proj.weight").unwrap(), "blk.7.ffn_down.weight");
        assert_eq!(name("llama", "lm_head.weight").unwrap(), "output.weight");
        assert_eq!(name("llama", "model.layers.7.mlp.router.weight"), None);
        assert_eq!(name("qwen2", "model.layers.0.self_attn.q_proj.bias").unwrap(), "blk.0.attn_q.bias");
        assert_eq!(name("phi3", "model.layers.0.mlp.gate_up_proj.weight").unwrap(), "blk.0.ffn_up.weight");
        let after = "model.layers.1.post_attention_layernorm.weight";
        assert_eq!(name("llama", after).unwrap(), "blk.1.ffn_norm.weight");
        assert_eq!(name("gemma2", after).unwrap(), "blk.1.post_attention_norm.weight");
    }

    #[test]
    fn only_llamas_heads_are_permuted_and_only_gemmas_norms_moved() {
        let change = |architecture, name| change(name, &config(architecture));
        let query = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(change("mistral", query), Change::SideBySide(4));
        assert_eq!(change("llama", "model.layers.0.self_attn.k_proj.bias"), Change::SideBySide(2));
        assert_eq!(change("qwen2", query), Change::Nothing);
        for norm in ["model.norm.weight", "model.layers.0.self_attn.q_norm.weight"] {
            assert_eq!(change("gemma3", norm), Change::Offset(1.0));
            assert_eq!(change("qwen3", norm), Change::Nothing);
        }
    }
}
