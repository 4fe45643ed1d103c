//! From the lines of a file to advice: strictly, for it comes from strangers.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

use super::{FORMAT, Header, KnownRemedy, LONGEST_LINE, Line, Origin, SeenFailure, VERSION, is_name};
use crate::diagnose::fingerprint::Fingerprint;
use crate::legible::legible;
use crate::redact::is_impersonal;
use crate::remedy::rank::Count;
use crate::store::{Against, Experience, NewAdvice};

/// Lines at most: what fits into a file.
const MOST_LINES: usize = 100_000;
/// Nothing is tried more often.
const MOST_TIMES: u64 = 1_000_000_000;
const LONGEST_NOTE: usize = 600;

/// A line that cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    pub reason: String,
}

/// What a file says: all of it, or the first line that is wrong.
pub fn read(text: &str) -> Result<Experience, BadLine> {
    let mut lines = (1..).zip(text.lines());
    let origin = match lines.next() {
        Some((_, first)) => header(first),
        None => Err(format!("the file is empty; it begins with {{\"format\":\"{FORMAT}\",…}}")),
    };
    let origin = origin.map_err(|reason| BadLine { line: 1, reason })?;
    let mut all = Collected::new(&origin);
    for (line, text) in lines {
        let taken = if line > MOST_LINES { Err(format!("more than {MOST_LINES} lines")) } else { all.take(text) };
        taken.map_err(|reason| BadLine { line, reason })?;
    }
    Ok(Experience { origin, failures: all.failures, advice: all.advice.into_values().collect() })
}

fn parsed<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    if line.len() > LONGEST_LINE {
        return Err(format!("{} bytes, more than {LONGEST_LINE}", line.len()));
    }
    serde_json::from_str(line).map_err(|error| error.to_string())
}

fn header(line: &str) -> Result<Origin, String> {
    let Header { format, version, installation, name } = parsed(line)?;
    if format != FORMAT {
        return Err(format!("the format is {format:?}, not {FORMAT:?}"));
    }
    if version != VERSION {
        return Err(format!("version {version} is not known here; this drydock reads version {VERSION}"));
    }
    if !is_hex(&installation, 8) {
        return Err(format!("{installation:?} is no installation: eight hex digits"));
    }
    match name {
        Some(name) if !is_name(&name) => Err(format!("{name:?} is no name of an installation")),
        name => Ok(Origin { installation, name }),
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What the lines so far have said.
struct Collected {
    name: String,
    failures: Vec<(Fingerprint, u64)>,
    seen: BTreeSet<Fingerprint>,
    /// By what it is against, and the remedy: devices and sources are one here.
    advice: BTreeMap<(String, String), NewAdvice>,
}

impl Collected {
    fn new(origin: &Origin) -> Self {
        let name = origin.to_string();
        Self { name, failures: Vec::new(), seen: BTreeSet::new(), advice: BTreeMap::new() }
    }

    fn take(&mut self, text: &str) -> Result<(), String> {
        match parsed(text)? {
            Line::Failure(failure) => self.failure(failure),
            Line::Remedy(remedy) => self.remedy(remedy),
        }
    }

    fn failure(&mut self, failure: SeenFailure) -> Result<(), String> {
        let SeenFailure { fingerprint, count, .. } = failure;
        check(&fingerprint)?;
        if !(1..=MOST_TIMES).contains(&count) {
            return Err(format!("count = {count}: from 1 to {MOST_TIMES}"));
        }
        if !self.seen.insert(fingerprint.clone()) {
            return Err(format!("{fingerprint} stands in the file twice"));
        }
        self.failures.push((fingerprint, count));
        Ok(())
    }

    fn remedy(&mut self, known: KnownRemedy) -> Result<(), String> {
        let KnownRemedy { against, remedy, worked, tried, note, .. } = known;
        if let Against::Fingerprint(fingerprint) = &against {
            check(fingerprint)?;
        }
        if worked > tried || tried > MOST_TIMES {
            return Err(format!("worked {worked} of {tried} times"));
        }
        // What an installation may say is what it would; a model or a file of somebody's choice is not.
        if !is_impersonal(&remedy) {
            return Err(format!("`{remedy}` names something that no other installation can know"));
        }
        let note = note.unwrap_or_default();
        if note.chars().count() > LONGEST_NOTE {
            return Err(format!("the note has more than {LONGEST_NOTE} letters"));
        }
        let key = (format!("{against:?}"), remedy.to_string());
        let name = &self.name;
        let one = self.advice.entry(key).or_insert_with(|| NewAdvice {
            against,
            remedy,
            note: String::new(),
            by_whom: name.clone(),
            origin: Some((name.clone(), Count::default())),
        });
        if let Some((_, count)) = &mut one.origin {
            count.worked += worked;
            count.tried += tried;
        }
        if one.note.is_empty() {
            one.note = legible(&note).into_owned();
        }
        Ok(())
    }
}

fn check(fingerprint: &Fingerprint) -> Result<(), String> {
    match fingerprint.0.strip_prefix("v1:") {
        Some(digest) if is_hex(digest, 20) => Ok(()),
        _ => Err(format!("{:?} is no fingerprint: `v1:` and 20 hex digits", fingerprint.0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = r#"{"format":"drydock-knowledge","version":1,"installation":"0123abcd","name":"team a"}"#;
    const PRINT: &str = "v1:cb07a49e8be7d29863c7";

    fn remedy(remedy: &str, worked: u64, tried: u64) -> String {
        format!(
            r#"{{"remedy":{{"against":{{"fingerprint":"{PRINT}"}},"remedy":"{remedy}","source":"rule","worked":{worked},"tried":{tried}}}}}"#
        )
    }

    fn refused(lines: &[&str]) -> String {
        read(&lines.join("\n")).unwrap_err().to_string()
    }

    #[test]
    fn devices_and_sources_of_a_remedy_are_added_up() {
        let file = [HEADER, &remedy("try again", 1, 2), &remedy("try again", 2, 3)].join("\n");
        let read = read(&file).unwrap();
        assert_eq!(read.advice.len(), 1);
        assert_eq!(read.advice[0].origin, Some(("team a (0123abcd)".into(), Count { worked: 3, tried: 5 })));
    }

    #[test]
    fn the_first_wrong_line_is_named_with_its_reason() {
        let good = remedy("try again", 1, 2);
        let failure = |print: &str, count: u64| {
            format!(r#"{{"failure":{{"fingerprint":"{print}","kind":"out_of_memory","template":"","count":{count}}}}}"#)
        };
        for (lines, reason) in [
            (vec![""], "line 1: the file is empty"),
            (vec![good.as_str()], "line 1: unknown field `remedy`"),
            (vec![&HEADER.replace("\"version\":1", "\"version\":2")], "line 1: version 2 is not known here"),
            (vec![&HEADER.replace("0123abcd", "bobs-box")], "line 1: \"bobs-box\" is no installation"),
            (vec![&HEADER.replace("team a", "<b>")], "line 1: \"<b>\" is no name"),
            (vec![HEADER, &good, "{"], "line 3: EOF"),
            (vec![HEADER, "", &good], "line 2: EOF"),
            (vec![HEADER, &remedy("pray", 0, 0)], "line 2: `pray` is no remedy"),
            (vec![HEADER, &remedy("try again", 3, 2)], "line 2: worked 3 of 2 times"),
            (vec![HEADER, &remedy("model = \\\"hf:a/b\\\"", 3, 4)], "names something that no other installation"),
            (vec![HEADER, &good.replace(PRINT, "v1:xyz")], "is no fingerprint"),
            (vec![HEADER, &good.replace("\"source\"", "\"job\"")], "line 2: unknown field `job`"),
            (vec![HEADER, &failure(PRINT, 0)], "line 2: count = 0"),
            (
                vec![HEADER, &failure(PRINT, 1), &failure(PRINT, 1)],
                "line 3: v1:cb07a49e8be7d29863c7 stands in the file twice",
            ),
            (vec![HEADER, &failure(&"x".repeat(LONGEST_LINE), 1)], "more than 8192"),
        ] {
            let said = refused(&lines);
            assert!(said.contains(reason), "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd_to_be_refused(text in any::<String>(), line in "\\PC{0,200}") {
            prop_assert!(read(&text).is_err());
            let file = [HEADER, &line, "x"].join("\n");
            prop_assert!(read(&file).is_err());
        }
    }
}
