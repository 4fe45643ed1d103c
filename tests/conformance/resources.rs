//! Resources to read: text, bytes, and a template that is filled in.

use rmcp::model::{
    ErrorData, ListResourceTemplatesResult, ListResourcesResult, ReadResourceResult, Resource, ResourceContents,
    ResourceTemplate,
};
use serde_json::json;

use crate::tools::PIXEL;

/// How long a client may keep what it has read, in milliseconds. What could be watched never changes.
pub(crate) const TTL_MS: u64 = 60_000;

pub(crate) fn list() -> ListResourcesResult {
    let resource = |uri: &str, name: &str, media: &str| {
        Resource::new(uri, name).with_description("A resource of the conformance tests.").with_mime_type(media)
    };
    let all = vec![
        resource("test://static-text", "static text", "text/plain"),
        resource("test://static-binary", "static binary", "image/png"),
        resource("test://watched-resource", "watched", "text/plain"),
    ];
    ListResourcesResult::with_all_items(all).with_ttl_ms(TTL_MS)
}

pub(crate) fn templates() -> ListResourceTemplatesResult {
    let template = ResourceTemplate::new("test://template/{id}/data", "data by id")
        .with_description("A template of the conformance tests.")
        .with_mime_type("application/json");
    ListResourceTemplatesResult::with_all_items(vec![template]).with_ttl_ms(TTL_MS)
}

pub(crate) fn read(uri: &str) -> Result<ReadResourceResult, ErrorData> {
    let contents = match uri {
        "test://static-text" => ResourceContents::text("This is the content of the static text resource.", uri),
        "test://static-binary" => ResourceContents::blob(PIXEL, uri).with_mime_type("image/png"),
        "test://watched-resource" => ResourceContents::text("Nothing has happened.", uri),
        _ => filled_in(uri).ok_or_else(|| {
            ErrorData::resource_not_found(
                format!("no resource `{uri}`; resources/list names the resources there are"),
                Some(json!({ "uri": uri })),
            )
        })?,
    };
    Ok(ReadResourceResult::new(vec![contents]).with_ttl_ms(TTL_MS))
}

fn filled_in(uri: &str) -> Option<ResourceContents> {
    let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
    let data = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
    Some(ResourceContents::text(data.to_string(), uri).with_mime_type("application/json"))
}
