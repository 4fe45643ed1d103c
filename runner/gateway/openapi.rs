//! The OpenAPI document, written from the table of routes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::Gateway;
use super::routes::{self, Answer, Route};
use super::schema::{for_components, tidy};
use crate::api::ErrorView;

pub(super) async fn serve(State(_): State<Arc<Gateway>>) -> Json<Value> {
    Json(document(&routes::all()))
}

/// OpenAPI 3.1 for `routes`; every operation may also answer with an error.
pub(super) fn document(routes: &[Route]) -> Value {
    let mut schemas = for_components();
    let error = schemas.subschema_for::<ErrorView>();
    let error = json!({
        "description": "Refused: fact, value and next step.",
        "content": {"application/json": {"schema": error}}
    });
    let mut paths = Map::new();
    for route in routes {
        let mut answers = Map::new();
        for answer in &route.answers {
            answers.insert(answer.status.to_string(), described(answer, &mut schemas));
        }
        for status in refusals(route) {
            answers.entry(*status).or_insert_with(|| json!({"$ref": "#/components/responses/Refused"}));
        }
        let mut operation = json!({
            "operationId": route.name,
            "summary": route.told,
            "responses": answers,
        });
        if !route.parameters.is_empty() {
            operation["parameters"] = route.parameters.iter().map(parameter).collect();
        }
        if let Some((media, schema)) = route.body {
            let schema = schema.map(|schema| json!({"schema": schema(&mut schemas)})).unwrap_or_else(|| json!({}));
            operation["requestBody"] = json!({"required": true, "content": {media: schema}});
        }
        let path = route.path.replace("{*", "{");
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "drydock",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Runs finetuning jobs in sealed containers. MCP is at /mcp.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"responses": {"Refused": error}, "schemas": schemas.take_definitions(true)},
    });
    tidy(&mut document["components"]["schemas"]);
    document
}

fn described(answer: &Answer, schemas: &mut schemars::SchemaGenerator) -> Value {
    let mut described = json!({"description": answer.told});
    if let Some((media, schema)) = answer.body {
        described["content"] = json!({media: {}});
        if let Some(schema) = schema {
            described["content"][media]["schema"] = schema(schemas).to_value();
        }
    }
    described
}

/// The statuses with which a route may refuse, besides those that any server may send.
fn refusals(route: &Route) -> &'static [&'static str] {
    match (route.body.is_some(), route.parameters.iter().any(|parameter| parameter.place == "path")) {
        (true, true) => &["400", "403", "404", "409", "413", "415", "422", "500", "502", "503", "507"],
        (true, false) => &["400", "403", "409", "413", "415", "422", "500", "502", "503", "507"],
        (false, true) => &["400", "403", "404", "500"],
        (false, false) => &["400", "403", "500"],
    }
}

fn parameter(parameter: &routes::Parameter) -> Value {
    json!({
        "in": parameter.place,
        "name": parameter.name,
        "required": parameter.required,
        "description": parameter.told,
        "schema": parameter.schema,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Object(object) => {
                if let Some(Value::String(target)) = object.get("$ref") {
                    found.insert(target.clone());
                }
                object.values().for_each(|item| references(item, found));
            }
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document(&routes::all());
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in &found {
            assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(found.contains(&format!("#/components/schemas/{name}")), "{name} is not used");
        }
    }

    #[test]
    fn every_route_is_described_once() {
        let routes = routes::all();
        let document = document(&routes);
        let mut names = BTreeSet::new();
        for route in &routes {
            let path = route.path.replace("{*", "{");
            let operation = &document["paths"][&path][route.method.as_str().to_ascii_lowercase()];
            assert_eq!(operation["operationId"], route.name, "{path}");
            assert!(names.insert(route.name), "{} is there twice", route.name);
            for part in path.split('/').filter_map(|part| part.strip_prefix('{')) {
                let name = part.trim_end_matches('}');
                assert!(route.parameters.iter().any(|parameter| parameter.name == name), "{path}: {name}");
            }
        }
        let operations: usize =
            document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(operations, routes.len());
    }
}
