//! Numbers, times and untrusted text, as people read them.

use std::time::Duration;

/// The text with every character that a terminal could take for a command made visible; line breaks stay.
pub(super) fn clean(text: &str) -> String {
    escape(text, |c| c != '\n', |c| c.escape_default().to_string())
}

/// The same on one line.
pub(super) fn one_line(text: &str) -> String {
    escape(text, |_| true, |c| c.escape_default().to_string())
}

/// JSON text, whose own escapes leave out what only newer terminals obey. Such characters stand in strings only, so
/// the text stays JSON and means the same.
pub(super) fn clean_json(text: &str) -> String {
    escape(text, |c| c != '\n', |c| format!("\\u{:04x}", u32::from(c)))
}

fn escape(text: &str, applies: impl Fn(char) -> bool, escaped: impl Fn(char) -> String) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) && applies(c) { clean.push_str(&escaped(c)) } else { clean.push(c) }
    }
    clean
}

/// Control characters, and those that turn the order of what follows.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The first `limit` characters, with an ellipsis if there were more.
pub(super) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A count with its thousands apart: 1,234,567.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span as 7.3 s, 1:05 or 2:03:04.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{minutes}:{:02}", seconds % 60),
        _ => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
    }
}

/// How long ago `then_ms` was, in its largest unit.
pub(super) fn ago(then_ms: i64, now_ms: i64) -> String {
    let seconds = (now_ms - then_ms).max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// Now, in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_terminal_never_sees_a_command_from_a_job() {
        assert_eq!(clean("a\x1b[31mb\r\nc\u{9b}d\u{202e}"), "a\\u{1b}[31mb\\r\nc\\u{9b}d\\u{202e}");
        assert_eq!(one_line("a\nb\tc"), "a\\nb\\tc");
    }

    proptest! {
        #[test]
        fn cleaned_json_is_clean_and_means_the_same(text: String) {
            let json = clean_json(&serde_json::to_string(&text).unwrap());
            prop_assert!(!json.chars().any(is_hostile));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn numbers_read_easily() {
        assert_eq!((count(7), count(1234), count(134_515_008)), ("7".into(), "1,234".into(), "134,515,008".into()));
        assert_eq!(span(Duration::from_millis(7300)), "7.3 s");
        assert_eq!(span(Duration::from_secs(65)), "1:05");
        assert_eq!(span(Duration::from_secs(7384)), "2:03:04");
        assert_eq!(ago(0, 7_200_000), "2 h ago");
        assert_eq!(shorten("abcd", 2), "ab…");
    }
}
