//! JSON schemas for MCP and OpenAPI, made from the same types by the same rules.

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

/// Makes schemas whose shared parts are kept apart, for a document that has a place for them.
pub(super) fn for_components() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator()
}

/// The whole schema of `T` in one piece: models follow references badly.
pub(super) fn whole<T: JsonSchema>() -> Map<String, Value> {
    let generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    match schema {
        Value::Object(mut schema) => {
            // The name of a Rust type says nothing to a client.
            schema.remove("title");
            schema.remove("description");
            schema
        }
        _ => Map::new(),
    }
}

/// The same without its explanations: what comes back explains itself, and some hosts put every tool's whole schema
/// before the model.
pub(super) fn terse<T: JsonSchema>() -> Map<String, Value> {
    let mut schema = Value::Object(whole::<T>());
    drop_descriptions(&mut schema);
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

fn drop_descriptions(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(drop_descriptions),
        Value::Object(object) => {
            // A property may be called `description`; its schema is no text.
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(drop_descriptions);
        }
        _ => {}
    }
}

/// Takes out what readers of schemas stumble over, and nothing that matters: the ends of lines within a sentence, formats
/// such as `uint32` that no standard knows, `null` where leaving a field out says the same, and lists of constants that are plainly an `enum`.
pub(super) fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(object) => {
            object.values_mut().for_each(tidy);
            join_lines(object);
            drop_number_format(object);
            drop_null(object);
            constants_to_enum(object);
        }
        _ => {}
    }
}

/// A sentence goes on over the end of a line in the source, which is nobody else's business.
fn join_lines(object: &mut Map<String, Value>) {
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
}

fn drop_number_format(object: &mut Map<String, Value>) {
    let known = object.get("format").and_then(Value::as_str);
    if known.is_some_and(|format| format.trim_start_matches('u').starts_with("int") || format == "double") {
        object.remove("format");
    }
}

fn drop_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(words)) = object.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice != &json!({"type": "null"}));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            object.remove("anyOf");
            for (key, value) in only {
                // What is said about the field is more to the point than what is said about its type.
                object.entry(key).or_insert(value);
            }
        }
    }
    if object.get("default").is_some_and(|default| default.is_null() || default == "") {
        object.remove("default");
    }
}

fn constants_to_enum(object: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = object.get("oneOf") else { return };
    let mut names = Vec::new();
    let mut told = Vec::new();
    for choice in choices {
        if choice.get("type").and_then(Value::as_str) != Some("string") {
            return;
        }
        match (choice.get("const"), choice.get("enum").and_then(Value::as_array)) {
            (Some(name), _) => {
                if let (Some(name), Some(text)) = (name.as_str(), choice.get("description").and_then(Value::as_str)) {
                    told.push(format!("{name}: {text}"));
                }
                names.push(name.clone());
            }
            (None, Some(several)) => names.extend(several.iter().cloned()),
            (None, None) => return,
        }
    }
    object.remove("oneOf");
    object.insert("type".into(), "string".into());
    object.insert("enum".into(), Value::Array(names));
    if !told.is_empty() {
        let before = object.get("description").and_then(Value::as_str).map(|text| format!("{text} "));
        let description = format!("{}{}", before.unwrap_or_default(), told.join(" "));
        object.insert("description".into(), description.into());
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::FinetuneArgs;

    use super::*;

    #[test]
    fn a_tidy_schema_is_plain_and_strict() {
        let schema = whole::<FinetuneArgs>();
        let text = Value::Object(schema.clone()).to_string();
        assert!(!text.contains("\"format\""), "{text}");
        assert!(!text.contains("null"), "{text}");
        assert!(!text.contains("$ref"), "{text}");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["required"], json!(["model", "dataset"]));
        assert_eq!(schema["properties"]["lr_scheduler_type"]["enum"], json!(["linear", "cosine", "constant"]));
    }
}
