//! The gateway with what the protocol's own conformance tests ask for and drydock has no use for, behind the same guard
//! and on the same transport as ever: tools for each kind of answer, prompts, resources, and questions to the client in
//! the middle of a call. Its slow tools are jobs that somebody moves by hand, so that what is tested about tasks is what
//! is said of real jobs.
//!
//! `cargo run --example conformance -- PORT`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(deprecated, reason = "what the newest revision advises against is tested all the same")]

use drydock::config::Config;
use drydock::gateway::{self, mcp::Server};
use drydock::store::Store;
use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, CompleteRequestParams, CompleteResult, ErrorData,
    GetPromptRequestParams, GetPromptResponse, GetTaskParams, GetTaskResult, ListPromptsResult,
    ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
    ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities, ServerConfig, SetLevelRequestParams,
    SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams, UpdateTaskParams,
};
use rmcp::service::{RequestContext, RoleServer, SubscriptionContext};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use input::{Dialogues, Said, Turn};
use jobs::Staged;
use notices::Lists;

#[allow(dead_code, reason = "the tests of the gateway use the rest of it")]
#[path = "../gateway/house.rs"]
mod house;
mod input;
mod jobs;
mod notices;
mod prompts;
mod resources;
mod tools;

#[tokio::main]
async fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("the first argument is a port");
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { state_dir: folder.path().to_owned(), ..Config::default() };
    config.gateway.listen.set_port(port);
    let whole = house::whole(config).await;
    let (desk, store) = (whole.desk.clone(), whole.desk.store.clone());
    let (lists, dialogues) = (Lists::new(), Dialogues::new());
    let app =
        gateway::router_around(desk, CancellationToken::new(), |server| Fixtures { server, store, lists, dialogues });
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    axum::serve(listener, app).await.unwrap();
}

#[derive(Clone)]
struct Fixtures {
    server: Server,
    store: Store,
    lists: Lists,
    dialogues: Dialogues,
}

impl Fixtures {
    fn tools(&self) -> Vec<Tool> {
        tools::all(*self.lists.tool.borrow())
    }
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let mut info = self.server.get_info();
        // The extensions are those of the real server.
        let extensions = info.capabilities.extensions.take();
        info.capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_completions()
            .enable_logging()
            .build();
        info.capabilities.extensions = extensions;
        info
    }

    async fn list_tools(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut list = self.server.list_tools(page, context).await?;
        list.tools.extend(self.tools());
        Ok(list)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.server.get_tool(name).or_else(|| self.tools().into_iter().find(|tool| tool.name == name))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if input::TOOLS.contains(&request.name.as_ref()) {
            let heard = match self.dialogues.go_on(&Said::from(&request), &context)? {
                Turn::Ask(question) => return Ok(question.into()),
                Turn::Done(heard) => heard,
            };
            if request.name == "test_tool_with_task" {
                return Staged::on(input::user(&heard).unwrap_or("tiny"))
                    .wait_for(&self.server, &self.store, context)
                    .await;
            }
            return Ok(tools::text(input::told(&heard)).into());
        }
        if request.name == "failing_job" {
            jobs::insist_on_tasks(&context)?;
        }
        if let Some(job) = Staged::by(&request) {
            return job.wait_for(&self.server, &self.store, context).await;
        }
        if let Some(answer) = tools::answer(&request, &context).await {
            return answer.map(CallToolResponse::Complete);
        }
        match request.name.as_ref() {
            "test_trigger_tool_change" => Ok(notices::toggle(&self.lists.tool)),
            "test_trigger_prompt_change" => Ok(notices::toggle(&self.lists.prompt)),
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
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(prompts::list(*self.lists.prompt.borrow()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name == prompts::ASKING {
            return Ok(match self.dialogues.go_on(&Said::from(&request), &context)? {
                Turn::Ask(question) => question.into(),
                Turn::Done(heard) => prompts::around(&heard).into(),
            });
        }
        prompts::get(&request).map(GetPromptResponse::Complete)
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(resources::list())
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(resources::templates())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        resources::read(&request.uri).map(ReadResourceResponse::Complete)
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        self.lists.follow(&subscription).await
    }

    // Whoever watches a resource hears nothing, in either revision, for none ever changes.

    async fn subscribe(&self, request: SubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        resources::read(&request.uri).map(drop)
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        resources::read(&request.uri).map(drop)
    }

    async fn set_level(&self, _: SetLevelRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        prompts::complete(&request)
    }
}
