//! Any bytes are read or refused: no panic, no memory beyond the file's size, no tensor outside of the file.

#![no_main]

use drydock_worker::gguf::read::Contents;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(contents) = Contents::parse(file) else { return };
    for place in contents.tensors.values() {
        let mut values = vec![0.0; place.shape.iter().product()];
        place.kind.decode(&file[place.bytes.clone()], &mut values);
    }
});
