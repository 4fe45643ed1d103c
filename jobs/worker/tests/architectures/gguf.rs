//! GGUF files of the small models, made as llama.cpp's converter makes them.

use std::fs::File;

use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use super::{CASES, Case, load};

/// What GGUF cannot say about a model, changed to what it takes for granted.
fn expressible(case: &Case) -> Json {
    let path = case.folder.path().join("config.json");
    let mut config: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    match case.name {
        "mistral" => config["sliding_window"] = Json::Null,
        "qwen2" => config["use_sliding_window"] = false.into(),
        "gemma2" | "gemma3" => config["query_pre_attn_scalar"] = config["head_dim"].clone(),
        _ => {}
    }
    if case.name == "qwen2" {
        config.as_object_mut().unwrap().remove("layer_types");
    }
    std::fs::write(path, config.to_string()).unwrap();
    config
}

fn number(json: &Json) -> Value {
    Value::F32(json.as_f64().unwrap() as f32)
}

fn count(json: &Json) -> Value {
    Value::U32(json.as_u64().unwrap() as u32)
}

fn metadata(case: &Case, config: &Json) -> Vec<(String, Value)> {
    let architecture = match config["model_type"].as_str().unwrap() {
        "gemma3_text" => "gemma3",
        "mistral" => "llama",
        other => other,
    };
    let rope = &config["rope_parameters"];
    let rope = rope.get("full_attention").unwrap_or(rope);
    let mut entries = vec![
        ("block_count", count(&config["num_hidden_layers"])),
        ("context_length", count(&config["max_position_embeddings"])),
        ("embedding_length", count(&config["hidden_size"])),
        ("feed_forward_length", count(&config["intermediate_size"])),
        ("attention.head_count", count(&config["num_attention_heads"])),
        ("attention.head_count_kv", count(&config["num_key_value_heads"])),
        ("attention.layer_norm_rms_epsilon", number(&config["rms_norm_eps"])),
        ("rope.freq_base", number(&rope["rope_theta"])),
    ];
    let mut push = |name, value| entries.push((name, value));
    if !config["head_dim"].is_null() {
        push("attention.key_length", count(&config["head_dim"]));
    }
    match case.name {
        "llama_linear" | "gemma3" => {
            push("rope.scaling.type", Value::String("linear".into()));
            push("rope.scaling.factor", number(&rope["factor"]));
        }
        "llama_yarn" => {
            push("rope.scaling.type", Value::String("yarn".into()));
            push("rope.scaling.factor", number(&rope["factor"]));
            push("rope.scaling.original_context_length", count(&rope["original_max_position_embeddings"]));
            push("rope.scaling.yarn_beta_fast", number(&rope["beta_fast"]));
            push("rope.scaling.yarn_beta_slow", number(&rope["beta_slow"]));
        }
        "phi3" => {
            push("rope.dimension_count", Value::U32(6));
            push("rope.scaling.original_context_length", count(&config["original_max_position_embeddings"]));
            let (stretch, original) = (64f32 / 16.0, 16f32);
            push("rope.scaling.attn_factor", Value::F32((1.0 + stretch.ln() / original.ln()).sqrt()));
        }
        _ => {}
    }
    match case.name {
        "gemma2" | "gemma3" | "phi3" => push("attention.sliding_window", count(&config["sliding_window"])),
        _ => {}
    }
    if case.name == "gemma2" {
        push("attn_logit_softcapping", number(&config["attn_logit_softcapping"]));
        push("final_logit_softcapping", number(&config["final_logit_softcapping"]));
    }
    if case.name == "gemma3" {
        push("attention.sliding_window_pattern", Value::U32(3));
        push("rope.freq_base_swa", number(&config["rope_parameters"]["sliding_attention"]["rope_theta"]));
    }
    let named = entries.into_iter().map(|(name, value)| (format!("{architecture}.{name}"), value));
    std::iter::once(("general.architecture".to_owned(), Value::String(architecture.into()))).chain(named).collect()
}

/// The order of rows that llama.cpp's converter writes for Llama: values that turn together side by side.
fn side_by_side(weight: &Tensor, heads: usize) -> Tensor {
    let rows = weight.dim(0).unwrap();
    let halves = weight.reshape((heads, 2, rows / heads / 2, ())).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape(weight.shape()).unwrap()
}

fn tensors(case: &Case, config: &Json) -> Vec<(String, QTensor)> {
    let heads = |name: &str| config[name].as_u64().unwrap() as usize;
    let llama = ["llama_linear", "llama_yarn", "mistral"].contains(&case.name);
    let mut tensors: Vec<(String, Tensor)> = case
        .weights()
        .into_iter()
        .map(|(name, tensor)| {
            let converted = match name.rsplit('.').nth(1).unwrap() {
                "q_proj" if llama => side_by_side(&tensor, heads("num_attention_heads")),
                "k_proj" if llama => side_by_side(&tensor, heads("num_key_value_heads")),
                part if part.ends_with("norm") && case.name.starts_with("gemma") => (tensor + 1.0).unwrap(),
                _ => tensor,
            };
            (case.reference.gguf[&name].clone(), converted)
        })
        .collect();
    for kind in ["short", "long"] {
        if let Some(factors) = config["rope_parameters"].get(format!("{kind}_factor")) {
            let factors: Vec<f32> = serde_json::from_value(factors.clone()).unwrap();
            let tensor = Tensor::new(factors, &Device::Cpu).unwrap();
            tensors.push((format!("rope_factors_{kind}.weight"), tensor));
        }
    }
    let held = |tensor: Tensor| QTensor::quantize(&tensor.to_dtype(DType::F32).unwrap(), GgmlDType::F32).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, held(tensor))).collect()
}

#[test]
fn a_gguf_of_every_architecture_has_the_logits_of_the_folder_that_it_was_made_of() {
    for name in CASES {
        let case = Case::of(name);
        let config = expressible(&case);
        let (tensors, metadata) = (tensors(&case, &config), metadata(&case, &config));
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        write(&mut File::create(folder.path().join("model.gguf")).unwrap(), &metadata, &tensors).unwrap();
        let (from_gguf, from_folder) = (load(folder.path()), case.decoder());
        assert_eq!(from_gguf.parameters(), from_folder.parameters(), "{name}");
        let logits = |decoder: &drydock_worker::model::decoder::Decoder| {
            decoder.logits(case.ids()).unwrap().to_vec2::<f32>().unwrap().concat()
        };
        let (got, want) = (logits(&from_gguf), logits(&from_folder));
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-5, "{name}: logits are off by {worst:e}");
    }
}
