//! What models and datasets may be called, and what somebody may have meant.

use crate::store::CatalogEntry;

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

/// At least so many digits name a digest; fewer are too easily a name that somebody mistyped.
const SHORTEST_PREFIX: usize = 6;

/// The entry that is called `name`, or whose digest begins so; otherwise what to do about it.
pub fn pick<M>(name: &str, entries: Vec<CatalogEntry<M>>, empty: &str) -> Result<CatalogEntry<M>, String> {
    let known: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
    let (named, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.name == name);
    if let Some(entry) = named.into_iter().next() {
        return Ok(entry);
    }
    let is_meant = |entry: &CatalogEntry<M>| name.len() >= SHORTEST_PREFIX && entry.digest.starts_with(name);
    let mut meant: Vec<_> = others.into_iter().filter(is_meant).collect();
    meant.dedup_by(|a, b| a.digest == b.digest);
    match (meant.len(), meant.pop()) {
        (1, Some(entry)) => Ok(entry),
        (0, _) => Err(suggest(name, &known, empty)),
        (several, _) => Err(format!("{several} digests begin so; give more digits")),
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

    #[test]
    fn a_digest_is_known_by_its_beginning_unless_it_is_ambiguous() {
        let entry = |name: &str, digest: &str| CatalogEntry {
            name: name.into(),
            digest: digest.into(),
            manifest: (),
            added_ms: 0,
        };
        let pick = |name: &str| {
            let entries = vec![entry("a", "abcdef11"), entry("b", "abcdef22"), entry("c", "abcdef22")];
            pick(name, entries, "none").map(|entry| entry.name)
        };
        assert_eq!(pick("b"), Ok("b".into()));
        assert_eq!(pick("abcdef1"), Ok("a".into()));
        assert_eq!(pick("abcdef2").map(|name| name.len()), Ok(1));
        assert_eq!(pick("abcdef"), Err("2 digests begin so; give more digits".into()));
        assert!(pick("abc").unwrap_err().starts_with("there is `a`, `b`, `c`"));
    }
}
