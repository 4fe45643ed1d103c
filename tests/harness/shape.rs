//! Whether an answer has what its schema requires: strict clients refuse one that has not.

use serde_json::Value;

/// The first place where `value` lacks what `schema` requires. Follows what our schemas use: `$ref`, `properties`,
/// `items` and `required`.
pub fn lacking(root: &Value, schema: &Value, value: &Value, path: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.strip_prefix('#').unwrap_or_else(|| panic!("{name} is not within the schema"));
        let target = root.pointer(pointer).unwrap_or_else(|| panic!("{name} leads nowhere"));
        return lacking(root, target, value, path);
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        return values.iter().enumerate().find_map(|(i, value)| lacking(root, items, value, &format!("{path}[{i}]")));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(name) = required.into_iter().find(|name| !fields.contains_key(*name)) {
        return Some(format!("{path}.{name} is required"));
    }
    let properties = schema["properties"].as_object()?;
    fields.iter().find_map(|(name, value)| lacking(root, properties.get(name)?, value, &format!("{path}.{name}")))
}
