//! Tools that answer at once, one for each kind of answer that the protocol has.

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResult, ContentBlock, ErrorData, ProgressNotificationParam, ResourceContents, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Value, json};

use crate::{input, notices};

/// A PNG of one red pixel, and a WAV of no samples.
pub(crate) const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==";
const SILENCE: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";

/// The tool that comes and goes.
const PASSING: &str = "test_passing_tool";

/// A tool's answer, or `None` if the tool is not one of these.
pub(crate) async fn answer(
    request: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Option<Result<CallToolResult, ErrorData>> {
    let argument = |name: &str| request.arguments.as_ref().and_then(|arguments| arguments.get(name)).cloned();
    let content = match request.name.as_ref() {
        "test_simple_text" => vec![ContentBlock::text("This is a simple text response for testing.")],
        "test_image_content" => vec![ContentBlock::image(PIXEL, "image/png")],
        "test_audio_content" => vec![ContentBlock::audio(SILENCE, "audio/wav")],
        "test_embedded_resource" => {
            vec![resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]
        }
        "test_multiple_content_types" => vec![
            ContentBlock::text("Multiple content types test:"),
            ContentBlock::image(PIXEL, "image/png"),
            resource("test://mixed-content-resource", "application/json", r#"{"test":"data","value":123}"#),
        ],
        "test_error_handling" => {
            let text = "This tool intentionally returns an error for testing";
            return Some(Ok(CallToolResult::error(vec![ContentBlock::text(text)])));
        }
        "test_tool_with_progress" => {
            if let Some(token) = context.meta.get_progress_token() {
                for progress in [0.0, 50.0, 100.0] {
                    let news = ProgressNotificationParam::new(token.clone(), progress).with_total(100.0);
                    context.peer.notify_progress(news).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            vec![ContentBlock::text("done")]
        }
        "json_schema_2020_12_tool" => vec![ContentBlock::text("done")],
        "greet" => {
            let name = argument("name").and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
            vec![ContentBlock::text(format!("Hello, {name}!"))]
        }
        "test_tool_with_logging" | "test_logging_tool" => match notices::log_at_work(context).await {
            Ok(()) => vec![ContentBlock::text("done")],
            Err(error) => return Some(Err(error)),
        },
        "test_x_mcp_header" | PASSING => vec![ContentBlock::text("done")],
        _ => return None,
    };
    Some(Ok(CallToolResult::success(content)))
}

pub(crate) fn text(text: String) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

pub(crate) fn resource(uri: &str, media: &str, text: &str) -> ContentBlock {
    ContentBlock::resource(ResourceContents::text(text, uri).with_mime_type(media))
}

fn tool(name: &'static str, properties: Value) -> Tool {
    tool_with(name, json!({"type": "object", "properties": properties}))
}

fn tool_with(name: &'static str, schema: Value) -> Tool {
    let Value::Object(schema) = schema else { unreachable!("schemas are objects") };
    Tool::new(name, "A tool of the conformance tests.", Arc::new(schema))
}

/// The tools there are, with or without the one that comes and goes.
pub(crate) fn all(passing: bool) -> Vec<Tool> {
    let mut tools: Vec<_> = [
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_error_handling",
        "test_tool_with_progress",
        "test_tool_with_logging",
        "test_logging_tool",
        "test_trigger_tool_change",
        "test_trigger_prompt_change",
        "failing_job",
    ]
    .map(|name| tool(name, json!({})))
    .into();
    tools.push(tool("greet", json!({"name": {"type": "string"}})));
    tools.push(tool("slow_compute", json!({"seconds": {"type": "number"}, "label": {"type": "string"}})));
    let region = json!({"type": "string", "x-mcp-header": "Region"});
    tools.push(tool("test_x_mcp_header", json!({"region": region})));
    tools.push(tool_with("json_schema_2020_12_tool", schema_2020_12()));
    tools.extend(input::TOOLS.map(|name| tool(name, json!({}))));
    if passing {
        tools.push(tool(PASSING, json!({})));
    }
    tools
}

/// Keywords of the dialect that a server must hand on as they are.
fn schema_2020_12() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}}
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"}
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false
    })
}
