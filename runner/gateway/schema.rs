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

/// Levels of fields that an outline has.
const LEVELS: u32 = 2;

/// The schema of an answer in outline: the fields of two levels, the types of their values, and which of the first level
/// are always there. An answer explains itself when it is seen, but some hosts put every tool's whole schema before the model, where
/// it stays for as long as they talk.
pub(super) fn outline<T: JsonSchema>() -> Map<String, Value> {
    match outlined(&Value::Object(whole::<T>()), LEVELS) {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

/// Says less than the schema and nothing else: whatever fits the schema fits the outline.
fn outlined(schema: &Value, levels: u32) -> Value {
    let mut outline = Map::new();
    match schema.get("type") {
        Some(kind) => outline.insert("type".into(), kind.clone()),
        None if is_choice_of_objects(schema) => outline.insert("type".into(), "object".into()),
        None => None,
    };
    if let Some(items) = schema.get("items") {
        outline.insert("items".into(), outlined(items, levels));
    }
    if let (Some(Value::Object(fields)), Some(levels)) = (schema.get("properties"), levels.checked_sub(1)) {
        let fields = fields.iter().map(|(name, field)| (name.clone(), outlined(field, levels)));
        outline.insert("properties".into(), Value::Object(fields.collect()));
        let required = schema.get("required").filter(|_| levels + 1 == LEVELS);
        outline.extend(required.map(|names| ("required".into(), names.clone())));
    }
    Value::Object(outline)
}

fn is_choice_of_objects(schema: &Value) -> bool {
    let choices = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(*key)?.as_array());
    choices.is_some_and(|choices| choices.iter().all(|choice| choice["type"] == "object"))
}

/// Takes the explanations of an object's fields away, for where they stand elsewhere.
pub(super) fn without_explanations(schema: &mut Value) {
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        for field in fields.values_mut().filter_map(Value::as_object_mut) {
            field.remove("description");
        }
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
    fn an_outline_has_two_levels_and_asks_for_nothing_else() {
        let schema = json!({
            "type": "object", "required": ["type"], "description": "d",
            "properties": {
                "type": {"type": "string", "enum": ["a"], "description": "d"},
                "list": {"type": "array", "items": {
                    "type": "object", "required": ["deep"],
                    "properties": {"deep": {"type": "object", "required": ["x"], "properties": {"x": {"minimum": 1}}}}
                }},
                "choice": {"oneOf": [{"type": "object"}, {"type": "object"}]},
                "any": {"oneOf": [{"type": "object"}, {"type": "string"}]}
            }
        });
        let outline = json!({
            "type": "object", "required": ["type"],
            "properties": {
                "type": {"type": "string"},
                "list": {"type": "array", "items": {
                    "type": "object", "properties": {"deep": {"type": "object"}}
                }},
                "choice": {"type": "object"},
                "any": {}
            }
        });
        assert_eq!(outlined(&schema, LEVELS), outline);
    }

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
