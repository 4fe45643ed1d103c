//! Any `tokenizer.json` makes a tokenizer or is refused; what it makes of a text can be counted on.

#![no_main]

use drydock_worker::model::tokenizer::Text;
use libfuzzer_sys::fuzz_target;
use serde_json::Map;

fuzz_target!(
    // The library panics where a file does not fit, and is caught; libFuzzer takes every panic for a finding.
    init: drop(std::panic::take_hook()),
    |file: &str| {
        let Ok(mut text) = Text::new(file.to_owned(), Map::new(), None) else { return };
        let rows = text.vocabulary();
        if text.fit(rows).is_err() {
            return;
        }
        let Ok(tokens) = text.encode("ab 12 \u{e9}</s>", true) else { return };
        assert_eq!(tokens.ids.len(), tokens.starts.len());
        assert!(tokens.ids.iter().all(|id| (*id as usize) < rows), "{:?} of {rows}", tokens.ids);
        let _ = text.decode(&tokens.ids, true);
    }
);
