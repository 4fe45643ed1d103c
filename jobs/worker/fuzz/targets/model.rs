//! Any GGUF file is a model with its tokenizer, or is refused: its configuration, its tokens and every tensor that a
//! decoder asks for.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use drydock_worker::gguf::read::Contents;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::decoder::Decoder;
use libfuzzer_sys::fuzz_target;

/// A folder of this process. Models are read from files only.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("drydock-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is a place for files");
    folder
});

fuzz_target!(
    // The library panics where a tokenizer does not fit, and is caught; libFuzzer takes every panic for a finding.
    init: drop(std::panic::take_hook()),
    |file: &[u8]| {
        // What is no GGUF file at all is for another target.
        if Contents::parse(file).is_err() {
            return;
        }
        std::fs::write(FOLDER.join("model.gguf"), file).expect("there is room for the file");
        let Ok(files) = ModelFiles::open(&FOLDER) else { return };
        if let Ok(text) = files.text() {
            let _ = text.encode("ab 12 \u{e9}</s>", true);
        }
        let _ = Decoder::load(&files, 16, |_| Ok(()));
    }
);
