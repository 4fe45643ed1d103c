//! What models and datasets may be called, and what somebody may have meant.

/// Longest name.
const LONGEST: usize = 96;

/// The text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name = `{given}`: letters, digits, `.`, `_` and `-` are allowed, {LONGEST} at most; `{instead}` would do")]
pub struct BadName {
    given: String,
    instead: String,
}

/// Checks a name that somebody chose.
pub fn check(name: &str) -> Result<(), BadName> {
    if usual(name) == name || (name.len() <= LONGEST && !name.is_empty() && name.chars().all(allowed)) {
        return Ok(());
    }
    Err(BadName { given: name.chars().take(2 * LONGEST).collect(), instead: usual(name) })
}

/// A name made of a file's or folder's: lower case, and a `-` for whatever is not allowed.
#[must_use]
pub fn usual(source: &str) -> String {
    let name: String =
        source.chars().map(|c| if allowed(c) { c.to_ascii_lowercase() } else { '-' }).take(LONGEST).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "unnamed".into() } else { name.into() }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// What to do about an unknown name: those like it, or all there are, at most ten; `empty` if there are none.
#[must_use]
pub fn suggest(name: &str, known: &[String], empty: &str) -> String {
    if known.is_empty() {
        return empty.to_owned();
    }
    let wanted = name.to_ascii_lowercase();
    let mut near: Vec<_> = known
        .iter()
        .map(|known| (strsim::jaro_winkler(&wanted, &known.to_ascii_lowercase()), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let quoted = |names: Vec<&String>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let all = match known.len() {
        0..=10 => format!("there is {}", quoted(known.iter().collect())),
        more => format!("there is {} and {} more", quoted(known.iter().take(10).collect()), more - 10),
    };
    match near.is_empty() {
        true => all,
        false => format!("did you mean {}? {all}", quoted(near.into_iter().take(3).map(|(_, name)| name).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_name_comes_with_one_that_would_do() {
        assert_eq!(check("SmolLM2-135M.Q4_1"), Ok(()));
        let error = check("my model/v1").unwrap_err().to_string();
        assert!(error.ends_with("`my-model-v1` would do"), "{error}");
        assert!(check("").is_err() && check(&"x".repeat(97)).is_err() && check("ü").is_err());
    }

    #[test]
    fn names_made_of_file_names_are_always_good() {
        for source in ["SQuAD v1.json", "..", "", "日本", "-x-", &"y".repeat(300)] {
            assert_eq!(check(&usual(source)), Ok(()), "{source}");
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_what_there_is() {
        let known = ["smollm2-135m".to_owned(), "llama-3".to_owned()];
        let next = suggest("SmolLM2-135", &known, "none");
        assert_eq!(next, "did you mean `smollm2-135m`? there is `smollm2-135m`, `llama-3`");
        assert_eq!(suggest("qwen", &known, "none"), "there is `smollm2-135m`, `llama-3`");
        assert_eq!(suggest("qwen", &[], "add one"), "add one");
    }
}
