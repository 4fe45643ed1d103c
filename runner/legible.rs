//! Text out of a container, made harmless to whoever it is shown to.
//!
//! What a worker says may have been written by whoever made its model or its rows, and ends up on terminals and before
//! language models. It is made legible once, where it comes in, so that no place where it is shown can forget to. Left
//! as they are: line breaks, tabs, and what languages need; what a model answers may be in any.

use std::borrow::Cow;

use serde_json::Value;

/// The text with every character that commands or misleads written out, as in `\u{1b}[2J`.
#[must_use]
pub fn legible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hostile(c) { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    Cow::Owned(clean)
}

/// The same for every string in a JSON value, names of fields included.
pub fn make_legible(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(clean) = legible(text) {
                *text = clean;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(make_legible),
        Value::Object(fields) => {
            if fields.keys().any(|name| name.chars().any(is_hostile)) {
                *fields =
                    std::mem::take(fields).into_iter().map(|(name, v)| (legible(&name).into_owned(), v)).collect();
            }
            fields.values_mut().for_each(make_legible);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether JSON text surely holds nothing that [`make_legible`] would change: most reports are plain ASCII.
#[must_use]
pub fn is_plain(json: &[u8]) -> bool {
    json.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\')
}

/// What a terminal obeys; what breaks lines in some programs and not in others, or turns the order of what follows, so
/// that a text reads as another; and the invisible letters of Unicode's tag block, which people do not see and language
/// models read.
fn is_hostile(c: char) -> bool {
    let invisible = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{e0000}'..='\u{e007f}');
    invisible || c.is_control() && !matches!(c, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_commands_or_misleads_is_written_out_and_the_rest_stays() {
        for (text, shown) in [
            ("\x1b]0;owned\x07", "\\u{1b}]0;owned\\u{7}"),
            ("50 %\r100 %\u{8}", "50 %\\r100 %\\u{8}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("adapter\u{202e}txt.exe\u{2066}", "adapter\\u{202e}txt.exe\\u{2066}"),
            ("good\u{e0049}\u{e0067}", "good\\u{e0049}\\u{e0067}"),
            ("two\nlines\tand ä, שלום\u{200f}, 👩\u{200d}💻", "two\nlines\tand ä, שלום\u{200f}, 👩\u{200d}💻"),
        ] {
            assert_eq!(legible(text), shown);
        }
    }

    #[test]
    fn every_string_of_a_value_is_made_legible() {
        let mut value = json!({"a\x1b": ["\x1b", {"b": "c\x07", "n": 1.5, "t": true}], "d": null});
        make_legible(&mut value);
        assert_eq!(value, json!({"a\\u{1b}": ["\\u{1b}", {"b": "c\\u{7}", "n": 1.5, "t": true}], "d": null}));
    }

    proptest! {
        #[test]
        fn what_is_legible_stays_as_it_is(text: String) {
            let once = legible(&text).into_owned();
            prop_assert_eq!(legible(&once), once.as_str());
        }

        #[test]
        fn plain_json_holds_nothing_to_change(text: String) {
            let json = serde_json::to_string(&text).unwrap();
            let mut value: Value = serde_json::from_str(&json).unwrap();
            make_legible(&mut value);
            prop_assert!(!is_plain(json.as_bytes()) || value == text.as_str());
        }
    }
}
