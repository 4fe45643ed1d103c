//! Any file of a dataset is read or refused with the place that is wrong; every example that is read can be put.

#![no_main]

use drydock_spec::dataset::Columns;
use drydock_worker::data::read::{document, lines};
use drydock_worker::ending::Ending;
use drydock_worker::evaluate::rows::Question;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let columns = Columns::default();
    let of_lines = lines("a.jsonl", file, 1, &columns);
    let of_document = str::from_utf8(file).ok().map(|text| document("a.json", text, &columns));
    for read in [Some(of_lines), of_document].into_iter().flatten() {
        match read {
            Ok(read) => read.examples.iter().for_each(|placed| drop(Question::of(placed))),
            Err(Ending::Failed(failure)) => assert!(failure.message.starts_with("a.json"), "{failure:?}"),
            Err(Ending::Stopped) => panic!("nobody has asked for it"),
        }
    }
});
