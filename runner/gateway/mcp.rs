//! MCP over streamable HTTP: both eras of the protocol on one path, without sessions.

use std::sync::Arc;

use drydock_spec::JobArgs;
use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, CompleteRequestMethod, CompleteRequestParams,
    CompleteResult, ErrorData, GetTaskParams, GetTaskResult, Implementation, ListPromptsRequestMethod,
    ListPromptsResult, ListResourceTemplatesRequestMethod, ListResourceTemplatesResult, ListResourcesRequestMethod,
    ListResourcesResult, ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ProgressToken,
    ServerCapabilities, ServerConfig, Tool, UpdateTaskParams,
};
use rmcp::service::{Peer, RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use super::calls::{self, arguments};
use super::error::Refusal;
use super::tools::{self, WaitArgs};
use super::{Gateway, body, tasks};
use crate::api::JobView;

/// The endpoint. Host and Origin are checked by the guard that stands before every route.
pub(super) fn service<S: ServerHandler + Clone>(
    server: S,
    max_body: u64,
) -> StreamableHttpService<S, NeverSessionManager> {
    let config = StreamableHttpServerConfig::default()
        // A legacy session costs memory for as long as its client forgets to end it, and gives nothing here.
        .with_legacy_session_mode(false)
        // One JSON document, unless progress was asked for and a stream is needed.
        .with_json_response(true)
        .with_max_request_body_bytes(usize::try_from(max_body).unwrap_or(usize::MAX))
        .disable_allowed_hosts();
    StreamableHttpService::new(move || Ok(server.clone()), Arc::new(NeverSessionManager::default()), config)
}

/// Speaks MCP for the gateway.
#[derive(Clone)]
pub struct Server(Arc<Gateway>);

impl Server {
    pub(super) fn new(gateway: &Arc<Gateway>) -> Self {
        Self(gateway.clone())
    }

    async fn call(
        &self,
        name: &str,
        given: rmcp::model::JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, Refusal> {
        let gateway = &*self.0;
        let told = match name {
            "finetune" => calls::submit(gateway, given, JobArgs::Finetune).await,
            "train" => calls::submit(gateway, given, JobArgs::Train).await,
            "quantize" => calls::submit(gateway, given, JobArgs::Quantize).await,
            "evaluate" => calls::submit(gateway, given, JobArgs::Evaluate).await,
            "get_job" => calls::get_job(gateway, arguments(given)?).await,
            "list_jobs" => calls::list_jobs(gateway, arguments(given)?).await,
            "wait_for_job" => return self.wait(arguments(given)?, context).await,
            "get_logs" => calls::get_logs(gateway, arguments(given)?).await,
            "get_metrics" => calls::get_metrics(gateway, arguments(given)?).await,
            "cancel_job" => calls::cancel_job(gateway, arguments(given)?).await,
            "explain_failure" => calls::explain_failure(gateway, arguments(given)?).await,
            "suggest_remedies" => calls::suggest_remedies(gateway, arguments(given)?).await,
            "apply_remedy" => calls::apply_remedy(gateway, arguments(given)?).await,
            "list_models" => calls::list_models(gateway, arguments(given)?).await,
            "load_dataset" => calls::load_dataset(gateway, arguments(given)?).await,
            "list_gpus" => calls::list_gpus(gateway, arguments(given)?).await,
            "list_artifacts" => calls::list_artifacts(gateway, arguments(given)?).await,
            // The caller has looked the name up; an unknown tool ends here only if the table grew without this list.
            _ => Err(Refusal::bad_request("unknown_tool", format!("no tool `{name}`"))),
        };
        told.map(CallToolResponse::Complete)
    }

    /// Waits, and says meanwhile how far the job has come. A client that understands tasks gets a handle instead: it
    /// can ask whenever it likes.
    async fn wait(&self, args: WaitArgs, context: &RequestContext<RoleServer>) -> Result<CallToolResponse, Refusal> {
        let desk = &self.0.desk;
        let (id, patience) = (body::job_id(&args.id)?, calls::patience(&args)?);
        // The wait first: what changes after the first look is news to it.
        let mut wait = desk.wait(id, patience).await?;
        let mut job = desk.job(id).await?;
        if !job.is_done() && tasks::understood(context) {
            return Ok(CallToolResponse::Task(tasks::handle(&self.0, &job).await?));
        }
        let mut progress = Progress::new(context);
        while wait.goes_on(&job) {
            progress.tell(&job).await;
            job = tokio::select! {
                job = wait.next() => job?,
                () = self.0.shutdown.cancelled() => break,
                () = context.ct.cancelled() => break,
            };
        }
        calls::job(job).map(CallToolResponse::Complete)
    }
}

/// Tells a waiting client how far its job has come, if it wants to hear of it.
struct Progress {
    to: Option<(ProgressToken, Peer<RoleServer>)>,
    last: f64,
}

impl Progress {
    fn new(context: &RequestContext<RoleServer>) -> Self {
        let to = context.meta.get_progress_token().map(|token| (token, context.peer.clone()));
        Self { to, last: 0.0 }
    }

    async fn tell(&mut self, job: &JobView) {
        let Some((token, peer)) = &self.to else { return };
        let progress = job.progress.as_ref();
        let counted = match job.counts_parts() {
            true => progress.and_then(|progress| progress.part).map(|part| (part.done, part.total)),
            false => progress.and_then(|progress| progress.metrics.as_ref()).map(|at| (at.step, at.total_steps)),
        };
        // The protocol wants a number that grows with every notification, also while a step takes its time and when a
        // new attempt begins at step 0 again.
        let done = counted.map_or(0.0, |(done, _)| done as f64);
        self.last = done.max(self.last + 1e-3);
        let mut news = ProgressNotificationParam::new(token.clone(), self.last).with_message(job.summary.clone());
        if let Some((_, total)) = counted {
            news = news.with_total((total as f64).max(self.last));
        }
        if let Err(error) = peer.notify_progress(news).await {
            tracing::debug!(%error, "a client that waits hears nothing any more");
            self.to = None;
        }
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tasks().build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("drydock", env!("CARGO_PKG_VERSION")).with_title("drydock"))
            .with_instructions(tools::INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // The tools change only with the program.
        Ok(ListToolsResult::with_all_items(tools::all().to_vec()).with_ttl_ms(300_000))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::named(name).cloned()
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if tools::named(&request.name).is_none() {
            let message = format!("no tool `{}`; tools/list names the tools there are", request.name);
            return Err(ErrorData::invalid_params(message, None));
        }
        let given = request.arguments.unwrap_or_default();
        // What is wrong with a call is said to the model, which can mend it, and not to its host, which cannot.
        Ok(self.call(&request.name, given, &context).await.unwrap_or_else(|refusal| calls::refused(refusal).into()))
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        tasks::get(&self.0, &request.task_id).await
    }

    async fn update_task(&self, request: UpdateTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        tasks::update(&self.0, &request.task_id).await
    }

    async fn cancel_task(&self, request: CancelTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        tasks::cancel(&self.0, &request.task_id).await
    }

    // The four below are answered with an empty list by default, as if there were such things here.

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListPromptsRequestMethod>())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListResourcesRequestMethod>())
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListResourceTemplatesRequestMethod>())
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        Err(ErrorData::method_not_found::<CompleteRequestMethod>())
    }
}
