//! Numbers out of answers, as lm-evaluation-harness takes them out for GSM8K (Cobbe et al. 2021).
//!
//! `strict-match` takes the first number that stands behind `#### `, as solved rows of GSM8K end. `flexible-extract`
//! takes the last number of all. Either is compared as text, without thousands' commas, currency and a final stop:
//! `5.00` is not `5`.

/// What stands for the number of an answer without one; lm-eval writes the same.
pub const INVALID: &str = "[invalid]";

/// Finds a number in an answer.
pub type Find = fn(&str) -> Option<&str>;

/// The two ways to find the number, by the names of lm-eval's filters.
pub const FILTERS: [(&str, Find); 2] = [("strict-match", strict), ("flexible-extract", flexible)];

/// The right number of a row: what follows its last `#### `, or else its last number.
pub fn reference(text: &str) -> Option<String> {
    let number = match text.rsplit_once("#### ") {
        Some((_, number)) => Some(number.trim()),
        None => flexible(text),
    };
    number.map(bare).filter(|number| number.contains(|c: char| c.is_ascii_digit()))
}

/// What is compared: without commas and dollars, and without the stop that ends a sentence.
pub fn bare(number: &str) -> String {
    let number: String = number.chars().filter(|c| !matches!(c, ',' | '$')).collect();
    number.strip_suffix('.').unwrap_or(&number).to_owned()
}

/// The first `#### ` that a number follows: an optional minus, and then digits, stops and commas.
fn strict(text: &str) -> Option<&str> {
    text.match_indices("#### ").find_map(|(at, mark)| {
        let number = &text[at + mark.len()..];
        let len = signed_len(number, |byte| matches!(byte, b'0'..=b'9' | b'.' | b','), 1)?;
        Some(&number[..len])
    })
}

/// The last number: an optional minus, and then two or more digits, dollars, stops and commas, or at least a digit.
fn flexible(text: &str) -> Option<&str> {
    let mut last = None;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let len = signed_len(rest, |byte| matches!(byte, b'$' | b'0'..=b'9' | b'.' | b','), 2)
            .or_else(|| signed_len(rest, |byte| byte.is_ascii_digit(), 1));
        match len {
            Some(len) => {
                last = Some(&rest[..len]);
                at += len;
            }
            None => at += rest.chars().next().map_or(1, char::len_utf8),
        }
    }
    last
}

/// The length of a minus, if there is one, and of at least so many bytes of a kind.
fn signed_len(text: &str, kind: impl Fn(u8) -> bool, least: usize) -> Option<usize> {
    let minus = usize::from(text.starts_with('-'));
    let count = text.bytes().skip(minus).take_while(|&byte| kind(byte)).count();
    (count >= least).then_some(minus + count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(text: &str) -> [String; 2] {
        FILTERS.map(|(_, find)| find(text).map_or(INVALID.to_owned(), bare))
    }

    #[test]
    fn numbers_are_found_as_lm_eval_finds_them() {
        for (text, strict, flexible) in [
            ("He pays 3 * 6 = 18.\n#### 18", "18", "18"),
            ("#### 1,234.\nThat is it.", "1234", "1234"),
            ("#### -5 and then #### 7", "-5", "7"),
            ("The answer is $2,125.50.", INVALID, "2125.50"),
            ("#### $18", INVALID, "18"),
            ("####18", INVALID, "18"),
            ("x = 7", INVALID, "7"),
            ("from 10-12", INVALID, "-12"),
            ("no number at all", INVALID, INVALID),
            // A stop alone is too short for a number, an ellipsis is not: so is lm-eval's pattern.
            ("It is 9. Yes.", INVALID, "9"),
            ("It is 9...", INVALID, "9.."),
            ("9, I think...", INVALID, ".."),
            ("ünï 3½", INVALID, "3"),
        ] {
            assert_eq!(numbers(text), [strict, flexible], "{text}");
        }
    }

    #[test]
    fn the_right_number_stands_behind_the_mark_or_last() {
        assert_eq!(reference("1 + 1 = <<1+1=2>>2\n#### 1,002\n"), Some("1002".to_owned()));
        assert_eq!(reference("That makes 12 apples."), Some("12".to_owned()));
        assert_eq!(reference("That makes no apples."), None);
        assert_eq!(reference("#### many"), None);
    }

    proptest! {
        #[test]
        fn a_number_that_is_written_is_found(before in "[a-z ]{0,10}", number in -99_999i64..99_999) {
            let [strict, flexible] = numbers(&format!("{before} 4 #### {number}"));
            prop_assert_eq!(&strict, &number.to_string());
            prop_assert_eq!(&flexible, &strict);
        }
    }
}
