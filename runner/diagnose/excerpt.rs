//! What is kept of a long output: its end, and the place where it says why.

use std::ops::Range;

/// Bytes before the root that are kept: what the program was doing.
const BEFORE: usize = 512;

/// At most about `most` bytes of the output, and a line in place of what is left out: the end of it, and as much of
/// `root` and what surrounds it, in bytes, as half of that holds.
#[must_use]
pub fn of(output: &str, root: Option<&Range<usize>>, most: usize) -> String {
    let tail = output.ceil_char_boundary(output.len().saturating_sub(most));
    // Of a root that begins in the part that would be cut off, half of what is kept is spent on it.
    let Some(root) = root.filter(|root| root.start < tail) else { return output[tail..].to_owned() };
    let half = most / 2;
    // Of an account that is longer than that, its end says what happened.
    let from = root.start.max(root.end.saturating_sub(half)).saturating_sub(BEFORE.min(half / 4));
    let from = output.floor_char_boundary(from);
    let to = output.floor_char_boundary((from + half).min(output.len()));
    let tail = output.ceil_char_boundary(output.len() - half).max(to);
    let left_out = |bytes: usize| if bytes == 0 { String::new() } else { format!("[{bytes} bytes left out]\n") };
    let line_end = if output[from..to].ends_with('\n') { "" } else { "\n" };
    format!("{}{}{line_end}{}{}", left_out(from), &output[from..to], left_out(tail - to), &output[tail..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_root_the_end_is_kept() {
        assert_eq!(of("abcdef", None, 4), "cdef");
        assert_eq!(of("abcdef", None, 10), "abcdef");
        assert_eq!(of("aäb", None, 2), "b", "no letter is cut");
    }

    #[test]
    fn a_root_that_lies_further_back_is_kept_with_what_surrounds_it() {
        let noise = "step\n".repeat(1000);
        let text = format!("{noise}Error: here\n{noise}bye\n");
        let at = noise.len()..noise.len() + 12;
        let kept = of(&text, Some(&at), 400);
        assert!(
            kept.starts_with("[4950 bytes left out]\nstep\n") && kept.contains("step\nError: here\nstep\n"),
            "{kept}"
        );
        assert!(kept.ends_with("step\nbye\n") && kept.matches("left out]").count() == 2, "{kept}");
        let near = text.len() - 4..text.len();
        assert_eq!(of(&text, Some(&near), 400), &text[text.len() - 400..]);
    }

    proptest! {
        #[test]
        fn the_roots_end_is_kept_and_hardly_more_than_was_allowed(
            before in ".{0,300}", root in ".{1,40}", after in ".{0,300}", most in 320usize..600,
        ) {
            let text = format!("{before}{root}{after}");
            let at = before.len()..before.len() + root.len();
            let kept = of(&text, Some(&at), most);
            let last = root.chars().last().unwrap();
            prop_assert!(kept.contains(&root) || kept.contains(last));
            prop_assert!(kept.len() <= most + 80);
        }
    }
}
