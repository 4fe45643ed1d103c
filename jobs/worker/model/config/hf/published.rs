//! Files that people publish, against what Transformers makes of them (`tests/reference/make_configs.py`).

use std::collections::BTreeMap;
use std::path::Path;

use drydock_spec::finetune::TargetModule;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    name: String,
    published: Value,
    /// The same as Transformers 5 writes it.
    rewritten: Value,
    parameters: u64,
    windows: Vec<Option<usize>>,
    attention_scale: f32,
    attention_softcap: Option<f32>,
    logit_softcap: Option<f32>,
    norm_epsilon: f32,
    max_positions: usize,
    tied: bool,
    frequencies: BTreeMap<String, Vec<f32>>,
    factor: f32,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/configs.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn assert_turns(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}");
    let close = |(got, want): (&f32, &f32)| (got / want - 1.0).abs() < 2e-5;
    assert!(got.iter().zip(want).all(close), "{name}: {got:?}, not {want:?}");
}

#[test]
fn published_files_become_what_transformers_makes_of_them() {
    for case in cases() {
        let (name, config) = (&case.name, Config::from_hf(&case.published).unwrap());
        assert_eq!(Config::from_hf(&case.rewritten).unwrap(), config, "{name} as Transformers 5 writes it");
        assert_eq!(config.windows, case.windows, "{name}");
        let Features { attention_scale, attention_softcap, logit_softcap, .. } = config.features;
        assert_eq!((attention_softcap, logit_softcap), (case.attention_softcap, case.logit_softcap), "{name}");
        assert!((attention_scale / case.attention_scale - 1.0).abs() < 1e-6, "{name}: {attention_scale}");
        assert_eq!((config.norm_epsilon, config.max_positions), (case.norm_epsilon, case.max_positions), "{name}");
        assert_eq!((parameters(&config), config.tied), (case.parameters, case.tied), "{name}");

        let all = config.rope.frequencies();
        assert_turns(name, &all.inverse, &case.frequencies["full_attention"]);
        assert!((all.factor / case.factor - 1.0).abs() < 1e-6, "{name}: {}", all.factor);
        let local = config.window_rope.as_ref().map(|rope| rope.frequencies().inverse);
        assert_eq!(local.is_some(), case.frequencies.contains_key("sliding_attention"), "{name}");
        if let Some(local) = local {
            assert_turns(name, &local, &case.frequencies["sliding_attention"]);
        }
        if let RopeScaling::Long { long, .. } = &config.rope.scaling {
            let rope = RopeConfig { scaling: RopeScaling::Factors(long.clone()), ..config.rope.clone() };
            assert_turns(name, &rope.frequencies().inverse, &case.frequencies["long"]);
        }
    }
}

/// Numbers in all tensors that the decoder asks for.
fn parameters(config: &Config) -> u64 {
    let Features { biases, query_key_norm, norms_after, .. } = config.features;
    assert!(!biases.output && !biases.mlp);
    let weights = TargetModule::ALL.map(|module| config.shape(module));
    let matrices: usize = weights.iter().map(|[out, width]| out * width).sum();
    let bias = |module: TargetModule| if config.features.has_bias(module) { config.shape(module)[0] } else { 0 };
    let heads = if query_key_norm { 2 * config.heads.dim } else { 0 };
    let norms = if norms_after { 4 } else { 2 } * config.hidden + heads;
    let layer = matrices + TargetModule::ALL.map(bias).iter().sum::<usize>() + norms;
    let ends = if config.tied { 1 } else { 2 } * config.vocabulary * config.hidden + config.hidden;
    (config.layers * layer + ends) as u64
}
