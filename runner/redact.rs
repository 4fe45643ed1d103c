//! What may leave the house with its experience, and what is cut.
//!
//! Nothing is looked for that must not leave: of a text only those words stay that surely say nothing about anybody,
//! which are plain words, numbers, and the names that drydock itself gives to options. A name of a host, a path, an id
//! or a token is none of these, whatever it looks like; and the names that this installation knows are cut even if they
//! are plain words. What is left may read badly. It says what a failure is about, and failures are known by their
//! fingerprints.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use drydock_spec::remedy::{Edit, To};
use drydock_spec::{JobArgs, LimitArgs, Remedy};
use regex::Regex;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// Letters of a text that leave.
const MOST_CHARS: usize = 600;
/// Letters of a plain word.
const LONGEST_WORD: usize = 20;
/// The least letters by which a part of a name is one.
const SHORTEST_PART: usize = 3;
/// Words that have capitals and are nobody's name: units, and how advice begins.
const CAPITALS: [&str; 43] = [
    "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB", "CPU", "CUDA", "DPO", "ECC", "GGUF", "GPU", "KTO", "NaN",
    "NCCL", "NVML", "OOM", "RAM", "RSS", "A", "Add", "Ask", "Do", "For", "Free", "Halve", "If", "In", "It", "Load",
    "Lower", "Make", "On", "Raise", "Set", "The", "Then", "Try", "Use", "Wait", "With",
];
/// What takes the place of a word that is cut, and of a secret.
const NAME: &str = "<name>";
const SECRET: &str = "<secret>";

fn expression(text: &str) -> Regex {
    Regex::new(text).expect("the expression is a constant")
}

/// Tokens that could pass for words, and what follows a name that secrets have.
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r#"(?xi)
        \b (?: pass (?: word | wd | phrase )? | pwd | secret | token | credentials? | api [\ _-]? key | access [\ _-]? key | auth
             | authorization ) [\w-]* ["']? \s* [:=] \s* (?: (?: bearer | basic | token ) \s+ )? \S+
      | \b (?: bearer | basic ) \s+ \S+
      | \b (?: hf | sk | pk | rk | gh[a-z] | github_pat | glpat | xox[a-z] | npm | pypi | dop ) [_-] [\w-]+
      | \b (?: AKIA | ASIA | AIza | eyJ ) [\w.-]{8,}
    "#,
    )
});
static QUOTED: LazyLock<Regex> = LazyLock::new(|| expression(r#"`[^`]*`|"[^"]*"|\B'[^']*'\B|[“„«][^”“»]*[”“»]"#));
/// The slots of templates, and what stands here for what was cut.
static MARK: LazyLock<Regex> = LazyLock::new(|| expression("<(?:number|quoted|url|time|path|uuid|id|name|secret)>"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| expression(r"^[+-]?\d{1,6}(?:\.\d{1,4})?(?:%|[A-Za-z]{1,3})?$"));
static EXCEPTION: LazyLock<Regex> =
    LazyLock::new(|| expression(r"(?i)^(?:[a-z]\w*\.)*([a-z]*(?:error|exception|interrupt))$"));
static FRAME: LazyLock<Regex> =
    LazyLock::new(|| expression(r"^[A-Za-z_]{1,40}\.(?:py|rs|cc?|cpp|cu)(?::[A-Za-z_<>.]{1,60})?$"));
static GPU: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?xi)^ (?: cuda (?: :\d+ )? \ ? )? (?: (?: NVIDIA | AMD | Tesla | GeForce | Quadro | RTX | GTX | Instinct | Radeon ) \  )*
          [A-Z]{1,3} \d{1,4} [A-Z]{0,3} (?: [\ -] (?: Ti | SUPER | PCIe | SXM\d? | NVL | HBM\d[a-z]? | \d{1,3} \ ? GB ) )* $",
    )
});

/// What drydock's options are called, and the texts that its schemas name for them.
static OPTIONS: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let whole = || SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut options = BTreeMap::new();
    collect(&whole().into_root_schema_for::<JobArgs>().to_value(), "", &mut options);
    collect(&whole().into_root_schema_for::<LimitArgs>().to_value(), "limits.", &mut options);
    options
});

/// Collects the fields of every object in a schema.
fn collect(schema: &Value, before: &str, options: &mut BTreeMap<String, BTreeSet<String>>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| collect(item, before, options)),
        Value::Object(object) => {
            if let Some(Value::Object(fields)) = object.get("properties") {
                for (name, field) in fields {
                    texts(field, options.entry(format!("{before}{name}")).or_default());
                }
            }
            object.values().for_each(|value| collect(value, before, options));
        }
        _ => {}
    }
}

/// Collects the texts that a schema names as values.
fn texts(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(object) => {
            let named = object
                .get("const")
                .into_iter()
                .chain(object.get("enum").and_then(Value::as_array).into_iter().flatten());
            found.extend(named.filter_map(|value| value.as_str().map(str::to_owned)));
            for inner in ["anyOf", "oneOf", "allOf", "items"].iter().filter_map(|key| object.get(*key)) {
                texts(inner, found);
            }
        }
        _ => {}
    }
}

/// Whether a remedy says nothing but what drydock's own schemas say: options by their names, numbers, and texts that are
/// choices. One that names a model, a dataset, a file or words of somebody's does not.
#[must_use]
pub fn is_impersonal(remedy: &Remedy) -> bool {
    let Remedy::Change(edits) = remedy else { return true };
    edits.iter().all(|Edit { option, to }| match (OPTIONS.get(option), to) {
        (None, _) => false,
        (Some(_), To::Scale(_) | To::Fit | To::Default) => true,
        (Some(choices), To::Set(value)) => is_choice(value, choices),
    })
}

fn is_choice(value: &Value, choices: &BTreeSet<String>) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => choices.contains(text),
        Value::Array(values) => values.iter().all(|value| is_choice(value, choices)),
        Value::Object(_) => false,
    }
}

/// What a device is called, as far as it is a kind of device: `cpu`, the name of a product, or `other`.
#[must_use]
pub fn device_class(device: &str) -> &str {
    if device == "cpu" || GPU.is_match(device) { device } else { "other" }
}

/// Cuts what must not leave.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    /// Names that are known here, and their parts, in lower case.
    private: HashSet<String>,
}

impl Redactor {
    /// One that knows these names of people, hosts, models, datasets and the like.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let mut redactor = Self::default();
        names.into_iter().for_each(|name| redactor.learn(&name));
        redactor
    }

    /// The same, which knows more names.
    #[must_use]
    pub fn knowing<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut redactor = self.clone();
        names.into_iter().for_each(|name| redactor.learn(name));
        redactor
    }

    fn learn(&mut self, name: &str) {
        let name = name.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        let parts = name.split(|c: char| !c.is_alphabetic()).filter(|part| part.chars().count() >= SHORTEST_PART);
        self.private.extend(parts.map(str::to_owned));
        if !name.is_empty() {
            self.private.insert(name);
        }
    }

    /// The text with every word cut that may be somebody's: on one line, and no longer than a message has to be.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let text = QUOTED.replace_all(text, "<quoted>");
        let text = SECRETS.replace_all(&text, SECRET);
        let mut kept = String::with_capacity(text.len());
        for word in text.split_whitespace() {
            if !kept.is_empty() {
                kept.push(' ');
            }
            // Between brackets and commas there may be several words in one piece.
            let pieces = word.split_inclusive(|c: char| "()[]{},;!".contains(c));
            for piece in pieces {
                let core = piece.trim_matches(|c: char| "()[]{},;!.:?'".contains(c));
                let at = piece.find(core).unwrap_or_default();
                kept.push_str(&piece[..at]);
                kept.push_str(&self.word(core));
                kept.push_str(&piece[at + core.len()..]);
            }
            if kept.len() > MOST_CHARS * 4 {
                break;
            }
        }
        kept.chars().take(MOST_CHARS).collect()
    }

    /// A word, or what takes its place.
    fn word(&self, word: &str) -> String {
        if word.is_empty() || self.is_plain(word) {
            return word.to_owned();
        }
        let is_marks = !MARK.replace_all(word, "").chars().any(|c| c.is_alphanumeric() || c == '<' || !c.is_ascii());
        if is_marks || NUMBER.is_match(word) || self.is_of_drydock(word) {
            return word.to_owned();
        }
        match EXCEPTION.captures(word) {
            Some(found) if !self.is_private(&found[1]) => found[1].to_owned(),
            _ => NAME.to_owned(),
        }
    }

    fn is_private(&self, word: &str) -> bool {
        self.private.contains(&word.to_lowercase())
    }

    /// Small letters as in a dictionary; what has capitals is a name unless it is known to be none.
    fn is_plain(&self, word: &str) -> bool {
        let part = |part: &str| {
            let small = !part.is_empty() && part.chars().all(char::is_lowercase);
            (small || CAPITALS.contains(&part)) && part.chars().count() <= LONGEST_WORD && !self.is_private(part)
        };
        !self.is_private(word) && word.split(['-', '\'']).all(part)
    }

    /// The name of an option, or of a choice of one.
    fn is_of_drydock(&self, word: &str) -> bool {
        let named =
            OPTIONS.contains_key(word) || OPTIONS.values().flatten().any(|choice| choice.eq_ignore_ascii_case(word));
        named && !self.is_private(word)
    }

    /// A place in the worker's program, if it is surely nothing else.
    #[must_use]
    pub fn frame(&self, frame: &str) -> Option<String> {
        let parts = frame.split(|c: char| !c.is_alphabetic());
        (FRAME.is_match(frame) && !parts.clone().any(|part| self.is_private(part))).then(|| frame.to_owned())
    }
}

#[cfg(test)]
mod tests;
