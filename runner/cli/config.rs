//! `drydock config`

use super::error::{CliError, Exit};
use super::out::Out;
use crate::config::{KEYS, Key, Loaded};

/// Prints what is in force, as a file that would set the same.
pub(super) fn print(loaded: &Loaded, out: &mut Out) -> Result<Exit, CliError> {
    if out.json {
        let keys = KEYS.iter().map(|key| {
            let entry = serde_json::json!({
                "value": loaded.values.get(key.path),
                "origin": loaded.origins.get(key.path),
            });
            (key.path.to_owned(), entry)
        });
        out.document(&keys.collect::<serde_json::Map<_, _>>())?;
    } else {
        out.line(toml(loaded))?;
    }
    for warning in loaded.config.warnings() {
        out.note(format!("warning: {warning}"));
    }
    Ok(Exit::Ok)
}

fn toml(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        let (home, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if home != section {
            section = home;
            text.push_str(&format!("\n[{section}]\n"));
        }
        text.push_str(&format!("# {}\n{}", key.about, setting(loaded, key, name)));
    }
    text.truncate(text.trim_end().len());
    text
}

/// The line that sets `key`; as a comment where nothing is set.
fn setting(loaded: &Loaded, key: &Key, name: &str) -> String {
    let value = loaded.values.get(key.path).and_then(|value| toml::Value::try_from(value).ok());
    match value {
        Some(value) => {
            let origin = loaded.origins.get(key.path).map_or("default", String::as_str);
            format!("{name} = {value}  # {origin}\n")
        }
        None => format!("# {name} =  # not set; write {}\n", key.accepts),
    }
}
