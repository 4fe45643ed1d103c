//! Names of things on the hub: `hf:owner/name[@revision][/path]`.

use std::str::FromStr;

use super::listing::is_commit;

/// A repository on the hub, perhaps at a revision, perhaps a file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`
    pub repo: String,
    /// A branch, tag, commit or `refs/pr/N`.
    pub revision: Option<String>,
    pub path: Option<String>,
}

/// The text names nothing that could be on the hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` {problem}; write hf:owner/name, hf:owner/name@revision, or either with /path/to/file behind it")]
pub struct NotAReference {
    given: String,
    problem: &'static str,
}

impl Reference {
    /// Whether the text is meant to be a name on the hub.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("hf:")
    }

    /// The commit, if the revision is one: 40 hex digits, which never come to mean something else.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }

    /// The repository's name without its owner.
    #[must_use]
    pub fn name(&self) -> &str {
        self.repo.rsplit('/').next().unwrap_or(&self.repo)
    }
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        let refuse = |problem| NotAReference { given: text.chars().take(200).collect(), problem };
        let rest = text.strip_prefix("hf:").ok_or_else(|| refuse("does not begin with hf:"))?;
        let (owner, rest) = rest.split_once('/').ok_or_else(|| refuse("has no owner"))?;
        let (name, rest) = rest.find(['@', '/']).map_or((rest, ""), |at| rest.split_at(at));
        if ![owner, name].into_iter().all(is_name) {
            return Err(refuse("has an owner or name that the hub does not allow"));
        }
        let (revision, path) = match rest.strip_prefix('@') {
            Some(rest) => {
                let (revision, path) = revision_and_path(rest);
                (Some(revision), path)
            }
            None => (None, rest.strip_prefix('/').unwrap_or("")),
        };
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(refuse("has a revision that is none"));
        }
        if !path.is_empty() && !path.split('/').all(is_part) {
            return Err(refuse("has a path that leads nowhere"));
        }
        Ok(Self {
            repo: format!("{owner}/{name}"),
            revision: revision.map(str::to_owned),
            path: (!path.is_empty()).then(|| path.to_owned()),
        })
    }
}

/// A revision has no slash, but for `refs/pr/N`.
fn revision_and_path(text: &str) -> (&str, &str) {
    let slashes = if text.starts_with("refs/") { 2 } else { 0 };
    match text.match_indices('/').nth(slashes) {
        Some((at, _)) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    }
}

fn is_name(text: &str) -> bool {
    (1..=96).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn is_revision(text: &str) -> bool {
    (1..=200).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'))
        && text.split('/').all(is_part)
}

fn is_part(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Option<String>, Option<String>) {
        let reference: Reference = text.parse().unwrap();
        (reference.repo, reference.revision, reference.path)
    }

    #[test]
    fn revision_and_path_may_be_left_out() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("hf:o/n"), ("o/n".into(), None, None));
        assert_eq!(parts("hf:o/n@v1.0"), ("o/n".into(), some("v1.0"), None));
        assert_eq!(parts("hf:o/n/a/b.jsonl"), ("o/n".into(), None, some("a/b.jsonl")));
        assert_eq!(parts("hf:o/n@main/a.jsonl"), ("o/n".into(), some("main"), some("a.jsonl")));
        assert_eq!(parts("hf:o/n@refs/pr/3/a.jsonl"), ("o/n".into(), some("refs/pr/3"), some("a.jsonl")));
        assert_eq!(parts("hf:o/n@refs/pr/3"), ("o/n".into(), some("refs/pr/3"), None));
    }

    #[test]
    fn nothing_leads_out_of_the_hub() {
        for text in ["hf:", "hf:o", "hf:o/", "hf:/n", "hf:../n", "hf:o/..", "hf:o/n@", "hf:o/n@../x", "hf:o/n/../x"] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("write hf:owner/name"), "{text}: {error}");
        }
        for text in ["hf:o/n?x=1", "hf:o/n@a b", "hf:o/n//x", "hf:o/n/a\nb", "o/n"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
