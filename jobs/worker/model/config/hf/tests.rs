use serde_json::json;

use super::*;
use crate::ending::Ending;

fn with(changes: Value) -> Value {
    let mut json = json!({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "eos_token_id": [2, 3]});
    for (name, value) in changes.as_object().unwrap() {
        json[name] = value.clone();
    }
    json
}

fn config(changes: Value) -> Config {
    Config::from_hf(&with(changes)).unwrap()
}

fn failure(changes: Value) -> drydock_spec::Failure {
    match Config::from_hf(&with(changes)) {
        Err(Ending::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_config_json_leaves_out_has_the_defaults_of_llama() {
    let config = config(json!({}));
    assert_eq!(config.heads, Heads { query: 4, key_value: 2, dim: 16 });
    assert_eq!(config.rope, RopeConfig { theta: 10_000.0, dim: 16, scaling: RopeScaling::None });
    assert_eq!((config.tied, config.eos), (false, vec![2, 3]));
    assert_eq!((config.windows, config.features.attention_scale), (vec![None; 2], 0.25));
}

#[test]
fn what_config_json_leaves_out_has_the_defaults_of_its_architecture() {
    let mistral = config(json!({"model_type": "mistral"}));
    assert_eq!(mistral.windows, [Some(4096); 2]);
    assert_eq!(config(json!({"model_type": "mistral", "sliding_window": null})).windows, [None; 2]);
    let qwen = config(json!({"model_type": "qwen2", "sliding_window": 8}));
    assert!(qwen.features.biases.query_key_value && !qwen.features.biases.output);
    assert_eq!(qwen.windows, [None; 2], "a window that is not used");
    let gemma = config(json!({"model_type": "gemma2"}));
    assert_eq!((gemma.heads.dim, gemma.tied, gemma.features.embedding_scale), (256, true, 8.0));
    assert_eq!((gemma.features.attention_softcap, gemma.features.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(gemma.windows, [Some(4096), None]);
    let phi = config(json!({"model_type": "phi3", "sliding_window": 9, "partial_rotary_factor": 0.75}));
    assert_eq!((phi.windows, phi.rope.dim, phi.features.fused), (vec![Some(9); 2], 12, true));
}

#[test]
fn gemma_3_turns_its_windows_in_their_own_way() {
    let old = json!({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 4, "rope_theta": 5e5,
        "rope_local_base_freq": 7e3, "rope_scaling": {"rope_type": "linear", "factor": 8}});
    let new = json!({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 4, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7e3}}});
    let [old, new] = [old, new].map(config);
    assert_eq!(old, new);
    assert_eq!(old.architecture, "gemma3");
    assert_eq!(old.windows, [Some(4), Some(4), Some(4), Some(4), Some(4), None, Some(4)]);
    assert_eq!(old.rope, RopeConfig { theta: 5e5, dim: 256, scaling: RopeScaling::Linear { factor: 8.0 } });
    assert_eq!(old.window_rope, Some(RopeConfig { theta: 7e3, dim: 256, scaling: RopeScaling::None }));
    assert!(old.turns_as_window(0) && !old.turns_as_window(5));
}

#[test]
fn up_to_its_positions_a_model_that_stretches_dynamically_turns_plainly() {
    let dynamic = config(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}));
    assert_eq!(dynamic, config(json!({})));
}

#[test]
fn of_two_names_for_the_turning_the_one_that_transformers_takes_counts() {
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let plain = json!({"rope_type": "default", "rope_theta": 5e5});
    let both = config(json!({"rope_scaling": linear, "rope_parameters": plain}));
    assert_eq!(both.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    for nothing in [json!(null), json!({})] {
        let new = config(json!({"rope_scaling": nothing, "rope_parameters": plain}));
        assert_eq!((new.rope.scaling, new.rope.theta), (RopeScaling::None, 5e5));
    }
}

#[test]
fn a_model_with_eyes_is_refused_and_one_without_is_read() {
    let text = with(json!({"model_type": "gemma3_text"}));
    let whole = json!({"model_type": "gemma3", "text_config": text});
    assert_eq!(Config::from_hf(&whole).unwrap(), Config::from_hf(&text).unwrap());
    let mut silent = text.clone();
    silent.as_object_mut().unwrap().remove("eos_token_id");
    let outside = json!({"model_type": "gemma3", "text_config": silent, "eos_token_id": [2, 3]});
    assert_eq!(Config::from_hf(&outside).unwrap(), Config::from_hf(&text).unwrap(), "the ends may stand outside");
    let seeing = failure(json!({"model_type": "gemma3", "text_config": text, "vision_config": {"patch_size": 14}}));
    assert_eq!(seeing.kind, UnsupportedModel);
    assert!(seeing.message.starts_with("the model `gemma3` is multimodal (it has a `vision_config`)"), "{seeing}");
}

#[test]
fn what_the_decoder_does_not_have_is_refused_by_name() {
    let unknown = failure(json!({"model_type": "mamba"}));
    assert_eq!(unknown.kind, UnsupportedModel);
    let known = "llama, mistral, qwen2, qwen3, gemma2, gemma3, gemma3_text, phi3";
    assert_eq!(unknown.message, format!("the model's architecture is `mamba`; known are: {known}"));
    let axial = failure(json!({"rope_scaling": {"type": "axial", "factor": 4.0}}));
    let known = "default, linear, dynamic, llama3, yarn, longrope";
    assert_eq!(axial.message, format!("the model's rope scaling is `axial`; known are: {known}"));
    for change in [
        json!({"hidden_act": "gelu"}),
        json!({"partial_rotary_factor": 0.5}),
        json!({"model_type": "gemma2", "use_bidirectional_attention": true}),
        json!({"model_type": "qwen3", "use_sliding_window": true, "layer_types": ["full_attention", "chunked_attention"]}),
    ] {
        assert_eq!(failure(change).kind, UnsupportedModel);
    }
}

#[test]
fn numbers_that_do_not_fit_together_are_a_bad_model() {
    for change in [
        json!({"num_key_value_heads": 3}),
        json!({"num_attention_heads": 0}),
        json!({"model_type": "mistral", "sliding_window": 0}),
        json!({"rope_theta": -1.0}),
        json!({"model_type": "gemma2", "final_logit_softcapping": -30.0}),
        json!({"model_type": "gemma2", "query_pre_attn_scalar": 0}),
        json!({"model_type": "gemma2", "layer_types": ["full_attention"]}),
        json!({"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}),
        json!({"rope_scaling": {"type": "linear"}}),
    ] {
        assert_eq!(failure(change.clone()).kind, BadModel, "{change}");
    }
    assert!(failure(json!({"hidden_size": "64"})).message.starts_with("config.json: `hidden_size`: "));
}

#[test]
fn yarn_and_longrope_sharpen_attention_as_their_papers_say() {
    let yarn = config(json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}));
    let frequencies = yarn.rope.frequencies();
    assert!((f64::from(frequencies.factor) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-6);
    let plain = config(json!({})).rope.frequencies().inverse;
    assert_eq!((frequencies.inverse[0], frequencies.inverse[7]), (plain[0], plain[7] / 4.0));
    let factors = vec![2.0; 8];
    let long = config(json!({"model_type": "phi3", "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors}}));
    let want = (1.0 + 4f64.ln() / 64f64.ln()).sqrt();
    assert!((f64::from(long.rope.frequencies().factor) - want).abs() < 1e-6);
}

#[test]
fn absurd_numbers_are_refused_before_anything_of_their_size_is_made() {
    for change in [
        json!({"hidden_size": 1u64 << 40}),
        json!({"num_hidden_layers": 1_000_000_000}),
        json!({"num_hidden_layers": u64::MAX}),
        json!({"num_attention_heads": 1u64 << 63, "num_key_value_heads": 1u64 << 63}),
        json!({"head_dim": 1u64 << 62}),
        json!({"vocab_size": 1u64 << 50}),
        json!({"intermediate_size": u64::MAX}),
        json!({"max_position_embeddings": u64::MAX}),
        json!({"rms_norm_eps": 1e300}),
        json!({"rms_norm_eps": -1e-5}),
        json!({"rms_norm_eps": 0}),
        json!({"rope_theta": 1e-300}),
        json!({"rope_scaling": {"rope_type": "linear", "factor": 1e-300}}),
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1e300}}),
    ] {
        assert_eq!(failure(change.clone()).kind, BadModel, "{change}");
    }
    let deep = failure(json!({"num_hidden_layers": 1_000_000_000}));
    assert_eq!(deep.message, "the model's configuration has 1000000000 layers; at most 4096 are believed");
}

#[test]
fn a_model_that_takes_a_single_token_is_refused() {
    let refused = failure(json!({"max_position_embeddings": 1}));
    assert_eq!(refused.message, "the model's configuration has 1 positions; at least 2 are needed");
}
