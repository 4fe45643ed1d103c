//! Exact match and F1 as SQuAD measures them (Rajpurkar et al. 2016): over words, without what is no word.

use std::collections::HashMap;

/// Lower case, without ASCII punctuation, without articles, and with single spaces.
pub fn normalized(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let bare = without_articles(&bare);
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An article ends where letters and digits end, be it at a space or at a quotation mark that is not ASCII's.
fn without_articles(text: &str) -> String {
    let in_word = |c: char| c.is_alphanumeric();
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| in_word(c) != in_word(first)).unwrap_or(rest.len());
        let (part, others) = rest.split_at(end);
        bare.push_str(if matches!(part, "a" | "an" | "the") { " " } else { part });
        rest = others;
    }
    bare
}

/// 1 where the answer is one of the accepted ones.
pub fn exact_match(answer: &str, accepted: &[String]) -> f64 {
    let answer = normalized(answer);
    f64::from(accepted.iter().any(|accepted| normalized(accepted) == answer))
}

/// The best F1 of the answer's words over the accepted ones.
pub fn f1(answer: &str, accepted: &[String]) -> f64 {
    accepted.iter().map(|accepted| f1_of_two(answer, accepted)).fold(0.0, f64::max)
}

/// Twice the words that both have, over the words of both. Where one of them has no words, 1 if neither has.
fn f1_of_two(a: &str, b: &str) -> f64 {
    let (a, b) = (normalized(a), normalized(b));
    let (a, b): (Vec<&str>, Vec<&str>) = (a.split(' ').collect(), b.split(' ').collect());
    if a == [""] || b == [""] {
        return f64::from(a == b);
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    b.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut shared = 0;
    for word in &a {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    2.0 * f64::from(shared) / (a.len() + b.len()) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalization_is_that_of_squad() {
        for (text, want) in [
            ("The Eiffel Tower.", "eiffel tower"),
            ("  a  man,\n an  apple ", "man apple"),
            ("theatre", "theatre"),
            ("U.S.A.", "usa"),
            // Punctuation goes first, so that an article may come out of it, or vanish into a word.
            ("\"The\" end", "end"),
            ("twenty-one", "twentyone"),
            ("a-frame", "aframe"),
            // Only ASCII's punctuation is known to the script.
            ("\u{201c}Die Zauberflöte\u{201d}", "\u{201c}die zauberflöte\u{201d}"),
            ("$1,000.50", "100050"),
            ("\u{201c}The Wall\u{201d}", "\u{201c} wall\u{201d}"),
            ("the", ""),
            ("", ""),
        ] {
            assert_eq!(normalized(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_best_of_the_accepted_answers_counts() {
        let accepted = ["Denver Broncos".to_owned(), "The Broncos of Denver".to_owned()];
        for (answer, exact, f1_wanted) in [
            ("denver broncos!", 1.0, 1.0),
            ("the Broncos", 0.0, 2.0 / 3.0),
            ("the Denver Broncos team", 0.0, 0.8),
            ("Broncos Broncos", 0.0, 0.5),
            ("Carolina Panthers", 0.0, 0.0),
            ("", 0.0, 0.0),
        ] {
            assert_eq!(exact_match(answer, &accepted), exact, "{answer}");
            assert!((f1(answer, &accepted) - f1_wanted).abs() < 1e-12, "{answer}: {}", f1(answer, &accepted));
        }
        assert_eq!((exact_match("the", &["a".to_owned()]), f1("the", &["a".to_owned()])), (1.0, 1.0));
    }

    proptest! {
        #[test]
        fn f1_is_a_share_in_both_directions_and_full_for_a_match(
            a in "[aAbc ,.]{0,12}", b in "[aAbc ,.]{0,12}"
        ) {
            let (ab, ba) = (f1_of_two(&a, &b), f1_of_two(&b, &a));
            prop_assert_eq!(ab, ba);
            prop_assert!((0.0..=1.0).contains(&ab));
            if exact_match(&a, std::slice::from_ref(&b)) == 1.0 {
                prop_assert_eq!(ab, 1.0);
            }
            prop_assert_eq!(normalized(&normalized(&a)), normalized(&a));
        }
    }
}
