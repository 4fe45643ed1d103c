//! Any `config.json` is understood or refused, and one that is understood can be worked with.

#![no_main]

use drydock_worker::model::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(json) = serde_json::from_slice(file) else { return };
    let Ok(config) = Config::from_hf(&json) else { return };
    assert!(config.rope.frequencies().inverse.iter().all(|frequency| frequency.is_finite()));
    for layer in 0..config.layers {
        config.scoring(layer);
    }
    if let Ok(written) = config.to_hf(Some(1)) {
        assert!(Config::from_hf(&written).is_ok(), "{written}");
    }
});
