//! The gateway with the tools that the protocol's own conformance tests call, behind the same guard and on the same
//! transport as ever. Its slow tools are jobs that somebody moves by hand, so that what is tested about tasks is what
//! is said of real jobs.
//!
//! `cargo run --example conformance -- PORT`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use drydock::config::Config;
use drydock::gateway::{self, mcp::Server};
use drydock::store::{Lease, Store};
use drydock_spec::{Failure, FailureKind, JobState, Outcome};
use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, CompleteRequestParams, CompleteResult,
    ContentBlock, ErrorData, GetTaskParams, GetTaskResult, JsonObject, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ResourceContents,
    ServerConfig, Tool, UpdateTaskParams,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[allow(dead_code, reason = "the tests of the gateway use the rest of it")]
#[path = "../gateway/house.rs"]
mod house;

/// A PNG of one red pixel, and a WAV of no samples.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==";
const SILENCE: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";

#[tokio::main]
async fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("the first argument is a port");
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { state_dir: folder.path().to_owned(), ..Config::default() };
    config.gateway.listen.set_port(port);
    let whole = house::whole(config).await;
    let (desk, store) = (whole.desk.clone(), whole.desk.store.clone());
    let app = gateway::router_around(desk, CancellationToken::new(), |server| Fixtures { server, store });
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    axum::serve(listener, app).await.unwrap();
}

#[derive(Clone)]
struct Fixtures {
    server: Server,
    store: Store,
}

impl Fixtures {
    /// A tool's answer, or `None` if the tool is not one of these.
    async fn answer(
        &self,
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
            "test_x_mcp_header" | "test_logging_tool" => vec![ContentBlock::text("done")],
            "test_missing_capability" => {
                let Ok(needed) = serde_json::from_value(json!({"sampling": {}})) else { unreachable!("a capability") };
                return Some(Err(ErrorData::missing_required_client_capability(needed)));
            }
            _ => return None,
        };
        Some(Ok(CallToolResult::success(content)))
    }

    /// Starts a job that takes `seconds`, and waits for it as any client does.
    async fn job(
        &self,
        seconds: f64,
        outcome: Outcome,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let lease = house::run(&self.store).await;
        let id = lease.job().id;
        let running = tokio::spawn(carry_out(self.store.clone(), lease, Duration::from_secs_f64(seconds), outcome));
        if seconds == 0.0 {
            running.await.unwrap();
        }
        let arguments = JsonObject::from_iter([("id".to_owned(), json!(id))]);
        let wait = CallToolRequestParams::new("wait_for_job").with_arguments(arguments);
        self.server.call_tool(wait, context).await
    }
}

/// What a worker would do: take its time, and leave when it is asked to.
async fn carry_out(store: Store, lease: Lease, time: Duration, outcome: Outcome) {
    let id = lease.job().id;
    let mut news = store.changes().subscribe(id);
    let cancelled = async {
        while !matches!(store.job(id).await.unwrap().state, JobState::Stopping { .. }) {
            news.changed().await;
        }
    };
    let outcome = tokio::select! {
        () = tokio::time::sleep(time) => outcome,
        () = cancelled => Outcome::Cancelled,
    };
    lease.finish(outcome, &[], 0).await.unwrap();
}

fn resource(uri: &str, media: &str, text: &str) -> ContentBlock {
    ContentBlock::resource(ResourceContents::text(text, uri).with_mime_type(media))
}

fn tool(name: &'static str, properties: Value) -> Tool {
    tool_with(name, json!({"type": "object", "properties": properties}))
}

fn tool_with(name: &'static str, schema: Value) -> Tool {
    let Value::Object(schema) = schema else { unreachable!("schemas are objects") };
    Tool::new(name, "A tool of the conformance tests.", Arc::new(schema))
}

fn tools() -> Vec<Tool> {
    let mut tools: Vec<_> = [
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_error_handling",
        "test_tool_with_progress",
        "test_logging_tool",
        "test_missing_capability",
        "failing_job",
    ]
    .map(|name| tool(name, json!({})))
    .into();
    tools.push(tool("greet", json!({"name": {"type": "string"}})));
    tools.push(tool("slow_compute", json!({"seconds": {"type": "number"}, "label": {"type": "string"}})));
    let region = json!({"type": "string", "x-mcp-header": "Region"});
    tools.push(tool("test_x_mcp_header", json!({"region": region})));
    tools.push(tool_with("json_schema_2020_12_tool", schema_2020_12()));
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

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        self.server.get_info()
    }

    async fn list_tools(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut list = self.server.list_tools(page, context).await?;
        list.tools.extend(tools());
        Ok(list)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.server.get_tool(name).or_else(|| tools().into_iter().find(|tool| tool.name == name))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(answer) = self.answer(&request, &context).await {
            return answer.map(CallToolResponse::Complete);
        }
        let seconds = request.arguments.as_ref().and_then(|arguments| arguments.get("seconds")?.as_f64());
        match request.name.as_ref() {
            "slow_compute" => self.job(seconds.unwrap_or(1.0), Outcome::Succeeded, context).await,
            "failing_job" => {
                let failure = Failure::new(FailureKind::Diverged, "the loss is not a number");
                self.job(1.0, Outcome::Failed(failure), context).await
            }
            _ => self.server.call_tool(request, context).await,
        }
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        self.server.get_task(request, context).await
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.server.update_task(request, context).await
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.server.cancel_task(request, context).await
    }

    async fn list_prompts(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        self.server.list_prompts(page, context).await
    }

    async fn list_resources(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        self.server.list_resources(page, context).await
    }

    async fn list_resource_templates(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        self.server.list_resource_templates(page, context).await
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        self.server.complete(request, context).await
    }
}
