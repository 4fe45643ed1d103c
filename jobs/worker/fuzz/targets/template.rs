//! Any chat template is compiled or refused, and writes a row or refuses it.
//!
//! What takes too much ends the process, as it should; templates with what makes a text long in one go are left to the
//! worker's own tests.

#![no_main]

use drydock_spec::dataset::{Message, Role};
use drydock_worker::data::render::template::ChatTemplate;
use libfuzzer_sys::fuzz_target;

const LONG: [&str; 7] = ["*", "range", "indent", "format", "macro", "pprint", "%0"];

fuzz_target!(|source: &str| {
    if source.len() > 400 || LONG.iter().any(|long| source.contains(long)) {
        return;
    }
    let Ok(template) = ChatTemplate::new(source, [("eos_token", &Some("</s>".to_owned()))]) else { return };
    let said = |role, content: &str| Message { role, content: content.into() };
    let turns = [said(Role::System, ""), said(Role::User, "q\u{e9} 1"), said(Role::Assistant, "<a>")];
    let written = [template.render(&turns, false), template.render(&turns[..2], true)];
    assert!(written.into_iter().flatten().all(|text| text.len() <= 8 << 20));
});
